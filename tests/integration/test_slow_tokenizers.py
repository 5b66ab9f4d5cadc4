"""Runs of models whose tokenizers are written in Python: trained, evaluated, used, exported and loaded again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

import ftkit
from ftkit.errors import RecipeError
from tests.slow_models import PAIRS, save_bertweet, save_byt5, save_m2m, save_marian, save_sw3

Run = Callable[..., Path]
TRAIN = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture
def recipe(tmp_path: Path) -> Run:
    """Writes a recipe for a model folder, a task as YAML and rows; returns its path."""

    def write(
        model: Path,
        task: str,
        rows: Sequence[Mapping[str, Any]],
        method: str = "full",
        train: Mapping[str, Any] = TRAIN,
        **more: str,
    ) -> Path:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        more.setdefault("export", "[]")
        data = "{train: rows.jsonl, split: {validation: 0.2}}"
        values = {"model": str(model), "task": task, "data": data, "method": method, "train": json.dumps(train), **more}
        (tmp_path / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()), encoding="utf-8")
        return tmp_path / "recipe.yaml"

    return write


def trained(recipe: Path) -> Path:
    return ftkit.train(ftkit.load_recipe(recipe), output=recipe.parent / "run").folder


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["splits"]["validation"]["metrics"]


MARIAN = "{name: seq2seq, goal: translation, prefix: '>>de<< ', generation: {max_new_tokens: 24}}"
M2M = "{name: seq2seq, goal: translation, source_language: en, target_language: de, generation: {max_new_tokens: 24}}"
LORA = "{name: lora, rank: 4}"


@pytest.mark.parametrize(
    ("save", "task", "method"), [(save_marian, MARIAN, "full"), (save_marian, MARIAN, LORA), (save_m2m, M2M, "full")]
)
def test_translation(save: Callable[[Path], Path], task: str, method: str, recipe: Run, tmp_path: Path) -> None:
    train = {"max_steps": 60, "batch_size": 8, "learning_rate": 1e-2} if method == "full" else TRAIN
    folder = trained(recipe(save(tmp_path / "model"), task, PAIRS, method, train, export="[merged]"))
    found = metrics(folder)
    assert set(found) >= {"loss", "perplexity", "bleu", "chrf"}
    predictor = ftkit.load(folder)
    assert predictor.evaluate("validation")["metrics"] == pytest.approx(found, abs=1e-5)
    answers = [answer["text"] for answer in predictor.predict([{"source": pair["source"]} for pair in PAIRS])]
    if method == "full":
        assert found["perplexity"] < 10, "it learned to write in the other language"
        assert not any("__" in text or "<" in text or "▁" in text for text in answers)

    exported = folder / "export" / "merged"
    tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForSeq2SeqLM.from_pretrained(exported)
    if hasattr(tokenizer, "src_lang"):
        assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("en", "de")
    prefix = ">>de<< " if save is save_marian else ""
    inputs = tokenizer([prefix + pair["source"] for pair in PAIRS], return_tensors="pt", padding=True)
    written = model.generate(**inputs, max_new_tokens=24, num_beams=1, do_sample=False)
    texts = [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    same = sum(one == other for one, other in zip(texts, answers, strict=True))
    assert same >= 0.9 * len(PAIRS), "transformers alone writes what ftkit does (ties may fall otherwise)"


LABELED = [{"text": pair["source"], "label": "house" if "house" in pair["source"] else "other"} for pair in PAIRS]


@pytest.mark.parametrize(
    ("save", "options"),
    [
        (lambda folder: save_byt5(folder, "T5ForSequenceClassification"), "max_length: 24"),
        (save_bertweet, "max_length: 16, long_texts: head_tail"),
    ],
)
def test_classification(save: Callable[[Path], Path], options: str, recipe: Run, tmp_path: Path) -> None:
    task = f"{{name: text-classification, {options}}}"
    folder = trained(recipe(save(tmp_path / "model"), task, LABELED, LORA, export="[merged]"))
    assert metrics(folder)["accuracy"] is not None
    answers = list(ftkit.load(folder).predict([{"text": row["text"][:14]} for row in LABELED[:3]]))
    exported = folder / "export" / "merged"
    tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForSequenceClassification.from_pretrained(exported).eval()
    for row, answer in zip(LABELED, answers, strict=False):
        logits = model(**tokenizer(row["text"][:14], return_tensors="pt")).logits
        assert model.config.id2label[int(logits.argmax())] == answer["label"]


def test_long_texts_in_windows(recipe: Run, tmp_path: Path) -> None:
    task = "{name: text-classification, max_length: 16, long_texts: windows}"
    folder = trained(recipe(save_bertweet(tmp_path / "model"), task, LABELED, export="[]"))
    assert metrics(folder)["accuracy"] is not None


def test_pairs_of_texts(recipe: Run, tmp_path: Path) -> None:
    rows = [{"text": pair["source"], "text_pair": pair["target"], "label": "ab"[n % 2]} for n, pair in enumerate(PAIRS)]
    folder = trained(recipe(save_bertweet(tmp_path / "model"), "{name: text-classification, max_length: 16}", rows))
    assert metrics(folder)["accuracy"] is not None


def test_language_model_in_rows_and_packed(recipe: Run, tmp_path: Path) -> None:
    rows = [{"text": f"{pair['source']} {pair['target']}"} for pair in PAIRS]
    folder = trained(recipe(save_sw3(tmp_path / "model"), "{name: language-modeling, max_length: 64}", rows, LORA))
    found = metrics(folder)
    assert found["bits_per_byte"] > 0
    (answer,) = ftkit.load(folder).predict([{"text": "the old"}])
    assert answer["bits_per_byte"] > 0


def test_instruction_tuning(recipe: Run, tmp_path: Path) -> None:
    rows = [{"instruction": pair["source"], "output": pair["target"]} for pair in PAIRS]
    task = "{name: instruction-tuning, chat_template: zephyr, max_length: 96, generation: {max_new_tokens: 8}}"
    folder = trained(recipe(save_sw3(tmp_path / "model"), task, rows, LORA))
    assert metrics(folder)["token_accuracy"] is not None
    (answer,) = ftkit.load(folder).predict([{"instruction": "the dog"}])
    assert isinstance(answer["text"], str)


def test_words_with_tags(recipe: Run, tmp_path: Path) -> None:
    words = [pair["source"].split() for pair in PAIRS]
    rows = [{"tokens": row, "tags": ["O", "B-HOW", "B-WHAT", *["O"] * (len(row) - 3)]} for row in words]
    model = save_bertweet(tmp_path / "model", "RobertaForTokenClassification")
    folder = trained(recipe(model, "{name: token-classification, max_length: 24}", rows))
    (answer,) = ftkit.load(folder).predict([{"tokens": ["the", "house"]}])
    assert answer["tokens"] == ["the", "house"]


def test_question_answering_is_refused_before_anything_is_loaded(recipe: Run, tmp_path: Path) -> None:
    rows = [{"id": "1", "question": "who?", "context": "me", "answers": {"text": ["me"], "answer_start": [0]}}] * 8
    path = recipe(save_byt5(tmp_path / "model", "T5ForQuestionAnswering"), "question-answering", rows)
    command = [sys.executable, "-m", "ftkit", "validate", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for part in (
        "model.name",
        "does not say which characters its tokens are",
        "finds answers by their characters",
        "fast tokenizer",
    ):
        assert part in " ".join((done.stdout + done.stderr).split())
    with pytest.raises(RecipeError, match="does not say which characters"):
        ftkit.plan(ftkit.load_recipe(path))


def test_several_processes_encode_the_same(recipe: Run, tmp_path: Path) -> None:
    from ftkit.data.features import encode_table
    from ftkit.data.pool import Pool
    from ftkit.data.splits import load_splits
    from ftkit.run.planning import make_plan_here
    from ftkit.run.wiring import prepare_processor

    task = "{name: seq2seq, source_language: en, target_language: de}"
    loaded = ftkit.load_recipe(recipe(save_m2m(tmp_path / "model"), task, PAIRS))
    plan = make_plan_here(loaded)
    processor, key = prepare_processor(plan)
    learner = plan.task()
    table = load_splits(plan.recipe.data, learner, tmp_path).train
    expected = encode_table(table, learner, processor, processor_key=key, cache=False)
    pool = Pool.for_task(learner, processor, key, training=False, count=1)
    assert pool is not None
    try:
        while not pool.ready():
            assert pool._members, "the process was let go"
        ((batch, _),) = pool.encode(table, iter([(0, len(table))]))
        assert batch is not None
        assert batch.column("input_ids").to_pylist() == [list(item["input_ids"]) for item in expected.take(range(len(expected)))]
    finally:
        pool.close()
