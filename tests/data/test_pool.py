"""Encoding in several processes: the same features, the same errors, and a quick end whatever happens to a process."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from ftkit.data import encoding, pool
from ftkit.data.features import FeatureStore, encode_table
from ftkit.data.pool import Pool, number_of_workers
from ftkit.data.splits import table_from_rows
from ftkit.data.table import Table
from ftkit.errors import DataError, FtkitError, InterruptedRunError, MemoryExhaustedError
from ftkit.models.processor import load_processor, processor_key
from ftkit.recipe.schema import ModelSpec
from ftkit.registry import TASKS, load_plugin
from ftkit.tasks.base import Task
from ftkit.tasks.parts.sources import with_sources
from tests.tiny import save_tiny

from . import toy_task

ROWS = [{"text": " ".join(["w1"] * (number % 9 + 1)) + f" w{number % 41}", "label": "ab"[number % 2]} for number in range(7300)]

PLUGIN = """
import os
from ftkit.tasks.base import RowError
from tests.data.toy_task import ToyTask as Toy

def elsewhere():
    return os.environ.get("RAYON_NUM_THREADS") == "1"

class Faulty(Toy):
    name = "faulty"

    def encode(self, rows, processor, *, training=False):
        for row in rows:
            if row["text"] == "refused":
                raise RowError("text", "this one is refused", "Take it out")
            if row["text"] == "broken":
                raise ZeroDivisionError("a defect of the task")
            if row["text"] == "fatal" and elsewhere():
                os.write(2, b"a library said why" + bytes([10]))
                os._exit(3)
        print("what a library prints")
        return super().encode(rows, processor, training=training)

class Forgetful(Toy):
    name = "forgetful"

    def restore(self, state):
        self.labels = []
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes take over after the first chunk."""
    ready = Pool.ready

    def wait(self: Pool) -> bool:
        until = time.monotonic() + 120
        while not ready(self):
            assert time.monotonic() < until
            time.sleep(0.01)
        return True

    monkeypatch.setattr(encoding, "FEWEST_SECONDS", -1.0)
    monkeypatch.setattr(encoding, "WORTH_SECONDS", -1.0)
    monkeypatch.setattr(Pool, "ready", wait)


@pytest.fixture
def plugin(folder: Path) -> Callable[[str], Task]:
    """Tasks of the plug-in files above, by name, with what they learn from the rows."""
    (folder / "faulty.py").write_text(PLUGIN)
    load_plugin(folder / "faulty.py")
    load_plugin(Path(toy_task.__file__))

    def make(name: str) -> Task:
        cls = TASKS.get(name)
        task = cls(cls.Options())
        task.learn(ROWS)
        return task

    return make


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "ftkit.data.worker" in " ".join(child.cmdline())]


def encode(task: Task, rows: Table | None = None, *, count: int = 2, cache: bool = True, **given: Any) -> FeatureStore:
    given = {"processor": None, "processor_key": "none", **given}
    return encode_table(rows or table_from_rows(ROWS, "input"), task, num_workers=count, cache=cache, training=True, **given)


def manifest(store: FeatureStore) -> Any:
    return json.loads((Path(os.environ["FTKIT_CACHE"]) / "tokens" / store.key / "manifest.json").read_text())


@pytest.fixture
def caches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new cache folder each time it is asked for."""
    return (monkeypatch.setenv("FTKIT_CACHE", str(folder.parent / f"cache-{number}")) for number in range(10))


@pytest.mark.usefixtures("eager")
def test_features_do_not_depend_on_the_number_of_processes(plugin: Callable[[str], Task], caches: Iterator[None]) -> None:
    found = []
    for count in (1, 2, 3):
        next(caches)
        progress: list[int] = []
        store = encode(plugin("toy"), count=count, progress=lambda done, total, seen=progress: seen.append(done))
        assert progress == [1000, 2000, 3000, 4000, 5000, 6000, 7000, 7300]
        found.append(manifest(store))
    assert found[0] == found[1] == found[2]
    assert not children()
    without_cache = encode(plugin("toy"), cache=False)
    assert without_cache.take([0, 4321, 7299]) == store.take([0, 4321, 7299])


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("name", "family", "source"),
    [("text-classification", "bert", None), ("language-modeling", "gpt2", None), ("text-classification", "bert", "origin")],
)
def test_tokenizers_and_tasks_of_ftkit_come_back_in_other_processes(
    name: str, family: str, source: str | None, folder: Path, caches: Iterator[None], caplog: pytest.LogCaptureFixture
) -> None:
    save_tiny(folder / "model", family)
    spec = ModelSpec(name=str(folder / "model"))
    processor: Any = load_processor(spec, _facts(spec, folder))
    cls = with_sources(TASKS.get(name), source)
    given = [{**row, "origin": "xyz"[number % 3]} for number, row in enumerate(ROWS)]
    options = {"window_stride": 16} if name == "text-classification" else {"stride": 32}
    task = cls(cls.Options(max_length=32, **options))
    task.learn(given)
    rows = table_from_rows(given, "input").select(_every_other(len(ROWS)))
    rows = rows.project({column: column for column in rows.column_names if column in task.columns()})
    found = []
    for count in (1, 3):
        next(caches)
        store = encode(task, rows, count=count, processor=processor, processor_key=processor_key(processor))
        found.append(manifest(store))
    assert found[0] == found[1]
    assert caplog.text == ""


def _facts(spec: ModelSpec, base: Path) -> Any:
    from ftkit.models.facts import read_facts

    return read_facts(spec, base)


def _every_other(count: int) -> Any:
    import numpy as np

    return np.arange(0, count, 2)


@pytest.mark.usefixtures("eager")
def test_row_errors_are_the_same(plugin: Callable[[str], Task]) -> None:
    rows = [dict(row) for row in ROWS]
    for number in (3500, 3600, 3999, 6000):
        rows[number]["text"] = "refused"
    table = table_from_rows(rows, "input")
    messages = []
    for count in (1, 3):
        with pytest.raises(DataError) as caught:
            encode(plugin("faulty"), table, count=count)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "input, row 3501: text: this one is refused. Take it out" in messages[0]
    assert "row 6001" not in messages[0]
    assert not children()


@pytest.mark.usefixtures("eager")
def test_a_defect_of_a_task_keeps_its_kind_and_its_traceback(plugin: Callable[[str], Task]) -> None:
    table = table_from_rows([*ROWS[:2500], {"text": "broken", "label": "a"}], "input")
    with pytest.raises(ZeroDivisionError, match="a defect of the task") as caught:
        encode(plugin("faulty"), table)
    assert "faulty.py" in str(caught.value.__cause__)
    assert not children()


@pytest.mark.usefixtures("eager")
def test_a_killed_process_ends_it_with_one_message(plugin: Callable[[str], Task], folder: Path) -> None:
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if done >= 3000 and not killed:
            killed.extend(child.pid for child in children())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    table, started = table_from_rows(ROWS * 5, "input"), time.monotonic()
    with pytest.raises(MemoryExhaustedError, match=r"data\.num_workers: .* was killed \(SIGKILL\)"):
        encode(plugin("toy"), table, progress=kill)
    assert time.monotonic() - started < 60
    assert not children()
    assert list((folder.parent / "cache/tokens").iterdir()) == []


@pytest.mark.usefixtures("eager")
def test_a_process_that_ends_says_why(plugin: Callable[[str], Task]) -> None:
    table = table_from_rows([*ROWS[:2500], {"text": "fatal", "label": "a"}, *ROWS], "input")
    with pytest.raises(FtkitError, match="ended with exit code 3: a library said why"):
        encode(plugin("faulty"), table)
    assert not children()


def test_a_task_that_does_not_come_back_is_encoded_here(
    plugin: Callable[[str], Task], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task = plugin("forgetful")
    processes = Pool.for_task(task, None, "none", training=True, count=2)
    assert processes is not None
    until = time.monotonic() + 120
    while len(caplog.records) < 2 and time.monotonic() < until:
        assert not processes.ready()
        time.sleep(0.01)
    assert "does not come back from its options and state" in caplog.text
    processes.close()
    monkeypatch.setattr(Pool, "ready", lambda self: False)
    monkeypatch.setattr(encoding, "FEWEST_SECONDS", -1.0)
    monkeypatch.setattr(encoding, "WORTH_SECONDS", -1.0)
    assert len(encode(task)) == len(ROWS)
    assert not children()


def test_no_process_for_little_or_for_classes_that_only_this_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    task = toy_task.ToyTask()
    task.learn(ROWS)
    assert Pool.for_task(task, None, "none", training=True, count=2) is None

    def refuse(*arguments: Any, **given: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(encoding.Pool, "for_task", refuse)
    assert len(encode(task, count=8)) == len(ROWS)


@pytest.mark.parametrize(
    ("content", "bound", "expected"),
    [("150000 100000\n", 8, 2), ("max 100000\n", 8, 8), ("900000 100000\n", 4, 4), ("20000 100000\n", 4, 1), ("?", 3, 3)],
)
def test_processors_within_the_share_of_the_control_group(
    monkeypatch: pytest.MonkeyPatch, content: str, bound: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(bound)), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: content)
    assert pool.usable_processors() == expected
    assert number_of_workers("auto") == expected
    assert number_of_workers(5) == 5


def test_a_table_comes_back_from_another_process(folder: Path) -> None:
    rows: Sequence[dict[str, Any]] = [
        {"a": "x", "b": [1, {"c": None}], "n": 1},
        {"a": None, "b": None},
        {"a": "ü", "b": [], "n": 2},
    ]
    whole = table_from_rows([dict(row) for row in rows] * 4, "input").project({"pair": ["a", "n"], "b": "b"})
    for table in (whole, whole.select([7, 3, 4, 11, 0])):  # type: ignore[arg-type]
        facts, batches = table.packed(1, len(table))
        assert list(Table.unpacked(json.loads(json.dumps(facts)), batches)) == list(table)[1:]
    other = table_from_rows([{"a": "y"}], "more")
    joined = Table.concatenate([table_from_rows([{"a": "x", "z": 1}], "some"), other]).project({"z": "z"})
    facts, batches = joined.packed(0, 2)
    assert list(Table.unpacked(facts, batches)) == [{"z": 1}, {"z": None}]


class NoProcessor:
    """Calls itself one of transformers', and does not let itself be saved."""

    __module__ = "transformers.nowhere"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def save_pretrained(self, folder: str) -> None:
        raise self.error


def test_a_processor_that_cannot_be_saved_costs_no_run_and_a_signal_is_not_lost(
    plugin: Callable[[str], Task], caplog: pytest.LogCaptureFixture
) -> None:
    task = plugin("toy")
    assert Pool.for_task(task, NoProcessor(NotImplementedError("no way")), "key", training=True, count=2) is None
    assert "NotImplementedError: no way" in caplog.text
    with pytest.raises(InterruptedRunError):
        Pool.for_task(task, NoProcessor(InterruptedRunError("SIGINT received", exit_code=130)), "key", training=True, count=2)
    assert Pool.for_task(task, object(), "key", training=True, count=2) is None
