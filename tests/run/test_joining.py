"""Processes that wait for each other before they are a group: who says what is wrong."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ftkit.errors import DataError, EndedElsewhereError, FtkitError
from ftkit.run import joining
from ftkit.run.joining import Meeting
from ftkit.run.world import World

WRONG = "not the same as for the first process"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "SECONDS_TO_SPEAK", 0.3)


def ends(errors: list[FtkitError | None], delays: list[float]) -> list[tuple[float, FtkitError | None]]:
    """When, and with what error, each process comes out of an agreement. delays: seconds that each takes before it fails or is ready."""
    store = torch.distributed.HashStore()

    def process(rank: int) -> tuple[float, FtkitError | None]:
        meeting = Meeting(World(rank=rank, size=len(errors)))
        meeting._connected = store
        try:
            with meeting.agreeing():
                time.sleep(delays[rank])
                if (error := errors[rank]) is not None:
                    raise error
        except FtkitError as error:
            return time.monotonic(), error
        return time.monotonic(), None

    with ThreadPoolExecutor(len(errors)) as threads:
        return list(threads.map(process, range(len(errors))))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_one_that_knows_why_speaks_before_the_others_end(failing: int) -> None:
    """The launcher ends all as soon as one has ended."""
    errors: list[FtkitError | None] = [DataError(WRONG) if rank == failing else None for rank in range(3)]
    found = ends(errors, [0.0, 0.0, 0.0])
    at, error = found[failing]
    assert str(error) == WRONG
    for rank in {0, 1, 2} - {failing}:
        later, silent = found[rank]
        assert isinstance(silent, EndedElsewhereError)
        assert silent.exit_code == 2
        assert later - at > 0.2


def test_it_does_not_wait_for_those_that_have_nothing_to_say() -> None:
    began = time.monotonic()
    (_, _), (at, error) = ends([None, DataError(WRONG)], [0.0, 0.2])
    assert str(error) == WRONG
    assert at - began < 2


def test_what_several_say_is_told_once() -> None:
    (first, told), (later, silent) = ends([DataError(WRONG), DataError(WRONG)], [0.2, 0.0])
    assert str(told) == WRONG
    assert isinstance(silent, EndedElsewhereError)
    assert later - first > 0.2
