from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftkit.errors import ModelError
from ftkit.models.facts import read_facts
from ftkit.models.processor import load_processor, processor_key
from ftkit.recipe.schema import ModelSpec
from tests.tiny import FAMILIES, VISION, save_tiny, tiny_tokenizer


def _load(folder: Path, **changes: Any) -> Any:
    spec = ModelSpec(name=str(folder), **changes)
    return load_processor(spec, read_facts(spec))


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in VISION])
def test_tokenizer_comes_back_as_it_was_saved(family: str, tmp_path: Path) -> None:
    saved, loaded = tiny_tokenizer(family), _load(save_tiny(tmp_path, family))
    for text in ("w1 w2 unknown", "", "w40"):
        assert loaded(text, "w3")["input_ids"] == saved(text, "w3")["input_ids"]
    assert processor_key(loaded) == processor_key(saved)


def test_image_processor(tmp_path: Path) -> None:
    import numpy as np

    processor = _load(save_tiny(tmp_path, "vit"))
    pixels = processor(np.zeros((8, 8, 1), dtype=np.uint8), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert pixels.shape == (1, 1, 8, 8)
    assert processor_key(processor) == processor_key(_load(tmp_path))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json"):
        _load(tmp_path)


def test_missing_padding_token_is_the_end_token_and_the_vocabulary_stays(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "gpt2")
    _edit(folder, pad_token=None)
    tokenizer = _load(folder)
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"
    assert len(tokenizer) == len(tiny_tokenizer())
    _edit(folder, eos_token=None)
    with pytest.raises(ModelError, match="neither a padding nor an end token"):
        _load(folder)


def test_other_tokenizer_than_the_models(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "bert")
    tiny_tokenizer("t5").save_pretrained(tmp_path / "other")
    tokenizer = _load(folder, tokenizer=str(tmp_path / "other"))
    assert tokenizer("w1")["input_ids"] == tiny_tokenizer("t5")("w1")["input_ids"]
    with pytest.raises(ModelError, match=r"model\.tokenizer: there is no model folder"):
        _load(folder, tokenizer=str(tmp_path / "nowhere"))


def test_damaged_tokenizer(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "bert")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        _load(folder)


def test_key_is_the_same_in_other_processes_and_folders(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "one", "bert")
    key = processor_key(_load(folder))
    shutil.copytree(folder, tmp_path / "two")
    code = (
        "import sys; from ftkit.models.processor import load_processor, processor_key; from ftkit.models.facts import read_facts;"
        "from ftkit.recipe.schema import ModelSpec;"
        "spec = ModelSpec(name=sys.argv[1]); print(processor_key(load_processor(spec, read_facts(spec))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "two")]
    other = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert other.stdout.strip() == key


def test_key_does_not_change_with_use() -> None:
    tokenizer = tiny_tokenizer()
    key = processor_key(tokenizer)
    tokenizer(["w1 w2 w3", "w1"], padding=True, truncation=True, max_length=2)
    assert processor_key(tokenizer) == key


def test_key_changes_with_vocabulary_template_and_special_tokens() -> None:
    keys = {processor_key(tiny_tokenizer("bert")), processor_key(tiny_tokenizer("t5"))}
    changed = tiny_tokenizer("bert")
    changed.add_tokens(["w99"])
    keys.add(processor_key(changed))
    changed = tiny_tokenizer("bert")
    changed.chat_template = "{{ messages }}"
    keys.add(processor_key(changed))
    changed = tiny_tokenizer("bert")
    changed.pad_token = "</s>"
    keys.add(processor_key(changed))
    assert len(keys) == 5
