"""Sequence to sequence: what is learned, what is generated, and that references given back score perfectly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import MBart50Tokenizer, MBartTokenizer, NllbTokenizer

from ftkit.data.building import table_from_rows
from ftkit.data.features import FeatureStore, encode_table
from ftkit.errors import DataError, ModelError, RecipeError
from ftkit.metrics import generated_text
from ftkit.models.facts import ModelFacts
from ftkit.tasks.base import RowError
from ftkit.tasks.parts import generation
from ftkit.tasks.parts.language_loss import IGNORED
from ftkit.tasks.parts.target_texts import encode_targets
from ftkit.tasks.seq2seq import Options, Seq2Seq
from ftkit.training.evaluation import evaluate, predict_features
from tests.tiny import TOKENS, save_tiny, tiny_model, tiny_tokenizer

FACTS = ModelFacts(
    kind="encoder-decoder", model_type="bart", hidden_size=16, block_count=4, max_positions=64, vocab_size=64, path=None
)
LONG = " ".join(f"w{(7 * step) % 41}" for step in range(30))
ROWS: list[dict[str, Any]] = [
    {"source": "w1 w2 w3", "target": ["w4 w5 w6 w7"]},
    {"source": "w9 " * 20, "target": [LONG, "w1 w2"]},
    {"source": "w8", "target": ["w10"]},
    {"source": "w20 w21 w22 w23", "target": ["w3 w2", "w1 w2 w3 w4 w5", "w30 w31"]},
    {"source": "w13 w1", "target": ["w31 w32 w33 w34 w35 w36"]},
    {"source": "w2 w2 w2", "target": ["w40"]},
    {"source": "w30 w12 w13 w14 w15 w16", "target": ["w5 w4"]},
]
GENERATED = list(generated_text.METRICS)


def make(**options: Any) -> Seq2Seq:
    return Seq2Seq(Options.model_validate({"max_source_length": 64, "max_target_length": 64, **options}))


def encoded(task: Seq2Seq, rows: list[dict[str, Any]] = ROWS, processor: Any = None, training: bool = False) -> FeatureStore:
    table = table_from_rows(rows, "rows")
    store = encode_table(table, task, processor or tiny_tokenizer("bart"), processor_key="k", cache=False, training=training)
    if training:
        task.learn_encoded(store.numbers)
    return store


def bound(task: Seq2Seq, family: str = "bart") -> Any:
    model = tiny_model(family, "AutoModelForSeq2SeqLM")
    task.bind(model, tiny_tokenizer(family))
    return model


def batch_of(task: Seq2Seq, rows: list[dict[str, Any]], family: str = "bart") -> dict[str, torch.Tensor]:
    processor = tiny_tokenizer(family)
    return task.collate([{**item, "example": index} for index, item in enumerate(task.encode(rows, processor))], processor)


def evaluation(task: Seq2Seq, model: Any, size: int = 3, family: str = "bart", rows: list[dict[str, Any]] = ROWS) -> Any:
    processor, table = tiny_tokenizer(family), table_from_rows(rows, "rows")
    store, accelerator = encoded(task, rows, processor), Accelerator(cpu=True)
    return evaluate(model, task, store, table, processor, batch_size=size, max_tokens=None, accelerator=accelerator)


def train(task: Seq2Seq, model: Any, rows: list[dict[str, Any]], family: str, steps: int = 150) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    batch = batch_of(task, rows, family)
    for _ in range(steps):
        (task.loss(task.forward(model, batch), batch) / task.target_count(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()


# --- rows and options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"source": " ", "target": "a"}, "source", "empty"),
        ({"source": "a", "target": ""}, "target", "empty"),
        ({"source": "a", "target": None}, "target", "missing"),
        ({"source": "a", "target": 3}, "target", "3, which is not text"),
        ({"source": "a", "target": []}, "target", "list of references is empty"),
        ({"source": "a", "target": ["b", " "]}, "target", "reference 2"),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], column: str, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        make().check_row(row)
    assert caught.value.column == column


def test_rows_to_predict_need_no_target() -> None:
    make().check_row({"source": "a"})


def test_usual_columns_are_found() -> None:
    from ftkit.data.columns import find_columns

    for names in (("document", "summary"), ("article", "highlights"), ("en", "de"), ("text", "summary"), ("source", "target")):
        table = table_from_rows([dict.fromkeys(("id", *names), "x")], "rows")
        assert find_columns(table, make(), {}) == {"source": names[0], "target": names[1]}
    with pytest.raises(DataError, match="source"):
        find_columns(table_from_rows([{"foo": "x"}], "rows"), make(), {})


def test_defaults_follow_goal_and_model() -> None:
    task = Seq2Seq(Options.model_validate({"goal": "translation"}))
    found = task.defaults(FACTS)
    assert found["task.max_source_length"].value == found["task.max_target_length"].value == 64
    assert found["task.metrics"].value == ["loss", "perplexity", "bleu", "chrf"]
    assert [spec.name for spec in task.metrics()][:1] == ["loss"]
    assert "task.generation.max_new_tokens" not in found


@pytest.mark.parametrize(
    "options",
    [
        {"max_target_length": 65},
        {"max_source_length": 65},
        {"generation": {"max_new_tokens": 65}},
        {"generation": {"min_new_tokens": 65}},
    ],
)
def test_lengths_beyond_the_positions_are_refused(options: dict[str, Any]) -> None:
    assert "takes at most 64 tokens" in make(**options).refusal(FACTS)
    assert make().refusal(FACTS) == ""


def test_options_that_contradict_each_other() -> None:
    assert "give both or none" in make(source_language="en_XX").check_options()
    assert "did you mean 'rouge1'" in make(metrics=["rouge_1"]).check_options()
    assert make(metrics=["rouge1", "token_accuracy"]).check_options() == ""


# --- tensors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bart", "t5", "bert"])
def test_decoder_inputs_are_the_targets_one_place_later(family: str) -> None:
    task = make(prefix="w0 ")
    task._start = {"bart": 5, "t5": 0, "bert": TOKENS["<cls>"]}[family]
    batch = batch_of(task, ROWS[:3], family)
    w = TOKENS["w0"]
    begin = {"bart": [TOKENS["<s>"]], "t5": [], "bert": []}[family]
    end = TOKENS["<sep>"] if family == "bert" else TOKENS["</s>"]
    expected = [*begin, w + 10, end]
    assert batch["targets"][2].tolist() == expected + [IGNORED] * (batch["targets"].shape[1] - len(expected))
    assert batch["decoder_input_ids"][2, : len(expected)].tolist() == [task._start, *expected[:-1]]
    assert set(batch["decoder_input_ids"][2, len(expected) :].tolist()) == {0}
    assert w in batch["input_ids"][2].tolist()
    assert batch["attention_mask"].sum(1).tolist() == [len(ids) for ids in (item["input_ids"] for item in _features(task, family))]
    assert "labels" not in batch
    assert set(task.model_inputs) <= set(batch)


def _features(task: Seq2Seq, family: str) -> Any:
    return task.encode(ROWS[:3], tiny_tokenizer(family))


def test_cuts_keep_special_tokens_and_are_told() -> None:
    task = make(max_source_length=8, max_target_length=6)
    features = task.encode(ROWS, tiny_tokenizer("bart"))
    assert [item["truncated"] for item in features] == [False, True, False, False, True, False, False]
    assert [item["source_cut"] for item in features] == [False, True, False, False, False, False, False]
    assert [len(item["input_ids"]) for item in features[:2]] == [5, 8]
    for item in features:
        assert item["input_ids"][-1] == item["target_ids"][-1] == TOKENS["</s>"]
        assert item["target_length"] == len(item["target_ids"]) <= 6
        assert item["length"] == len(item["input_ids"]) + len(item["target_ids"])


def test_a_tokenizer_without_an_end_token_in_its_template_gets_one() -> None:
    processor = tiny_tokenizer("gpt2")
    assert encode_targets(["w1 w2 w3"], processor, 8) == [([*(TOKENS["w0"] + i for i in (1, 2, 3)), TOKENS["</s>"]], False)]
    assert encode_targets(["w1 w2 w3"], processor, 3) == [([TOKENS["w1"], TOKENS["w2"], TOKENS["</s>"]], True)]
    processor.eos_token = processor.sep_token = None
    with pytest.raises(ModelError, match="learn to stop"):
        encode_targets(["w1"], processor, 8)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_loss_is_plain_cross_entropy_of_the_first_reference(family: str) -> None:
    task = make()
    model = bound(task, family)
    batch = batch_of(task, ROWS, family)
    with torch.no_grad():
        outputs = task.forward(model, batch)
        targets = batch["targets"].clone()
        logits = model(**{name: batch[name] for name in task.model_inputs}).logits
        expected = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        labels = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=targets).loss
    assert task.loss(outputs, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    # transformers' own, which shifts the labels itself.
    assert (task.loss(outputs, batch) / task.target_count(batch)).item() == pytest.approx(labels.item(), rel=1e-5)
    predictions = task.predictions(outputs, batch)
    assert sum(item["nll"] for item in predictions) == pytest.approx(expected.item(), rel=1e-6)
    assert sum(item["tokens"] for item in predictions) == task.target_count(batch)


def test_batch_size_does_not_change_the_results() -> None:
    task = make(metrics=["loss", "perplexity", "token_accuracy", "chrf"], generation={"max_new_tokens": 6})
    model = bound(task)
    results = [evaluation(task, model, size) for size in (1, 3, 7)]
    for other in results[1:]:
        assert other.metrics == pytest.approx(results[0].metrics, rel=1e-5)
        assert [item["text"] for item in other.predictions] == [item["text"] for item in results[0].predictions]


def test_perplexity_is_that_of_the_loss() -> None:
    task = make(metrics=["perplexity"])
    found = evaluation(task, bound(task)).metrics
    assert found["perplexity"] == pytest.approx(torch.tensor(found["loss"]).exp().item(), rel=1e-5)


# --- generation --------------------------------------------------------------------------------------------------------


def test_details_count_cut_texts_and_show_some_beside_all_references() -> None:
    task, table = make(metrics=GENERATED), table_from_rows(ROWS, "rows")
    written = [{"nll": 0.0, "tokens": 1, "correct": 1, "text": row["target"][-1], "complete": True} for row in ROWS]
    details = task.details([{**written[0], "complete": False}, *written[1:]], table)
    assert details["generated"]["cut"] == 1
    assert details["signatures"]["bleu"].startswith("nrefs:var|")
    assert details["examples"][1] == {"source": ROWS[1]["source"], "references": [LONG, "w1 w2"], "text": "w1 w2"}


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_long_targets_are_learned_and_written_to_their_end(family: str) -> None:
    task = make(metrics=["exact_match", "rouge2", "bleu"])
    rows = [{"source": "w1", "target": LONG}, {"source": "w2 w3 w4", "target": "w5 w6 w7"}]
    processor = tiny_tokenizer(family)
    longest = encoded(task, rows, processor, training=True).numbers("target_length").max()
    assert longest > 30
    model = bound(task, family)
    train(task, model, rows, family)
    found = evaluation(task, model.eval(), family=family, rows=rows)
    assert {name: found.metrics[name] for name in ("exact_match", "rouge2")} == {"exact_match": 1.0, "rouge2": 1.0}
    assert found.metrics["bleu"] == pytest.approx(100.0)
    assert all(item["complete"] for item in found.predictions)
    assert model.generation_config.max_new_tokens == longest + 4
    generated = model.generate(**processor(["w1"], return_tensors="pt").to("cpu"))
    assert processor.decode(generated[0], skip_special_tokens=True) == LONG


def test_an_adapter_generates_too() -> None:
    task = make(metrics=["exact_match"])
    rows = [{"source": "w1 w5", "target": "w2 w3 w4"}, {"source": "w20", "target": "w22"}]
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules="all-linear", r=8)
    model = get_peft_model(tiny_model("bart", "AutoModelForSeq2SeqLM"), config).eval()
    task.bind(model, tiny_tokenizer("bart"))
    train(task, model, rows, "bart", 200)
    assert evaluation(task, model, rows=rows).metrics["exact_match"] == 1.0
    with model.disable_adapter():
        assert evaluation(task, model, rows=rows).metrics["exact_match"] == 0.0


def test_longest_target_decides_how_much_is_generated() -> None:
    task = make(metrics=["exact_match"])
    assert task.describe(ROWS)["max_new_tokens"] == 64
    encoded(task, training=True)
    # 30 words, begin and end, and a tenth more.
    assert task.state() == {"longest_target": 32}
    assert task.describe(ROWS)["max_new_tokens"] == 36
    again = make(metrics=["exact_match"])
    again.restore(task.state())
    assert again._max_new_tokens() == 36
    short = make(max_target_length=10)
    encoded(short, training=True)
    assert short._max_new_tokens() == 10
    assert make(generation={"max_new_tokens": 7})._max_new_tokens() == 7
    cut = make(metrics=["chrf"], generation={"max_new_tokens": 3, "min_new_tokens": 3})
    found = evaluation(cut, bound(cut))
    assert not any(item["complete"] for item in found.predictions)
    assert cut.details(found.predictions, table_from_rows(ROWS, "rows"))["generated"] == {"max_new_tokens": 3, "cut": 7}


def test_text_is_generated_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make(metrics=["loss", "perplexity", "rouge1"])
    assert task.generates(None)
    assert task.generates(["rouge1"])
    assert not task.generates(["loss", "perplexity"])
    assert not make(metrics=["loss", "perplexity"]).generates(None)
    monkeypatch.setattr(Seq2Seq, "generate", lambda *_: pytest.fail("generated"))
    processor, table = tiny_tokenizer("bart"), table_from_rows(ROWS, "rows")
    arguments: dict[str, Any] = {"batch_size": 3, "max_tokens": None, "accelerator": Accelerator(cpu=True), "names": ["loss"]}
    found = evaluate(bound(task), task, encoded(task), table, processor, **arguments)
    assert set(found.metrics) == {"loss"}
    assert task.details(found.predictions, table) == {}


def test_prediction_needs_no_targets() -> None:
    task = make(metrics=["loss"], generation={"max_new_tokens": 5})
    model, rows = bound(task), [{"source": row["source"]} for row in ROWS]
    found, loss, count = predict_features(
        model,
        task,
        encoded(task, rows),
        tiny_tokenizer("bart"),
        batch_size=3,
        max_tokens=None,
        accelerator=Accelerator(cpu=True),
        presenting=True,
    )
    assert (loss, count) == (0.0, 0)
    assert [set(task.present(item, row)) for item, row in zip(found, rows, strict=True)] == [{"text", "complete"}] * 7


def test_inspection_shows_both_sides() -> None:
    task = make(prefix="w40 ", max_target_length=4)
    features = task.encode(ROWS[:1], tiny_tokenizer("bart"))[0]
    assert task.inspect(features, tiny_tokenizer("bart")) == [
        ("<s>", "special token"),
        *[(f"w{number}", "") for number in (40, 1, 2, 3)],
        ("</s>", "special token"),
        *[(token, "target") for token in ("<s>", "w4", "w5", "</s>")],
        ("", "target cut at 4 tokens"),
    ]


# --- languages ---------------------------------------------------------------------------------------------------------

PIECES = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁w{number}" for number in range(20))]


def _multilingual(cls: Any) -> Any:
    if cls is NllbTokenizer:
        return cls(vocab={piece: index for index, piece in enumerate([*PIECES, "▁", "w"])}, merges=[])
    return cls(vocab=[(piece, -float(index >= 4)) for index, piece in enumerate(PIECES)])


@pytest.mark.parametrize(
    ("cls", "codes", "begins"),
    [
        (NllbTokenizer, ("eng_Latn", "deu_Latn"), True),
        (MBart50Tokenizer, ("en_XX", "de_DE"), True),
        (MBartTokenizer, ("en_XX", "de_DE"), False),
    ],
)
def test_languages_reach_tokens_and_generation(cls: Any, codes: tuple[str, str], begins: bool) -> None:
    task = make(source_language=codes[0], target_language=codes[1])
    # As `ftkit predict` does it: the model is bound before the first row is encoded.
    model, processor = tiny_model("bart", "AutoModelForSeq2SeqLM"), _multilingual(cls)
    model.resize_token_embeddings(len(processor))
    task.bind(model, processor)
    (features,) = task.encode([{"source": "w1 w2", "target": "w3"}], processor)
    source, target = (processor.convert_ids_to_tokens(features[name]) for name in ("input_ids", "target_ids"))
    assert codes[0] in source
    assert codes[1] not in source
    assert (target[0] if begins else target[-1]) == codes[1]
    assert "</s>" in target
    token = processor.convert_tokens_to_ids(codes[1])
    settings = model.generation_config
    assert (settings.forced_bos_token_id, task._start) == ((token, 0) if begins else (None, token))
    found = task.generate(model, [{**features, "example": 0}], processor)
    assert codes[1] not in found[0]["text"]
    if begins:
        ids = generation.generate_tokens(
            model, {"input_ids": torch.tensor([[5, 6]])}, task.options.generation, max_new_tokens=3, stop_ids=[2], pad_id=1
        )
        assert ids[0][0] == token


def test_languages_are_asked_for_and_checked() -> None:
    processor, row = _multilingual(NllbTokenizer), [{"source": "w1", "target": "w3"}]
    with pytest.raises(RecipeError, match="needs to know the languages") as caught:
        make().encode(row, processor)
    assert [problem.key for problem in caught.value.problems] == ["task.source_language", "task.target_language"]
    with pytest.raises(RecipeError, match=r"no language 'deutsch'.*deu_Latn"):
        make(source_language="eng_Latn", target_language="deutsch").encode(row, processor)
    with pytest.raises(RecipeError, match="knows no languages"):
        make(source_language="en_XX", target_language="de_DE").encode(row, tiny_tokenizer("bart"))


def test_a_model_must_say_what_decoders_begin_with() -> None:
    model = tiny_model("bart", "AutoModelForSeq2SeqLM")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="decoder_start_token_id"):
        make().bind(model, tiny_tokenizer("bart"))


# --- the whole way -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_trains_exports_and_predicts(tmp_path: Path, method: str, pair: bool) -> None:
    import json

    import ftkit

    folder = save_tiny(tmp_path / "model", "bert" if pair else "t5", "AutoModel" if pair else "AutoModelForSeq2SeqLM")
    rows = [{"source": f"w{number} w{number + 1}", "target": f"w{number + 1} w{number} w3 w4"} for number in range(24)]
    for name, chosen in (("train", rows), ("test", rows[:5])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    exports = "[merged]" if method == "full" else "[adapter, merged]"
    model = f"{{name: {folder}, decoder: {folder}}}" if pair else str(folder)
    (tmp_path / "recipe.yaml").write_text(
        f"model: {model}\ntask: {{name: seq2seq, goal: translation}}\ndata: {{train: train.jsonl, test: test.jsonl, leaks: 'off'}}\n"
        f"method: {method}\ntrain: {{epochs: 1, batch_size: 8}}\nexport: {exports}\noutput: {tmp_path / 'run'}\n",
        encoding="utf-8",
    )
    result = ftkit.train(ftkit.load_recipe(tmp_path / "recipe.yaml"))
    metrics = result.results["splits"]["test"]["metrics"]
    assert {"loss", "perplexity", "bleu", "chrf"} == set(metrics)
    assert json.loads((tmp_path / "run" / "task.json").read_text())["state"] == {"longest_target": 6 if pair else 5}
    predictor = ftkit.load(tmp_path / "run")
    assert predictor.evaluate("test")["metrics"] == pytest.approx(metrics, rel=1e-5)
    assert [set(item) for item in predictor.predict([{"source": "w1 w2"}])] == [{"text", "complete"}]


def test_both_texts_may_lie_in_one_mapping() -> None:
    from ftkit.data.columns import apply_columns, find_columns

    rows = [{"translation": {"en": "w1 w2", "de": "w3"}}, {"translation": {"en": "w5", "de": "w6 w7"}}]
    task, columns = make(translation_keys=["de", "en"]), {"source": "translation", "target": "translation"}
    table = table_from_rows(rows, "rows")
    mapped = apply_columns(table, find_columns(table, task, columns), task)
    for row in mapped:
        task.check_row(row)
    flat = [{"source": row["translation"]["de"], "target": row["translation"]["en"]} for row in rows]
    assert task.encode(list(mapped), tiny_tokenizer("bart")) == make().encode(flat, tiny_tokenizer("bart"))
    assert task.describe(mapped) == make().describe(flat)
    task.check_row({"source": "w1"})
    with pytest.raises(RowError, match="no 'en'"):
        task.check_row({"source": rows[0]["translation"], "target": {"de": "w3"}})
    with pytest.raises(DataError, match=r"task.translation_keys: there is no 'fr' in the mappings of the data, which have en, de"):
        make(translation_keys=["en", "fr"]).check_row({"source": rows[0]["translation"], "target": rows[0]["translation"]})
    with pytest.raises(RowError, match="a mapping") as caught:
        make().check_row({"source": rows[0]["translation"]})
    assert "this row has en, de" in caught.value.hint
