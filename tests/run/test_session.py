"""Interactive sessions: text comes while it is written, is that of `predict`, and a conversation goes on."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit.errors import DataError, RecipeError
from ftkit.run.predictor import Predictor
from ftkit.run.session import Answer
from tests.small_runs import small_run

RUNS: dict[str, Predictor] = {}


@pytest.fixture
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The predictor of a small run of a kind; each is trained once."""

    def loaded(kind: str) -> Predictor:
        if kind not in RUNS:
            RUNS[kind] = ftkit.load(small_run(tmp_path_factory.mktemp(kind), kind))
        return RUNS[kind]

    return loaded


def drained(answer: Generator[str, None, Answer], pieces: list[str] | None = None) -> tuple[list[str], Answer]:
    pieces = [] if pieces is None else pieces
    while True:
        try:
            pieces.append(next(answer))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.parametrize(("kind", "entry"), [("continues", "continuation"), ("rewrites", "text"), ("converses", "text")])
def test_text_comes_in_pieces_and_is_that_of_predict(kind: str, entry: str, load: Any) -> None:
    predictor = load(kind)
    pieces, answer = drained(predictor.session().answer("w1 w2 w3"))
    (expected,) = predictor.predict(["w1 w2 w3"])
    assert len(pieces) > 2
    assert "".join(pieces).split() == expected[entry].split()
    assert answer.result is None
    assert ("as long as it may be" in answer.remark) == (not expected.get("complete", True))


@pytest.mark.parametrize(
    ("kind", "asked", "typed"),
    [
        ("compares", ("text", "text_pair"), {"text": "w1 w2", "text_pair": "w3"}),
        ("finds", ("question", "context"), {"question": "w30", "context": "w1 w2 w3"}),
        ("tags", ("tokens",), {"tokens": "w1 w2"}),
    ],
)
def test_other_tasks_ask_for_each_column_and_answer_as_predict_does(
    kind: str, asked: tuple[str, ...], typed: dict[str, str], load: Any
) -> None:
    predictor = load(kind)
    session = predictor.session()
    assert session.asked == asked
    assert drained(session.answer(typed)) == ([], Answer(result=next(iter(predictor.predict([typed])))))
    with pytest.raises(DataError):
        drained(session.answer(dict.fromkeys(asked, " ")))
    with pytest.raises(KeyError):
        session.command("reset")


def test_what_was_said_is_part_of_the_question_until_it_is_forgotten(load: Any) -> None:
    predictor = load("converses")
    session = predictor.session()
    assert session.asked == ("message",)
    seen = prompts_of(predictor)
    first = "".join(drained(session.answer("w1 w2"))[0])
    drained(session.answer("w3"))
    assert seen[1] == f"<s> w1 w2 <sep> {first.strip()} </s> <s> w3 <sep>"
    session.command("reset")
    again = "".join(drained(session.answer("w1 w2"))[0])
    assert (seen[2], again) == (seen[0], first)
    assert session.command("system", "w20") == "the system message is set"
    session.command("reset")
    drained(session.answer("w3"))
    assert seen[3] == "<cls> w20 <sep> <s> w3 <sep>"
    session.command("system")
    session.command("reset")
    drained(session.answer("w3"))
    assert seen[4] == "<s> w3 <sep>"
    with pytest.raises(DataError, match="empty"):
        drained(session.answer("  "))


def prompts_of(predictor: Predictor) -> list[str]:
    """The prompts that the task is given from now on, as text."""
    task, seen = predictor.task, list[str]()
    stream = type(task).stream

    def noted(model: Any, features: Any, processor: Any, **options: Any) -> Any:
        seen.append(processor.decode(features[0]["prompt_ids"]))
        return stream(task, model, features, processor, **options)

    task.stream = noted  # type: ignore[method-assign]
    return seen


def test_the_oldest_turns_make_room(load: Any) -> None:
    predictor = load("converses")
    session, seen = predictor.session(), prompts_of(predictor)
    remarks = [drained(session.answer("w5 " * 12))[1].remark for _ in range(4)]
    # 64 positions, of which the answer may take 8; a turn and its answer take about 20.
    assert remarks[0] == remarks[1] == "" or "as long" in remarks[0]
    assert "oldest turns were left out" in remarks[-1]
    assert len(seen[-1].split()) <= 56
    assert "the beginning of this one was left out" in drained(session.answer("w5 " * 80))[1].remark


def test_an_answer_that_is_stopped_ends_there_and_counts(load: Any) -> None:
    predictor = ftkit.load(load("converses").folder, ["task.generation.max_new_tokens=40"])
    session, pieces = predictor.session(), list[str]()
    _, answer = drained(session.answer("w1 w2", stopped=lambda: len(pieces) >= 2), pieces)
    assert answer.remark == ""
    said = "".join(pieces)
    assert 2 <= len(said.split()) < 20
    seen = prompts_of(predictor)
    drained(session.answer("w3"))
    assert seen[0] == f"<s> w1 w2 <sep> {said.strip()} </s> <s> w3 <sep>"


def test_options_of_prediction_can_be_changed_and_no_others(load: Any) -> None:
    folder: Path = load("continues").folder
    short = ftkit.load(folder, ["task.generation.max_new_tokens=2"])
    assert len(next(iter(short.predict("w1")))["continuation"].split()) <= 2
    with pytest.raises(RecipeError, match=r"trained with what this would change.*task\.generation") as caught:
        ftkit.load(folder, ["task.max_length=8", "train.epochs=2", "~task", "task.generation.num_beams=2"])
    assert [problem.place for problem in caught.value.problems] == [
        f"command line: {text}" for text in ("task.max_length=8", "train.epochs=2", "~task")
    ]
    with pytest.raises(RecipeError, match=r"temperature has no effect without `do_sample: true`"):
        ftkit.load(folder, ["task.generation.temperature=0.5"])
    with pytest.raises(RecipeError, match="has no options for prediction alone"):
        ftkit.load(load("tags").folder, ["task.generation.num_beams=2"])


def test_draws_differ_by_seed_alone(load: Any) -> None:
    folder: Path = load("continues").folder
    drawn = ["task.generation.do_sample=true", "task.generation.temperature=5.0"]
    texts = [
        next(iter(ftkit.load(folder, [*drawn, *seed]).predict("w1")))["continuation"]
        for seed in ([], [], ["task.generation.seed=0"], ["task.generation.seed=7"])
    ]
    assert texts[0] == texts[1] == texts[2] != texts[3]
