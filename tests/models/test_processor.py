from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from ftkit.errors import ModelError
from ftkit.models.facts import ModelFacts, read_facts
from ftkit.models.processor import load_processor, processor_key, save_processor
from ftkit.recipe.schema import ModelSpec
from tests.slow_models import save_bertweet, save_byt5, save_m2m, save_marian, save_sw3, train_pieces
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


# --- tokenizers written in Python ---------------------------------------------------------------------------------------

SLOW = {"marian": save_marian, "m2m": save_m2m, "byt5": save_byt5, "sw3": save_sw3, "bertweet": save_bertweet}


@pytest.mark.parametrize("kind", SLOW)
def test_tokenizers_written_in_python_keep_their_key(kind: str, tmp_path: Path) -> None:
    folder = SLOW[kind](tmp_path / "one")
    tokenizer = _load(folder)
    assert not tokenizer.is_fast
    key = processor_key(tokenizer)
    tokenizer(["the old house", "x"], padding=True, truncation=True, max_length=4)
    if hasattr(tokenizer, "src_lang"):
        tokenizer.src_lang, tokenizer.tgt_lang = "de", "en"
    assert processor_key(tokenizer) == key
    save_processor(tokenizer, tmp_path / "saved")
    again = type(tokenizer).from_pretrained(tmp_path / "saved")
    assert processor_key(again) == key
    assert again("the old house")["input_ids"] == tokenizer("the old house")["input_ids"]
    changed = _load(folder)
    changed.add_tokens(["newword"])
    assert processor_key(changed) != key
    if files := [name for name in ("target.spm", "sentencepiece.bpe.model", "spiece.model") if (folder / name).is_file()]:
        train_pieces(["some other words of another language"] * 3, folder / files[0], 40, pad_id=3)
        assert processor_key(_load(folder)) != key


def test_their_key_is_the_same_in_another_process(tmp_path: Path) -> None:
    folder = save_marian(tmp_path / "one")
    shutil.copytree(folder, tmp_path / "two")
    code = (
        "import sys; from ftkit.models.processor import load_processor, processor_key; from ftkit.models.facts import read_facts;"
        "from ftkit.recipe.schema import ModelSpec;"
        "spec = ModelSpec(name=sys.argv[1]); print(processor_key(load_processor(spec, read_facts(spec))))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "two")]
    other = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert other.stdout.strip() == processor_key(_load(folder))
    assert other.stderr == ""


def test_whether_characters_are_known_is_read_from_the_files(tmp_path: Path) -> None:
    byt5 = save_byt5(tmp_path / "byt5")
    assert not read_facts(ModelSpec(name=str(byt5))).offsets
    bert = save_tiny(tmp_path / "bert", "bert")
    assert read_facts(ModelSpec(name=str(bert))).offsets
    assert not read_facts(ModelSpec(name=str(bert), tokenizer=str(byt5))).offsets
    assert read_facts(ModelSpec(name=str(byt5), tokenizer=str(bert))).offsets


@pytest.mark.parametrize(
    ("kind", "lost", "message"),
    [
        ("marian", ["target.spm"], r"lacks target\.spm, which its tokenizer is made of"),
        ("marian", ["source.spm", "vocab.json"], r"lacks source\.spm and vocab\.json"),
        ("m2m", ["sentencepiece.bpe.model"], r"lacks sentencepiece\.bpe\.model"),
        ("bertweet", ["bpe.codes"], r"lacks bpe\.codes"),
        ("byt5", ["tokenizer_config.json"], "has no tokenizer files"),
    ],
)
def test_missing_files_of_tokenizers_written_in_python(kind: str, lost: list[str], message: str, tmp_path: Path) -> None:
    folder = SLOW[kind](tmp_path)
    for name in lost:
        (folder / name).unlink()
    with pytest.raises(ModelError, match=message):
        read_facts(ModelSpec(name=str(folder)))


def test_a_class_that_has_no_use_for_the_files(tmp_path: Path) -> None:
    """Without `tokenizer_class` transformers goes by the model type, here GPT-2, and makes an empty tokenizer."""
    folder = save_sw3(tmp_path)
    _edit(folder, tokenizer_class=None, added_tokens_decoder=None, backend=None)
    (folder / "added_tokens.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"GPT2Tokenizer comes without a vocabulary.*tokenizer_class"):
        _load(folder)


HIDDEN = """
import importlib.util, sys
from pathlib import Path
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] == "sentencepiece" else real(name, package)
sys.modules["sentencepiece"] = None
from ftkit.errors import ModelError
from ftkit.models.facts import read_facts
from ftkit.models.processor import load_processor
from ftkit.recipe.schema import ModelSpec
for folder in sys.argv[1:]:
    spec = ModelSpec(name=folder)
    try:
        load_processor(spec, read_facts(spec))
        print("loaded")
    except ModelError as error:
        print(str(error).replace(folder, "FOLDER").replace("\\n", " "))
"""


def test_without_sentencepiece_one_error_says_what_to_install(tmp_path: Path) -> None:
    marian = save_marian(tmp_path / "marian")
    unnamed = shutil.copytree(marian, tmp_path / "unnamed")
    _edit(unnamed, tokenizer_class=None)
    folders = [marian, unnamed, save_m2m(tmp_path / "m2m"), save_byt5(tmp_path / "byt5")]
    done = subprocess.run([sys.executable, "-c", HIDDEN, *map(str, folders)], capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "needs the package sentencepiece, which is not installed" in line
        assert 'pip install "ftkit[sentencepiece]"' in line
    assert last == "loaded"


def test_a_hub_id_without_the_hub_has_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", _no_network)
    facts = ModelFacts(kind="unknown", model_type="", hidden_size=0, block_count=0, max_positions=None, vocab_size=None, path=None)
    with pytest.raises(ModelError) as caught:
        load_processor(ModelSpec(name="some/model"), facts)
    assert "hf download" in caught.value.problems[0].hint
    assert "local folder" in caught.value.problems[0].hint


def _no_network(*_: object, **__: object) -> None:
    raise OSError("We couldn't connect to the hub")
