"""`ftkit predict --interactive`: a person types, the model answers, text while it is written.

Standard output carries answers and nothing else. Where standard input is no terminal, its lines are answered one after the other
without prompts.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING

from ftkit.cli.failure import Terminated, print_problems
from ftkit.cli.output import clean, document_text, say, write
from ftkit.errors import DataError, Problem

if TYPE_CHECKING:
    from ftkit.run.session import Answer, Session

PROMPT, MORE = ">>> ", "... "
FENCE = '"""'
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
ENDING = {"exit": "End the session; so does Ctrl-D.", "help": "Show the commands."}


def converse(session: Session, *, title: str) -> None:
    """Answers until the input ends or `/exit` is typed.

    In a terminal Ctrl-C ends an answer or discards a line, and what cannot be used is said; elsewhere both end the command.
    Raises DataError there, and where there is no standard input.
    """
    # Closed before Python began, a stream is None.
    if sys.stdin is None:
        raise DataError("standard input is closed", hint="Give rows by --input FILE or --text")
    terminal = sys.stdin.isatty()
    if terminal:
        _prepare_line_editing()
        say(f"{title}\n/help lists commands, Ctrl-D ends.", to=sys.stderr)
    loop = _Loop(session, terminal)
    while loop.turn():
        pass


class _Ended(Exception):
    """There is nothing more to answer."""


class _InputEnded(_Ended):
    """There is nothing more to read."""


class _Loop:
    def __init__(self, session: Session, terminal: bool) -> None:
        self._session, self._terminal = session, terminal
        self._read = 0

    def turn(self) -> bool:
        """Asks for one row and answers it. Returns False at the end."""
        try:
            self._answer(self._row())
        except _Ended:
            return False
        except KeyboardInterrupt as error:
            if not self._terminal or isinstance(error, Terminated):
                raise
            say("\nCtrl-D or /exit ends the session.", to=sys.stderr)
        except DataError as error:
            if not self._terminal:
                raise
            print_problems(error.problems)
        return True

    def _row(self) -> dict[str, str]:
        """What is typed for all entries of `asked`. Raises _Ended, DataError if the input ends in the middle of a row."""
        row: dict[str, str] = {}
        for name in self._session.asked:
            try:
                row[name] = self._ask(name)
            except _InputEnded:
                if row and not self._terminal:
                    raise self._cut_short(
                        f"the last row has no {name}", f"Give {' and '.join(self._session.asked)} in turn"
                    ) from None
                raise
        return row

    def _cut_short(self, message: str, hint: str) -> DataError:
        return DataError(Problem(message=message, place=f"standard input, line {self._read}", hint=hint))

    def _ask(self, name: str) -> str:
        """What is typed for an entry of `asked`. Commands are obeyed meanwhile. Raises _Ended."""
        prompt = PROMPT if len(self._session.asked) == 1 else f"{name}> "
        while True:
            text = self._typed(prompt)
            command = _COMMAND.fullmatch(text.strip())
            if command is not None:
                self._obey(command.group(1), (command.group(2) or "").strip())
            elif text.strip():
                return text.strip()[1:] if text.strip().startswith("//") else text

    def _typed(self, prompt: str) -> str:
        """A line, or the lines between two fences."""
        line = self._line(prompt)
        if not line.strip().startswith(FENCE):
            return line
        lines = [line.strip().removeprefix(FENCE)]
        while not lines[-1].rstrip().endswith(FENCE):
            try:
                lines.append(self._line(MORE))
            except _InputEnded:
                if self._terminal:
                    raise
                raise self._cut_short(f"the text that {FENCE} begins has no end", f"End it with {FENCE}") from None
        lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str:
        """Raises _InputEnded, DataError for what is not text."""
        self._read += 1
        try:
            line = self._read_line(prompt)
        except UnicodeDecodeError as error:
            message = f"byte 0x{error.object[error.start]:02X} is not valid {error.encoding}"
            place = f"standard input, line {self._read}"
            raise DataError(Problem(message=message, place=place, hint="Send UTF-8")) from None
        if line is None:
            if self._terminal:
                say(to=sys.stderr)
            raise _InputEnded
        return line.removeprefix("\ufeff") if self._read == 1 else line

    def _read_line(self, prompt: str) -> str | None:
        if self._terminal and sys.stdout.isatty():
            try:
                return input(prompt)
            except EOFError:
                return None
        if self._terminal:
            write(prompt, to=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None

    def _obey(self, name: str, argument: str) -> None:
        """Raises _Ended for `/exit`."""
        if name == "exit":
            raise _Ended
        known = {**self._session.commands, **ENDING}
        if name == "help":
            width = max(map(len, known))
            for command, what in known.items():
                say(f"/{command.ljust(width)}  {what}", to=sys.stderr)
            say(f"{FENCE} begins and ends a text of several lines; // begins a text with /.", to=sys.stderr)
        elif name in known:
            say(self._session.command(name, argument), to=sys.stderr)
        else:
            hint = f"Known: {', '.join(f'/{command}' for command in known)}. // begins a text with /"
            raise DataError(Problem(message=f"there is no command /{name}", place="input", hint=hint))

    def _answer(self, typed: dict[str, str]) -> None:
        with _first_interrupt_noted() if self._terminal else nullcontext(lambda: False) as stopped:
            answer = self._print(self._session.answer(typed, stopped=stopped))
        write((document_text(answer.result) if answer.result is not None else "") + "\n", flush=True)
        if answer.remark:
            say(f"note: {answer.remark}", to=sys.stderr)

    def _print(self, pieces: Generator[str, None, Answer]) -> Answer:
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                found: Answer = end.value
                return found
            write(clean(piece), flush=True)


@contextmanager
def _first_interrupt_noted() -> Iterator[Callable[[], bool]]:
    """While it lasts, the first Ctrl-C only makes what this gives true; the second one interrupts as usual."""
    pressed = Event()

    def note(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare_line_editing() -> None:
    """Arrow keys and the lines typed before, where Python has readline; nothing of it is kept on disk."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
