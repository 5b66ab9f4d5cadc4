"""What the methods share that have values of their own for each of several sources of rows."""

from __future__ import annotations

from collections.abc import Sequence

from ftkit.errors import ModelError
from ftkit.methods.base import AdapterMethod


class SourcedMethod(AdapterMethod):
    """A method whose options may have `source_column`.

    sources: names of the sources by their numbers; () where all rows are treated alike.
    """

    sources: Sequence[str] = ()

    @property
    def source_column(self) -> str | None:
        column = getattr(self.options, "source_column", None)
        return None if column is None else str(column)

    def take_sources(self, names: Sequence[str]) -> None:
        self.sources = tuple(names)

    def source_names(self) -> list[str] | None:
        """The names as a tuner's config keeps them. Raises ModelError if there should be some, and they are not known."""
        if self.source_column is not None and not self.sources:
            raise ModelError("the names of the sources are not known", hint="Call take_sources(names) before apply")
        return list(self.sources) or None
