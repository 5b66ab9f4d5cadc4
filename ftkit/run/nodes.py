"""What the launchers of a run on several machines know of each other: who is there, who has ended and why, who gives no sign any more.

They speak through a key-value store that the launcher with node rank 0 holds, in JSON alone. Torch's own c10d rendezvous is not used: it
unpickles what anybody on the network has put there, and numbers the machines as they come.
"""

from __future__ import annotations

import json
import platform
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

import ftkit
from ftkit.errors import FtkitError, Problem, RecipeError
from ftkit.files import json_text
from ftkit.run.cluster import Cluster

SECONDS_OF_SILENCE = 60.0
"""A machine that gives no sign for so long is lost, however well the connection to it looks."""
SECONDS_FOR_A_WORD = 10.0
"""The same while this machine has nothing else to wait for."""
SECONDS_BETWEEN = 0.5
SECONDS_TO_CONNECT = 10
MUTE = "what listens there does not answer as a launcher of ftkit does"
POLL_SECONDS = 0.1
COMPLETE = "ftkit/complete"
RESTART = "End what is still running of it and start it again, on all machines"


@dataclass(frozen=True)
class Words:
    """How a machine ended. codes: exit codes by rank, of processes that failed; negative: the signal. told: what they said, by rank."""

    codes: dict[int, int] = field(default_factory=dict)
    told: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def of_json(value: Mapping[str, Any]) -> Words:
        """What `asdict` and JSON made of one."""
        return Words(*({int(rank): item for rank, item in value[name].items()} for name in ("codes", "told")))


def gather(cluster: Cluster) -> TCPStore:
    """The store of a run, once all machines have come to it. Raises FtkitError if they do not come in time, or not as one run."""
    until = time.monotonic() + cluster.patience
    if cluster.node_rank == 0:
        store = _host(cluster)
        if cluster.nodes > 1:
            _receive(store, cluster, until)
        return store
    last = "nobody answered"
    while time.monotonic() < until:
        try:
            with socket.create_connection((cluster.host, cluster.port), timeout=SECONDS_TO_CONNECT):
                pass
            store = connect(cluster.host, cluster.port)
            if not store.check([COMPLETE]):
                _join(store, cluster, until)
                return store
            last = "another run is there, or the last one has not ended"
        except OSError as error:
            last = error.strerror or str(error)
        except RuntimeError as error:
            last = MUTE if str(error) == MUTE else "the machine with node rank 0 has ended"
        time.sleep(min(1.0, cluster.patience / 10))
    message = f"{_shown(cluster)} did not take this machine in within {cluster.patience} s: {last}"
    hint = "Start the same command with --node-rank 0 on the machine that has this address, and see that the port is open"
    raise RecipeError(Problem(message=message, key="--rendezvous", hint=hint))


def connect(host: str, port: int) -> TCPStore:
    """A connection to the store, which no other connection waits for. Raises RuntimeError, with `MUTE` if nothing answers."""
    limit, found = timedelta(seconds=SECONDS_TO_CONNECT), list[TCPStore | RuntimeError]()

    def try_it() -> None:
        try:
            found.append(TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit))
        except RuntimeError as error:
            found.append(error)

    # Torch waits for an answer without end where something else listens.
    thread = threading.Thread(target=try_it, name="connecting", daemon=True)
    thread.start()
    thread.join(2 * SECONDS_TO_CONNECT)
    if not found:
        raise RuntimeError(MUTE)
    if isinstance(found[0], RuntimeError):
        raise found[0]
    return found[0]


def _host(cluster: Cluster) -> TCPStore:
    host = cluster.host or "localhost"
    try:
        return TCPStore(host, cluster.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=SECONDS_TO_CONNECT))
    except RuntimeError as error:
        if "EADDRINUSE" in str(error) or "already in use" in str(error):
            message = f"port {cluster.port} of this machine is taken"
            hint = "Choose another port, or wait until the run that has it is over"
        else:
            message = f"this machine, with node rank 0, does not reach itself at {_shown(cluster)}"
            hint = "Give one of its own addresses, by which the others reach it, too"
        raise RecipeError(Problem(message=message, key="--rendezvous", hint=hint)) from None


def _introduction(cluster: Cluster) -> dict[str, Any]:
    return {"nodes": cluster.nodes, "ftkit": ftkit.__version__, "torch": torch.__version__}


def _receive(store: TCPStore, cluster: Cluster, until: float) -> None:
    """On the machine with node rank 0: waits for the others, and says to them that all are there."""
    expected = range(1, cluster.nodes)
    while missing := [rank for rank in expected if not store.check([f"ftkit/node/{rank}"])]:
        if time.monotonic() > until:
            names = f"node rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
            message = f"{names} of {cluster.nodes} machines did not come to {_shown(cluster)} within {cluster.patience} s"
            hint = "Start the same command there, with its --node-rank, and see that the port is open"
            raise RecipeError(Problem(message=message, key="--rendezvous", hint=hint))
        time.sleep(POLL_SECONDS)
    came = {rank: _introduced(store.get(f"ftkit/node/{rank}"), rank) for rank in expected}
    mine = _introduction(cluster)
    for rank, other in came.items():
        theirs = other["is"]
        found = [f"{name} {theirs.get(name)} there, {value} here" for name, value in mine.items() if theirs.get(name) != value]
        if found:
            message = f"the machine with node rank {rank} does not fit the one with node rank 0: {', '.join(found)}"
            store.set(COMPLETE, json_text({"error": message}))
            _wait_for_reading(store, len(came))
            raise RecipeError(Problem(message=message, hint="Start the same command on all, with the same versions"))
    store.set(COMPLETE, json_text({"who": [other["id"] for other in came.values()], "python": platform.python_version()}))


def _introduced(text: bytes, rank: int) -> dict[str, Any]:
    try:
        found = json.loads(text)
        if isinstance(found["is"], dict) and isinstance(found["id"], str):
            return dict(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    message = f"what came as node rank {rank} is no launcher of ftkit"
    raise RecipeError(Problem(message=message, key="--rendezvous", hint="Choose a port that only the machines of this run reach"))


def _wait_for_reading(store: TCPStore, readers: int) -> None:
    until = time.monotonic() + SECONDS_FOR_A_WORD
    while store.add("ftkit/read", 0) < readers and time.monotonic() < until:
        time.sleep(POLL_SECONDS)


def _join(store: TCPStore, cluster: Cluster, until: float) -> None:
    """On the other machines: says that this one is there, and waits until all are. Raises RuntimeError if the store goes."""
    me, key = uuid.uuid4().hex, f"ftkit/node/{cluster.node_rank}"
    store.set(key, json_text({"id": me, "is": _introduction(cluster)}))
    while not store.check([COMPLETE]):
        if json.loads(store.get(key))["id"] != me:
            message = f"another launcher came to {_shown(cluster)} as node rank {cluster.node_rank}, too"
            raise RecipeError(Problem(message=message, key="--node-rank", hint="Give each machine its own"))
        if time.monotonic() > until:
            message = f"not all of {cluster.nodes} machines came to {_shown(cluster)} within {cluster.patience} s"
            raise RecipeError(Problem(message=message, key="--rendezvous", hint="Start the same command on all of them"))
        time.sleep(POLL_SECONDS)
    said = json.loads(store.get(COMPLETE))
    store.add("ftkit/read", 1)
    if "error" in said:
        raise RecipeError(Problem(message=said["error"], hint="Start the same command on all, with the same versions"))
    if me not in said["who"]:
        message = f"the machines that met at {_shown(cluster)} are complete without node rank {cluster.node_rank}"
        raise RecipeError(
            Problem(message=message, key="--node-rank", hint="Give all machines the same --nodes, and each its own rank")
        )


def _shown(cluster: Cluster) -> str:
    host = f"[{cluster.host}]" if ":" in cluster.host else cluster.host
    return f"{host}:{cluster.port}"


class Others:
    """The other machines of a run, from when all have come until the last has ended.

    A thread of its own speaks to the store, since a call there may take for ever when a cable is cut; nobody else waits for it.
    """

    def __init__(self, cluster: Cluster, port: int) -> None:
        self.cluster = cluster
        self.ended: dict[int, Words] = {}
        self._ranks = [rank for rank in range(cluster.nodes) if rank != cluster.node_rank]
        self._seen = dict.fromkeys(self._ranks, time.monotonic())
        self._left: set[int] = set()
        self._last: dict[int, Any] = {}
        self._words: Words | None = None
        self._leaving = self._said = self._cut = self._over = False
        self._port, self._wake = port, threading.Event()
        if self._ranks:
            threading.Thread(target=self._speak, name="other-machines", daemon=True).start()

    def silent(self, seconds: float = SECONDS_OF_SILENCE) -> list[int]:
        """Node ranks of machines that have not ended and gave no sign for so long."""
        now = time.monotonic()
        return [rank for rank in self._ranks if rank not in self.ended and now - self._seen[rank] > seconds]

    def failed(self) -> Words | None:
        """How one of them ended, if it was not well."""
        return next((words for words in self.ended.values() if words.codes), None)

    def end(self, words: Words) -> list[int]:
        """Tells the others how this machine ended and waits for them as long as they give signs. Node ranks of those that were lost."""
        if not self._ranks:
            return []
        self._words = words
        patience = SECONDS_FOR_A_WORD if words.codes else SECONDS_OF_SILENCE
        while len(self.ended) < len(self._ranks) and not self._cut:
            if set(self.silent(patience)) | set(self.ended) >= set(self._ranks):
                break
            time.sleep(POLL_SECONDS)
        lost = [rank for rank in self._ranks if rank not in self.ended]
        self._leave()
        return lost

    def _leave(self) -> None:
        self._said, self._leaving = False, True
        until = time.monotonic() + SECONDS_FOR_A_WORD
        # The store goes with the machine that holds it, which therefore goes last.
        waits_for = set(self.ended) if self.cluster.node_rank == 0 else set()
        while self.ended and not self._cut and time.monotonic() < until and not (self._said and self._left >= waits_for):
            self._wake.set()
            time.sleep(POLL_SECONDS)
        self._over = True

    def _speak(self) -> None:
        host = self.cluster.host or "localhost"
        try:
            store = connect(host, self._port)
            number = 0
            while not self._over:
                number += 1
                self._speak_once(store, number)
                self._wake.wait(SECONDS_BETWEEN)
                self._wake.clear()
        except RuntimeError:
            self._cut = True

    def _speak_once(self, store: TCPStore, number: int) -> None:
        words, leaving = self._words, self._leaving
        sign = {"number": number, "words": None if words is None else asdict(words), "left": leaving}
        store.set(f"ftkit/sign/{self.cluster.node_rank}", json_text(sign))
        self._said = leaving
        keys = {rank: f"ftkit/sign/{rank}" for rank in self._ranks}
        present = [rank for rank, key in keys.items() if store.check([key])] if len(self._last) < len(keys) else self._ranks
        for rank, text in zip(present, store.multi_get([keys[rank] for rank in present]) if present else [], strict=True):
            if text == self._last.get(rank):
                continue
            self._last[rank], self._seen[rank] = text, time.monotonic()
            heard = json.loads(text)
            if heard["words"] is not None:
                self.ended[rank] = Words.of_json(heard["words"])
            if heard["left"]:
                self._left.add(rank)


def lost_error(ranks: list[int], exit_code: int) -> FtkitError:
    """What is told of machines that ended without a word."""
    names = f"{'machines' if len(ranks) > 1 else 'the machine'} with node rank {' and '.join(map(str, ranks))}"
    message = f"{names} ended without a word: its launcher was killed, or it or the network between went down"
    error = FtkitError(message, hint="What is saved is kept. Start again with --resume, on all machines or on those that are left")
    error.exit_code = exit_code
    return error
