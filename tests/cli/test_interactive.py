"""`ftkit predict --interactive` as a person meets it in a terminal, and as a pipe does."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, strict_json
from tests.small_runs import small_run

RUNS: dict[str, Path] = {}
PROMPT = b">>> "


@pytest.fixture
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a small run of a kind; each is trained once."""

    def folder(kind: str) -> Path:
        if kind not in RUNS:
            RUNS[kind] = small_run(tmp_path_factory.mktemp(kind), kind)
        return RUNS[kind]

    return folder


@pytest.fixture
def piped(ftkit: Run, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `predict --interactive` with this text on standard input."""

    def run(text: str, *arguments: str | Path) -> Any:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return ftkit("predict", *arguments, "--interactive")

    return run


# --- a pipe ------------------------------------------------------------------------------------------------------------


def test_lines_of_a_pipe_are_answered_without_prompts(piped: Any, ftkit: Run, run_of: Any) -> None:
    run = run_of("converses")
    ended = piped("w1 w2\r\n\n  \nw3\n", run)
    first = ftkit("predict", run, "--text", "w1 w2").out
    assert ended.code == 0
    assert PROMPT.decode() not in ended.out + ended.err
    lines = ended.out.splitlines()
    assert len(lines) == 2
    assert lines[0].split() == strict_json(first)["text"].split()


def test_a_conversation_remembers_and_forgets_by_command(piped: Any, run_of: Any) -> None:
    run = run_of("converses")
    alone = piped("w3\n", run).out.splitlines()
    ended = piped("w1 w2\nw3\n/reset\nw3\n/exit\nw5\n", run)
    lines = ended.out.splitlines()
    assert len(lines) == 3
    assert lines[1] != lines[2]
    assert lines[2:] == alone
    assert "what was said is forgotten" in ended.err
    spoken_to = piped("/system w20\nw3\n", run)
    assert spoken_to.out.splitlines() != alone
    assert "the system message is set" in spoken_to.err


def test_columns_are_read_in_turn_and_answers_are_those_of_predict(piped: Any, ftkit: Run, run_of: Any, folder: Path) -> None:
    run = run_of("finds")
    Path("rows.jsonl").write_text('{"question": "w30", "context": "w1 w2 w3"}\n{"question": "w30", "context": "w4\\nw5"}\n')
    expected = ftkit("predict", run, "--input", "rows.jsonl", "--batch-size", "1").out
    ended = piped('w30\nw1 w2 w3\nw30\n"""w4\nw5\n"""\n', run)
    assert (ended.code, ended.out) == (0, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('w30\nw1 w2\nw30\n"""w4\nw5\n', 'line 6: the text that """ begins has no end'),
        ("w30\nw1 w2\nw30\n", "line 4: the last row has no context"),
    ],
)
def test_a_pipe_that_ends_in_the_middle_is_an_error(piped: Any, run_of: Any, text: str, message: str) -> None:
    ended = piped(text, run_of("finds"))
    assert (ended.code, len(ended.out.splitlines())) == (2, 1)
    assert message in ended.err


def test_help_names_commands_and_unknown_ones_end_a_pipe(piped: Any, run_of: Any) -> None:
    shown = piped("/help\n", run_of("converses")).err
    assert [line.split()[0] for line in shown.splitlines()[:4]] == ["/reset", "/system", "/exit", "/help"]
    assert "/reset" not in piped("/help\n", run_of("finds")).err
    ended = piped("/rest\nw1\n", run_of("converses"))
    assert (ended.code, ended.out) == (2, "")
    assert "there is no command /rest" in ended.err
    assert "/reset" in ended.err


def test_a_text_may_begin_with_a_slash(piped: Any, run_of: Any) -> None:
    # `w1/x` is no word of the vocabulary, and neither is `/tmp/x`.
    first, second = (piped(f"{text}\n", run_of("tags")).out for text in ("//tmp", "/tmp/x.png w2"))
    assert "".join(strict_json(first)["tokens"]) == "/tmp"
    assert "".join(strict_json(second)["tokens"]) == "/tmp/x.pngw2"


def test_what_a_model_writes_cannot_command_the_terminal(piped: Any, run_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftkit.run.session import Answer, Session

    def answer(self: Session, typed: Any, *, stopped: Any) -> Any:
        yield "a\x1b"
        yield "[2Jb"
        return Answer()

    monkeypatch.setattr(Session, "answer", answer)
    assert piped("w1\n", run_of("continues")).out == "a\\x1b[2Jb\n"


def test_options_of_prediction_hold_in_a_session(piped: Any, run_of: Any) -> None:
    run = run_of("continues")
    short = piped("w1\n", run, "task.generation.max_new_tokens=2").out.split()
    assert 1 <= len(short) <= 2
    assert piped("w1\n", run).out.split()[: len(short)] == short
    assert piped("w1\n", run, "task.generation.num_beams=2", "task.generation.max_new_tokens=4").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "a"], "give --text or --interactive, not both"),
        (["--json"], "--json has no effect with --interactive"),
        (["--output", "x"], "--output has no effect with --interactive"),
        (["--keep-columns"], "--keep-columns has no effect with --interactive"),
    ],
)
def test_options_without_effect_are_refused(arguments: list[str], message: str, piped: Any, trained: Path) -> None:
    ended = piped("", trained, *arguments)
    assert ended.code == 2
    assert message in ended.err + ended.out


def test_a_closed_standard_input_is_said(ftkit: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    ended = ftkit("predict", trained, "-i")
    assert (ended.code, "standard input is closed" in ended.err) == (2, True)


def test_bytes_that_are_no_text_are_placed(ftkit: Run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8"))
    ended = ftkit("predict", trained, "-i")
    assert ended.code == 2
    assert "standard input, line 1: byte 0xFF is not valid utf-8" in ended.err


# --- a terminal --------------------------------------------------------------------------------------------------------


class Terminal:
    """A process whose standard streams are one terminal."""

    def __init__(self, *arguments: str | Path) -> None:
        self.seen = b""
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            os.environ |= {"TERM": "dumb", "OMP_NUM_THREADS": "1"}
            os.execv(sys.executable, [sys.executable, "-m", "ftkit", *map(str, arguments)])

    def read(self, seconds: float = 180.0, *, until: bytes = b"", times: int = 1) -> str:
        """What is shown from here on until a text has come so many times, or to the end."""
        before, limit = self.seen, time.monotonic() + seconds
        self.seen = b""
        while not until or self.seen.count(until) < times:
            if not select.select([self._terminal], [], [], max(0.0, limit - time.monotonic()))[0]:
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
                pytest.fail(f"nothing more came from the terminal: {(before, self.seen)}")
            try:
                block = os.read(self._terminal, 4096)
            except OSError:
                block = b""
            if not block:
                break
            self.seen += block
        return re.sub(r"\x1b\[\??\w*", "", self.seen.decode(errors="replace"))

    def type(self, text: str, *, at_prompt: bool = True) -> None:
        # Between the prompt and the start of line editing the terminal would take Ctrl-D for a character.
        until = time.monotonic() + 20
        while at_prompt and termios.tcgetattr(self._terminal)[3] & termios.ICANON and time.monotonic() < until:
            time.sleep(0.01)
        os.write(self._terminal, text.encode())

    def ended(self) -> int:
        """The exit code."""
        self.read()
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def test_a_session_in_a_terminal(run_of: Any) -> None:
    terminal = Terminal("predict", run_of("converses"), "--interactive")
    assert "instruction-tuning, lora on" in terminal.read(until=PROMPT)
    terminal.type("w1 w2\n")
    answer = terminal.read(until=PROMPT)
    assert len(answer.replace("w1 w2", "").split()) >= 4
    terminal.type("/nothing\n")
    assert "there is no command /nothing" in terminal.read(until=PROMPT)
    terminal.type("half a line\x03")
    assert "Ctrl-D or /exit ends the session." in terminal.read(until=PROMPT)
    terminal.type("\x04")
    assert terminal.ended() == 0


def test_ctrl_c_ends_the_answer_and_keeps_the_session(run_of: Any) -> None:
    tokens = 100_000
    long = [f"task.generation.{limit}_new_tokens={tokens}" for limit in ("max", "min")]
    # Greedily a model this small may repeat a token that shows no text.
    drawn = ["task.generation.do_sample=true", "task.generation.temperature=3"]
    terminal = Terminal("predict", run_of("continues"), *long, *drawn, "--interactive")
    terminal.read(until=PROMPT)
    terminal.type("w1 w2\n")
    # The answer comes while it is written: these words are there long before its end.
    terminal.read(until=b" w", times=20)
    terminal.type("\x03", at_prompt=False)
    rest = terminal.read(until=PROMPT)
    assert len(rest.split()) < tokens / 2
    assert "as long as it may be" not in rest
    terminal.type("/exit\n")
    assert terminal.ended() == 0
