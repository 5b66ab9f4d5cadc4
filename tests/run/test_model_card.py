"""The model card's code loads what was trained, without ftkit."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ftkit
from ftkit.files import read_json, sha256_of
from ftkit.models.naming import unusual_backbone
from ftkit.recipe.load import parse_recipe
from ftkit.registry import TASKS
from ftkit.report.model_card import base_code, without_folders
from tests.tiny import save_tiny, tiny_model

ROWS = '{"question": "w5 w6", "context": "w1 w2 w3", "answers": {"text": ["w2"], "answer_start": [3]}}\n' * 4


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_code_of_the_card_loads_adapter_and_merged_model(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = save_tiny(tmp_path / "base", family, "AutoModelForCausalLM" if family == "llama" else "AutoModelForMaskedLM")
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "r.yaml").write_text(
        f"model: {base}\ntask: question-answering\ndata: {{train: rows.jsonl, cache: false}}\nmethod: lora\n"
        "train: {max_steps: 2, batch_size: 4, learning_rate: 1.0e-2}\nexport: [adapter, merged]\n"
    )
    folder = ftkit.train(ftkit.load_recipe("r.yaml")).folder
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: question-answering\n")
    assert "# r: question-answering with lora\n" in card
    assert "ftkit predict . --input rows.jsonl" in card
    assert f"`{base.name}` adapted to question-answering" in card
    weights = sha256_of(base / "model.safetensors")
    assert f"The base is the folder `{base.name}` (sha256 of model.safetensors `{weights[:16]}`;" in card
    assert str(tmp_path) not in card
    assert read_json(folder / "export" / "adapter" / "adapter_config.json")["base_model_name_or_path"] == str(base)
    trained = ftkit.load(folder).prepared.model
    inputs = torch.tensor([[7, 8, 9, 10, 11]])
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        with torch.no_grad():
            expected, found = trained(input_ids=inputs), names["model"].eval()(input_ids=inputs)
        torch.testing.assert_close(found.start_logits, expected.start_logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("org/name", '"org/name"'),
        ("/home/me/base", "base_model"),
        ("/home/me/base/m.Q4.gguf", 'os.path.dirname(base_model), gguf_file="m.Q4.gguf"'),
        ("package:one/model", "f\"{find_spec('one').submodule_search_locations[0]}/model\""),
        ("package:one/m.gguf", "find_spec('one').submodule_search_locations[0], gguf_file=\"m.gguf\""),
        ("package:one/in/m.gguf", 'f"{find_spec(\'one\').submodule_search_locations[0]}/in", gguf_file="m.gguf"'),
    ],
)
def test_the_base_in_the_code_of_a_card(name: str, code: str) -> None:
    """transformers takes a GGUF file by its folder and its name."""
    assert base_code(name)[1] == code


def test_backbones_of_unusual_name() -> None:
    assert unusual_backbone(tiny_model("llama", "AutoModelForQuestionAnswering")) == "transformer"
    for family, auto_class in (("llama", "AutoModelForCausalLM"), ("gpt2", "AutoModelForQuestionAnswering"), ("t5", "AutoModel")):
        assert unusual_backbone(tiny_model(family, auto_class)) == ""


def test_the_code_of_a_card_goes_on_to_write_text() -> None:
    for name, options, expected in (
        ("seq2seq", {"goal": "summarization", "prefix": "summarize: "}, "tokenizer('summarize: your text'"),
        ("instruction-tuning", {}, "tokenizer.apply_chat_template("),
        ("instruction-tuning", {"chat_template": "none"}, "tokenizer('your text'"),
        ("language-modeling", {"generation": {"max_new_tokens": 7}}, "max_new_tokens=7"),
    ):
        task = TASKS.get(name)(TASKS.get(name).Options(**options))
        code = "\n".join(task.code_example())
        ast.parse(code)
        assert expected in code
        assert "model.generate(**inputs" in code


@pytest.mark.parametrize(
    ("goal", "tag"), [("summarization", "summarization"), ("translation", "translation"), ("other", "text2text-generation")]
)
def test_the_hubs_name_for_the_model(goal: str, tag: str) -> None:
    assert TASKS.get("seq2seq")(TASKS.get("seq2seq").Options(goal=goal)).pipeline_tag == tag
    assert TASKS.get("instruction-tuning")(TASKS.get("instruction-tuning").Options()).pipeline_tag == "text-generation"


def test_files_of_a_package_are_named_as_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus_of_a_test" / "data").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = parse_recipe(
        "model: m\ntask: text-classification\ndata: {train: 'package:corpus_of_a_test/data#9'}\nmethod: lora\n", base=tmp_path
    )
    card = without_folders(f"a copy ({tmp_path}/corpus_of_a_test/data/tech/1.txt)", recipe)
    assert card == "a copy (package:corpus_of_a_test/data/tech/1.txt)"
