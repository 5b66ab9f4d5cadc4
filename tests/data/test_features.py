from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftkit.data import features
from ftkit.data.features import FeatureStore, encode_table
from ftkit.data.splits import table_from_rows
from ftkit.data.table import Table
from ftkit.errors import DataError
from ftkit.tasks.base import Features, Row

from .toy_task import Options, ToyTask

ROWS = [{"text": "word " * (number % 7 + 1) + "x" * number, "label": "ab"[number % 2]} for number in range(2500)]


def table(rows: Sequence[dict[str, Any]] = ROWS) -> Table:
    return table_from_rows(rows, "input")


def task(**options: Any) -> ToyTask:
    made = ToyTask(Options(**options))
    made.learn(ROWS)
    return made


def encode(rows: Table | None = None, made: ToyTask | None = None, key: str = "processor", cache: bool = True) -> FeatureStore:
    return encode_table(rows or table(), made or task(), None, processor_key=key, cache=cache)


@pytest.mark.parametrize("cache", [True, False])
def test_features_of_all_rows_in_order(cache: bool) -> None:
    store = encode(cache=cache)
    assert len(store) == 2500
    assert store.lengths.dtype == np.int32
    assert store.example.dtype == np.int64
    assert store.lengths.tolist() == [len(row["text"].split()) for row in ROWS]
    assert store.example.tolist() == list(range(2500))
    for index in (1999, 0, 1000):
        (feature,) = store.take([index])
        ids = [len(word) for word in ROWS[index]["text"].split()]
        assert feature == {"input_ids": ids, "length": len(ids), "label": index % 2, "example": index}
        assert type(feature["input_ids"]) is list
        assert type(feature["input_ids"][0]) is int
    assert [feature["example"] for feature in store.take(np.array([7, 2100, 7]))] == [7, 2100, 7]
    with pytest.raises(IndexError):
        store.take([2500])


@pytest.mark.parametrize("cache", [True, False])
def test_windows_point_to_their_rows(cache: bool) -> None:
    store = encode(made=task(window=3), cache=cache)
    assert len(store) > 2500
    assert np.all(np.diff(store.example) >= 0)
    assert set(store.example.tolist()) == set(range(2500))
    features_of_row = [feature for feature in store.take(np.flatnonzero(store.example == 2006)) if feature["example"] == 2006]
    assert [number for feature in features_of_row for number in feature["input_ids"]] == [
        len(word) for word in ROWS[2006]["text"].split()
    ]


def test_a_second_run_hits_without_encoding() -> None:
    first = encode()
    made = task()
    second = encode(made=made)
    assert (first.hit, second.hit) == (False, True)
    assert first.key == second.key
    assert made.encoded_rows == 0
    assert second.take(range(2500)) == first.take(range(2500))
    assert not encode(cache=False).hit


def test_progress_counts_rows() -> None:
    seen: list[tuple[int, int]] = []
    encode_table(table(), task(), None, processor_key="p", cache=False, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_chunks_hold_no_more_text_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftkit.data.encoding.BYTES_AT_A_TIME", 100)
    texts = ["a" * size for size in (40, 60, 1, 99, 500, 3, 3)] + ["ü" * 30, "a" * 41]
    rows = [{"text": text, "note": None if number % 2 else "", "label": ""} for number, text in enumerate(texts)]
    table, seen = table_from_rows([*rows, *rows], "input"), []
    for chosen in (table, table.select(np.array([0, 1, 10]))):
        ends: list[int] = []
        store = encode_table(
            chosen.project({"text": "text", "note": "note"}),
            task(),
            None,
            processor_key="p",
            cache=False,
            progress=lambda done, total, seen=ends: seen.append(done),
        )
        assert len(store) == len(chosen)
        seen.append(ends)
    assert seen == [[2, 4, 5, 8, 10, 12, 13, 14, 17, 18], [2, 3]]


def other_state() -> FeatureStore:
    made = task()
    made.labels = ["b", "a"]
    return encode(made=made)


def renamed_task() -> FeatureStore:
    class Renamed(ToyTask):
        name = "renamed"

    made = Renamed()
    made.learn(ROWS)
    return encode(made=made)


CHANGES: dict[str, Callable[[], FeatureStore]] = {
    "one value": lambda: encode(table([*ROWS[:-1], {**ROWS[-1], "text": "other"}])),
    "one label": lambda: encode(table([*ROWS[:-1], {**ROWS[-1], "label": "a"}])),
    "order": lambda: encode(table(ROWS[::-1])),
    "selection": lambda: encode(table().select(np.arange(2499))),
    "column name": lambda: encode(table().project({"text": "text", "label": "label", "note": "label"})),
    "processor": lambda: encode(key="another"),
    "option": lambda: encode(made=task(max_length=99)),
    "state": other_state,
    "task name": renamed_task,
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_misses(change: str) -> None:
    first = encode()
    changed = CHANGES[change]()
    assert not changed.hit
    assert changed.key != first.key
    assert encode().hit


@pytest.mark.parametrize("module", ["toy_task.py", "features.py", "base.py"])
def test_changed_code_misses(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encode()
    read = Path.read_bytes

    def edited(path: Path) -> bytes:
        return read(path) + (b"# edited" if path.name == module else b"")

    monkeypatch.setattr(Path, "read_bytes", edited)
    assert not encode().hit


def test_a_changed_library_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    encode()
    monkeypatch.setattr(features, "_version", lambda name: "9.9" if name == "tokenizers" else "1.0")
    assert not encode().hit


def test_a_new_process_in_another_folder_hits(folder: Path) -> None:
    code = """
from tests.data.test_features import encode
store = encode()
print(store.key, store.hit)
"""
    root = str(Path(__file__).parents[2])
    answers = []
    for name, seed in (("one", "1"), ("two", "2")):
        (folder / name).mkdir()
        environment = {**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder / name, env=environment, check=True
        )
        answers.append(done.stdout.split())
    assert [hit for _, hit in answers] == ["False", "True"]
    assert answers[0][0] == answers[1][0]


def entry(store: FeatureStore) -> Path:
    return Path(os.environ["FTKIT_CACHE"]) / "tokens" / store.key


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def forge_names(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"files": {"../../x": {"bytes": 0, "sha256": ""}}}))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped bit": lambda folder: flip(folder / "part-00000.arrow"),
    "truncated": lambda folder: os.truncate(folder / "part-00000.arrow", 1000),
    "missing file": lambda folder: (folder / "part-00000.arrow").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: os.truncate(folder / "manifest.json", 20),
    "a list as manifest": lambda folder: (folder / "manifest.json").write_text("[]"),
    "other names": forge_names,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_rebuilt(damage: str) -> None:
    first = encode()
    expected = first.take(range(2500))
    DAMAGE[damage](entry(first))
    again = encode()
    assert not again.hit
    assert again.take(range(2500)) == expected
    assert encode().hit
    assert [path.name for path in entry(first).parent.iterdir()] == [first.key]


def test_a_failure_while_encoding_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task()
    encode_rows = made.encode

    def fails_late(rows: Sequence[Row], processor: Any, *, training: bool) -> list[Features]:
        if made.encoded_rows >= 2000:
            raise OSError("an image cannot be opened")
        return encode_rows(rows, processor, training=training)

    monkeypatch.setattr(made, "encode", fails_late)
    with pytest.raises(OSError, match="an image cannot be opened"):
        encode(made=made)
    assert list((Path(os.environ["FTKIT_CACHE"]) / "tokens").iterdir()) == []


FULL = """
import resource, sys
from tests.data.test_features import encode
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from ftkit.errors import DataError
try:
    encode(cache=sys.argv[2] == "cached")
except DataError as error:
    print(error.exit_code, error)
"""


@pytest.mark.parametrize(("limit", "kind"), [(0, "cached"), (3000, "cached"), (40_000, "cached"), (3000, "spilled")])
def test_a_full_disk_ends_in_one_message_and_leaves_nothing(limit: int, kind: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    code = FULL if kind == "cached" else f"from ftkit.data import spilling\nspilling.SPILL_BYTES = 1000\n{FULL}"
    command = [sys.executable, "-c", code, str(limit), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    folder = Path(os.environ["FTKIT_CACHE"]) / ("tokens" if kind == "cached" else "tables")
    assert done.stdout.startswith(f"2 cannot write to the cache folder {folder}: File too large. Free some space"), done.stderr
    assert done.stderr == ""
    assert list(folder.iterdir()) == []


def test_two_processes_at_once_both_get_the_whole_entry() -> None:
    code = """
import time
from ftkit.data import encoding
from tests.data.test_features import encode
whole = encoding.encode_chunk
encoding.encode_chunk = lambda *given, **more: (time.sleep(0.2), whole(*given, **more))[1]
store = encode()
print(store.key, len(store), store.take([2499])[0]["length"])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ended = [process.communicate() for process in started]
    assert len({out for out, _ in ended}) == 1, ended
    assert ended[0][0].split()[1] == "2500"
    assert [entry.name for entry in (Path(os.environ["FTKIT_CACHE"]) / "tokens").iterdir()] == [ended[0][0].split()[0]]
    assert encode().hit


def test_a_cache_that_cannot_be_written_is_explained() -> None:
    Path(os.environ["FTKIT_CACHE"]).write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot write to the cache folder .*set `data.cache: false`"):
        encode()
    assert len(encode(cache=False)) == 2500


class AnyFeatures(ToyTask):
    """Gives the features that it was told to give."""

    def __init__(self, given: list[Features]) -> None:
        super().__init__()
        self.given = given

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        return [dict(feature) for feature in self.given]


@pytest.mark.parametrize("cache", [True, False])
def test_kinds_of_values(cache: bool) -> None:
    pixels = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    given: list[Features] = [
        {"length": 1, "score": 0.5, "many": [1.0, 0.0], "pixels": pixels, "spans": [[1, 2], [3, 4]], "word": "a", "big": 2**40},
        {"length": 2, "score": 2.0, "many": [], "pixels": pixels[:1], "spans": [], "big": 1, "ids": [-100, 2**31 - 1]},
    ]
    store = encode_table(table(ROWS[:2]), AnyFeatures(given), None, processor_key="p", cache=cache)
    taken = store.take([0, 1])
    for index, feature in enumerate(taken):
        array = feature.pop("pixels")
        expected = {**given[index], "example": index}
        np.testing.assert_array_equal(array, expected.pop("pixels"))
        assert array.dtype == np.float32
        assert feature == expected


def test_fewer_features_than_rows_must_name_their_rows() -> None:
    with pytest.raises(ValueError, match=r"toy\.encode gave 1 features for 2 rows without saying `row`"):
        encode_table(table(ROWS[:2]), AnyFeatures([{"length": 1}]), None, processor_key="p", cache=False)
