"""What ftkit relies on in datasets, evaluate and safetensors."""

from __future__ import annotations

import struct
from pathlib import Path

import datasets
import evaluate
import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file


def test_a_data_set_is_an_arrow_table() -> None:
    found = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
    assert found._indices is None
    assert isinstance(found.data.table, pa.Table)
    chosen = found.select([2, 0])
    assert (chosen.flatten_indices() if chosen._indices is not None else chosen)["text"][:] == ["c", "a"]


def test_saved_data_sets_have_the_files_that_ftkit_reads(tmp_path: Path) -> None:
    import json

    labels = datasets.Features({"label": datasets.ClassLabel(names=["x", "y"])})
    single = datasets.Dataset.from_dict({"label": [0, 1]}, features=labels)
    single.save_to_disk(tmp_path / "one")
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    file = tmp_path / "one" / state["_data_files"][0]["filename"]
    schema = pa.ipc.open_stream(file).schema
    info = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]
    assert (info["_type"], info["names"]) == ("ClassLabel", ["x", "y"])
    datasets.DatasetDict({"train": single}).save_to_disk(tmp_path / "several")
    assert json.loads((tmp_path / "several" / "dataset_dict.json").read_text()) == {"splits": ["train"]}


def test_scripts_of_data_sets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    with pytest.raises(Exception, match=r"."):
        datasets.load_dataset(str(tmp_path / "set"))
    assert not (tmp_path / "executed").exists()


def test_metrics_of_evaluate_are_classes_with_info_and_compute(tmp_path: Path) -> None:
    features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    class Same(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

        def _compute(self, predictions: list[int], references: list[int]) -> dict[str, int]:
            return {"same": sum(a == b for a, b in zip(predictions, references, strict=True))}

    metric = Same(keep_in_memory=True, cache_dir=str(tmp_path))
    assert metric.compute(predictions=[1, 2], references=[1, 3]) == {"same": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    given = {
        "a": torch.arange(6).reshape(2, 3).to(dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
        "one": torch.ones((), dtype=dtype),
    }
    save_file(given, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == given.keys()
    assert all(torch.equal(value, given[name]) and value.dtype == dtype for name, value in found.items())
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(given)
        assert file.get_slice("a")[0:1].shape == (1, 3)
        assert file.metadata() == {"format": "pt"}


def test_layout_of_the_header(tmp_path: Path) -> None:
    """`ftkit adapters list` counts values by it, without torch."""
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    assert content[8 : 8 + length].strip() == b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 2) + b"[]"])
def test_what_is_no_such_file_raises_its_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "x.safetensors")
