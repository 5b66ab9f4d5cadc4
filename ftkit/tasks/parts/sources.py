"""Any task on rows of several sources, for methods that have values of their own for each (`Method.source_column`).

A column names the source of each row. The names in the training rows are frozen, sorted; their numbers go with the encoded rows into
the batch and to the model as `source_ids`. The name is part of a row's input: the same text of two sources is two examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from ftkit.errors import DataError, Problem
from ftkit.models.row_sources import SOURCE_IDS, all_of_source
from ftkit.tasks.base import Batch, Column, Dialogue, Features, Prediction, Row, RowError, Rows, Task
from ftkit.tasks.parts.labels import listed, shown

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts

MOST_SOURCES = 1000
"""More are hardly tasks; it is rather a column of identifiers."""

FEATURE = "source_id"


@lru_cache
def with_sources(cls: type[Task], column: str | None) -> type[Task]:
    """The class of the same task on rows whose source is in a column; the class itself without one. Equal arguments give one class."""
    if column is None:
        return cls
    return type(cls.__name__, (_Sourced, cls), {"source_column": column, "__doc__": cls.__doc__, "__module__": cls.__module__})


class _Sourced(Task):
    """What `with_sources` puts in front of a task's class."""

    source_column: ClassVar[str]

    @property
    def _plain(self) -> Any:
        """The task as it is without sources."""
        return super()

    def columns(self) -> Mapping[str, Column]:
        """Those of the task, and the one of the source."""
        return {**self._plain.columns(), self.source_column: Column(summary="The source (data set, task) that the row is from.")}

    def refusal(self, facts: ModelFacts) -> str:
        """That of the task, or that it reads the column itself."""
        if self.source_column in self._plain.columns():
            other = f"source_of_{self.source_column}"
            return (
                f"its column {self.source_column!r} cannot also be `source_column`; write `source_column: {other}` and "
                f"`data: {{columns: {{{other}: {self.source_column}}}}}`"
            )
        return str(self._plain.refusal(facts))

    # --- rows ----------------------------------------------------------------------------------------------------

    def check_row(self, row: Row) -> None:
        """Raises RowError for a row without the name of a source, too."""
        self._plain.check_row(row)
        self._name(row)

    def _name(self, row: Row) -> str:
        value = row.get(self.source_column)
        name = str(value).strip() if isinstance(value, (str, int)) else ""
        if not name:
            given = "it is empty" if value is None or value == "" else f"{shown(value)} is no name"
            raise RowError(self.source_column, f"the source of the row is not known: {given}", self._choice())
        return name

    def _choice(self) -> str:
        return f"Give one of: {listed(self.sources)}" if self.sources else "Name the data set or task that the row is from"

    def _number(self, row: Row) -> int:
        name = self._name(row)
        if name not in self.sources:
            raise RowError(self.source_column, f"no training row is from the source {shown(name)}", self._choice())
        return self.sources.index(name)

    def learn(self, rows: Iterable[Row]) -> None:
        """Freezes the names of the sources, too. Raises DataError if there are too many."""
        names = sorted({self._name(row) for row in rows})
        if len(names) > MOST_SOURCES:
            message = f"{self.source_column} has {len(names):,} values, and at most {MOST_SOURCES:,} sources are possible"
            hint = "Name a column with the data set or task of each row"
            raise DataError(Problem(message=message, key="method.source_column", hint=hint))
        self._plain.learn(rows)
        self.sources = tuple(names)

    def check_learned(self, row: Row) -> None:
        """Raises RowError for a source that no training row has, too."""
        self._plain.check_learned(row)
        self._number(row)

    def state(self) -> dict[str, Any]:
        """That of the task, and `sources`: names by number."""
        return {**self._plain.state(), "sources": list(self.sources)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._plain.restore(state)
        self.sources = tuple(state["sources"])

    def describe(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Facts of the task, and the rows of each source."""
        counts: Counter[str] = Counter()

        def counted() -> Iterator[Row]:
            for row in rows:
                counts[self._name(row)] += 1
                yield row

        facts = self._plain.describe(counted())
        return {**facts, "sources": dict(sorted(counts.items()))}

    # --- tensors -------------------------------------------------------------------------------------------------

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        """Each source by itself, so that packed rows are of one."""
        members: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            members.setdefault(self._number(row), []).append(index)
        found: list[Features] = []
        for number, indices in members.items():
            features = self._plain.encode([rows[index] for index in indices], processor, training=training)
            found += [
                {**feature, "row": indices[feature.get("row", place)], FEATURE: number} for place, feature in enumerate(features)
            ]
        return sorted(found, key=lambda feature: int(feature["row"]))

    def bind(self, model: nn.Module, processor: Any) -> None:
        """As the task does, with a model that answers for the first source."""
        with all_of_source(model, 0):
            self._plain.bind(model, processor)

    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        """The batch of the task and `source_ids`: int64 (B,)."""
        import torch

        batch: Batch = self._plain.collate(features, processor, training=training)
        return {**batch, SOURCE_IDS: torch.tensor([int(feature[FEATURE]) for feature in features])}

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """Those of the task and `source_ids`."""
        return (*self._plain.model_inputs, SOURCE_IDS)

    # --- results -------------------------------------------------------------------------------------------------

    def generate(self, model: nn.Module, features: Sequence[Features], processor: Any) -> list[Prediction]:
        """What the task generates, one source after the other: it may ask for some features only, or for several texts at once."""
        found: dict[int, Prediction] = {}
        for number in sorted({int(feature[FEATURE]) for feature in features}):
            places = [place for place, feature in enumerate(features) if int(feature[FEATURE]) == number]
            with all_of_source(model, number):
                texts = self._plain.generate(model, [features[place] for place in places], processor)
            found.update(zip(places, texts, strict=True))
        return [found[place] for place in range(len(features))]

    def stream(
        self, model: nn.Module, features: Sequence[Features], processor: Any, *, stopped: Callable[[], bool]
    ) -> Generator[str, None, Prediction]:
        """As the task does, for the source of the example."""
        with all_of_source(model, int(features[0][FEATURE])):
            return (yield from self._plain.stream(model, features, processor, stopped=stopped))

    def dialogue(self, processor: Any) -> Dialogue | None:
        """The conversation of the task with one source at a time."""
        plain: Dialogue | None = self._plain.dialogue(processor)
        return None if plain is None else _SourcedDialogue(plain, self.source_column, self.sources)

    def code_example(self) -> list[str]:
        """That of the task, whose calls say that the input is of the first source."""
        numbers = ", ".join(f"{number} {name}" for number, name in enumerate(self.sources))
        lines: list[str] = self._plain.code_example()
        named = [line.replace("(**inputs", f"(**inputs, {SOURCE_IDS}=torch.tensor([0])") for line in lines]
        return ["import torch", "", f"# Sources: {numbers}", *named] if lines else []

    def details(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, Any]:
        """Tables of the task, and `sources`: the rows and metrics of each."""
        members: dict[str, list[int]] = {name: [] for name in self.sources}
        for index, row in enumerate(rows):
            members[self._name(row)].append(index)
        table = [
            {"source": name, "rows": len(some), **self._plain.score([predictions[index] for index in some], _Some(rows, some))}
            for name, some in members.items()
            if some
        ]
        return {**self._plain.details(predictions, rows), "sources": table}

    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        """The source, then what the task shows."""
        return [(self.sources[int(features[FEATURE])], "source"), *self._plain.inspect(features, processor)]


class _Some:
    """Some rows of a split, by their numbers."""

    def __init__(self, rows: Rows, indices: Sequence[int]) -> None:
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Row:
        return self._rows[self._indices[index]]

    def __iter__(self) -> Iterator[Row]:
        return (self._rows[index] for index in self._indices)


class _SourcedDialogue:
    """A conversation that is of one source, until it is told to be of another."""

    def __init__(self, plain: Dialogue, column: str, sources: Sequence[str]) -> None:
        self._plain, self._column, self._sources = plain, column, sources
        self._number: int | None = 0 if len(sources) == 1 else None

    @property
    def commands(self) -> Mapping[str, str]:
        """Those of the conversation, and `source`."""
        return {**self._plain.commands, "source": f"/source NAME says what is asked: {listed(self._sources)}."}

    def ask(self, text: str) -> list[Features]:
        """The features of the next turn. Raises RowError as long as no source was chosen."""
        if self._number is None:
            raise RowError(self._column, "the source is not known", f"Choose one by /source NAME: {listed(self._sources)}")
        return [{**feature, FEATURE: self._number} for feature in self._plain.ask(text)]

    def answered(self, prediction: Prediction) -> str:
        """Takes the answer into the conversation."""
        return self._plain.answered(prediction)

    def command(self, name: str, argument: str) -> str:
        """Obeys a command. Raises RowError for an unknown source."""
        if name != "source":
            return self._plain.command(name, argument)
        if argument not in self._sources:
            raise RowError(self._column, f"there is no source {shown(argument)}", f"Give one of: {listed(self._sources)}")
        self._number = list(self._sources).index(argument)
        return f"what follows is of the source {argument}"
