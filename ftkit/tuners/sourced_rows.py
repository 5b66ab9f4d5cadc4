"""Which source each row of a running call is from, for tuners whose adapters treat sources differently.

The numbers come as the argument `source_ids` of the forward pass or of `generate` (`ftkit.models.row_sources`); models do not know that
argument, so that a hook takes it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftkit.errors import ModelError
from ftkit.models.row_sources import SOURCE_IDS

CHECKPOINTING = "_gradient_checkpointing_func"
"""Where modules of transformers keep the function that runs a part of them again in the backward pass."""


@dataclass(frozen=True)
class SourcedRows:
    """The sources of N rows, each of which may stand for several that follow each other (beams of a row).

    numbers: the sources that occur, ascending; `present`: the same as int64 (U,). members: where in these each row's is, int64 (N,).
    """

    numbers: Sequence[int]
    present: Tensor
    members: Tensor

    @classmethod
    def of(cls, source_ids: Tensor) -> SourcedRows:
        """Rows from the number of each, int64 (N,)."""
        present, members = source_ids.unique(return_inverse=True)
        return cls(present.tolist(), present, members)


class RowSources(nn.Module):
    """What knows the sources of rows. A module of the model, so that `all_of_source` finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.default_source: int | None = None
        self._given: SourcedRows | None = None
        self._generated: SourcedRows | None = None

    def hook(self, model: nn.Module) -> list[Any]:
        """Takes `source_ids` out of the arguments of this model's calls; returns the handles."""
        before = model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        return [before, model.register_forward_hook(self._after_model, always_call=True)]

    @contextmanager
    def generating(self, source_ids: Tensor | None) -> Iterator[None]:
        """While this lasts, calls that name no sources have rows of these, int64 (B,), each as often as there are beams."""
        before, self._generated = self._generated, None if source_ids is None else SourcedRows.of(source_ids)
        try:
            yield
        finally:
            self._generated = before

    def rows(self, count: int, names: Sequence[str], *, flat: bool = False) -> SourcedRows:
        """The sources of `count` rows, out of those called `names`.

        flat: the rows may be positions, those of one row of the call after those of the other.
        Raises ModelError if the call does not say which sources that are, or too few, too many or others.
        """
        known = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        hint = f"Pass `{SOURCE_IDS}`, a number for each row: {known}"
        found = self._generated if self._given is None else self._given
        if found is None and self.default_source is not None:
            return SourcedRows([self.default_source], torch.tensor([self.default_source]), torch.tensor([0]))
        if found is None:
            raise ModelError("what was trained differs by source, and the call does not say which the rows are from", hint=hint)
        given = len(found.members)
        repeated = flat or self._given is None
        if not given or count % given or (count != given and not repeated):
            raise ModelError(f"{given} numbers of sources were given for {count} rows", hint=hint)
        if found.numbers[0] < 0 or found.numbers[-1] >= len(names):
            raise ModelError(f"{list(found.numbers)} are not all numbers of sources", hint=hint)
        return found

    @contextmanager
    def _in_force(self, rows: SourcedRows | None) -> Iterator[None]:
        before, self._given = self._given, rows
        try:
            yield
        finally:
            self._given = before

    def run_again(self, plain: Callable[..., Any], part: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoints a part of the model by the function `plain`: run again in the backward pass, it has rows of the same sources."""
        rows = self._given

        def run(*inputs: Any, **named: Any) -> Any:
            with self._in_force(rows):
                return part(*inputs, **named)

        return plain(run, *args, **kwargs)

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = kwargs.get(SOURCE_IDS)
        self._given = None if ids is None else SourcedRows.of(ids)
        if ids is not None and torch.is_grad_enabled():
            # Not when the adapter is put in, because checkpointing is switched on later.
            _remember_sources(model, self)
        return args, {name: value for name, value in kwargs.items() if name != SOURCE_IDS}

    def _after_model(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._given = None


class _Remembering:
    """A checkpointing function under which what runs again knows its sources."""

    def __init__(self, plain: Callable[..., Any], sources: RowSources) -> None:
        self.plain, self.sources = plain, sources

    def __call__(self, part: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.sources.run_again(self.plain, part, *args, **kwargs)


def _remember_sources(model: nn.Module, sources: RowSources) -> None:
    for module in model.modules():
        plain: Any = module.__dict__.get(CHECKPOINTING)
        if plain is not None and not isinstance(plain, _Remembering):
            setattr(module, CHECKPOINTING, _Remembering(plain, sources))


def forget_sources(model: nn.Module) -> None:
    """Gives the modules of a model back the checkpointing functions that they had."""
    for module in model.modules():
        known = module.__dict__.get(CHECKPOINTING)
        if isinstance(known, _Remembering):
            setattr(module, CHECKPOINTING, known.plain)
