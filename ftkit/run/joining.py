"""How the processes of a run come together: each gets ready by itself, however long that takes, and then they form a process group.

What they say before that goes through the launcher's key-value store, as JSON. So no preparation runs into the time-out of a collective
operation, and what stops one of them stops all, told once.
"""

from __future__ import annotations

import atexit
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from ftkit.errors import EndedElsewhereError, FtkitError
from ftkit.files import json_text
from ftkit.run.world import World

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in a collective operation, or for the launcher's store."""
POLL_SECONDS = 0.05
SECONDS_FOR_THE_SAME = 5.0
"""How long a process that cannot go on waits for another one that says the same, so that it is told once."""
SECONDS_TO_SPEAK = 1.0
LOST = ("connection closed by peer", "connection reset by peer", "gloo", "nccl", "broken pipe", "process group", "socket")


class Meeting:
    """Where the processes of a run wait for each other before they are a group. One process alone never waits."""

    def __init__(self, world: World) -> None:
        self.world, self._number = world, 0
        self._connected: Any = None

    @contextmanager
    def agreeing(self) -> Iterator[dict[str, Any]]:
        """What happens inside must work in all processes. At its end they wait for each other.

        The main process fills the yielded dictionary with plain values, which all have afterwards. Raises, besides the error of this
        process, EndedElsewhereError where another one cannot go on or tells the same error.
        """
        said: dict[str, Any] = {}
        if not self.world.several:
            yield said
            return
        self._number += 1
        try:
            yield said
        except FtkitError as error:
            raise self._told(error) from error
        if self.world.is_main:
            self._store.set(self._key("said"), json_text(said))
        self._store.set(self._key(f"ready/{self.world.rank}"), "")
        self._wait([self._key(f"ready/{rank}") for rank in range(self.world.size)])
        said.update(json.loads(self._store.get(self._key("said"))))

    def join(self) -> None:
        """Forms the process group, once a process: for graphics cards and the CPU where there are cards, else for the CPU."""
        if not self.world.several or distributed.is_initialized():
            return
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(
            backend, store=self._store, rank=self.world.rank, world_size=self.world.size, timeout=TIMEOUT
        )
        atexit.register(_leave)

    @property
    def _store(self) -> Any:
        if self._connected is None:
            with _lost_others():
                self._connected, _, _ = next(iter(rendezvous("env://", timeout=TIMEOUT)))
        return self._connected

    def _key(self, name: str) -> str:
        return f"ftkit/{self._number}/{name}"

    def _wait(self, keys: Sequence[str]) -> None:
        # Not the store's own wait: signals would not be heard there.
        with _lost_others():
            while not self._store.check(list(keys)):
                if failed := self._failed(range(self.world.size)):
                    rank, said = next(iter(failed.items()))
                    self._let_speak(rank)
                    raise EndedElsewhereError(int(said["exit_code"]))
                time.sleep(POLL_SECONDS)

    def _let_speak(self, rank: int) -> None:
        # The launcher ends all as soon as one has ended: also the one that knows why, before it has said so.
        until = time.monotonic() + SECONDS_FOR_THE_SAME
        while not self._store.check([self._key(f"speaks/{rank}")]) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        time.sleep(SECONDS_TO_SPEAK)

    def _told(self, error: FtkitError) -> FtkitError:
        """The error that this process ends with: its own, or a silent one where a process before it says the same."""
        said = {"text": str(error), "exit_code": error.exit_code}
        lower = range(self.world.rank)
        with suppress(EndedElsewhereError), _lost_others():
            self._store.set(self._key(f"failed/{self.world.rank}"), json_text(said))
            until = time.monotonic() + SECONDS_FOR_THE_SAME
            while time.monotonic() < until:
                failed = self._failed(lower)
                if said in failed.values():
                    self._let_speak(next(rank for rank, other in failed.items() if other == said))
                    return EndedElsewhereError(error.exit_code)
                if all(rank in failed or self._store.check([self._key(f"ready/{rank}")]) for rank in lower):
                    break
                time.sleep(POLL_SECONDS)
            self._store.set(self._key(f"speaks/{self.world.rank}"), "")
        return error

    def _failed(self, ranks: range) -> Mapping[int, dict[str, Any]]:
        keys = {rank: self._key(f"failed/{rank}") for rank in ranks}
        return {rank: json.loads(self._store.get(key)) for rank, key in keys.items() if self._store.check([key])}


@lru_cache
def meeting_of(world: World) -> Meeting:
    """The meeting of the processes that this one was started with; the same for all runs of a process."""
    return Meeting(world)


def is_loss_of_another(error: Exception) -> bool:
    """Whether an error of torch says that another process of the group is gone."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).casefold() for sign in LOST)


@contextmanager
def _lost_others() -> Iterator[None]:
    """Whatever breaks the connection to the store: the process that holds it, or the launcher, has ended."""
    try:
        yield
    except (distributed.DistError, RuntimeError) as error:
        raise EndedElsewhereError(1) from error


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
