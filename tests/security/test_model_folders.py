"""Hostile model folders: pickled weights, code, adapters that come along, weight maps that leave the folder, lying safetensors."""

from __future__ import annotations

import json
import os
import shutil
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from ftkit.errors import ModelError
from ftkit.models.facts import read_facts
from ftkit.models.load import load_model
from ftkit.models.processor import load_processor
from ftkit.recipe.schema import ModelSpec
from ftkit.tasks.base import Head
from tests.security.conftest import Command
from tests.security.hostile import LYING, Mark, safetensors_bytes, snapshot

HEAD = Head(auto_class="AutoModelForSequenceClassification", peft_task_type="SEQ_CLS", config={"num_labels": 3})
LM_HEAD = Head(auto_class="AutoModelForCausalLM", peft_task_type="CAUSAL_LM", config={}, pretrained=True)


def load(folder: Path, head: Head = HEAD) -> None:
    """As `ftkit train` does it."""
    spec = ModelSpec(name=str(folder))
    facts = read_facts(spec)
    load_processor(spec, facts)
    load_model(spec, head, seed=0)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "model.pth", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_refused_under_any_name(name: str, mark: Mark, bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    (bert / name).write_bytes(mark.torch_file())
    with pytest.raises(ModelError, match="can run code when it is read"):
        load(bert)


def test_pickles_beside_good_weights_are_left_alone(mark: Mark, bert: Path) -> None:
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "vocab.pkl",
        "tf_model.h5",
    ):
        (bert / name).write_bytes(mark.torch_file())
    load(bert)


@pytest.mark.parametrize("weights", ["adapter_model.bin", "adapter_model.safetensors"])
def test_an_adapter_in_a_models_folder_is_not_loaded_along(weights: str, mark: Mark, bert: Path) -> None:
    edit(bert / "adapter_config.json", peft_type="LORA", base_model_name_or_path=str(bert), r=2, target_modules=["query"])
    (bert / weights).write_bytes(mark.torch_file())
    with pytest.raises(ModelError, match="holds an adapter beside the model"):
        load(bert)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"])
def test_code_of_a_model_is_not_imported(file: str, mark: Mark, bert: Path, command: Command, tmp_path: Path) -> None:
    names = ("AutoConfig", "AutoModelForSequenceClassification", "AutoImageProcessor", "AutoProcessor")
    edit(bert / file, auto_map={**dict.fromkeys(names, "evil.Evil"), "AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    for name in ("evil.py", "configuration_evil.py", "modeling_bert.py", "__init__.py", "conftest.py"):
        (bert / name).write_text(mark.code())
    if file.startswith("p"):
        load(bert)  # text needs no image processor: the file is never read
        return
    (tmp_path / "rows.csv").write_text("text,label\na,b\nc,d\n")
    (tmp_path / "recipe.yaml").write_text(f"model: {bert}\ntask: text-classification\ndata: {{train: rows.csv}}\nmethod: lora\n")
    for verb in ("validate", "plan", "train", "inspect"):
        ended = command(verb, tmp_path / "recipe.yaml")
        assert ended.code == 2
        assert "auto_map" in ended.err


def test_code_of_an_image_processor_is_not_imported(mark: Mark, vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "vit")
    edit(folder / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"}, image_processor_type="Evil")
    (folder / "evil.py").write_text(mark.code())
    with pytest.raises(ModelError, match="image processor"):
        load_processor(ModelSpec(name=str(folder)), read_facts(ModelSpec(name=str(folder))))


def test_generation_code_and_hub_kernels_of_a_model_are_not_fetched_or_run(mark: Mark, llama: Path) -> None:
    (llama / "custom_generate").mkdir()
    (llama / "custom_generate" / "generate.py").write_text(mark.code())
    edit(llama / "generation_config.json", custom_generate=str(llama), transformers_version="5.0.0")
    load(llama, LM_HEAD)
    edit(llama / "config.json", attn_implementation="evil/kernel", _attn_implementation="evil/kernel")
    with suppress(ModelError):
        load(llama, LM_HEAD)


def test_other_models_named_in_a_config_are_not_followed(mark: Mark, bert: Path, tmp_path: Path) -> None:
    """`_name_or_path` and the like may name any folder; it is not read."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "modeling_evil.py").write_text(mark.code())
    edit(
        bert / "config.json",
        _name_or_path=str(other),
        base_model_name_or_path=str(other),
        tokenizer_class="Evil",
        torch_dtype="object",
    )
    edit(
        bert / "tokenizer_config.json", name_or_path=str(other), special_tokens_map_file="/etc/passwd", tokenizer_file="/etc/passwd"
    )
    with suppress(ModelError):
        load(bert)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "~/x.safetensors"]
)
def test_weight_maps_stay_in_the_folder(name: str, bert: Path) -> None:
    (bert / "model.safetensors").rename(bert.parent / "x.safetensors")
    (bert / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    with pytest.raises(ModelError, match=r"not in the model's folder|weight files are missing"):
        load(bert)


@pytest.mark.parametrize("what", LYING)
def test_lying_safetensors_are_refused(what: str, bert: Path) -> None:
    (bert / "model.safetensors").write_bytes(LYING[what])
    with pytest.raises(ModelError, match=r"cannot be loaded|lacks|other shapes"):
        load(bert)


def test_a_header_full_of_metadata_costs_little(bert: Path) -> None:
    good = (bert / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + length])
    header["__metadata__"] = {f"k{number}": "x" * 100 for number in range(20_000)}
    (bert / "model.safetensors").write_bytes(safetensors_bytes(header, good[8 + length :]))
    load(bert)
    header["__metadata__"] = {"format": {"deep": 1}}
    (bert / "model.safetensors").write_bytes(safetensors_bytes(header, good[8 + length :]))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(bert)


def test_configs_that_ask_for_absurd_sizes_end_in_an_error(bert: Path) -> None:
    for changes in ({"vocab_size": 2**50}, {"hidden_size": -4}, {"num_hidden_layers": "many"}, {"num_attention_heads": 0}):
        edit(
            bert / "config.json",
            **{"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **changes},
        )
        with pytest.raises((ModelError, MemoryError)):
            load(bert)


def test_pipes_among_the_files_of_a_model_do_not_hang(bert: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        kept = (bert / name).read_bytes()
        (bert / name).unlink()
        os.mkfifo(bert / name)
        if name == "tokenizer_config.json":
            read_facts(ModelSpec(name=str(bert)))
        else:
            with pytest.raises(ModelError):
                read_facts(ModelSpec(name=str(bert)))
        (bert / name).unlink()
        (bert / name).write_bytes(kept)


def test_gguf_headers_that_lie_are_refused(tmp_path: Path) -> None:
    for name, content in {
        "strings": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62),
        "arrays": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**62),
        "entries": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62),
        "pickle": b"\x80\x04N.",
    }.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(ModelError):
            read_facts(ModelSpec(name=str(tmp_path / f"{name}.gguf")))


def test_the_folder_of_a_model_is_never_written_to(bert: Path) -> None:
    before = snapshot(bert)
    load(bert)
    assert snapshot(bert) == before
