from __future__ import annotations

import json
from pathlib import Path

import pytest

from ftkit.errors import ModelError
from ftkit.models.facts import read_facts
from ftkit.models.folder import locate, model_files
from ftkit.models.processor import load_processor
from ftkit.recipe.schema import ModelSpec
from tests.tiny import save_tiny


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny-bert", "bert")


def _refusal(folder: Path, **spec: object) -> str:
    with pytest.raises(ModelError) as caught:
        read_facts(ModelSpec(name=str(folder), **spec))
    assert all(problem.key.startswith("model.") for problem in caught.value.problems)
    return str(caught.value)


def test_missing_folder_names_the_nearest_sibling(bert: Path) -> None:
    text = _refusal(bert.with_name("tiny-brt"))
    assert "there is no model folder" in text
    assert "Did you mean" in text
    assert "tiny-bert" in text


def test_relative_name_is_tried_against_cwd_then_base(bert: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert locate("tiny-bert", bert.parent) == bert
    assert locate("tiny-bert") is None, "without a base it can only be a hub id"
    monkeypatch.chdir(bert.parent)
    assert locate("tiny-bert") == bert


def test_what_looks_like_a_path_is_never_a_hub_id(tmp_path: Path) -> None:
    for name in ("./nothing", "/no/such/model", "a/b/c", "model.gguf"):
        with pytest.raises(ModelError, match="there is no model folder"):
            locate(name, tmp_path)
    assert locate("owner/name", tmp_path) is None


def test_package_that_is_not_installed() -> None:
    with pytest.raises(ModelError, match="'no_such_package' is not installed"):
        locate("package:no_such_package/model")


def test_folder_without_config(tmp_path: Path) -> None:
    assert "has no config.json" in _refusal(tmp_path)


def test_adapter_folder_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter, not a model" in _refusal(tmp_path)


@pytest.mark.parametrize(("content", "message"), [("{broken", "cannot be read as JSON"), ("[1]", "expected a JSON object")])
def test_unreadable_config(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert message in _refusal(tmp_path)


DEEP = "[" * 5000


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", DEEP, "cannot be read as JSON: it is nested more than 100 levels deep"),
        ("config.json", f'{{"model_type": {"[" * 101}{"]" * 101}}}', "nested more than 100 levels deep"),
        ("tokenizer_config.json", DEEP, "cannot be read as JSON: it is nested more than 100 levels deep"),
        ("config.json", '{"model_type": "bert", "architectures": 5}', "`architectures` is 5, expected a list of class names"),
        ("config.json", '{"model_type": "bert", "hidden_size": "16"}', "as a whole number; it says hidden_size: '16'"),
        ("config.json", '{"model_type": "bert", "hidden_size": true}', "as a whole number; it says hidden_size: True"),
        (
            "config.json",
            '{"model_type": "x", "hidden_size": 8, "depths": ["x"]}',
            "none of depths as a whole number; it says depths: ['x']",
        ),
    ],
)
def test_hostile_json_is_refused_with_its_place(bert: Path, file: str, content: str, message: str) -> None:
    (bert / file).write_text(content)
    text = _refusal(bert)
    assert message in text
    assert str(bert) in text


def test_hostile_settings_of_a_tokenizer_that_may_be_written_in_python_are_refused(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    (bert / "vocab.txt").write_text("x")
    (bert / "tokenizer_config.json").write_text(DEEP)
    wrong = "cannot be read as JSON: it is nested more than 100 levels deep"
    assert f"tokenizer_config.json: model.name: {wrong}" in _refusal(bert)
    save_tiny(bert.parent / "other", "bert")
    spec = ModelSpec(name=str(bert.parent / "other"), tokenizer=str(bert))
    facts = read_facts(spec)
    with pytest.raises(ModelError, match=f"tokenizer_config.json: model.tokenizer: {wrong}"):
        load_processor(spec, facts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEEP, "nested more than 100 levels deep"),
        ("{}", "its `weight_map` is None, expected the file name of each weight"),
        ('{"weight_map": ["x"]}', "its `weight_map` is ['x'], expected the file name of each weight"),
        ('{"weight_map": {"x": 5}}', "`weight_map` says 5 for 'x', expected the name of a .safetensors file"),
        ('{"weight_map": {"x": "model.bin"}}', "expected the name of a .safetensors file"),
        ('{"weight_map": {"x": "../x.safetensors"}}', "'../x.safetensors', which is not in the model's folder"),
        ('{"weight_map": {"x": "/tmp/x.safetensors"}}', "which is not in the model's folder"),
        ('{"weight_map": {"x": "a\\\\..\\\\x.safetensors"}}', "which is not in the model's folder"),
    ],
)
def test_hostile_indexes_of_weights_are_refused(bert: Path, content: str, message: str) -> None:
    (bert / "model.safetensors").rename(bert.parent / "x.safetensors")
    (bert / "model.safetensors.index.json").write_text(content)
    assert message in _refusal(bert)


def test_pickled_weights_are_refused_and_never_read(bert: Path) -> None:
    marker = bert / "marker"
    # Unpickling these bytes would write the marker file.
    payload = b"cbuiltins\nexec\n(S'open(" + repr(str(marker)).encode().replace(b"'", b'"') + b', "w")\'\ntR.'
    (bert / "model.safetensors").unlink()
    (bert / "pytorch_model.bin").write_bytes(payload)
    text = _refusal(bert)
    assert "only as pickle (pytorch_model.bin)" in text
    assert "convert it once" in text
    assert not marker.exists()


def test_missing_weights_and_tokenizer_are_told_together(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    (bert / "tokenizer.json").unlink()
    text = _refusal(bert)
    assert "has no weights (model.safetensors)" in text
    with pytest.raises(ModelError) as caught:
        read_facts(ModelSpec(name=str(bert)))
    assert any("weights: random" in problem.hint for problem in caught.value.problems)
    assert "has no tokenizer files" in text


def test_a_named_tokenizer_replaces_the_missing_one(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    assert read_facts(ModelSpec(name=str(bert), tokenizer="owner/other")).kind == "encoder"


def test_missing_shards_are_named(bert: Path) -> None:
    (bert / "model.safetensors").rename(bert / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (bert / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "1 of its weight files are missing: model-00002-of-00002.safetensors" in _refusal(bert)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_ships_with_the_model_is_refused(bert: Path, file: str) -> None:
    marker = bert / "marker"
    content = json.loads((bert / file).read_text())
    content["auto_map"] = {"AutoConfig": "evil.Config"}
    (bert / file).write_text(json.dumps(content))
    (bert / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    text = _refusal(bert)
    assert "model.trust_remote_code" in text
    assert "AutoConfig: evil.Config" in text
    assert not marker.exists()


def test_model_files_are_what_decides_the_result(bert: Path) -> None:
    (bert / "README.md").write_text("x")
    (bert / "optimizer.pt").write_text("x")
    assert [path.name for path in model_files(bert)] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert model_files(bert / "config.json") == [bert / "config.json"]
