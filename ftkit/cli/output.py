"""What commands print: text without control characters, tables, and JSON documents.

With `--json` standard output carries one JSON document and nothing else, whatever the libraries below print.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

from ftkit.files import json_text

if TYPE_CHECKING:
    from rich.console import Console

# C0 and C1 control characters (an ESC or a CSI would command the terminal), marks that reorder text, and code points that
# are no characters. Line breaks and tabs are kept.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
_JSON_UNPRINTABLE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")

_document_stream: TextIO | None = None


def clean(text: object) -> str:
    """`text` with every control character written out (`\\x1b`), so that data cannot command the terminal."""
    return _UNPRINTABLE.sub(_written_out, str(text))


def one_line(text: object, limit: int = 0) -> str:
    """Like `clean`, on one line, cut to `limit` characters (0: not cut)."""
    joined = clean(" ".join(str(text).split()))
    return joined if not limit or len(joined) <= limit else joined[: limit - 1] + "…"


def _written_out(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def prepare_streams() -> None:
    """Makes standard output and error take any text, whatever their encoding, and nothing where they are closed."""
    # Python has None for a stream that was closed when it began.
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def is_terminal(stream: TextIO) -> bool:
    """Whether a person watches this stream: it is a terminal, and not one of a CI job."""
    return stream.isatty() and os.environ.get("CI", "").lower() not in ("1", "true", "yes") and os.environ.get("TERM") != "dumb"


STANDARD_OUTPUT = "standard output"


@contextmanager
def naming_standard_output() -> Iterator[None]:
    """Gives errors of writing to standard output its name, which Python does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or STANDARD_OUTPUT
        raise


def say(text: object = "", *, to: TextIO | None = None) -> None:
    """Prints cleaned text and a line break (default: on standard output)."""
    write(clean(text) + "\n", to=to)


def write(text: str, *, to: TextIO | None = None, flush: bool = False) -> None:
    """Writes text as it is (default: to standard output). Raises OSError with the name of what cannot be written to."""
    stream = to or sys.stdout
    with naming_standard_output() if stream is sys.stdout else nullcontext():
        stream.write(text)
        if flush:
            stream.flush()


def console(stream: TextIO) -> Console:
    """A rich console on a stream; rich markup, emoji codes and highlighting in data mean nothing to it."""
    from rich.console import Console

    return Console(file=stream, markup=False, emoji=False, highlight=False)


# --- JSON --------------------------------------------------------------------------------------------------------------


@contextmanager
def standard_output_for_documents() -> Iterator[None]:
    """Only `emit` writes to standard output; what else this process, or one that it starts, writes there goes to standard error."""
    global _document_stream
    if _document_stream is not None:
        yield
        return
    before = sys.stdout
    before.flush()
    descriptors = _descriptor(before), _descriptor(sys.stderr)
    kept = _divert(*descriptors) if None not in descriptors else None
    _document_stream = os.fdopen(os.dup(kept), "w", encoding="utf-8", errors="backslashreplace") if kept is not None else before
    sys.stdout = sys.stderr
    try:
        yield
        with naming_standard_output():
            _document_stream.flush()
    finally:
        sys.stdout = before
        if kept is not None:
            os.dup2(kept, descriptors[0])  # type: ignore[arg-type]
            os.close(kept)
            _close_quietly(_document_stream)
        _document_stream = None


@contextmanager
def standard_output_for_children() -> Iterator[None]:
    """Within `standard_output_for_documents`: processes started meanwhile write the documents themselves."""
    own = _descriptor(sys.__stdout__) if sys.__stdout__ is not None else None
    real = _descriptor(_document_stream) if _document_stream is not None else None
    if own is None or real is None:
        yield
        return
    kept = _divert(own, real)
    try:
        yield
    finally:
        os.dup2(kept, own)
        os.close(kept)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _divert(source: int | None, target: int | None) -> int:
    """Points the descriptor `source` to where `target` points; returns a copy of what it was."""
    kept = os.dup(source)  # type: ignore[arg-type]
    os.dup2(target, source)  # type: ignore[arg-type]
    return kept


def _close_quietly(stream: TextIO) -> None:
    """Closes a stream whose reader may be gone."""
    try:
        stream.close()
    except OSError:
        return


def emit(value: Any, *, indent: int | None = 2) -> None:
    """Writes a value to standard output as strict JSON with a line break; control characters are escaped."""
    stream = _document_stream or sys.stdout
    with naming_standard_output():
        stream.write(document_text(value, indent=indent) + "\n")
        stream.flush()


def document_text(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON in which no character can command a terminal."""
    return _JSON_UNPRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", json_text(value, indent=indent))


# --- tables ------------------------------------------------------------------------------------------------------------


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", right: Sequence[str] = ()) -> None:
    """A table on standard output: drawn in a terminal, else aligned text without any wrapping.

    right: columns to align to the right (numbers).
    """
    if is_terminal(sys.stdout):
        console(sys.stdout).print(drawn_table(columns, rows, title=title, right=right))
        say()
        return
    cells = [list(columns), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    if title:
        say(title)
    for row in cells:
        aligned = (_aligned(cell, width, name in right) for cell, width, name in zip(row, widths, columns, strict=True))
        say("  ".join(aligned).rstrip())
    say()


def _aligned(cell: str, width: int, to_the_right: bool) -> str:
    return cell.rjust(width) if to_the_right else cell.ljust(width)


def drawn_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", right: Sequence[str] = ()) -> Any:
    """The same as a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(clean(title), style="bold") if title else None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(Text(clean(name)), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table


def print_facts(facts: Mapping[str, object], *, title: str = "") -> None:
    """`name  value` lines, aligned."""
    width = max((len(name) for name in facts), default=0)
    if title:
        say(title)
    for name, value in facts.items():
        say(f"  {name.ljust(width)}  {one_line(value)}")
    say()


# --- numbers -----------------------------------------------------------------------------------------------------------


def shown_number(value: Any) -> str:
    """A metric value, loss or rate in a few digits."""
    if value is None:
        return "undefined"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return one_line(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def shown_seconds(seconds: float) -> str:
    """A duration for people: `0.4 s`, `1 min 40 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def shown_mib(mib: float) -> str:
    """An amount of memory or disk: `86.4 MiB`, `1.2 GiB`."""
    return f"{mib / 1024:,.1f} GiB" if mib >= 1024 else f"{mib:,.1f} MiB"


def shown_share(part: int, whole: int) -> str:
    """`887,045 of 23,600,000 (3.76 %)`."""
    return f"{part:,} of {whole:,} ({100 * part / whole if whole else 0:.3g} %)"
