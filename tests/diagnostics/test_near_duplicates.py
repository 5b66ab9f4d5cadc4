from __future__ import annotations

import random

import numpy as np
import pytest

from ftkit.diagnostics import near_duplicates as module
from ftkit.diagnostics.duplicates import digests
from ftkit.diagnostics.findings import Finding
from ftkit.diagnostics.near_duplicates import BANDS, Shingler, band_keys, candidates, near_duplicate_findings, near_duplicates
from tests.diagnostics.rows import Row, clean_splits, splits_of

LONG = " ".join(f"v{number}" for number in range(40))


def near(rows: dict[str, list[Row]], columns: tuple[str, ...] = ("text",)) -> list[Finding]:
    splits = splits_of(rows)
    return near_duplicate_findings(splits, columns, {name: digests(found, columns) for name, found in splits.items()})


def texts(*values: str) -> list[Row]:
    return [{"text": value, "label": "x"} for value in values]


def test_clean_rows_have_none() -> None:
    assert near(clean_splits()) == []


def test_near_copies_are_found_within_and_between_splits() -> None:
    rows = clean_splits()
    rows["train"][5]["text"] = LONG
    rows["train"][9]["text"] = LONG.upper() + "!"
    rows["test"][3]["text"] = LONG + " more"
    found = {finding.check: finding for finding in near(rows)}
    assert set(found) == {"near-duplicates", "near-leaks"}
    assert found["near-duplicates"].places == ("train.jsonl, row 10",)
    assert found["near-duplicates"].details == ("≈ train.jsonl, row 6 (1.00)",)
    assert found["near-duplicates"].severity == "note"
    assert found["near-leaks"].places == ("test.jsonl, row 4",)
    assert found["near-leaks"].details == ("≈ train.jsonl, row 6 (0.97)",)
    assert found["near-leaks"].severity == "warning"


def test_equal_inputs_are_left_to_the_check_for_copies() -> None:
    assert near({"train": texts(LONG, "w1 w2 w3", LONG), "test": texts(LONG)}) == []


def test_many_near_copies_in_training_are_a_warning() -> None:
    rows = clean_splits()
    for number in range(30):
        rows["train"][number + 100]["text"] = rows["train"][number]["text"] + "."
    assert [(finding.check, finding.severity, finding.rows) for finding in near(rows)] == [("near-duplicates", "warning", 30)]


def test_the_threshold_is_exact() -> None:
    words = LONG.split()
    # A changed word in the middle changes 3 of 38 shingles: 35 of 41. Two changed words: 32 of 44.
    one = [*words[:20], "other", *words[21:]]
    two = [*words[:10], "other", *words[11:20], "other", *words[21:]]
    (finding,) = near({"train": texts(LONG, " ".join(one))})
    assert finding.details == (f"≈ train.jsonl, row 1 ({35 / 41:.2f})",)
    assert near({"train": texts(LONG, " ".join(two))}) == []


def test_every_column_must_be_nearly_the_same() -> None:
    rows = [
        {"context": LONG, "question": "who came to the house today"},
        {"context": LONG, "question": "when did they leave again"},
        {"context": LONG + "!", "question": "Who came to the house today?"},
        {"context": LONG, "question": ""},
    ]
    (finding,) = near({"train": rows}, ("context", "question"))
    assert finding.places == ("train.jsonl, row 3",)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Good morning!", "good, morning"), ("yes", "Yes."), ("我们今天去公园", "我们今天去公园。"), ("สวัสดีครับ", "สวัสดีครับ!")],
)
def test_short_texts_and_those_without_blanks_count(one: str, other: str) -> None:
    assert len(near({"train": texts(one, "something else entirely", other)})) == 1


def test_texts_without_a_word_are_passed_over() -> None:
    assert near({"train": texts("\U0001f44d", "\U0001f44d!", "?", "??")}) == []
    assert near({"train": [{"text": None, "label": "x"}]}) == []


def test_similar_texts_are_found_wherever_the_rows_are() -> None:
    draw = random.Random(1)
    originals = [" ".join(f"u{draw.randrange(5000)}" for _ in range(40)) for _ in range(200)]
    copies = [" ".join([*text.split()[:20], "changed", *text.split()[21:]]) for text in originals]
    rows = texts(*originals, *copies)
    draw.shuffle(rows)
    (finding,) = near({"train": rows})
    # The chance to miss one at this similarity (0.85) is 0.0003.
    assert finding.rows == 200


def test_jaccard_similarity_decides_how_often_bands_agree() -> None:
    draw = np.random.default_rng(0)
    shared, own = draw.integers(2**63, size=80, dtype=np.uint64), draw.integers(2**63, size=(2, 10), dtype=np.uint64)
    equal = []
    for _ in range(40):
        shared, own = draw.integers(2**63, size=80, dtype=np.uint64), draw.integers(2**63, size=(2, 10), dtype=np.uint64)
        both = np.concatenate([shared, own[0], shared, own[1]])
        keys = band_keys(both, np.array([90, 90]))
        equal.append(np.mean(keys[0] == keys[1]))
    assert np.mean(equal) == pytest.approx(0.8**5, abs=0.06)


def test_work_grows_with_rows_not_with_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    original = module._similarity

    def counted(*arguments: object) -> float:
        nonlocal compared
        compared += 1
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_similarity", counted)
    rows = texts(*(f"{LONG} {number}" for number in range(400)))
    (finding,) = near({"train": rows})
    assert finding.rows == 399
    assert compared <= 400 * BANDS


def test_words_are_hashed_once_and_the_vocabulary_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_VOCABULARY", 50)
    shingler = Shingler()
    first, _ = shingler.shingles([LONG])
    for start in range(0, 400, 10):
        shingler.shingles([" ".join(f"x{number}" for number in range(start, start + 10))])
        assert len(shingler._hashes) <= 50
    again, _ = shingler.shingles([LONG])
    assert first.tolist() == again.tolist()


def test_texts_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    original = Shingler.shingles

    def watched(self: Shingler, values: list[str]) -> object:
        nonlocal largest
        largest = max(largest, len(values))
        return original(self, values)

    monkeypatch.setattr(Shingler, "shingles", watched)
    monkeypatch.setattr("ftkit.data.table.STEP", 100)
    splits = splits_of(clean_splits())
    assert near_duplicates(splits, ["text"], {name: digests(found, ["text"]) for name, found in splits.items()}) == []
    assert largest == 100


def test_what_has_another_answer_is_another_example() -> None:
    rows = [
        {"source": LONG + " four", "target": "at sixteen hours and ten minutes"},
        {"source": LONG + " five", "target": "at seventeen hours and ten minutes"},
        {"source": LONG + " Four!", "target": "At sixteen hours and ten minutes."},
    ]
    splits = splits_of({"train": rows})
    (finding,) = near_duplicate_findings(splits, ["source"], {"train": digests(splits.train, ["source"])}, ["target"])
    assert finding.places == ("train.jsonl, row 3",)


def test_other_labels_are_told_apart() -> None:
    rows = clean_splits()
    rows["train"][5] = {"text": LONG, "label": "cold"}
    rows["train"][6] = {"text": LONG + "!", "label": "warm"}
    rows["train"][7] = {"text": LONG + "?", "label": "cold"}
    rows["test"][3] = {"text": LONG + " more", "label": "wet"}
    splits = splits_of(rows)
    inputs, labels = ({name: digests(found, [column]) for name, found in splits.items()} for column in ("text", "label"))
    found = near_duplicate_findings(splits, ["text"], inputs, labels=labels)
    told = {(finding.check, finding.message.split(":")[0]): finding for finding in found}
    assert set(told) == {("near-duplicates", "train"), ("near-contradictions", "train"), ("near-contradictions", "test")}
    assert told["near-duplicates", "train"].places == ("train.jsonl, row 8",)
    assert told["near-contradictions", "train"].places == ("train.jsonl, row 7",)
    assert told["near-contradictions", "test"].severity == "note"


def test_no_rows_no_candidates() -> None:
    assert len(candidates(np.empty((0, BANDS), np.uint64), np.empty(0, np.int64))) == 0
