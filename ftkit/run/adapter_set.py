"""Several trained adapters on one base in memory: `ftkit predict RUN --adapter A --adapter B`.

Runs of the same task, method and head share one model, in which the trained values of each are put in place in turn. Runs that need another
model (another rank, another number of labels) get one of their own whose unchanged weights are the very same memory as the first one's. So
an adapter costs what it trained, and little more.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.data.problems import shorten
from ftkit.errors import DataError, ModelError, Problem, RecipeError
from ftkit.files import json_text, read_json
from ftkit.recipe.plan import recipe_values
from ftkit.recipe.schema import LARGEST_BATCH
from ftkit.run.carried_columns import RENAMED, carried_columns
from ftkit.run.folder import LOCK, finished_results, read_run, readable
from ftkit.run.predictor import Predictor, load_predictor, read_plan, take_learned

if TYPE_CHECKING:
    from torch import Tensor

    from ftkit.recipe.plan import Plan
    from ftkit.tasks.base import Task

ADAPTER = "adapter"
"""The entry of a result that names the adapter."""

LABEL_NAMES = ("id2label", "label2id")

SHAPING = ("model", "task", "method")
"""Keys of a plan that decide which model its trained values fit."""


@dataclass(frozen=True)
class Member:
    """One adapter: a predictor on a model that it may share, and the trained values to put into it."""

    name: str
    folder: Path
    predictor: Predictor
    tensors: Mapping[str, Mapping[str, Tensor]]


class AdapterSet:
    """Predicts with each of several adapters. Make one with `ftkit.load_adapters(run, others)`."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = {member.name: member for member in members}
        # Which adapter's values lie in a model now, by the model.
        self._in_place: dict[int, str] = {}

    @property
    def names(self) -> list[str]:
        """Of the adapters, the run's own first."""
        return list(self.members)

    @property
    def first(self) -> Predictor:
        """The predictor of the run itself, for reading rows."""
        return next(iter(self.members.values())).predictor

    def predictor(self, name: str) -> Predictor:
        """The predictor of one adapter with its values in place; valid until another adapter is asked for."""
        member = self.members[name]
        model = member.predictor.prepared.model
        if self._in_place.get(id(model)) != name:
            from ftkit.run.wiring import load_weights

            load_weights(member.predictor.prepared, lambda file: dict(member.tensors.get(file, {})))
            self._in_place[id(model)] = name
        return member.predictor

    def predict(
        self,
        rows: Iterable[Mapping[str, Any] | str],
        batch_size: int | None = None,
        *,
        keep_columns: bool = False,
        skip_errors: bool = False,
        column: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Results that begin with the name of their `adapter`: for each row one of every adapter, or one of that which `column` names.

        Reads as many rows at a time as one batch holds. keep_columns, skip_errors: as for `Predictor.predict`. A row that names no
        adapter counts as one that cannot be used. Raises as `Predictor.predict`.
        """
        size = min(batch_size or int(self.first.plan.recipe.train.eval_batch_size), LARGEST_BATCH)
        wishes = {"batch_size": size, "keep_columns": keep_columns, "skip_errors": skip_errors}
        given, start = iter([rows] if isinstance(rows, str) else rows), 1
        while chunk := list(islice(given, size)):
            wanted = [self._named(row, column, start + index, skip_errors=skip_errors) for index, row in enumerate(chunk)]
            found: dict[tuple[int, str], dict[str, Any]] = {}
            for name in self.names:
                for index, result in self._answers(name, chunk, wanted, start, wishes):
                    found[index, name] = result
            for index, names in enumerate(wanted):
                if isinstance(names, str):
                    yield _unanswered(chunk[index], names, keep_columns=keep_columns)
                else:
                    yield from (_labeled(name, found[index, name]) for name in names)
            start += len(chunk)

    def _named(self, row: Any, column: str | None, number: int, *, skip_errors: bool) -> list[str] | str:
        """The adapters that answer a row; with skip_errors, of a row that names none, the reason."""
        if column is None:
            return self.names
        name = row.get(column) if isinstance(row, Mapping) else None
        if not isinstance(name, str) or name not in self.members:
            what = f"{shorten(name)} is none of the adapters" if name is not None else "the row names no adapter"
            problem = Problem(message=what, place=f"input, row {number}", key=column, hint=f"The adapters: {', '.join(self.names)}")
            if not skip_errors:
                raise DataError(problem)
            return str(replace(problem, hint=""))
        return [name]

    def _answers(
        self, name: str, chunk: Sequence[Any], wanted: Sequence[list[str] | str], start: int, wishes: Mapping[str, Any]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """What one adapter says of the rows of a chunk that it is wanted for, by their place in the chunk."""
        places = [index for index, names in enumerate(wanted) if not isinstance(names, str) and name in names]
        if not places:
            return
        numbers = [start + place for place in places]
        results = self.predictor(name).predict([chunk[place] for place in places], numbers=numbers, **wishes)
        try:
            yield from zip(places, results, strict=True)
        except DataError as error:
            # Each adapter reads the columns that it was trained on: without its name nobody knows which they are.
            raise DataError([replace(problem, place=_at(problem.place, name)) for problem in error.problems]) from error


def _at(place: str, name: str) -> str:
    return f"{place}, adapter {name}" if place else f"adapter {name}"


def _unanswered(row: Any, reason: str, *, keep_columns: bool) -> dict[str, Any]:
    """What `Predictor.predict` says of a row that cannot be used, without the name of an adapter."""
    failed = {"prediction": None, "error": reason}
    return _labeled(None, {**carried_columns(row, failed, everything=keep_columns), **failed})


def _labeled(name: str | None, result: Mapping[str, Any]) -> dict[str, Any]:
    """The result with the adapter's name before it. A column of that name is kept under another one."""
    free = f"{RENAMED}{ADAPTER}"
    while free in result:
        free = f"{RENAMED}{free}"
    return {ADAPTER: name, **{free if key == ADAPTER else key: value for key, value in result.items()}}


# --- loading -----------------------------------------------------------------------------------------------------------


def load_adapters(run: Path, adapters: Sequence[str], overrides: Sequence[str] = (), *, allow_code: bool = False) -> AdapterSet:
    """A run and other runs on the same base, ready to answer in turn.

    adapters: run folders, or `NAME=FOLDER` (default: the folder's name). overrides: as for `ftkit.load`, for all of them. Raises
    RunFolderError for what is no finished run, RecipeError for names that come twice, ModelError for other bases and methods that train
    the base itself.
    """
    named = [(run.absolute().name, run), *map(_name_and_folder, adapters)]
    _refuse_twice([name for name, _ in named])
    for _, folder in named:
        finished_results(read_run(folder))
    plans = [read_plan(folder, overrides) for _, folder in named]
    _refuse_misfits(named, plans)
    loader = _Loader(load_predictor(run, overrides, allow_code=allow_code), allow_code)
    return AdapterSet([loader.member(name, folder, plan) for (name, folder), plan in zip(named, plans, strict=True)])


class _Loader:
    """Gives each run a predictor, on a model that is there already wherever one fits."""

    def __init__(self, first: Predictor, allow_code: bool) -> None:
        self._first, self._allow_code = first, allow_code
        self._known = {_shape(first.plan, first.task): first}

    def member(self, name: str, folder: Path, plan: Plan) -> Member:
        task = plan.task()
        take_learned(task, folder, allow_code=self._allow_code)
        shape = _shape(plan, task)
        known = self._known.get(shape)
        if known is None:
            known = self._known[shape] = self._another(folder, plan, task)
        return Member(name, folder, _taking_turns(known, folder, plan, self._allow_code), _trained(folder))

    def _another(self, folder: Path, plan: Plan, task: Task) -> Predictor:
        from ftkit.models.trainable import share_frozen
        from ftkit.run.wiring import load_weights, prepare_model, prepare_processor

        processor, key = prepare_processor(plan)
        prepared = prepare_model(plan, task, processor, seed=plan.recipe.seed, allow_code=self._allow_code)
        load_weights(prepared, lambda file: _trained(folder).get(file, {}))
        predictor = Predictor(folder, prepared, key)
        owner = self._first.prepared
        share_frozen(owner.model, owner.layout, prepared.model, prepared.layout)
        return predictor


def _taking_turns(known: Predictor, folder: Path, plan: Plan, allow_code: bool) -> Predictor:
    """The same predictor with the task as another run left it."""
    prepared = known.prepared
    # A copy, because the task has looked at the model (`bind`), which it does once. Of the model there is no copy.
    kept = (*prepared.model.modules(), *prepared.model.parameters(), *prepared.model.buffers(), prepared.processor)
    task = copy.deepcopy(known.task, {id(part): part for part in kept})
    take_learned(task, folder, allow_code=allow_code)
    predictor = copy.copy(known)
    predictor.folder, predictor.prepared = folder, replace(prepared, plan=plan, task=task)
    return predictor


def _shape(plan: Plan, task: Task) -> str:
    """The same text for runs whose trained values fit one model. What labels are called does not matter to it."""
    values, head = recipe_values(plan.recipe), task.head()
    entries = {name: value for name, value in head.config.items() if name not in LABEL_NAMES}
    return json_text(
        [
            {key: values[key] for key in SHAPING},
            head.auto_class,
            {name: str(value) for name, value in entries.items()},
            task.sources,
        ]
    )


def _trained(folder: Path) -> dict[str, dict[str, Tensor]]:
    from ftkit.training.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder / finished_results(folder)["weights"])
    return {file: tensors for file in ("trainable", "method") if (tensors := checkpoint.tensors(file))}


# --- what does not go together -----------------------------------------------------------------------------------------


def _name_and_folder(text: str) -> tuple[str, Path]:
    """`NAME=FOLDER`, or a folder (also one that has `=` in its own name), which gives its name."""
    name, equals, folder = text.partition("=")
    if equals and name and folder and not Path(text).exists():
        return name, Path(folder)
    return Path(text).absolute().name, Path(text)


def _refuse_twice(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        message = f"two adapters are called {twice[0]!r}"
        raise RecipeError(Problem(message=message, place="--adapter", hint=f"Name one: --adapter other-{twice[0]}=FOLDER"))


def _refuse_misfits(named: Sequence[tuple[str, Path]], plans: Sequence[Plan]) -> None:
    """Raises ModelError with each run that cannot share the first one's base."""
    problems = []
    (_, first), first_files = named[0], _base_files(named[0][1])
    for (_, folder), plan in zip(named, plans, strict=True):
        method, files = plan.method(), _base_files(folder)
        if not method.capabilities.adapter:
            message = f"{method.name} trained the model itself, so it shares no base with others"
            hint = "Make an adapter of it: ftkit adapters extract RUN --rank R --output DIR"
            problems.append(Problem(message=message, place=str(folder), hint=hint))
        elif changed := sorted(name for name in {*first_files, *files} if first_files.get(name) != files.get(name)):
            message = f"it was trained on another base than {first}: {', '.join(changed)} differ"
            problems.append(Problem(message=message, place=str(folder), hint="Give runs on one base"))
        elif _loading(plan) != _loading(plans[0]):
            message = f"it loads the base in another way than {first} (`model` of its plan: dtype, quantization ...)"
            problems.append(Problem(message=message, place=str(folder), hint="Give runs with the same `model`"))
    if problems:
        raise ModelError(problems)


def _base_files(folder: Path) -> dict[str, str]:
    with readable(folder / LOCK):
        return dict(read_json(folder / LOCK)["model_files"])


def _loading(plan: Plan) -> Any:
    """How the base is loaded. Where its files lie is no difference if they are the same."""
    places: dict[str, Any] = {"name": "", "decoder": None, "tokenizer": None, "revision": None}
    return plan.recipe.model.model_copy(update=places)
