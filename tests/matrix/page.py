"""docs/matrix.md out of the outcomes of all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ftkit.registry import METHODS, TASKS
from tests.matrix.architectures import ARCHITECTURES
from tests.matrix.cell import REFUSED, SETTINGS, STEPS, WORKS, Cell
from tests.matrix.grid import Outcomes, setting_cells

INTRODUCTION = f"""# What works with what

Every tuning method on every task on every architecture, found out by running it. What is not here as `yes`, `ftkit validate` refuses
before anything is loaded, with the reason under the table; what only the model itself shows, `ftkit plan` and `ftkit train` refuse.

Each cell is a run on a tiny model of that architecture (two blocks, random weights): validate, {STEPS} optimizer steps, evaluation,
checkpoint, every export that the method has, each loaded back and compared. Then the saved run is loaded from disk and must predict what
the model in memory predicted, to the last digit. The parameters that changed must be exactly those that the method declares, and every
loss a finite number. Methods run with their default options, or with an example where they need some. That says that things fit
together, not how well they learn: for that, see [benchmarks](benchmarks.md).

An architecture stands for its kin: `llama` for Mistral, Phi or Gemma, `bart` for Pegasus or mBART. `bert + bert` is an encoder-decoder
made of two encoders with `model.decoder`.
"""

SETTINGS_TEXT = """## Settings

The same with a recipe that asks for more, each method on one task and architecture where it works. In this order, the columns stand for
"""


def page(found: Outcomes, versions: Mapping[str, str]) -> str:
    """The whole page. versions: of the libraries it was made with, by name."""
    methods = [method for method in METHODS.names() if any(cell.method == method for cell in found)]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    made = f"Made by `scripts/make_matrix.py` from the clone, with {shown}. A test repeats a part that holds every method on every task."
    parts = [INTRODUCTION, made, "", "## Tasks and architectures", "", _overview(found, methods), ""]
    parts += ["`3/5`: with three of five methods. Rows of the tables below are methods; a number is the reason of a refusal.", ""]
    for task in TASKS.names():
        cells = {(method, name): found[Cell(task, method, name)] for method in methods for name in ARCHITECTURES}
        parts += [f"## {task}", "", _table(cells, methods, ARCHITECTURES), ""]
    asked = "; ".join(f"`{' '.join(overrides)}`" for overrides in SETTINGS.values())
    tried = [cell for method in methods for cell in setting_cells(method, found)]
    cells = {(cell.method, cell.setting): found[cell] for cell in tried}
    parts += [f"{SETTINGS_TEXT}{asked}.", "", _table(cells, list(dict.fromkeys(cell.method for cell in tried)), list(SETTINGS)), ""]
    return "\n".join(parts)


def _overview(found: Outcomes, methods: Sequence[str]) -> str:
    def word(task: str, name: str) -> str:
        works = sum(found[Cell(task, method, name)] == WORKS for method in methods)
        return "yes" if works == len(methods) else f"{works}/{len(methods)}" if works else "no"

    rows = [[f"[{task}](#{task})", *(word(task, name) for name in ARCHITECTURES)] for task in TASKS.names()]
    return _markdown(["", *ARCHITECTURES], rows)


def _table(cells: Mapping[tuple[str, str], str], methods: Sequence[str], columns: Sequence[str]) -> str:
    """One row a method; under it the reasons by number. Reasons that differ only in a name share one."""
    notes: dict[str, dict[str, set[str]]] = {}
    for (method, column), text in cells.items():
        if text != WORKS:
            note = notes.setdefault(_general(text, method, column), {})
            note.setdefault(text, set()).add(column)
    numbers = {note: number for number, note in enumerate(notes, start=1)}

    def shown(method: str, column: str) -> str:
        text = cells[method, column]
        return "yes" if text == WORKS else str(numbers[_general(text, method, column)])

    table = _markdown(["", *columns], [[method, *(shown(method, column) for column in columns)] for method in methods])
    listed = [f"{numbers[note]}. {_reason(next(iter(texts)) if len(texts) == 1 else note)}" for note, texts in notes.items()]
    return "\n".join([table, *(["", *listed] if listed else [])])


def _general(text: str, method: str, column: str) -> str:
    words = {method: "METHOD", column: "MODEL", f"`{method}`": f"`{method}`"}
    return " ".join(words.get(word, word) for word in text.split(" "))


def _reason(text: str) -> str:
    if text.startswith(REFUSED):
        return text.removeprefix(REFUSED)
    return f"{text.partition(': ')[2]} (It takes the model itself to know: `ftkit plan` says so, `ftkit validate` does not.)"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
