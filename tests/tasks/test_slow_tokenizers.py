"""Tasks with tokenizers written in Python: what is masked, counted and tagged without knowing characters, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ftkit.errors import ModelError
from ftkit.tasks import instruction_tuning, language_modeling, question_answering, token_classification
from ftkit.tasks.base import RowError
from ftkit.tasks.parts.bio import IGNORED
from ftkit.tasks.parts.generation import GenerationOptions, generate_tokens, stream_text
from tests.slow_models import PAIRS, bertweet_tokenizer, byt5_tokenizer, save_byt5, save_marian, sw3_tokenizer
from tests.tiny import tiny_tokenizer

TEXTS = [" ".join(pair["target"] for pair in PAIRS[:count]) for count in (1, 2, 9)]


@pytest.fixture(scope="module")
def sw3(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return sw3_tokenizer(tmp_path_factory.mktemp("sw3") / "files")


@pytest.fixture(scope="module")
def bertweet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return bertweet_tokenizer(tmp_path_factory.mktemp("bertweet") / "files")


# --- language modeling -------------------------------------------------------------------------------------------------


def modeling(**options: Any) -> language_modeling.LanguageModeling:
    return language_modeling.LanguageModeling(language_modeling.Options.model_validate({"max_length": 32, "stride": 32, **options}))


def test_documents_in_rows_and_packed(sw3: Any) -> None:
    rows = [{"text": text} for text in TEXTS]
    whole = [[*ids, sw3.eos_token_id] for ids in sw3(TEXTS)["input_ids"]]
    found = modeling(max_length=1024, stride=1024).encode(rows, sw3)
    assert [item["input_ids"] for item in found] == whole
    packed = modeling().encode(rows, sw3, training=True)
    assert sorted(token for item in packed for token in item["input_ids"]) == sorted(token for ids in whole for token in ids)


def test_bytes_are_those_of_the_text_less_what_is_not_scored(sw3: Any) -> None:
    rows = [{"text": text} for text in TEXTS]
    for row, item in zip(rows, modeling(max_length=1024, stride=1024).encode(rows, sw3), strict=True):
        # The first piece is the first letter with the space that SentencePiece puts before it.
        first = len(sw3.convert_ids_to_tokens(item["input_ids"][0]))
        assert item["bytes"] == pytest.approx(len(row["text"].encode()) - first, abs=1)
    windows = modeling(max_length=32, stride=16).encode(rows[2:], sw3)
    assert len(windows) > 3
    assert sum(item["bytes"] for item in windows) == modeling(max_length=1024, stride=1024).encode(rows[2:], sw3)[0]["bytes"]


def test_bytes_are_near_those_that_offsets_tell() -> None:
    """The same words from a tokenizer with offsets, which is asked not to use them."""
    fast = tiny_tokenizer("gpt2")
    rows = [{"text": " ".join(f"w{(3 * number) % 41}" for number in range(100))}]
    task = modeling(max_length=8, stride=8, end_token=False)
    exact = [item["bytes"] for item in task.encode(rows, fast)]
    ids = fast(rows[0]["text"])["input_ids"]
    ends = language_modeling._shared_bytes(rows[0]["text"], ids, fast)
    assert ends[-1] == len(rows[0]["text"])
    assert sum(exact) == pytest.approx(ends[-1] * 7 / 8, rel=0.03)
    assert math.isclose(ends[len(ids) // 2], len(rows[0]["text"]) / 2, rel_tol=0.1)


# --- instruction tuning ------------------------------------------------------------------------------------------------

MARKED = (
    "{% for turn in messages %}{% if turn.role == 'assistant' %}{% generation %}{{ turn.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}Question: {{ turn.content }}\nAnswer: {% endif %}{% endfor %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
CHAT = [
    {"role": "user", "content": "the old house"},
    {"role": "assistant", "content": "alte Haus."},
    {"role": "user", "content": "the dog"},
    {"role": "assistant", "content": "Hund ist hier."},
]


def tuning(tmp_path: Path, template: str, **options: Any) -> instruction_tuning.InstructionTuning:
    if "{" in template:
        (tmp_path / "chat.jinja").write_text(template)
        template = str(tmp_path / "chat.jinja")
    task = instruction_tuning.InstructionTuning(
        instruction_tuning.Options.model_validate({"max_length": 256, "chat_template": template, **options})
    )
    task.learn([{"messages": CHAT}])
    return task


@pytest.mark.parametrize("template", ["alpaca", "zephyr", "none", MARKED, UNMARKED])
@pytest.mark.parametrize("tokenizer", ["sw3", "byt5"])
def test_answers_and_their_ends_count_and_nothing_else(request: Any, tmp_path: Path, template: str, tokenizer: str) -> None:
    processor = byt5_tokenizer() if tokenizer == "byt5" else request.getfixturevalue("sw3")
    task = tuning(tmp_path, template)
    (item,) = task.encode([{"messages": CHAT}], processor)
    counted = [token for token, counts in zip(item["input_ids"], item["supervised"], strict=True) if counts]
    runs = processor.decode(counted).replace(processor.eos_token, "|").split("|")
    assert [text.strip() for text in runs] == ["alte Haus.", "Hund ist hier.", ""]
    last = len(item["input_ids"]) - 1 - item["input_ids"][::-1].index(processor.eos_token_id)
    assert item["supervised"][last] == 1
    assert item["input_ids"][: len(item["prompt_ids"])] == item["prompt_ids"]
    assert item["supervised"][: len(item["prompt_ids"])].count(1) == sum(item["supervised"]) - (last - len(item["prompt_ids"]) + 1)


def test_an_answer_joined_with_its_prompt_is_refused(sw3: Any, tmp_path: Path) -> None:
    template = UNMARKED.replace("Answer: ", "Answer:hou")
    chat = [{"role": "user", "content": "dog"}, {"role": "assistant", "content": "se"}]
    ids = sw3("Answer:house", add_special_tokens=False)["input_ids"]
    begun = sw3("Answer:hou", add_special_tokens=False)["input_ids"]
    assert ids[: len(begun)] != begun, "the pieces of the test join"
    with pytest.raises(RowError, match="joins the end of the prompt with the answer"):
        tuning(tmp_path, template).encode([{"messages": chat}], sw3)


def test_a_template_without_an_end_token_is_refused(sw3: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="writes no end token of this tokenizer after an answer"):
        tuning(tmp_path, MARKED.replace("{{ eos_token }}", "")).encode([{"messages": CHAT[:2]}], sw3)


# --- token classification, question answering --------------------------------------------------------------------------

SENTENCE = ["the", "house", "(green)", "is", "日", "heavy", "."]
TAGS = ["O", "B-X", "I-X", "O", "B-X", "O", "O"]


def tagging(**options: Any) -> token_classification.TokenClassification:
    chosen = {"max_length": 64, "overlap": 4, "labeling": "first", **options}
    task = token_classification.TokenClassification(token_classification.Options.model_validate(chosen))
    task.learn([{"tokens": SENTENCE, "tags": TAGS}])
    return task


def test_words_are_tokenized_one_by_one(bertweet: Any) -> None:
    (item,) = tagging().encode([{"tokens": SENTENCE, "tags": TAGS}], bertweet)
    pieces = [bertweet(word, add_special_tokens=False)["input_ids"] for word in SENTENCE]
    assert item["input_ids"] == [bertweet.bos_token_id, *(token for ids in pieces for token in ids), bertweet.eos_token_id]
    starts = [1 + sum(map(len, pieces[:number])) for number in range(len(pieces))]
    assert item["positions"] == starts
    names = tagging()._tags.names
    tagged = {place: names[label] for place, label in enumerate(item["labels"]) if label != IGNORED}
    assert tagged == dict(zip(starts, TAGS, strict=True))


def test_of_bytes_the_space_before_a_word_is_not_its_first() -> None:
    tokenizer = byt5_tokenizer()
    (item,) = tagging().encode([{"tokens": SENTENCE, "tags": TAGS}], tokenizer)
    assert item["input_ids"] == tokenizer(" ".join(SENTENCE))["input_ids"]
    letters = [tokenizer.convert_ids_to_tokens(item["input_ids"][place]) for place in item["positions"]]
    assert letters == ["t", "h", "(", "i", chr("日".encode()[0]), "h", "."]


def test_sentences_in_windows_read_every_word_once(bertweet: Any) -> None:
    row = {"tokens": SENTENCE * 6, "tags": TAGS * 6}
    found = tagging(max_length=16).encode([row], bertweet)
    assert [word for item in found for word in item["words"]] == list(range(42))
    assert all(item["input_ids"][0] == bertweet.bos_token_id and item["input_ids"][-1] == bertweet.eos_token_id for item in found)


def test_question_answering_says_why_not() -> None:
    options = question_answering.Options.model_validate({"max_length": 32, "stride": 8})
    task = question_answering.QuestionAnswering(options)
    row = {"id": "1", "question": "who?", "context": "me", "answers": {"text": ["me"], "answer_start": [0]}}
    with pytest.raises(ModelError, match=r"ByT5Tokenizer does not say which characters its tokens are; .* finds answers"):
        task.encode([row], byt5_tokenizer())


# --- generated text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [save_marian, save_byt5])
def test_streamed_text_is_the_whole_text(save: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder = save(tmp_path / "model")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    processor = AutoTokenizer.from_pretrained(folder)
    inputs = {"input_ids": torch.tensor([processor("the old house")["input_ids"]])}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    limits = {"max_new_tokens": 24, "stop_ids": [processor.eos_token_id], "pad_id": processor.pad_token_id}
    options = GenerationOptions.model_validate({"do_sample": True, "seed": 3})
    written = generate_tokens(model, inputs, options, **limits)[0]
    pieces = list(stream_text(model, inputs, options, processor, **limits))
    text = processor.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert len(written) > 3
    assert "".join(pieces).strip() == text.strip()
