"""The contract of a task: it knows data and meaning, nothing of tuning.

A task is one file in this folder (or a plug-in) with one subclass of `Task`. Nothing here imports torch at import.

Life of a task object:
    task = Text...(options)         options are those of the recipe, `auto` filled in by the plan
    task.check_row(row)             for each row of each split, before any model is read
    task.learn(rows)                freezes what comes from the training rows (label names); `state` / `restore` keep it
    task.learn_encoded(numbers)     the same for what only the encoded rows tell (lengths in tokens)
    task.encode / bind / collate / forward / loss / predictions / combine / generate / score
    task.calibrate(...)             after training: what the validation split decides (a threshold)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor, nn

    from ftkit.methods.base import Default
    from ftkit.metrics.base import MetricSpec
    from ftkit.models.facts import ModelFacts
    from ftkit.tasks.parts.profiles import Profile, Recognized

Row = Mapping[str, Any]
"""A data row under the task's column names (after `data.columns`)."""


class Rows(Protocol):
    """The rows of a split, by number or one after the other."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, index: int, /) -> Row:
        """One row."""

    def __iter__(self) -> Iterator[Row]:
        """All rows in order."""


Features = dict[str, Any]
"""An encoded row: lists of int, ints or floats. `length` (int, tokens) is required; `example` (int) is set by the loader."""

Batch = dict[str, Any]
"""Tensors by name. Keys in `Task.model_inputs` go to the model; the rest stays with the task."""

Prediction = dict[str, Any]
"""What the model said about one example: `example` (int) and whatever the task's metrics and `present` need."""

Calibration = dict[str, Any]
"""What `Task.calibrate` decided, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column that a task reads.

    required: every row must have it for training and evaluation (`predict` needs only those with `target=False`).
    target: the answer to learn, absent at prediction.
    names: usual names of such a column in data sets, best first; used to find it when `data.columns` does not say.
    file: it holds the content of files; a path in the data is replaced by {"bytes", "path"} of its file.
    """

    summary: str
    required: bool = True
    target: bool = False
    names: tuple[str, ...] = ()
    file: bool = False


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the task asks of the model's head.

    auto_class: the transformers auto class. config: entries the model's config is built with.
    pretrained: the head must come with the checkpoint; a new one would take a pretraining to be of use (a language model's).
    bias: what the bias of a new head's outputs begins with, where it has one; () leaves it to transformers.
    """

    auto_class: str
    peft_task_type: str | None
    config: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    bias: tuple[float, ...] = ()


class Dialogue(Protocol):
    """A conversation that goes on over several turns, in `ftkit predict --interactive`."""

    @property
    def commands(self) -> Mapping[str, str]:
        """What a person can have it do besides answering, and what that does: `{"reset": "Forget what was said."}`."""

    def ask(self, text: str) -> list[Features]:
        """The features (of one example) for the answer to the user's next turn. Raises RowError where the turn does not fit."""

    def answered(self, prediction: Prediction) -> str:
        """Takes the answer into the conversation. Returns what the user should know of it, '' for nothing."""

    def command(self, name: str, argument: str) -> str:
        """Obeys one of `commands`; `argument` is what was typed behind it. Returns what to tell the user. Raises RowError."""


class RowError(ValueError):
    """A row that does not fit the task. `column` is the task's column name."""

    def __init__(self, column: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.column, self.message, self.hint = column, message, hint


class Task(ABC):
    """One task.

    name: as written in recipes; equals the file name with `-` for `_`.
    model_kinds: kinds of model (see `ftkit.models.facts`) that can do it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    model_kinds: ClassVar[frozenset[str]]
    Options: ClassVar[type[Strict]]

    plain_text: ClassVar[Literal["text", "document"]] = "text"
    """What a row of a .txt file is, unless the source names a format: a line, or the whole file."""

    group_column: ClassVar[str | None] = None
    """The task's column whose equal values belong into one split (the passage that several questions are about)."""

    path_options: ClassVar[frozenset[str]] = frozenset()
    """Options of text that may name a local file; a value with a file ending does, and the plan makes it absolute."""

    pretrained_head: ClassVar[bool] = False
    """Whether the output layer is the checkpoint's own (a language model's), not a new one."""

    own_metrics: ClassVar[tuple[MetricSpec, ...]] = ()
    """Metrics of this task alone, which no family holds, for lists of what there is."""

    length_unit: ClassVar[str] = "tokens"
    """What `length` of features counts, as in `5,120 tokens/s`."""

    pipeline_tag: str = ""
    """What the hub calls this kind of model on its card; '' where it has no name for it."""

    source_column: ClassVar[str | None] = None
    """The data column that says which of several sources a row is from, see `ftkit.tasks.parts.sources`."""

    takes_pairs: ClassVar[bool] = False
    """Whether two models put together (`model.decoder`) can do it."""

    needs_offsets: ClassVar[str] = ""
    """Why the tokenizer must say which characters its tokens are, as a phrase; '' if it need not (those written in Python do not)."""

    prediction_options: ClassVar[frozenset[str]] = frozenset()
    """Options that concern nothing but prediction, so that a finished run can be used under other ones: `generation`."""

    allow_code: bool = False
    """Whether code that the options name (a metric script) may run; set by the caller from --trust-remote-code."""

    counted_on: Mapping[str, str] = MappingProxyType({})
    """Metrics that the recipe goes by, and the key that names each (`expect.f1`): `score` always gives them. Set by the plan."""

    left_out: str = ""
    """Why `encode` gives no feature for some training rows, as a phrase: `no token of the answer is within max_length`."""

    @classmethod
    def recognize(cls, data: Mapping[str, Profile]) -> Recognized | None:
        """What speaks for this task in data with these columns, by name; None if nothing does. `ftkit init` goes by it.

        Raises DataError for data that looks like this task's and cannot be used for it."""
        return None

    def __init__(self, options: Strict) -> None:
        self.options: Any = options
        self.calibration: Calibration = {}
        self.sources: tuple[str, ...] = ()

    # --- what it needs -------------------------------------------------------------------------------------------

    @abstractmethod
    def columns(self) -> Mapping[str, Column]:
        """The columns this task reads under the given options."""

    @abstractmethod
    def check_row(self, row: Row) -> None:
        """Raises RowError if the row cannot be used. Called for each row before the model is read; must be fast.

        A row to predict lacks target columns; a row to train or evaluate on has every required column (it may hold None).
        """

    def check_options(self) -> str:
        """What is wrong with the combination of options, '' if nothing."""
        return ""

    def stratify_column(self) -> str | None:
        """The task's column to stratify splits by, None if there is no such column."""
        return None

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """Values for this task's own options left at `auto`, by recipe key (`task.max_length` ...)."""
        return {}

    def refusal(self, facts: ModelFacts) -> str:
        """Why this task cannot be done with this model ('' if it can), as far as the model's config tells."""
        return ""

    # --- what it learns from the training rows -------------------------------------------------------------------

    def learn(self, rows: Iterable[Row]) -> None:
        """Freezes whatever depends on the training rows. Must not depend on their order."""

    def check_learned(self, row: Row) -> None:
        """Raises RowError if a row of any split, or one to predict, contradicts what was learned (an unseen label)."""

    def learn_encoded(self, numbers: Callable[[str], ndarray]) -> None:
        """Freezes what depends on the training rows as the model will see them (the longest target in tokens).

        numbers: the values of a feature that is a number, int64 (features,). Called after `encode` has had all training rows."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What `learn` and `learn_encoded` froze, as JSON."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""

    def describe(self, rows: Iterable[Row]) -> dict[str, Any]:
        """Facts about a split for `ftkit plan` (label distribution ...), as JSON."""
        return {}

    # --- tensors -------------------------------------------------------------------------------------------------

    @abstractmethod
    def head(self) -> Head:
        """The head the model needs. Called after `learn` or `restore`."""

    @abstractmethod
    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        """Features of rows. Rows may lack target columns (prediction). Order of the result is the order of the rows;
        a row that gives several features gives them next to each other, each with its `row` (int, index into rows).

        training: whether these are training rows. Only then may rows be packed together or left out (see `left_out`)."""

    def bind(self, model: nn.Module, processor: Any) -> None:
        """Called once with the model that is ready to train or to use (on the CPU, in evaluation mode), before the first batch."""

    @abstractmethod
    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        """A padded batch of tensors (B = len(features)); has `example`: int64 (B,).

        training: whether the batch is trained on; augmentation draws from torch's global generator, seeded for each step."""

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The outputs that `loss` and `predictions` take: the model's own unless the task needs others. Labels stay with the task."""
        return model(**{name: batch[name] for name in self.model_inputs if name in batch})

    @property
    @abstractmethod
    def model_inputs(self) -> tuple[str, ...]:
        """Batch keys that the model's forward takes. Labels are never among them: the task computes the loss."""

    @abstractmethod
    def target_count(self, batch: Batch) -> int:
        """Number of supervised targets (examples or tokens) in the batch: the denominator of the mean loss."""

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        """Sum (not mean) of the losses of the batch's targets: float32 scalar."""

    supports_label_smoothing: bool = False

    measures_share: bool = False
    """Whether a metric is the share of examples that are right, so that the number of rows bounds its precision."""

    # --- results -------------------------------------------------------------------------------------------------

    @abstractmethod
    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """Results of each feature, reduced on the device to what metrics and `present` need, as Python or numpy values."""

    def combine(self, parts: Sequence[Prediction]) -> Prediction:
        """The prediction of one example out of those of its features, in any order. Tasks that cut examples into windows override it."""
        if len(parts) != 1:
            raise RuntimeError(f"example {parts[0]['example']} was predicted {len(parts)} times")
        return parts[0]

    def generates(self, names: Sequence[str] | None) -> bool:
        """Whether these metrics (None: all) need text that the model generates."""
        return False

    needs_validation: str = ""
    """The option that needs a validation split, as `key: value`; '' if none does."""

    generates_to_present: bool = False
    """Whether `present` needs generated text that no metric needs."""

    def generate(self, model: nn.Module, features: Sequence[Features], processor: Any) -> list[Prediction]:
        """What each feature's prediction gains by generation, for tasks that say so in `generates`. In evaluation mode, no gradients.

        model: the trained model outside any distributed wrapper."""
        raise NotImplementedError

    def code_example(self) -> list[str]:
        """Lines of Python that go on from the `model` and `tokenizer` of an export, for its card."""
        return []

    streams: bool = False
    """Whether `stream` can give the text of an answer while it is written."""

    def stream(
        self, model: nn.Module, features: Sequence[Features], processor: Any, *, stopped: Callable[[], bool]
    ) -> Generator[str, None, Prediction]:
        """Pieces of the text for one example, as they come; returns what `generate` gives. For tasks that set `streams`.

        features: those of the example, as `encode` or a `Dialogue` gives them. stopped: becomes true when the user has read enough;
        the text then ends with its next token. `complete` in the prediction, where there: whether no limit cut the text off.
        """
        raise NotImplementedError

    def dialogue(self, processor: Any) -> Dialogue | None:
        """A new conversation, for tasks that set `streams` and whose answers depend on what was said before; else None: an interactive
        session then asks for the required columns of a row, one after the other, and answers each row for itself."""
        return None

    @abstractmethod
    def metrics(self) -> Sequence[MetricSpec]:
        """The metrics this task reports, the one that picks the best checkpoint first. Valid before `learn`."""

    @abstractmethod
    def score(self, predictions: Sequence[Prediction], rows: Rows, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Metric values over a whole split. `predictions[i]` belongs to `rows[i]`. `names`: only these (default all).
        Values are floats, or None where undefined."""

    def details(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, Any]:
        """Tables that are not single numbers (confusion matrix, per-label scores), as JSON."""
        return {}

    def intervals(self, predictions: Sequence[Prediction], rows: Rows) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals (low, high) of the headline metrics over a whole split, where defined."""
        return {}

    def calibrate(self, predictions: Sequence[Prediction], rows: Rows) -> Calibration:
        """What the validation split decides once training is over (a threshold); kept in `calibration`, saved with the run."""
        return {}

    @abstractmethod
    def present(self, prediction: Prediction, row: Row) -> dict[str, Any]:
        """The prediction for a row as a person wants it, as JSON."""

    @abstractmethod
    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        """What the model sees: (token text, note) pairs; note '' for plain input, else the label or mask to show."""
