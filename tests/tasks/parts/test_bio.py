from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from ftkit.errors import DataError
from ftkit.tasks.base import Row, RowError
from ftkit.tasks.parts.bio import Entity, Tags, detect, entities, pairs_of, read, split_tag


def written(spans: list[tuple[str, int, int]], length: int, scheme: str) -> list[str]:
    """Tags of entities (type, start, end), as each scheme defines them."""
    tags = ["O"] * length
    for number, (kind, start, end) in enumerate(spans):
        for index in range(start, end):
            first, last = index == start, index == end - 1
            touches = number > 0 and spans[number - 1][2] == start and spans[number - 1][0] == kind
            prefix = {
                "IOB2": "B" if first else "I",
                "IOB1": "B" if first and touches else "I",
                "IO": "I",
                "BIOES": "S" if first and last else "B" if first else "E" if last else "I",
            }[scheme]
            tags[index] = f"{prefix}-{kind}"
    return tags


def random_spans(generator: random.Random, length: int) -> list[tuple[str, int, int]]:
    spans, start = [], generator.randrange(3)
    while start < length:
        end = min(length, start + generator.randrange(1, 4))
        spans.append((generator.choice(["PER", "LOC", "creative-work"]), start, end))
        start = end + generator.choice([0, 0, 1, 2])
    return spans


def learned(*sequences: list[str], scheme: str = "auto", given: list[str] | None = None, repair: bool = False) -> Tags:
    tags = Tags(scheme, given, repair=repair)
    pairs: Counter[tuple[str, str]] = Counter()
    for sequence in sequences:
        pairs.update(pairs_of(sequence))
    tags.learn(pairs)
    return tags


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_every_scheme_becomes_the_same_iob2(scheme: str) -> None:
    generator = random.Random(0)
    for length in range(1, 30):
        spans = random_spans(generator, length)
        reading = read(written(spans, length, scheme), scheme)
        assert reading.tags == written(spans, length, "IOB2")
        assert reading.problems == []
        assert entities(reading.tags) == [Entity(*span) for span in spans]


def test_io_joins_what_touches() -> None:
    assert read(["PER", "PER", "O", "LOC", "PER", "I-PER"], "IO") == (["B-PER", "I-PER", "O", "B-LOC", "B-PER", "I-PER"], [])
    assert read(["creative-work", "O"], "IO").tags == ["B-creative-work", "O"]


def test_bilou_is_bioes() -> None:
    assert read(["U-PER", "B-LOC", "I-LOC", "L-LOC"], "BIOES") == (["B-PER", "B-LOC", "I-LOC", "I-LOC"], [])


def test_tags_without_a_type() -> None:
    assert read(["B", "I", "O", "B"], "IOB2") == (["B", "I", "O", "B"], [])
    assert entities(["B", "I", "O", "B"]) == [Entity("", 0, 2), Entity("", 3, 4)]


@pytest.mark.parametrize(
    ("scheme", "tags", "place", "message"),
    [
        ("IOB2", ["O", "I-PER"], 1, "I-PER follows O"),
        ("IOB2", ["I-PER"], 0, "I-PER follows nothing"),
        ("IOB2", ["B-LOC", "I-PER"], 1, "I-PER follows B-LOC"),
        ("IOB1", ["O", "B-PER"], 1, "B-PER follows O"),
        ("IOB1", ["I-LOC", "B-PER"], 1, "B-PER follows I-LOC"),
        ("BIOES", ["O", "E-PER"], 1, "E-PER follows O"),
        ("BIOES", ["S-PER", "I-PER", "E-PER"], 1, "I-PER follows S-PER"),
        ("BIOES", ["B-PER", "O"], 0, "B-PER is not followed by its I- or E-"),
        ("BIOES", ["B-PER", "S-PER"], 0, "B-PER is not followed by its I- or E-"),
        ("BIOES", ["B-PER", "I-PER"], 1, "I-PER is not followed by its I- or E-"),
    ],
)
def test_sequences_that_break_the_rules(scheme: str, tags: list[str], place: int, message: str) -> None:
    assert read(tags, scheme).problems[0] == (place, message)


@pytest.mark.parametrize("scheme", ["IOB2", "IOB1", "BIOES"])
def test_broken_sequences_are_read_as_seqeval_reads_them(scheme: str) -> None:
    generator = random.Random(1)
    tags = ["O", *(f"{prefix}-{kind}" for prefix in ("BIES" if scheme == "BIOES" else "BI") for kind in ("PER", "creative-work"))]
    for _ in range(500):
        sequence = generator.choices(tags, k=generator.randrange(1, 9))
        found = [(kind, start, end - 1) for kind, start, end in entities(read(sequence, scheme).tags)]
        assert found == get_entities(sequence)


@pytest.mark.parametrize(("scheme", "rules"), [("IOB2", IOB2), ("BIOES", IOBES)])
def test_sequences_without_problems_are_what_seqeval_takes_for_valid(scheme: str, rules: Any) -> None:
    """In seqeval's strict mode a valid sequence has the same entities as in its lenient one."""
    generator = random.Random(2)
    tags = ["O", *(f"{prefix}-{kind}" for prefix in ("BIES" if scheme == "BIOES" else "BI") for kind in "XY")]
    valid = 0
    for _ in range(2000):
        sequence = generator.choices(tags, k=4)
        if read(sequence, scheme).problems:
            continue
        valid += 1
        strict = [(entity.tag, entity.start, entity.end) for entity in Entities([sequence], rules).entities[0]]
        assert strict == entities(read(sequence, scheme).tags)
    assert valid > 20


def test_reading_a_tag_of_another_scheme_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="'E-PER' is no tag of IOB2"):
        read(["E-PER"], "IOB2")
    assert [split_tag(tag, "IOB2") for tag in ("", "B-", "BPER", "NOUN", "-")] == [None] * 5
    assert [split_tag(tag, "IO") for tag in ("", "B-PER", "E-x")] == [None] * 3


@pytest.mark.parametrize(
    ("scheme", "sequences"),
    [
        ("IOB2", [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]),
        ("IOB1", [["I-PER", "I-PER", "O"], ["I-LOC", "B-LOC"]]),
        ("IOB1", [["I-PER", "O", "I-LOC"]]),
        ("BIOES", [["S-PER", "O"]]),
        ("BIOES", [["B-PER", "L-PER"]]),
        ("IOB2", [["B-PER", "I-PER"], ["B-PER", "O"], ["B-LOC"], ["O", "I-PER"]]),
        ("IOB2", [["O", "O"]]),
    ],
)
def test_the_scheme_is_found_out(scheme: str, sequences: list[list[str]]) -> None:
    assert detect(Counter(pair for sequence in sequences for pair in pairs_of(sequence))) == scheme


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_the_scheme_of_random_entities_is_found_out(scheme: str) -> None:
    generator = random.Random(3)
    pairs = Counter(pair for _ in range(50) for pair in pairs_of(written(random_spans(generator, 12), 12, scheme)))
    assert detect(pairs) == scheme


def test_names_are_complete_and_sorted_whatever_the_order() -> None:
    assert learned(["B-z", "O"], ["B-a", "I-a"]).names == ["O", "B-a", "I-a", "B-z", "I-z"]
    assert learned(["S-b", "O", "S-a"]).names == ["O", "B-a", "I-a", "B-b", "I-b"]
    assert learned(["VERB", "ADP", "NOUN"], scheme="none").names == ["ADP", "NOUN", "VERB"]


def test_given_names_keep_their_order() -> None:
    assert learned(["B-a"], given=["B-b", "I-b", "B-a", "O"]).names == ["B-b", "I-b", "B-a", "O", "I-a"]
    assert learned(["S-a"], given=["O", "S-b", "S-a", "E-a"]).names == ["O", "B-b", "I-b", "B-a", "I-a"]
    assert learned(["V", "N"], scheme="none", given=["V", "N", "X"]).names == ["V", "N", "X"]


@pytest.mark.parametrize(
    ("scheme", "sequence", "message"),
    [
        ("auto", ["O", "O"], "the training rows have only the tag 'O'"),
        ("auto", ["NOUN", "VERB"], r"no tag of IOB2, but 'NOUN', 'VERB'\. Set task.scheme: `none` for plain tags"),
        ("none", ["NOUN"], "the training rows have only the tag 'NOUN'"),
        ("none", [], "the training rows have no tag"),
    ],
)
def test_nothing_to_learn(scheme: str, sequence: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        learned(sequence, scheme=scheme)


def refusal(tags: Tags, row: Row) -> RowError:
    with pytest.raises(RowError) as caught:
        tags.convert(row, ["Anna", "lives", "in", "Lima"])
    assert caught.value.column == "tags"
    return caught.value


def test_conversion_names_the_word() -> None:
    tags = learned(["B-PER", "O"])
    error = refusal(tags, {"tags": ["B-PER", "O", "O", "I-PER"]})
    assert error.message == "word 4 ('Lima'): I-PER follows O, which IOB2 does not allow"
    assert "task.on_invalid to repair" in error.hint
    assert "(and 1 more)" in refusal(tags, {"tags": ["I-PER", "O", "O", "I-PER"]}).message
    error = refusal(tags, {"tags": ["B-PER", "O", "O", "B-LOC"]})
    assert error.message == "word 4 ('Lima'): type 'LOC' does not occur in the training rows, which have 'PER'"
    error = refusal(learned(["B-PER"], given=["O", "B-PER"]), {"tags": ["O", "O", "O", "B-LOC"]})
    assert error.message == "word 4 ('Lima'): type 'LOC' is not in task.labels, which has 'PER'"
    assert (
        refusal(tags, {"tags": ["NOUN", "O", "O", "O"]}).message
        == "word 1 ('Anna'): 'NOUN' is no tag of IOB2 (O, B-<type>, I-<type>)"
    )
    error = refusal(learned(["N", "V"], scheme="none"), {"tags": "N V N X"})
    assert error.message == "word 4 ('Lima'): tag 'X' does not occur in the training rows, which have 'N', 'V'"


def test_repair() -> None:
    tags = learned(["B-PER", "I-PER"], repair=True)
    row = {"tags": ["O", "I-PER", "I-PER"]}
    assert tags.convert(row, ["a", "b", "c"]) == ["O", "B-PER", "I-PER"]
    assert (tags.is_valid(row), tags.is_valid({"tags": ["O"]})) == (False, True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the tags are missing"),
        (3, "tags 3 are neither a list nor text"),
        ([1, 2], "tag 1 is 1, which is not text"),
        (["O", None], "tag 2 is None, which is not text"),
        (["O", " "], "tag 2 is empty"),
        ([True], "tag 1 is True, which is not text"),
    ],
)
def test_tags_that_are_not_text(value: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        Tags("auto").read({"tags": value})


def test_numbers_are_places_in_the_given_tags() -> None:
    tags = Tags("IOB2", ["O", "B-PER"])
    assert tags.read({"tags": [1, 0]}) == ["B-PER", "O"]
    with pytest.raises(RowError, match=r"tag 1 is 2, expected one of the places 0 to 1 in task\.labels") as caught:
        tags.read({"tags": [2]})
    assert "task.labels" in caught.value.hint


@pytest.mark.parametrize(("labeling", "expected"), [("first", [1, -100, -100]), ("last", [-100, -100, 1]), ("all", [1, 2, 2])])
def test_labels_of_pieces(labeling: str, expected: list[int]) -> None:
    tags = learned(["B-PER", "I-PER"])
    assert tags.piece_labels("B-PER", 3, labeling) == expected
    assert learned(["A", "B-A"], scheme="none").piece_labels("B-A", 2, "all") == [1, 1]
