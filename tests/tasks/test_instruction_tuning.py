"""Instruction tuning: which tokens count, that the numbers are those of plain cross-entropy, and that what was learned comes back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import ftkit
from ftkit.data.building import table_from_rows
from ftkit.data.features import FeatureStore, encode_table
from ftkit.errors import DataError, ModelError, RecipeError
from ftkit.models.facts import ModelFacts
from ftkit.registry import TASKS
from ftkit.tasks.base import Row, RowError
from ftkit.tasks.instruction_tuning import InstructionTuning, Options
from ftkit.tasks.parts.answer_match import normalized
from ftkit.tasks.parts.built_in_templates import BUILT_IN
from ftkit.tasks.parts.language_loss import IGNORED
from ftkit.training.evaluation import evaluate, predict_features
from tests.tasks.parts.chat_tokenizers import byte_tokenizer
from tests.tiny import tiny_config

ANSWERS = {
    "One?": "It is #1",
    "Two please?": "We say #2.0",
    "A hundred?": "#100",
    "Four": "Maybe #4",
    "?": "#5",
    "Six, or so?": "#1,006.",
}
ROWS = [{"prompt": question, "completion": answer} for question, answer in ANSWERS.items()]
TALKS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {
        "messages": [
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "dd"},
            {"role": "user", "content": "e"},
            {"role": "assistant", "content": "fff"},
        ]
    },
]
GENERATED = ["exact_match", "rougeL", "chrf", "answer_match"]
PATTERN = r"#([\d.,]+)"
FACTS = ModelFacts(kind="decoder", model_type="llama", hidden_size=16, block_count=2, max_positions=128, vocab_size=300, path=None)


def make(rows: Sequence[Row] = (), **options: Any) -> InstructionTuning:
    task = InstructionTuning(Options(**{"max_length": 64, "chat_template": "zephyr", **options}))
    for row in rows:
        task.check_row(row)
    if rows:
        task.learn(rows)
        if task.options.chat_template != "auto":
            features = task.encode(rows, byte_tokenizer(), training=True)
            task.learn_encoded(lambda name: np.array([feature[name] for feature in features], np.int64))
    return task


def tiny_llama(processor: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "vocab_size": len(processor),
        "max_position_embeddings": 128,
        "pad_token_id": processor.pad_token_id,
    }
    config = tiny_config("llama", **sizes, bos_token_id=processor.bos_token_id, eos_token_id=processor.eos_token_id)
    return AutoModelForCausalLM.from_config(config).eval()


def stored(task: InstructionTuning, rows: Sequence[Row], processor: Any) -> tuple[Any, FeatureStore]:
    table = table_from_rows(rows, "rows")
    return table, encode_table(table, task, processor, processor_key="k", cache=False)


def collated(task: InstructionTuning, rows: Sequence[Row], processor: Any, training: bool = True) -> Any:
    features = task.encode(rows, processor, training=training)
    return task.collate([{**feature, "example": feature["row"]} for feature in features], processor, training=training)


def counted(feature: Any, processor: Any) -> str:
    return processor.decode([token for token, mark in zip(feature["input_ids"], feature["supervised"], strict=True) if mark])


@pytest.fixture(scope="module")
def taught() -> tuple[Any, Any]:
    """(model, tokenizer): a tiny Llama that knows the answers to ROWS by heart."""
    processor = byte_tokenizer()
    task, model = make(ROWS), tiny_llama(processor)
    task.bind(model, processor)
    batch = collated(task, ROWS, processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = task.loss(task.forward(model, batch), batch) / task.target_count(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    return model, processor


# --- options ----------------------------------------------------------------------------------------------------------


def test_it_is_found_by_name() -> None:
    assert TASKS.get("instruction-tuning") is InstructionTuning
    assert InstructionTuning.model_kinds == {"decoder"}
    head = make().head()
    assert (head.auto_class, head.peft_task_type, head.pretrained) == ("AutoModelForCausalLM", "CAUSAL_LM", True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": "chatm"}, "there is no template 'chatm'; did you mean 'chatml'?"),
        ({"chat_template": "qqq"}, "known: auto, alpaca, chatml, gemma, llama3, none, zephyr, or a file"),
        ({"metrics": ["rougel"]}, "there is no metric 'rougel' here; did you mean 'rougeL'?"),
        ({"metrics": ["answer_match"]}, "answer_match needs an answer_pattern"),
        ({"metrics": ["loss"], "answer_pattern": PATTERN}, "answer_pattern: only answer_match uses it"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    assert message in make(**options).check_options()


@pytest.mark.parametrize("options", [{}, {"chat_template": "own.jinja"}, {"chat_template": "none"}, {"answer_pattern": PATTERN}])
def test_good_options(options: dict[str, Any]) -> None:
    assert make(**options).check_options() == ""


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 4},
        {"layout": "chat"},
        {"train_on": "none"},
        {"answer_pattern": "#.*"},
        {"answer_pattern": "(a)(b)"},
        {"system": ""},
    ],
)
def test_options_that_do_not_exist_or_are_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Options(**options)
    with pytest.raises(ValidationError, match="is not a regular expression"):
        Options(answer_pattern="(")


def test_defaults_and_refusals() -> None:
    assert make().defaults(FACTS)["task.max_length"].value == 128
    assert make(answer_pattern=PATTERN).defaults(FACTS)["task.metrics"].value == [
        "loss",
        "perplexity",
        "token_accuracy",
        "answer_match",
    ]
    assert "max_length is 256, but llama takes at most 128 tokens" in make(max_length=256).refusal(FACTS)
    assert "max_new_tokens is 200, but" in make(generation={"max_new_tokens": 200}).refusal(FACTS)
    assert make().refusal(FACTS) == ""
    with pytest.raises(ValueError, match="still `auto`"):
        make(max_length="auto").encode(ROWS, byte_tokenizer())


def test_text_is_generated_only_for_metrics_that_need_it() -> None:
    assert not make().generates(None)
    assert make().generates_to_present
    task = make(metrics=["loss", *GENERATED], answer_pattern=PATTERN)
    assert task.generates(None)
    assert not task.generates(["loss"])
    assert all(task.generates([name]) for name in GENERATED)
    assert task.metrics()[0].name == "loss"


# --- what counts ------------------------------------------------------------------------------------------------------


def test_answers_count_the_last_one_or_everything() -> None:
    processor = byte_tokenizer()
    found = {train_on: make(TALKS, train_on=train_on).encode(TALKS, processor)[1] for train_on in ("answers", "last_answer", "all")}
    assert counted(found["answers"], processor) == "dd</s>fff</s>"
    assert counted(found["last_answer"], processor) == "fff</s>"
    # Nothing predicts the first token.
    text = processor.decode(found["all"]["input_ids"])
    assert text[0] + counted(found["all"], processor) == text
    assert processor.decode(found["all"]["prompt_ids"]).endswith("e</s>\n<|assistant|>\n")


def test_features_of_training_rows_have_no_prompt_and_know_their_row() -> None:
    found = make(TALKS).encode(TALKS * 2, byte_tokenizer(), training=True)
    assert [feature["row"] for feature in found] == [0, 1, 2, 3]
    assert all(set(feature) == {"input_ids", "supervised", "length", "truncated", "row", "answer_length"} for feature in found)
    assert all(len(feature["supervised"]) == feature["length"] == len(feature["input_ids"]) for feature in found)


def test_the_system_option_is_a_turn_of_rows_without_one() -> None:
    processor = byte_tokenizer()
    text = processor.decode(make(ROWS, system="Count!").encode(ROWS[:1], processor)[0]["prompt_ids"])
    assert text.startswith("<|system|>\nCount!</s>\n<|user|>\nOne?")


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_loss_is_that_of_transformers_on_the_same_labels(pad: str) -> None:
    processor = byte_tokenizer()
    processor.pad_token = pad
    task, model = make(TALKS), tiny_llama(processor)
    task.bind(model, processor)
    features = task.encode(TALKS, processor)
    batch = collated(task, TALKS, processor, training=False)
    labels = torch.full_like(batch["input_ids"], -100)
    for index, feature in enumerate(features):
        ids, marks = torch.tensor(feature["input_ids"]), torch.tensor(feature["supervised"], dtype=torch.bool)
        labels[index, : len(ids)][marks] = ids[marks]
        # The end of every answer counts, also where it looks like padding.
        assert int(labels[index, marks.nonzero()[-1]]) == processor.eos_token_id
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        assert task.target_count(batch) == int((labels != -100).sum()) == 2 + 3 + 4
        found = task.loss(task.forward(model, batch), batch) / task.target_count(batch)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert (batch["targets"][:, -1] == IGNORED).all()


def test_training_gradients_are_those_of_the_answers_alone() -> None:
    processor = byte_tokenizer()
    task, model = make(TALKS), tiny_llama(processor)
    task.bind(model, processor)
    batch = collated(task, TALKS[:1], processor)
    task.loss(task.forward(model, batch), batch).backward()
    found = model.lm_head.weight.grad.clone()
    model.zero_grad()
    places = batch["targets"][0] != IGNORED
    logits = model(input_ids=batch["input_ids"]).logits[0][places]
    functional.cross_entropy(logits, batch["targets"][0][places], reduction="sum").backward()
    assert torch.allclose(found, model.lm_head.weight.grad, atol=1e-5)


def test_label_smoothing_is_supported() -> None:
    processor = byte_tokenizer()
    task, model = make(TALKS), tiny_llama(processor)
    task.bind(model, processor)
    assert task.supports_label_smoothing
    batch = collated(task, TALKS, processor)
    outputs, logits = task.forward(model, batch), model(input_ids=batch["input_ids"]).logits
    plain = {"ignore_index": IGNORED, "reduction": "sum"}
    expected = functional.cross_entropy(logits.transpose(1, 2), batch["targets"], label_smoothing=0.1, **plain)
    assert task.loss(outputs, batch, label_smoothing=0.1).item() == pytest.approx(expected.item(), rel=1e-5)


# --- what does not fit ------------------------------------------------------------------------------------------------

LONG = {"prompt": "x" * 70, "completion": "never seen"}


def test_c2_rows_whose_answers_are_cut_away_are_left_out_of_training_only() -> None:
    processor = byte_tokenizer()
    rows = [ROWS[0], LONG, ROWS[1]]
    task = make(rows)
    assert [feature["row"] for feature in task.encode(rows, processor, training=True)] == [0, 2]
    assert "max_length" in task.left_out
    kept = task.encode(rows, processor)
    assert [feature["row"] for feature in kept] == [0, 1, 2]
    assert kept[1]["truncated"]
    assert not any(kept[1]["supervised"])
    assert len(kept[1]["prompt_ids"]) > 70


def test_c2_or_they_are_an_error() -> None:
    task = make(ROWS, on_empty_target="error")
    for training in (False, True):
        with pytest.raises(RowError, match="no token of its answers is among the first 64") as caught:
            task.encode([ROWS[0], LONG], byte_tokenizer(), training=training)
        assert caught.value.column == "prompt"
        assert "task.max_length" in caught.value.hint


def test_an_answer_that_is_cut_keeps_what_fits() -> None:
    processor = byte_tokenizer()
    row = {"prompt": "x", "completion": "y" * 90}
    feature = make([row]).encode([row], processor, training=True)[0]
    assert feature["truncated"]
    assert feature["length"] == 64
    assert set(counted(feature, processor)) == {"y"}


def test_messages_name_the_column_and_the_layout_s_turn() -> None:
    with pytest.raises(RowError, match="turn 2") as caught:
        make().check_row({"messages": [TALKS[0]["messages"][0]] * 2})
    assert caught.value.column == "messages"
    task = make(TALKS, chat_template="alpaca")
    talk = [*TALKS[0]["messages"], {"role": "tool", "content": "x"}, TALKS[0]["messages"][1]]
    with pytest.raises(RowError, match="has no place for the role tool") as caught:
        task.encode([{"messages": talk}], byte_tokenizer())
    assert caught.value.column == "messages"
    with pytest.raises(ModelError, match="has no chat template"):
        make(TALKS, chat_template="auto").encode(TALKS, byte_tokenizer())


def test_training_rows_need_an_answer_and_rows_to_predict_do_not() -> None:
    asked = {"messages": [{"role": "user", "content": "c"}]}
    task = make()
    with pytest.raises(RowError, match="no answer to learn"):
        task.check_row(asked)
    task.learn(TALKS)
    task.check_row(asked)
    with pytest.raises(DataError, match=r"row 1: messages: the conversation does not end with an answer"):
        task.score([{"example": 0, "text": "x"}], [asked])


def test_rows_without_any_of_the_columns_are_refused() -> None:
    with pytest.raises(DataError, match="the training rows have none of the columns messages, conversations, instruction"):
        make().learn([])


# --- state ------------------------------------------------------------------------------------------------------------


def test_columns_follow_what_was_learned() -> None:
    task = make()
    assert not any(column.required for column in task.columns().values())
    task.learn(ROWS)
    assert [name for name, column in task.columns().items() if column.required] == ["prompt", "completion"]
    assert set(make(layout="messages").columns()) == {"messages", "system", "tools"}


def test_state_comes_back_with_the_template_and_without_its_file(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(
        BUILT_IN["zephyr"].replace("{{- '<|'", "{{- '<|our '").replace("<|assistant|>", "<|our assistant|>"), encoding="utf-8"
    )
    task = make(ROWS, chat_template=str(path))
    state = json.loads(json.dumps(task.state()))
    assert state == {"layouts": ["prompt_completion"], "longest_answer": len("We say #2.0") + 1, "chat_template": path.read_text()}
    path.unlink()
    again = make(chat_template=str(path))
    again.restore(state)
    assert again.state() == task.state()
    assert "<|our assistant|>" in byte_tokenizer().decode(again.encode([{"prompt": "x"}], byte_tokenizer())[0]["prompt_ids"])


def test_learning_does_not_depend_on_order() -> None:
    assert make([*ROWS, *TALKS]).state() == make([*reversed(TALKS), *reversed(ROWS)]).state()


def test_the_length_of_answers_follows_the_longest_one() -> None:
    assert make(ROWS).describe(ROWS)["max_new_tokens"] == len("We say #2.0") + 1
    assert make(TALKS).describe(TALKS)["max_new_tokens"] == len("fff") + 1
    assert make(ROWS, generation={"max_new_tokens": 7}).describe(ROWS)["max_new_tokens"] == 7
    long = [{"prompt": "x", "completion": "y" * 5000}]
    task = make(long)
    assert task.describe(long)["max_new_tokens"] == 5001
    processor = byte_tokenizer()
    task.bind(tiny_llama(processor), processor)
    assert task.describe(long)["max_new_tokens"] == 64


def test_facts_about_a_split() -> None:
    facts = make(TALKS).describe(TALKS)
    assert (facts["rows"], facts["answers"], facts["turns"]["max"]) == (2, 3, 4)
    assert facts["characters_of_answers"]["mean"] == 2
    json.dumps(facts)


def test_bind_puts_template_and_end_tokens_where_exports_take_them_from(tmp_path: Path) -> None:
    processor = byte_tokenizer(template="{{ 'nothing' }}")
    task, model = make(TALKS, chat_template="chatml"), tiny_llama(processor)
    task.bind(model, processor)
    stops = sorted([processor.eos_token_id, processor.convert_tokens_to_ids("<|im_end|>")])
    assert model.generation_config.eos_token_id == stops
    processor.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    asked = TALKS[1]["messages"][:-1]
    ids = again.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert ids == task.encode(TALKS, byte_tokenizer())[1]["prompt_ids"]


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 7])
def test_what_was_learned_by_heart_comes_back_whole_and_ends(taught: tuple[Any, Any], size: int) -> None:
    model, processor = taught
    task = make(ROWS, metrics=["loss", "perplexity", "token_accuracy", *GENERATED], answer_pattern=PATTERN)
    task.bind(model, processor)
    table, store = stored(task, ROWS, processor)
    found = evaluate(model, task, store, table, processor, batch_size=size, max_tokens=None, accelerator=Accelerator(cpu=True))
    metrics = found.metrics
    assert [item["text"] for item in found.predictions] == list(ANSWERS.values())
    assert all(item["complete"] for item in found.predictions)
    assert {name: metrics[name] for name in ("exact_match", "rougeL", "answer_match", "token_accuracy")} == dict.fromkeys(
        ("exact_match", "rougeL", "answer_match", "token_accuracy"), 1.0
    )
    assert metrics["chrf"] == pytest.approx(100)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert set(task.intervals(found.predictions, table)) == {"perplexity", *GENERATED}
    examples = task.details(found.predictions, table)["examples"]
    assert examples[0] == {"row": 1, "reference": "It is #1", "generated": "It is #1"}
    assert len(examples) == 5


@pytest.mark.parametrize("size", [1, 3, 7])
def test_losses_do_not_depend_on_the_batch(size: int) -> None:
    processor = byte_tokenizer()
    rows = [*ROWS, LONG]
    task, model = make(rows), tiny_llama(processor)
    task.bind(model, processor)
    table, store = stored(task, rows, processor)
    common = {"max_tokens": None, "accelerator": Accelerator(cpu=True)}
    one = evaluate(model, task, store, table, processor, batch_size=len(rows), **common)
    found = evaluate(model, task, store, table, processor, batch_size=size, **common)
    assert found.metrics == pytest.approx(one.metrics, rel=1e-5)
    assert found.predictions[-1]["tokens"] == 0
    assert task.details(found.predictions, table) == {}


def test_c8_generated_text_does_not_depend_on_its_company(taught: tuple[Any, Any]) -> None:
    model, processor = taught
    task = make(ROWS, generation={"max_new_tokens": 12})
    task.bind(model, processor)
    rows = [{"prompt": text} for text in ("One?", "Something longer that it has never seen", "Tw")]
    features = task.encode(rows, processor)
    together = task.generate(model, features, processor)
    assert together == [task.generate(model, [feature], processor)[0] for feature in features]


def test_rows_to_predict_need_no_answer_and_a_text_is_a_turn(taught: tuple[Any, Any]) -> None:
    model, processor = taught
    asked = [{"messages": "One?"}, {"messages": [{"role": "user", "content": "A hundred?"}]}]
    task = make([{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "some answer"}]}])
    task.bind(model, processor)
    table, store = stored(task, asked[1:], processor)
    options = {"batch_size": 2, "max_tokens": None, "accelerator": Accelerator(cpu=True), "presenting": True}
    predictions, _, targets = predict_features(model, task, store, processor, **options)
    assert targets == 0
    assert task.present(predictions[0], table[0]) == {"text": "#100", "complete": True}
    texts, store = stored(task, asked[:1], processor)
    predictions, _, _ = predict_features(model, task, store, processor, **options)
    assert task.present(predictions[0], texts[0])["text"] == "It is #1"


def test_an_answer_that_does_not_end_and_a_prompt_without_room_are_marked(taught: tuple[Any, Any]) -> None:
    model, processor = taught
    task = make(ROWS, max_length=128, generation={"max_new_tokens": 3})
    task.bind(model, processor)
    rows = [ROWS[0], {"prompt": "z" * 200}]
    found = task.generate(model, task.encode(rows, processor), processor)
    assert task.present(found[0], rows[0]) == {"text": "It ", "complete": False}
    assert task.present(found[1], rows[1])["prompt_cut"]


def test_metrics_are_none_where_a_number_is_not_finite() -> None:
    task = make(ROWS)
    broken = [{"example": index, "nll": math.nan, "tokens": 1, "correct": 0} for index in range(len(ROWS))]
    assert task.score(broken, ROWS) == {"perplexity": None, "token_accuracy": None}
    assert task.intervals(broken, ROWS) == {}


def test_only_the_asked_metrics_are_computed() -> None:
    task = make(ROWS)
    items = [{"example": index, "nll": 2.0, "tokens": 2, "correct": 1} for index in range(len(ROWS))]
    assert task.score(items, ROWS, ["token_accuracy"]) == {"token_accuracy": 0.5}
    assert task.score(items, ROWS)["perplexity"] == pytest.approx(math.e)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234.", "1234"),
        ("1234.00", "1234"),
        ("-0.50", "-0.5"),
        ("$5", "$5"),
        (" x. ", "x."),
        ("1e3", "1000"),
        ("1e999999", "1e999999"),
    ],
)
def test_numbers_are_compared_as_numbers(text: str, expected: str) -> None:
    assert normalized(text) == expected


def test_answer_match_takes_the_last_match_of_each_text() -> None:
    task = make(ROWS, answer_pattern=PATTERN, metrics=["answer_match"])
    rows = [
        {"prompt": "a", "completion": "#1 then #7"},
        {"prompt": "b", "completion": "#1,000"},
        {"prompt": "c", "completion": "#3"},
        {"prompt": "d", "completion": "nothing to find"},
    ]
    texts = ["first #9 then #7.0", "#1000.", "3", "#4"]
    items = [{"example": index, "text": text} for index, text in enumerate(texts)]
    assert task.score(items, rows)["answer_match"] == pytest.approx(2 / 3)
    assert task.score(items[3:], rows[3:])["answer_match"] is None


def test_a_pattern_that_takes_for_ever_is_stopped() -> None:
    task = make(ROWS, answer_pattern=r"((?:a|aa)+)b", metrics=["answer_match"])
    rows = [{"prompt": "a", "completion": "a" * 60 + "!"}]
    with pytest.raises(RecipeError, match=r"task\.answer_pattern: the regular expression .* did not finish"):
        task.score([{"example": 0, "text": "a"}], rows)


def test_inspect_shows_what_counts_what_is_special_and_the_cut() -> None:
    processor = byte_tokenizer()
    task = make(TALKS, max_length=24)
    shown = task.inspect(task.encode(TALKS[:1], processor)[0], processor)
    assert [(text, note) for text, note in shown if note] == [("</s>", "special token"), ("", "cut at 24 tokens")]
    shown = make(TALKS).inspect(make(TALKS).encode(TALKS[:1], processor)[0], processor)
    assert [(text, note) for text, note in shown if note] == [
        ("</s>", "special token"),
        ("b", "answer"),
        ("</s>", "answer, special token"),
    ]
    assert ("<", "") in shown


# --- a whole run ------------------------------------------------------------------------------------------------------


def test_a_run_from_recipe_to_prediction_with_a_template_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = byte_tokenizer()
    tiny_llama(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    template = BUILT_IN["chatml"].replace("+ message.role +", "+ message.role.replace('user', 'USER') +")
    (tmp_path / "own.jinja").write_text(template, encoding="utf-8")
    lines = [json.dumps({"question": row["prompt"], "answer": row["completion"]}) for row in [*ROWS, LONG]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: model\n"
        "task: {name: instruction-tuning, chat_template: own.jinja, max_length: 64, metrics: [loss, chrf]}\n"
        "data: {train: rows.jsonl, test: rows.jsonl, leaks: 'off'}\n"
        "method: {name: lora, rank: 2}\n"
        "train: {max_steps: 2, batch_size: 4}\n"
        "export: [adapter, merged]\n",
        encoding="utf-8",
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = tmp_path / "run"
    results = ftkit.train(ftkit.load_recipe(recipe), output=run).results
    assert results["status"] == "completed"
    assert any("1 of 7 rows were left out: no token of an answer" in note for note in results["notes"])
    assert set(results["splits"]["test"]["metrics"]) == {"loss", "chrf"}
    asked = [{"role": "user", "content": "One?"}]
    for form in ("adapter", "merged"):
        exported: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(run / "export" / form)
        text = exported.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        assert text == "<|im_start|>USER\nOne?<|im_end|>\n<|im_start|>assistant\n"
    config = json.loads((run / "export" / "merged" / "generation_config.json").read_text())
    assert processor.convert_tokens_to_ids("<|im_end|>") in config["eos_token_id"]
    assert ftkit.load(run).evaluate("test")["metrics"] == pytest.approx(results["splits"]["test"]["metrics"], abs=1e-5)
    (tmp_path / "own.jinja").unlink()
    predictor = ftkit.load(run)
    needed = [name for name, column in predictor.task.columns().items() if column.required and not column.target]
    assert needed == ["prompt"]
    for column in ("prompt", "question"):
        assert set(next(predictor.predict([{column: "One?"}]))) == {"text", "complete"}


def test_c2_a_recipe_of_which_no_row_is_left_is_refused(tmp_path: Path) -> None:
    processor = byte_tokenizer()
    tiny_llama(processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "x" * 90, "answer": "y"}), encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: model\ntask: {name: instruction-tuning, chat_template: chatml, max_length: 64}\n"
        "data: {train: rows.jsonl}\nmethod: full\n",
        encoding="utf-8",
    )
    with pytest.raises(DataError, match=r"no training row can be used: no token of an answer is within task\.max_length"):
        ftkit.train(ftkit.load_recipe(recipe), output=tmp_path / "run")
    assert not np.any([path.name == "checkpoints" for path in tmp_path.rglob("*")])
