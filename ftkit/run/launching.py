"""Starts the processes of a run on this machine, by torch's elastic agent, and turns how all of the run end into one exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from ftkit.children import command
from ftkit.errors import EXIT_CODES, FtkitError
from ftkit.run.cluster import Cluster
from ftkit.run.network import choose_interface
from ftkit.run.nodes import Others, Words, gather, lost_error
from ftkit.run.signals import LAUNCHER
from ftkit.run.world import ANOTHER_HAS_ENDED

SECONDS_TO_SAVE = 120
"""Time that processes have to write a checkpoint after a signal."""
SECONDS_TO_EXCHANGE = 60
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
NOT_TOLD = (1, *INTERRUPTED)
"""Exit codes that a process may end with because another one has ended."""


def launch(module: str, arguments: Sequence[str], cluster: Cluster) -> int:
    """The exit code of `main(arguments)` of a module of ftkit in all processes, which form a group.

    If they end differently, it is that of the one that ended the others. Raises FtkitError if one was killed, if the other machines do not
    come or are lost, and with what a process of another machine said that ended this one's.
    """
    # How the agent words what the processes themselves say better. Each of its loggers has a level of its own.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // cluster.nproc)))
    os.environ[LAUNCHER] = str(os.getpid())
    if cluster.nodes > 1:
        choose_interface(cluster.host, cluster.port)
    store = gather(cluster)
    others = Others(cluster, store.port)
    meeting = _Meeting(cluster, store, others)
    started = command(module, arguments)
    spec = WorkerSpec(
        role="ftkit",
        local_world_size=cluster.nproc,
        rdzv_handler=meeting,
        entrypoint=sys.executable,
        args=tuple(started[1:]),
        max_restarts=0,
        monitor_interval=0.1,
    )
    agent = _Agent(spec, DefaultLogsSpecs(), shutdown_timeout=SECONDS_TO_SAVE)
    meeting.processes = lambda: [int(worker.id) for worker in agent.get_worker_group().workers if worker.id]
    try:
        words = _words(agent.run(), meeting)
        return _one_code(words, others.end(words), meeting)
    except SignalException as ending:
        code = 128 + int(ending.sigval)
        others.end(Words({agent.get_worker_group().workers[0].global_rank: code}))
        return code
    except DistError as error:
        # They were there a moment ago, and did not finish agreeing on ranks.
        raise lost_error([rank for rank in range(cluster.nodes) if rank != cluster.node_rank], 1) from error


class _Agent(LocalElasticAgent):
    def _exit_barrier(self) -> None:
        """Launchers wait for each other in `Others.end`, which tells them why, and is not held up by one that is lost."""


class _Meeting(RendezvousHandler):
    """Tells the agent which machine this is of those that have come, and looks after the others while processes run."""

    def __init__(self, cluster: Cluster, store: TCPStore, others: Others) -> None:
        self.cluster, self.others = cluster, others
        self.processes: Callable[[], list[int]] = list
        self.has_killed = False
        self._store, self._asked_at = store, 0.0
        self._store.set_timeout(timedelta(seconds=SECONDS_TO_EXCHANGE))

    def next_rendezvous(self) -> RendezvousInfo:
        where = RendezvousStoreInfo(self.cluster.host or "localhost", self._store.port)
        return RendezvousInfo(self._store, self.cluster.node_rank, self.cluster.nodes, where)

    def num_nodes_waiting(self) -> int:
        """None ever does. The agent asks while its processes run: when others have ended or are lost, they must end, too."""
        failed = self.others.failed()
        if failed and not self._asked_at:
            self._asked_at = time.monotonic()
            # After a signal all stop at the same step, and the first process may still write the checkpoint.
            if not set(failed.codes.values()) <= set(INTERRUPTED):
                self._signal(signal.SIGTERM)
        too_late = self._asked_at and time.monotonic() - self._asked_at > SECONDS_TO_SAVE
        if not self.has_killed and (too_late or self.others.silent()):
            self.has_killed = True
            # They may wait in a collective operation, where they hear no other signal.
            self._signal(signal.SIGKILL)
        return 0

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.killpg(process, number)

    def get_backend(self) -> str:
        return "ftkit"

    @property
    def use_agent_store(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody joins later."""

    def get_run_id(self) -> str:
        return "ftkit"

    def shutdown(self) -> bool:
        return True


def _words(result: RunResult, meeting: _Meeting) -> Words:
    failures = result.failures if result.is_failed() else {}
    if meeting.has_killed:
        failures = {rank: failure for rank, failure in failures.items() if failure.exitcode != -signal.SIGKILL}
    told = {rank: text for rank, failure in failures.items() if (text := _told(failure))}
    return Words({rank: failure.exitcode for rank, failure in failures.items()}, told)


def _told(failure: ProcessFailure) -> str:
    """What a process said before it failed; empty if it said nothing."""
    text = failure.error_file_data.get("message")
    return text if isinstance(text, str) and "timestamp" in failure.error_file_data else ""


def _one_code(mine: Words, lost: list[int], meeting: _Meeting) -> int:
    """The exit code of all machines. Raises FtkitError with what this one has not told yet."""
    ended = {meeting.cluster.node_rank: mine, **meeting.others.ended}
    codes = {rank: code for words in ended.values() for rank, code in words.codes.items()}
    told = {rank: text for words in ended.values() for rank, text in words.told.items()}
    cause = _cause(codes, told, mine)
    stopped = cause is not None and codes[cause] in INTERRUPTED
    # The machine with node rank 0 may have been lost while it exported, when the others had nothing left to do.
    if lost and (codes or meeting.has_killed or 0 in lost) and (cause is None or stopped):
        raise lost_error(lost, codes[cause] if cause is not None else 1)
    if cause is None or cause in mine.codes:
        return exit_code(codes) if codes else 0
    node = next(node for node, words in ended.items() if cause in words.codes)
    raise _from_elsewhere(codes, cause, told.get(cause), f"on the machine with node rank {node}")


def _cause(codes: Mapping[int, int], told: Mapping[int, str], mine: Words) -> int | None:
    """The process that ended the others, as far as that can be seen; one of this machine if it said as much as those of others."""
    ranks = sorted(codes, key=lambda rank: (rank not in told, rank not in mine.codes, rank))
    killed = [rank for rank in ranks if codes[rank] < 0 and codes[rank] != -signal.SIGTERM]
    failed = [rank for rank in ranks if codes[rank] in EXIT_CODES and codes[rank] not in NOT_TOLD]
    broken = [rank for rank in ranks if codes[rank] == 1 and ANOTHER_HAS_ENDED not in told.get(rank, ANOTHER_HAS_ENDED)]
    stopped = [rank for rank in ranks if codes[rank] in INTERRUPTED]
    return next(iter([*killed, *failed, *broken, *stopped]), None)


def _from_elsewhere(codes: dict[int, int], cause: int, text: str | None, where: str) -> FtkitError:
    """What ended this machine's processes, in the words of the one that did."""
    try:
        code = exit_code(codes)
    except FtkitError as killed:
        return FtkitError([replace(problem, message=f"{where}, {problem.message}") for problem in killed.problems])
    error = FtkitError(f"{where}: {text or f'process {cause} ended with exit code {code} ({EXIT_CODES[code]})'}")
    error.exit_code = code
    return error


def exit_code(codes: dict[int, int]) -> int:
    """That of the process that ended the others. codes: by rank, of those that failed; negative: the signal that killed it.

    Raises FtkitError if one was killed by a signal that it cannot answer.
    """
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    if killed:
        rank, number = next(iter(killed.items()))
        message = f"process {rank} was ended by {signal.Signals(number).name}"
        raise FtkitError(message, hint="If you did not do it, it may have run out of memory. Continue with --resume")
    told = [code for code in codes.values() if code in EXIT_CODES and code not in NOT_TOLD]
    return told[0] if told else next(iter(codes.values()), 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
