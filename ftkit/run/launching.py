"""Starts the processes of a run on this machine, with torch's elastic agent, and turns how they end into one exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ftkit.children import command
from ftkit.errors import EXIT_CODES, FtkitError

SECONDS_TO_SAVE = 120
"""Time that processes have to write a checkpoint after a signal."""
HERE = "localhost"
NOT_TOLD = (1, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes that a process may end with because another one has ended."""


def launch(module: str, arguments: Sequence[str], processes: int) -> int:
    """The exit code of `main(arguments)` of a module of ftkit in that many processes, which form a group.

    If they end differently, it is that of the one that ended the others. Raises FtkitError if one was killed.
    """
    # How the agent words what the processes themselves say better.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="ftkit",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{HERE}:0",
        local_addr=HERE,
        max_restarts=0,
        shutdown_timeout=SECONDS_TO_SAVE,
    )
    started = command(module, arguments)
    try:
        elastic_launch(config, sys.executable)(*started[1:])
    except SignalException as ending:
        return 128 + int(ending.sigval)
    except ChildFailedError as error:
        return exit_code({rank: failure.exitcode for rank, failure in error.failures.items()})
    return 0


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
