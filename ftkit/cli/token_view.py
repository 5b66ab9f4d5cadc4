"""Draws a row as the model sees it: tokens, with the note of each (its label or mask)."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

from ftkit.cli.output import console, is_terminal, one_line, say

PALETTE = ("green", "cyan", "magenta", "yellow", "blue", "red", "bright_green", "bright_cyan", "bright_magenta", "bright_yellow")


def print_row(row: Mapping[str, Any], colors: MutableMapping[str, str], stream: TextIO) -> None:
    """Prints one row of `ftkit.api.inspect`. `colors`: the color of each note so far, extended as new ones come."""
    tokens = [(one_line(text), one_line(note)) for text, note in row["tokens"]]
    closing = [note for text, note in tokens if not text]
    head = one_line(f"row {row['row']} ({row['place']})") + ("  truncated" if row.get("truncated") else "")
    if not is_terminal(stream):
        say(head, to=stream)
        say("  " + " ".join(f"{text}[{note}]" if note else text for text, note in tokens if text), to=stream)
        for note in closing:
            say(f"  {note}", to=stream)
        return
    _draw(head, tokens, closing, colors, stream)


def _draw(head: str, tokens: list[tuple[str, str]], closing: list[str], colors: MutableMapping[str, str], stream: TextIO) -> None:
    from rich.text import Text

    line = Text()
    for number, (text, note) in enumerate(item for item in tokens if item[0]):
        if note:
            color = colors.setdefault(note, PALETTE[len(colors) % len(PALETTE)])
            line.append(text, style=f"bold {color}").append(f"[{note}]", style=f"dim {color}").append(" ")
        else:
            line.append(text, style="" if number % 2 else "on grey19").append(" ")
    screen = console(stream)
    screen.print(Text(head, style="bold"))
    screen.print(line)
    for note in closing:
        screen.print(Text(note, style="bold green"))
    screen.print()
