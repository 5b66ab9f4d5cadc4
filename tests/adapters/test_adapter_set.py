from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import ftkit
from ftkit.errors import DataError, FtkitError
from ftkit.run.adapter_set import AdapterSet
from tests.adapters.conftest import Train

TEXTS = ["w1 w2 w30", "w11 w31", "w21 w22 w35 w1", "w33", "w12 w2 w22"]


def alone(run: Path, rows: Iterable[Any] = TEXTS) -> list[dict[str, Any]]:
    return list(ftkit.load(run).predict(rows))


def same(found: Iterable[dict[str, Any]], expected: Iterable[dict[str, Any]]) -> None:
    for one, two in zip(found, expected, strict=True):
        assert one["label"] == two["label"]
        assert one["probabilities"] == pytest.approx(two["probabilities"], abs=1e-5)


@pytest.fixture(scope="module")
def runs(first: Path, second: Path, relabeled: Path, renamed: Path, train: Train) -> list[Path]:
    """Two of one recipe, one with fewer labels, one of another rank, one whose start changes the base, one of another kind, and one with
    other names for as many labels."""
    return [
        first,
        second,
        relabeled,
        train("rslora", method="{name: lora, rank: 2, rslora: true, targets: [key, ffn_in]}"),
        train("pissa", method="{name: lora, rank: 4, init: pissa}"),
        train("bottleneck", method="adapter", export="[adapter]"),
        renamed,
    ]


def test_each_adapter_answers_as_if_it_were_alone(runs: list[Path]) -> None:
    loaded = ftkit.load_adapters(runs[0], runs[1:])
    assert loaded.names == [run.name for run in runs]
    found = list(loaded.predict(TEXTS, batch_size=2))
    assert [result["adapter"] for result in found] == loaded.names * len(TEXTS)
    for run in runs:
        same([result for result in found if result["adapter"] == run.name], alone(run))
    # And once more, when all have been in place before.
    again = list(loaded.predict(TEXTS, batch_size=5))
    assert [result["adapter"] for result in again] == [result["adapter"] for result in found]
    same(again, found)


def test_each_row_may_name_its_adapter(first: Path, second: Path) -> None:
    loaded = ftkit.load_adapters(first, [f"other={second}"])
    names = ["other", "first", "other", "other", "first"]
    rows = [{"id": number, "text": text, "adapter": name} for number, (text, name) in enumerate(zip(TEXTS, names, strict=True))]
    found = list(loaded.predict(rows, column="adapter"))
    assert [result["adapter"] for result in found] == names
    assert [result["id"] for result in found] == list(range(5))
    both = {"first": alone(first), "other": alone(second)}
    same(found, [both[name][number] for number, name in enumerate(names)])
    kept = next(iter(loaded.predict(rows[:1], column="adapter", keep_columns=True)))
    assert (kept["adapter"], kept["input_adapter"]) == ("other", "other")


def test_a_row_without_its_adapter_is_named(first: Path, second: Path) -> None:
    loaded = ftkit.load_adapters(first, [second])
    rows = [{"text": "w1", "who": "first"}, {"text": "w2", "who": "nobody"}]
    with pytest.raises(DataError, match=r"input, row 2: who: 'nobody' is none of the adapters. The adapters: first, second"):
        list(loaded.predict(rows, column="who"))
    with pytest.raises(DataError, match="the row names no adapter"):
        list(loaded.predict(["w1"], column="who"))
    passed = list(loaded.predict([{"id": 7, **rows[1]}, rows[0], "w1"], column="who", skip_errors=True))
    assert passed[0] == {
        "adapter": None,
        "id": 7,
        "prediction": None,
        "error": "input, row 1: who: 'nobody' is none of the adapters",
    }
    assert passed[1]["adapter"] == "first"
    assert passed[2]["error"] == "input, row 3: who: the row names no adapter"
    # Messages about a row count all rows, not those of one adapter.
    rows = [{"text": "w1", "who": "first"}, {"text": "w1", "who": "second"}, {"text": "", "who": "second"}]
    with pytest.raises(DataError, match="input, row 3, adapter second: text"):
        list(loaded.predict(rows, column="who"))


def tensor_bytes(loaded: AdapterSet) -> int:
    """Bytes of all memory that the adapters hold, counted once however many tensors lie in it."""
    tensors: list[torch.Tensor] = []
    for member in loaded.members.values():
        model = member.predictor.prepared.model
        tensors += [*model.parameters(), *(t for file in member.tensors.values() for t in file.values())]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def test_an_adapter_costs_its_own_size(runs: list[Path], first: Path, second: Path) -> None:
    def trained(run: Path) -> int:
        return json.loads((run / "results.json").read_text(encoding="utf-8"))["parameters"]["trainable"] * 4

    base = tensor_bytes(ftkit.load_adapters(first, []))
    total = base
    names: list[str] = []
    for number in range(4):
        names.append(f"copy{number}={second}")
        now = tensor_bytes(ftkit.load_adapters(first, names))
        assert 0 < now - total <= 1.1 * trained(second), "an adapter of the same recipe costs its trained values, once"
        total = now
    other = runs[3]
    grown = tensor_bytes(ftkit.load_adapters(first, [other])) - base
    # A model of its own: the values in place and those kept, a new head beside its copy, and nothing of the base.
    assert grown <= 3 * trained(other)
    assert base > 10 * trained(other)


def test_the_base_survives_an_adapter_that_changes_it(first: Path, runs: list[Path]) -> None:
    loaded = ftkit.load_adapters(first, [runs[4], runs[1]])
    list(loaded.predict(TEXTS))
    same(loaded.predictor("first").predict(TEXTS), alone(first))


def test_runs_that_cannot_share_a_base(first: Path, tuned: Path, on_other_base: Path, train: Train, tmp_path: Path) -> None:
    def refused(*adapters: str | Path) -> str:
        with pytest.raises(FtkitError) as caught:
            ftkit.load_adapters(first, adapters)
        assert caught.value.exit_code == 2
        return str(caught.value)

    assert "another base than" in refused(on_other_base)
    assert "model.safetensors differ" in refused(on_other_base)
    assert "full trained the model itself" in refused(tuned)
    assert "two adapters are called 'first'" in refused(first)
    assert "is not a run folder" in refused(tmp_path)
    assert "there is no such folder" in refused(f"a={tmp_path / 'nowhere'}")


def test_adapters_of_low_blocks_can_be_left_out(runs: list[Path], first: Path) -> None:
    whole, dropped = alone(runs[5]), list(ftkit.load(runs[5], drop_blocks=1).predict(TEXTS))
    assert whole[0]["probabilities"] != pytest.approx(dropped[0]["probabilities"], abs=1e-7)
    with pytest.raises(FtkitError, match="2 leaves no adapter: the model has 2 blocks"):
        ftkit.load(runs[5], drop_blocks=2)
    with pytest.raises(FtkitError, match="lora of this run has no bottleneck adapters"):
        ftkit.load(first, drop_blocks=1)


def test_an_ensemble_through_the_api(first: Path, second: Path, relabeled: Path) -> None:
    assert len(list(ftkit.load_ensemble([first, second]).predict(TEXTS))) == 5
    with pytest.raises(FtkitError, match="differs from first in labels"):
        ftkit.load_ensemble([first, relabeled])
    with pytest.raises(FtkitError, match="is named twice, and would have two votes"):
        ftkit.load_ensemble([first, second, first.parent / "first"])
