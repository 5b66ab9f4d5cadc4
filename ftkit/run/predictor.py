"""A trained run, ready to predict and to be evaluated. Importing this loads no torch: what is wrong with a run shows without it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ftkit.data.building import table_from_rows
from ftkit.data.columns import find_columns, load_files
from ftkit.data.features import FeatureStore
from ftkit.data.pool import number_of_workers
from ftkit.data.problems import Problems, shorten
from ftkit.data.readers.jsonl import parse_line
from ftkit.data.sources import read_source
from ftkit.data.splits import load_rows, load_splits
from ftkit.data.table import Table
from ftkit.errors import DataError, ModelError, Problem, RecipeError, RunFolderError
from ftkit.files import read_json
from ftkit.models.facts import read_facts
from ftkit.models.quiet import quiet_libraries
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.plan import Plan
from ftkit.recipe.schema import LARGEST_BATCH, Recipe, SourceSpec
from ftkit.registry import TASKS
from ftkit.run.carried_columns import carried_columns
from ftkit.run.folder import LOCK, PLAN, TASK, finished_results, read_learned, read_run, readable
from ftkit.run.lockfile import edited_values, hash_model
from ftkit.run.planning import make_plan_here
from ftkit.run.world import launched_world
from ftkit.tasks.base import Prediction, Task

if TYPE_CHECKING:
    from torch import nn

    from ftkit.run.session import Session
    from ftkit.run.wiring import Prepared


Numbered = Sequence[tuple[int, Mapping[str, Any]]]
"""Rows with what messages call them."""


class Predictor:
    """The model of a finished run. Make one with `ftkit.load(run)`."""

    def __init__(self, folder: Path, prepared: Prepared, processor_hash: str) -> None:
        from ftkit.run.wiring import make_accelerator

        if (world := launched_world()).several:
            raise RecipeError(
                f"{world.size} processes were started; only `ftkit train` uses several", hint="Start it without a launcher"
            )
        self.folder, self.prepared = folder, prepared
        self._processor_hash = processor_hash
        self._accelerator = make_accelerator(prepared.plan.recipe.train.precision, trackers=[], folder=None)
        self._model = self._accelerator.prepare_model(prepared.model, evaluation_mode=True)

    @property
    def task(self) -> Task:
        """The task with what it learned from the training rows."""
        return self.prepared.task

    @property
    def plan(self) -> Plan:
        """The plan of the run."""
        return self.prepared.plan

    @property
    def bare_model(self) -> nn.Module:
        """The model on its device, outside any wrapper, as `Task.generate` takes it."""
        return self._accelerator.unwrap_model(self._model)

    def session(self) -> Session:
        """A new interactive session: answers one row after the other, text while it is written."""
        from ftkit.run.session import Session

        return Session(self)

    def read(self, source: str, *, skip_errors: bool = False) -> Iterator[Mapping[str, Any]]:
        """Rows of a data file of any format that recipes know, or JSON lines from standard input (`-`), as they arrive.

        skip_errors: files of a row that are missing or cannot be read stay paths, so that `predict` can pass over the row.
        """
        if source == "-":
            return _json_lines(sys.stdin)
        table = read_source(SourceSpec(path=source), split="test", base=Path.cwd(), plain_text=self.task.plain_text, mixed=True)
        if any(column.file for column in self.task.columns().values()):
            # Here and not in `predict`, because paths start from the data file.
            found = find_columns(table, self.task, self.plan.recipe.data.columns, need_targets=False)
            return map(_with_paths, load_files(table, found, self.task, lenient=skip_errors))
        return iter(table)

    def predict(
        self,
        rows: Iterable[Mapping[str, Any] | str],
        batch_size: int | None = None,
        *,
        keep_columns: bool = False,
        skip_errors: bool = False,
        numbers: Iterable[int] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """One result for each row, in order. Targets are not needed.

        Rows stand under the data's column names, as in training, or under the task's own (`{"text": ...}`); where the input is one
        text, a row may be that text. Reads as many rows at a time as one batch holds. A result begins with the `id` of a row that has
        one; keep_columns: with all columns of the row. skip_errors: a row that the task cannot use gives `{"prediction": None, "error":
        which row, and why}` in its place. numbers: what messages call the rows (default: from 1 on).
        Raises DataError for a row that the task cannot use, RecipeError for texts where a row needs more than one.
        """
        size = min(batch_size or int(self.plan.recipe.train.eval_batch_size), LARGEST_BATCH)
        given = zip(count(1) if numbers is None else numbers, [rows] if isinstance(rows, str) else rows, strict=False)
        pending = ((number, self._row(row, number)) for number, row in given)
        while numbered := list(islice(pending, size)):
            for part, encoded in self._parts(numbered, skip_errors=skip_errors):
                if isinstance(encoded, str):
                    failed = {"prediction": None, "error": encoded}
                    yield {**carried_columns(part[0][1], failed, everything=keep_columns), **failed}
                else:
                    yield from self._results(part, encoded, size, keep_columns=keep_columns)

    def _parts(self, numbered: Numbered, *, skip_errors: bool) -> Iterator[tuple[Numbered, tuple[Table, FeatureStore] | str]]:
        """The rows in their order: all that can be encoded together, with their features; one that the task cannot use, with the reason.

        Rows are halved for as long as they fail together, so that few are encoded more than once, and that rows which are good, but do
        not fit into one table, answer all the same. Without skip_errors it raises DataError for all of them.
        """
        try:
            encoded = self._encoded(numbered)
        except DataError as error:
            if not skip_errors:
                raise _naming_way_on(error) from error
            if len(numbered) == 1:
                yield numbered, str(replace(error.problems[0], hint=""))
                return
            middle = len(numbered) // 2
            yield from self._parts(numbered[:middle], skip_errors=True)
            yield from self._parts(numbered[middle:], skip_errors=True)
            return
        yield numbered, encoded

    def _results(
        self, numbered: Numbered, encoded: tuple[Table, FeatureStore], size: int, *, keep_columns: bool
    ) -> Iterator[dict[str, Any]]:
        from ftkit.training.evaluation import predict_features

        table, store = encoded
        predictions, _, _ = predict_features(
            self._model,
            self.task,
            store,
            self.prepared.processor,
            batch_size=size,
            max_tokens=None,
            accelerator=self._accelerator,
            presenting=True,
        )
        for prediction, row, (_, columns) in zip(predictions, table, numbered, strict=True):
            shown = self.task.present(prediction, row)
            yield {**carried_columns(columns, shown, everything=keep_columns), **shown}

    def encode(self, row: Mapping[str, Any] | str) -> FeatureStore:
        """The features of one row, as the model takes them. Raises as `predict` does."""
        return self._encoded([(1, self._row(row, 1))])[1]

    def _encoded(self, numbered: Numbered) -> tuple[Table, FeatureStore]:
        from ftkit.run.wiring import encode_rows

        table = self._table(table_from_rows([row for _, row in numbered], "input", numbers=[number for number, _ in numbered]))
        return table, encode_rows(table, self.task, self.prepared.processor, self._processor_hash, cache=False)

    def _row(self, row: Any, number: int) -> Mapping[str, Any]:
        if isinstance(row, str):
            return {self.text_column(): row}
        if not isinstance(row, Mapping):
            hint = 'Give mappings, such as {"text": "..."}'
            raise DataError(Problem(message=f"{shorten(row)} is no row", place=f"input, row {number}", hint=hint))
        mapping = self.plan.recipe.data.columns
        moved = {
            source: row[name]
            for name, source in mapping.items()
            if isinstance(source, str) and source not in row and name in row and name not in mapping.values()
        }
        return {**row, **moved} if moved else row

    def text_column(self) -> str:
        """The data column of a task whose input is one text. Raises RecipeError for other tasks."""
        needed = [name for name, column in self.task.columns().items() if column.required and not column.target]
        columns = [self.plan.recipe.data.columns.get(name, name) for name in needed]
        if len(columns) != 1 or not isinstance(columns[0], str):
            message = f"a text alone is no row here: {self.task.name} of this run needs {', '.join(map(str, columns))}"
            raise RecipeError(message, hint="Give rows as JSON lines: --input FILE or --input -")
        return columns[0]

    def _table(self, rows: Table) -> Table:
        return load_rows(rows, self.task, self.plan.recipe.data.columns, Path.cwd(), need_targets=False)

    def evaluate(self, split: str | None = "test", data: str | None = None) -> dict[str, Any]:
        """Metrics, intervals and details of a split of the run's recipe, or of the rows of another source.

        Raises RecipeError if there is no such split, DataError if the rows do not fit.
        """
        name = data or split or "test"
        rows = self._source(data) if data else self._split(name)
        return {"split": name, **self.measure(rows, cache=self.plan.recipe.data.cache and not data)[0]}

    def measure(self, rows: Table, *, cache: bool) -> tuple[dict[str, Any], list[Prediction]]:
        """{`rows`, `metrics`, `intervals`, `details`} of checked rows with targets, and the predictions. cache: keep them encoded."""
        from ftkit.run.wiring import encode_rows
        from ftkit.training.evaluation import evaluate

        train, processor = self.plan.recipe.train, self.prepared.processor
        workers = number_of_workers(self.plan.recipe.data.num_workers)
        store = encode_rows(rows, self.task, processor, self._processor_hash, cache=cache, num_workers=workers)
        found = evaluate(
            self._model,
            self.task,
            store,
            rows,
            processor,
            batch_size=int(train.eval_batch_size),
            max_tokens=train.max_tokens,
            accelerator=self._accelerator,
        )
        report = {
            "rows": len(rows),
            "metrics": found.metrics,
            "intervals": self.task.intervals(found.predictions, rows),
            "details": self.task.details(found.predictions, rows),
        }
        return report, found.predictions

    def _source(self, data: str) -> Table:
        return load_rows(data, self.task, self.plan.recipe.data.columns, Path.cwd(), need_targets=True)

    def _split(self, name: str) -> Table:
        tables = dict(load_splits(self.plan.recipe.data, self.plan.task(), self.plan.recipe.origin.base).items())
        if name not in tables:
            raise RecipeError(f"the run has no {name!r} split", hint=f"It has: {', '.join(tables)}. Or give --data FILE")
        return tables[name]


def _naming_way_on(error: DataError) -> DataError:
    """What is wrong with rows, with how the others can be predicted all the same."""
    *others, last = error.problems
    before = f"{last.hint.rstrip('.')}. " if last.hint else ""
    hint = f"{before}Rows that can be used are predicted with --skip-errors"
    return DataError([*others, replace(last, hint=hint)])


def load_predictor(run: Path, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Predictor:
    """The model of a finished run, built anew from its base and its best weights, strictly.

    overrides: `task.KEY=value` texts for options that concern nothing but prediction. Raises RunFolderError if the run is not
    finished, RecipeError for other overrides, ModelError if the base model is not the one it was trained on.
    """
    quiet_libraries()
    folder = read_run(run)
    results = finished_results(folder)
    plan = read_plan(folder, overrides)
    task = plan.task()
    take_learned(task, folder, allow_code=allow_code)
    # Hashing waits for the disk and torch's import for the processor, so that both together take little longer than one.
    with ThreadPoolExecutor(max_workers=1) as pool:
        hashes = pool.submit(hash_model, plan.facts)
        from ftkit.run.wiring import load_weights, prepare_model, prepare_processor
        from ftkit.training.checkpoint import open_checkpoint
    _refuse_another_base(folder, plan, hashes.result())
    processor, key = prepare_processor(plan)
    prepared = prepare_model(plan, task, processor, seed=plan.recipe.seed, allow_code=allow_code)
    load_weights(prepared, open_checkpoint(folder / results["weights"]).tensors)
    return Predictor(folder, prepared, key)


def read_plan(folder: Path, overrides: Sequence[str] = ()) -> Plan:
    """The plan of a run. overrides: as for `load_predictor`. Raises RecipeError, ModelError or RunFolderError."""
    recipe = _read_recipe(folder, overrides)
    return make_plan_here(recipe, read_facts(recipe.model, folder))


def take_learned(task: Task, folder: Path, *, allow_code: bool) -> None:
    """Gives a task what it learned from the training rows of a run, and what the validation split decided."""
    task.allow_code = allow_code
    learned = read_learned(folder, finished_results(folder))
    with readable(folder / TASK):
        task.restore(learned["state"])
        task.calibration = dict(learned["calibration"])


def _read_recipe(folder: Path, overrides: Sequence[str]) -> Recipe:
    with readable(folder / PLAN):
        text = (folder / PLAN).read_text(encoding="utf-8")
    recipe = parse_recipe(text, str(folder / PLAN), base=folder)
    _refuse_edited_plan(folder, recipe)
    if not overrides:
        return recipe
    allowed = sorted(TASKS.get(recipe.task.name).prediction_options)
    _refuse_other_options(recipe.task.name, allowed, overrides)
    return parse_recipe(text, str(folder / PLAN), overrides, base=folder)


def _refuse_edited_plan(folder: Path, recipe: Recipe) -> None:
    """Raises RunFolderError if plan.yaml names other options of task or method than the run was trained with."""
    with readable(folder / LOCK):
        changed = edited_values(recipe, read_json(folder / LOCK))
    if changed:
        hint = "Put the values back; options that prediction may change go on the command line, as task.KEY=VALUE"
        problems = [
            Problem(message=f"was changed after training: {change}", place=str(folder / PLAN), hint=hint) for change in changed
        ]
        raise RunFolderError(problems)


def _refuse_other_options(task: str, allowed: Sequence[str], overrides: Sequence[str]) -> None:
    """Raises RecipeError for overrides of anything that the run was trained with."""
    wrong = []
    for text in overrides:
        keys = text.removeprefix("~").partition("=")[0].strip().split(".")
        if keys[0] != "task" or len(keys) < 2 or keys[1] not in allowed:
            wrong.append(text)
    if wrong:
        known = ", ".join(f"task.{name}" for name in allowed)
        hint = (
            f"What a finished run of {task} can be used under: {known}" if known else f"{task} has no options for prediction alone"
        )
        message = "a finished run was trained with what this would change"
        raise RecipeError([Problem(message=message, place=f"command line: {text}", hint=hint) for text in wrong])


def _with_paths(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the bare path of each file that could not be read, for which `predict` says why."""
    unread = {
        name: value["path"]
        for name, value in row.items()
        if isinstance(value, dict) and value.get("bytes", "") is None and "path" in value
    }
    return {**row, **unread} if unread else row


def _lines(stream: TextIO) -> Iterator[str]:
    read = 0
    try:
        for line in stream:
            read += 1
            yield line.removeprefix("\ufeff") if read == 1 else line
    except UnicodeDecodeError as error:
        message = f"byte 0x{error.object[error.start]:02X} is not valid {error.encoding}"
        raise DataError(Problem(message=message, place=f"standard input, after line {read}", hint="Send UTF-8")) from None


def _json_lines(stream: TextIO) -> Iterator[Mapping[str, Any]]:
    if stream is None:
        raise DataError("standard input is closed", hint="Give rows by --input FILE or --text")
    for number, line in enumerate(_lines(stream), start=1):
        if not line.strip():
            continue
        problems = Problems()
        row = parse_line("standard input", number, line, problems)
        problems.raise_if_any()
        if row is not None:
            yield row


def _refuse_another_base(folder: Path, plan: Plan, found: Mapping[str, str]) -> None:
    with readable(folder / LOCK):
        changed = sorted(name for name, digest in read_json(folder / LOCK)["model_files"].items() if digest != found.get(name))
    if changed:
        message = f"the base model is not the one this run was trained on: {', '.join(changed)} changed"
        raise ModelError(Problem(message=message, place=plan.recipe.model.name, hint="Restore the base model, or train again"))
