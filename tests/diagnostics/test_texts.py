# ruff: noqa: RUF001  (characters that look alike are what this is about)
from __future__ import annotations

import numpy as np
import pytest

from ftkit.diagnostics.findings import Finding
from ftkit.diagnostics.roles import roles_of, text_of
from ftkit.diagnostics.texts import odd_lengths, text_findings
from tests.diagnostics.rows import clean_rows, make_task, table


def looked_at(*texts: str) -> list[Finding]:
    rows = [*clean_rows(60), *({"text": text, "label": "cold"} for text in texts)]
    found = table(rows)
    return text_findings("train", found, roles_of(make_task(), found))


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("?!", "bare-texts"),
        (" -- ... ", "bare-texts"),
        ("a bell\x07 rings here, w1 w2", "control-characters"),
        ("next\x85line w1 w2 w3 w4", "control-characters"),
        ("\ufeffw1 w2 w3 w4 w5 w6", "control-characters"),
        ("a cafÃ© in w1 w2 w3 w4", "garbled-texts"),
        ("itâ€™s w1 w2 w3 w4 w5 w6", "garbled-texts"),
        ("itâ\x80\x99s w1 w2 w3 w4 w5", "garbled-texts"),
        ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚ w1 w2 w3 w4", "garbled-texts"),
        ("fine ðŸ˜€ w1 w2 w3 w4 w5", "garbled-texts"),
        ("what is \ufffd left w1 w2 w3", "lost-characters"),
    ],
)
def test_a_damaged_text_is_found_with_its_row(text: str, check: str) -> None:
    found = looked_at("w1 w2 w3 w4 w5 w6", text)
    assert [(finding.check, finding.severity, finding.rows, finding.places) for finding in found] == [
        (check, "warning", 1, ("train.jsonl, row 62",))
    ]


@pytest.mark.parametrize(
    "text",
    [
        "ok w1 w2 w3 w4 w5",
        "Der Café in München: «schön», 5 °C – 12 ½ €",
        "a line\nand a\ttab w1 w2",
        "“MANHÔ e “CAFÉ» são palavras",
        "СКОРО приезжаю, привет всем",
        "我们今天去公园，天气很好。真的很好",
        "niño, ñandú, Ñuñoa y más",
        "family \U0001f468\u200d\U0001f469\u200d\U0001f467 emoji",
        "\U0001f44d\U0001f44d\U0001f44d\U0001f44d\U0001f44d\U0001f44d\U0001f44d\U0001f44d\U0001f44d\U0001f44d",
        "Vòng À la carte, naïve façade",
    ],
)
def test_unusual_but_sound_texts_are_left_alone(text: str) -> None:
    assert looked_at(text) == []


def test_garbled_text_is_not_reported_for_its_control_characters_too() -> None:
    assert [finding.check for finding in looked_at("itâ\x80\x99s Â\x96 w1 w2 w3")] == ["garbled-texts"]


def test_only_ten_places_but_all_rows_are_told() -> None:
    (finding,) = looked_at(*["..,,!!??..,,!!??..,,"] * 25)
    assert finding.rows == 25
    assert finding.places == tuple(f"train.jsonl, row {61 + number}" for number in range(10))


def test_odd_lengths_are_noted() -> None:
    (finding,) = looked_at("w1 " * 3000)
    assert (finding.check, finding.severity, finding.places) == ("odd-lengths", "note", ("train.jsonl, row 61",))
    assert finding.details == ("9,000 characters",)


def test_log_normal_lengths_are_not_odd() -> None:
    lengths = np.exp(np.random.default_rng(0).normal(4, 0.7, 20_000)).astype(np.int64)
    assert not len(odd_lengths(lengths))
    lengths[17] = 100_000
    assert odd_lengths(lengths).tolist() == [17]


def test_lengths_that_are_all_about_the_same_have_none() -> None:
    lengths = np.array([1100 + number % 11 for number in range(500)])
    lengths[3:5] = 1300, 4500
    assert odd_lengths(lengths).tolist() == [4]


def test_tags_are_no_texts() -> None:
    task = make_task("token-classification")
    found = table([{"tokens": f"Anna sees Bo{number}", "tags": "B-PER O B-PER"} for number in range(60)])
    task.learn(found)
    roles = roles_of(task, found)
    assert (roles.texts, roles.targets, roles.text_targets) == (("tokens",), ("tags",), ())


def test_equal_lengths_and_few_rows_have_no_odd_ones() -> None:
    assert not len(odd_lengths(np.array([10] * 99 + [500])))
    assert not len(odd_lengths(np.array([10, 11, 9, 10, 5000])))


def test_targets_longer_than_their_source_are_noted_where_targets_are_short() -> None:
    task = make_task("question-answering")
    rows = [
        {"question": f"w{number} w2 w3 ?", "context": f"w{number} " * (30 + number % 7), "answers": f"w{number}", "answer_start": 0}
        for number in range(60)
    ]
    rows[7] |= {"question": "w1 ?", "context": "w7", "answers": "w7 and very much more than that, as long as it gets here"}
    found = table(rows)
    checks = {finding.check: finding.places for finding in text_findings("train", found, roles_of(task, found))}
    assert checks["long-targets"] == ("train.jsonl, row 8",)


def test_text_is_taken_out_of_structures() -> None:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]}]
    assert text_of(messages) == "Hi. text Yes?"
    assert text_of({"text": ["Anna", "Bo"], "answer_start": [3, 9]}) == "Anna Bo"
    assert text_of(["one", "two"]) == "one two"
    assert text_of(None) == text_of(3.5) == ""
