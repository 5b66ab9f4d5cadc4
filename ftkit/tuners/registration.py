"""Makes PEFT know ftkit's own tuners, so that it saves, loads, switches and merges them like its own.

A tuner is one file in this folder that defines one `PeftConfig` subclass and one `BaseTuner` subclass. Its PEFT name is the
file name; the config sets `peft_type` to that name in capitals. Files that define neither are helpers.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

NOT_TUNERS = {"__init__", Path(__file__).stem}


def register_tuners() -> None:
    """Registers every tuner file of this folder with PEFT. Calling it again changes nothing."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in NOT_TUNERS:
            continue
        module = importlib.import_module(f"ftkit.tuners.{path.stem}")
        configs, models = _defined(module, PeftConfig), _defined(module, BaseTuner)
        if configs and models:
            register_tuner(path.stem, configs[0], models[0])


def register_tuner(name: str, config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """Registers one tuner under `name` (lower case); a name that PEFT knows already is left alone.

    `model.prefix` must start the name of each of its parameters and belong to no other tuner.
    """
    peft_type = _peft_type(name.upper())
    if peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config, model_cls=model, prefix=model.prefix)


def _defined(module: ModuleType, base: type) -> list[Any]:
    found = [cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, base)]
    return [cls for cls in found if cls.__module__ == module.__name__]


def _peft_type(name: str) -> PeftType:
    """The member of PEFT's closed enum, added if it is new.

    PEFT refuses names outside the enum, and PEFT and transformers read `.value`, so a plain string will not do.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    # `EnumMeta` refuses to set attributes that are members.
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member
