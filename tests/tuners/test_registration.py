from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType

from ftkit.tuners.bitfit import BitFitConfig, BitFitModel
from ftkit.tuners.registration import register_tuner, register_tuners


def test_tuner_files_are_known_to_peft() -> None:
    kind = PeftType("BITFIT")
    assert PEFT_TYPE_TO_CONFIG_MAPPING[kind] is BitFitConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[kind] is BitFitModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[kind] == "bitfit_"


def test_registering_again_changes_nothing() -> None:
    before = dict(PEFT_TYPE_TO_TUNER_MAPPING)
    register_tuners()
    assert before == PEFT_TYPE_TO_TUNER_MAPPING


def test_a_new_member_behaves_like_the_others() -> None:
    kind = PeftType.BITFIT  # type: ignore[attr-defined]
    assert (kind, kind.value, kind.name) == ("BITFIT", "BITFIT", "BITFIT")
    assert kind in list(PeftType)
    assert copy.deepcopy(kind) is kind
    assert BitFitConfig().to_dict()["peft_type"] == "BITFIT"


def test_a_plug_in_registers_its_own_tuner() -> None:
    @dataclass
    class OwnConfig(PeftConfig):
        pass

    class OwnModel(BaseTuner):
        prefix = "own_tuner_for_this_test_"

    try:
        register_tuner("own_tuner_for_this_test", OwnConfig, OwnModel)
        assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType("OWN_TUNER_FOR_THIS_TEST")] is OwnModel
    finally:
        kind = PeftType("OWN_TUNER_FOR_THIS_TEST")
        for mapping in (PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
            del mapping[kind]


def test_importing_the_folder_is_enough_and_importing_ftkit_loads_no_peft() -> None:
    code = (
        "import sys, ftkit, ftkit.registry; ftkit.registry.METHODS.get('bitfit'); assert 'peft' not in sys.modules;"
        "import ftkit.tuners; from peft.utils import PeftType; PeftType('BITFIT')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
