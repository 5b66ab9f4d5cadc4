"""Options of `ftkit train` that start it in several processes, on one machine or on several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ftkit.run.cluster import Cluster
from ftkit.run.world import World

TORCH_LOG = "TORCH_CPP_LOG_LEVEL"

Processes = Annotated[
    int | None,
    typer.Option("--nproc", metavar="N", help="Train in N processes of this machine, one for each GPU.", show_default=False),
]
Nodes = Annotated[
    int | None,
    typer.Option("--nodes", metavar="M", help="Train on M machines, on each of which this command is started.", show_default=False),
]
NodeRank = Annotated[
    int | None, typer.Option("--node-rank", metavar="K", help="With --nodes: which of them this is, from 0.", show_default=False)
]
Rendezvous = Annotated[
    str | None,
    typer.Option(
        "--rendezvous",
        metavar="HOST:PORT",
        help="With --nodes: where the machines meet, an address and a free port of the one with --node-rank 0.",
        show_default=False,
    ),
]
RendezvousTimeout = Annotated[
    int | None,
    typer.Option(
        "--rendezvous-timeout",
        metavar="SECONDS",
        help="With --nodes: how long a machine waits for the others to start (default: 600).",
        show_default=False,
    ),
]
LauncherFile = Annotated[
    Path | None,
    typer.Option(
        "--launcher",
        metavar="FILE",
        help="YAML file with `nproc`, `nodes`, `node_rank`, `rendezvous`, `rendezvous_timeout`. Options given here win.",
        show_default=False,
    ),
]


def refuse_second_launch(world: World, cluster: Cluster) -> None:
    """Raises a usage error if processes are to be started by one that a launcher has started."""
    if cluster.several and world.several:
        option = "--nodes" if cluster.nodes > 1 else "--nproc"
        number = cluster.nodes if cluster.nodes > 1 else cluster.nproc
        raise typer.BadParameter(f"{option} {number}: a launcher has started {world.size} processes already")


def start(arguments: Sequence[str], cluster: Cluster) -> int:
    """The exit code of `ftkit ARGUMENTS` in all processes of a cluster."""
    # Torch reads this when it is imported. What the launcher finds wrong with connections it says itself.
    chosen = os.environ.get(TORCH_LOG)
    os.environ.setdefault(TORCH_LOG, "FATAL")
    from ftkit.cli.output import standard_output_for_children
    from ftkit.run.launching import launch

    os.environ[TORCH_LOG] = chosen or "ERROR"
    with standard_output_for_children():
        return launch("ftkit.cli.app", arguments, cluster)
