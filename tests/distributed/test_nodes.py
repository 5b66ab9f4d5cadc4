"""Several machines: two launchers meet, tell each other how they end, and refuse what cannot be meant."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ftkit
from ftkit.cli.app import main
from ftkit.errors import FtkitError, RecipeError
from ftkit.run import launching, network, nodes, signals
from ftkit.run.cluster import Cluster, cluster_of
from ftkit.run.nodes import Others, Words, gather
from tests.distributed.ranks import DEADLINE, ROOT, command, environment, metrics_of, results_of
from tests.tiny import save_tiny

RecipeFile = Callable[..., Path]
SECONDS_TO_END = 60.0
LONG = "{epochs: 400.0, batch_size: 8, learning_rate: 1e-3, evaluate_every: {epochs: 400.0}, checkpoint_every: {steps: 20}}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def two_machines(recipe: Path, folder: Path, tmp_path: Path, *more: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two launchers of one process each, which are ended if the test does not get that far."""
    where = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            command(
                1, "-m", "ftkit", "train", str(recipe), "--output", str(folder),
                "--nodes", "2", "--node-rank", str(rank), "--rendezvous", where, *more,
            ),
            env=environment(tmp_path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        yield started
    finally:
        for process in started:
            process.kill()


def test_two_machines_train_what_one_process_trains_and_end_with_one_code(recipe_file: RecipeFile, tmp_path: Path) -> None:
    # Each process draws its own dropout; without it results can be compared.
    model = save_tiny(tmp_path / "model", "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    recipe = recipe_file(model=str(model), expect="{accuracy: '> 1.5'}")
    with two_machines(recipe, tmp_path / "run", tmp_path, "--json") as started:
        said = [process.communicate(timeout=DEADLINE) for process in started]
        assert [process.returncode for process in started] == [4, 4], said
    results = json.loads(said[0][0])
    assert results == results_of(tmp_path / "run")
    assert results["world_size"] == 2
    error = json.loads(said[1][0])["error"]
    assert error["exit_code"] == 4
    assert "on the machine with node rank 0" in error["problems"][0]["message"]
    ftkit.train(ftkit.load_recipe(recipe), output=tmp_path / "alone")
    pairs = list(zip(metrics_of(tmp_path / "run"), metrics_of(tmp_path / "alone"), strict=True))
    assert all(line["loss"] == pytest.approx(alone["loss"], abs=1e-5) for line, alone in pairs if "loss" in line)


def test_a_process_killed_on_one_machine_ends_the_other_with_the_same_code_and_reason(
    recipe_file: RecipeFile, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    report = tmp_path / "junit.xml"
    with two_machines(recipe_file(train=LONG), folder, tmp_path, "--junit", str(report)) as started:
        until = time.monotonic() + DEADLINE
        while not (folder / "metrics.jsonl").exists() or len(metrics_of(folder)) < 25:
            assert all(process.poll() is None for process in started)
            assert time.monotonic() < until
            time.sleep(0.1)
        processes = Path(f"/proc/{started[1].pid}/task/{started[1].pid}/children").read_text(encoding="ascii")
        os.kill(int(processes.split()[0]), signal.SIGKILL)
        said = [process.communicate(timeout=SECONDS_TO_END)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1]
    assert "on the machine with node rank 1, process 1 was ended by SIGKILL" in said[0]
    assert "error: process 1 was ended by SIGKILL" in said[1]
    assert "Traceback" not in "".join(said)
    assert list((folder / "checkpoints").glob("step-*"))
    assert "was ended by SIGKILL" in report.read_text(encoding="utf-8")


def test_a_process_whose_launcher_is_killed_is_asked_to_stop(tmp_path: Path) -> None:
    child = (
        "import signal, sys, time\n"
        "from ftkit.run.signals import end_with_launcher\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('asked', flush=True)))\n"
        "end_with_launcher()\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    launcher = (
        "import os, subprocess, sys\n"
        f"os.environ[{signals.LAUNCHER!r}] = str(os.getpid())\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", launcher], env=environment(tmp_path), stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    # The child holds the other end of the pipe: this returns when it has ended.
    assert process.stdout.read() == "asked\n"
    process.wait()
    process.stdout.close()


def meet(clusters: list[Cluster]) -> list[Any]:
    """What comes of it when launchers of these clusters start at once: their stores, or errors."""

    def one(cluster: Cluster) -> Any:
        try:
            return gather(cluster)
        except FtkitError as error:
            return error

    with ThreadPoolExecutor(len(clusters)) as pool:
        return list(pool.map(one, clusters))


def cluster(rank: int, port: int, count: int = 2, patience: int = 30) -> Cluster:
    return Cluster(nodes=count, node_rank=rank, host="127.0.0.1", port=port, patience=patience)


def test_machines_that_wait_in_vain_say_for_whom() -> None:
    first, second = meet([cluster(0, free_port(), patience=1), cluster(1, free_port(), patience=1)])
    assert "node rank 1 of 2 machines did not come" in str(first)
    assert "within 1 s" in str(first)
    assert "did not take this machine in within 1 s: Connection refused" in str(second)
    assert [first.exit_code, second.exit_code] == [2, 2]


def test_machines_that_do_not_mean_the_same_run_are_refused() -> None:
    port = free_port()
    for error in meet([cluster(0, port), cluster(1, port, count=3)]):
        assert "node rank 1 does not fit the one with node rank 0: nodes 3 there, 2 here" in str(error)


def test_a_node_rank_given_twice_is_refused() -> None:
    port = free_port()
    found = meet(
        [cluster(0, port, count=3, patience=4), cluster(1, port, count=3, patience=3), cluster(1, port, count=3, patience=3)]
    )
    assert sum("as node rank 1, too" in str(error) for error in found) == 1


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("", 0)) as server:
        (error,) = meet([cluster(0, server.getsockname()[1], patience=1)])
    assert "is taken" in str(error)


def test_what_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "SECONDS_TO_CONNECT", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        (error,) = meet([cluster(1, mute.getsockname()[1], patience=1)])
    assert time.monotonic() - began < 30
    assert nodes.MUTE in str(error)


@pytest.mark.parametrize("text", ["[1]", "{}", "x", '{"is": 1, "id": "a"}'])
def test_what_is_no_launcher_is_refused(text: str) -> None:
    where = cluster(0, free_port())

    def intrude() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(RuntimeError):
                nodes.connect("127.0.0.1", where.port).set("ftkit/node/1", text)
                return

    with ThreadPoolExecutor(1) as pool:
        intruding = pool.submit(intrude)
        (error,) = meet([where])
        intruding.result()
    assert "what came as node rank 1 is no launcher of ftkit" in str(error)


def ends(words: list[Words]) -> list[tuple[list[int], dict[int, Words]]]:
    """Lost machines, and words of the others, as each of the machines sees it when they end like that."""
    port = free_port()
    store, _ = meet([cluster(0, port), cluster(1, port)])
    seen = [Others(cluster(rank, port), store.port) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        lost = list(pool.map(lambda pair: pair[0].end(pair[1]), zip(seen, words, strict=True)))
    return [(lost[rank], seen[rank].ended) for rank in range(2)]


def test_launchers_tell_each_other_how_they_end() -> None:
    words = [Words({0: 1}), Words({1: 2}, {1: "x, row 3: broken"})]
    assert ends(words) == [([], {1: words[1]}), ([], {0: words[0]})]


def test_a_machine_that_gives_no_sign_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "SECONDS_FOR_A_WORD", 1.5)
    port = free_port()
    store, _ = meet([cluster(0, port), cluster(1, port)])
    others = Others(cluster(0, port), store.port)
    assert others.silent() == []
    time.sleep(0.3)
    assert others.silent(0.2) == [1]
    assert others.end(Words({0: 1})) == [1]


class Seen:
    """What a launcher with node rank 0 knows at the end."""

    def __init__(self, *, elsewhere: Words | None, has_killed: bool = False) -> None:
        self.cluster, self.has_killed = Cluster(nodes=2, host="h", port=1), has_killed
        self.others = type("", (), {"ended": {} if elsewhere is None else {1: elsewhere}})


ANOTHER = "another process of this run has ended. Its own message says why"


@pytest.mark.parametrize(
    ("mine", "elsewhere", "code", "text"),
    [
        (Words(), Words(), 0, ""),
        (Words({0: 2}, {0: "bad"}), Words({1: 2}), 2, ""),
        (Words({0: 2}), Words({1: 2}, {1: "bad row"}), 2, "on the machine with node rank 1: bad row"),
        (Words({0: 1}, {0: ANOTHER}), Words({1: 3}, {1: "diverged"}), 3, "on the machine with node rank 1: diverged"),
        (Words({0: 1}, {0: ANOTHER}), Words({1: 1}, {1: "internal error: x"}), 1, "node rank 1: internal error: x"),
        (Words({0: 1}, {0: ANOTHER}), Words({1: -9}), 1, "on the machine with node rank 1, process 1 was ended by SIGKILL"),
        (Words({0: -9}), Words({1: 1}, {1: ANOTHER}), 1, "process 0 was ended by SIGKILL"),
        (Words({0: 143}, {0: "SIGTERM received"}), Words({1: 143}), 143, ""),
        (Words({0: 1}, {0: ANOTHER}), None, 1, "the machine with node rank 1 ended without a word"),
        (Words({0: 143}, {0: "SIGTERM received"}), None, 143, "the machine with node rank 1 ended without a word"),
        (Words({0: 2}, {0: "bad"}), None, 2, ""),
        (Words(), None, 0, ""),
    ],
)
def test_one_code_for_all_machines(mine: Words, elsewhere: Words | None, code: int, text: str) -> None:
    seen: Any = Seen(elsewhere=elsewhere)
    lost = [] if elsewhere is not None else [1]
    if not text:
        assert launching._one_code(mine, lost, seen) == code
        return
    with pytest.raises(FtkitError, match=text) as caught:
        launching._one_code(mine, lost, seen)
    assert caught.value.exit_code == code


def test_gloo_speaks_through_the_interface_that_leads_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(network.GLOO_INTERFACE, raising=False)
    network.choose_interface("127.0.0.1", 1)
    chosen = os.environ.get(network.GLOO_INTERFACE, "")
    assert chosen in {name for _, name in socket.if_nameindex()}
    monkeypatch.setenv(network.GLOO_INTERFACE, "mine")
    network.choose_interface("127.0.0.1", 1)
    assert os.environ[network.GLOO_INTERFACE] == "mine"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"nodes": 2, "node_rank": 0}, "where they meet is not said. Give --rendezvous"),
        ({"nodes": 2, "rendezvous": "h:1"}, "which of them this is, is not said. Give --node-rank, from 0 to 1"),
        ({"nodes": 2, "node_rank": 2, "rendezvous": "h:1"}, "node rank 2 of 2 machines: they are numbered from 0 to 1"),
        ({"nodes": 2, "node_rank": -1, "rendezvous": "h:1"}, "-1 is not a whole number from 0"),
        ({"nodes": 0}, "--nodes: 0 is not a whole number from 1"),
        ({"nproc": 0}, "--nproc: 0 is not a whole number from 1"),
        ({"rendezvous": "h:1"}, "--rendezvous: is for several machines"),
        ({"node_rank": 0}, "--node-rank: is for several machines"),
        ({"nodes": 2, "node_rank": 0, "rendezvous": "h"}, "'h' is not HOST:PORT"),
        ({"nodes": 2, "node_rank": 0, "rendezvous": "h:0"}, "'h:0' is not HOST:PORT"),
        ({"nodes": 2, "node_rank": 0, "rendezvous": "h:65536"}, "is not HOST:PORT"),
        ({"nodes": 2, "node_rank": 0, "rendezvous": "tcp://h:1"}, "is not HOST:PORT"),
        ({"nodes": 2, "node_rank": 0, "rendezvous": "[::z]:1"}, "is not HOST:PORT"),
        ({"nodes": 2, "node_rank": 0, "rendezvous": "a..b:1"}, "is not HOST:PORT"),
        ({"nodes": 2, "node_rank": 0, "rendezvous": f"{'a' * 64}:1"}, "is not HOST:PORT"),
        (
            {"nodes": 2, "node_rank": 0, "rendezvous": "h:1", "rendezvous_timeout": 0},
            "--rendezvous-timeout: 0 is not a whole number",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        cluster_of(None, given)
    assert told in str(caught.value)
    assert len(caught.value.problems) == 1


def test_options_win_over_the_launcher_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("nproc: 8\nnodes: 2\nrendezvous: '[fd00::1]:29500'\n", encoding="utf-8")
    found = cluster_of(file, {"nproc": 4, "node_rank": 1, "nodes": None})
    assert found == Cluster(nproc=4, nodes=2, node_rank=1, host="fd00::1", port=29500, patience=600)
    assert cluster_of(None, {}) == Cluster()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nproc: 8\nnode: 2\n", "cluster.yaml:2:1: unknown key 'node'. Did you mean 'nodes'?"),
        ("nproc: eight\n", "cluster.yaml:1:1: nproc: 'eight' is not a whole number from 1 to 1024"),
        ("nproc: true\n", "nproc: True is not a whole number"),
        ("nproc: 1\nnproc: 2\n", "cluster.yaml:2"),
        ("- nproc\n", "a launcher file is a mapping"),
        ("sharding: fsdp2\n", "How the model is divided is part of the recipe: `train.sharding`"),
        ("nodes: 2\nnode_rank: 3\nrendezvous: h:1\n", "cluster.yaml:2:1: node rank 3 of 2 machines"),
        ("nodes: 2\nnode_rank: 0\nrendezvous: 29500\n", "cluster.yaml:3:1: rendezvous: 29500 is not HOST:PORT"),
    ],
)
def test_a_wrong_launcher_file_is_refused_with_its_line(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        cluster_of(file, {})
    assert told in str(caught.value)


def test_a_launcher_file_that_is_not_there_is_called_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        cluster_of(tmp_path / "none.yaml", {})


@pytest.mark.parametrize("words", [["--nodes", "2", "--node-rank", "0", "--rendezvous", "h:1"], ["--nproc", "2"]])
def test_launching_within_a_launch_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["train", "recipe.yaml", *words])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"{words[0]} 2: a launcher has started 4 processes already" in told
    assert told.count("error:") == 1


def test_options_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    script = "import sys\nfrom ftkit.cli.app import main\ntry:\n    main(sys.argv[1:])\nfinally:\n    assert 'torch' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", script, "train", "recipe.yaml", "--nodes", "2"],
        env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: command line: --nodes: 2 machines, and which of them this is, is not said"), done.stderr


def test_machines_started_on_other_files_are_refused(tmp_path: Path) -> None:
    from ftkit.run.refusals import refuse_another_machine

    recipe = {"task": {"name": "text-classification"}, "method": {"name": "lora"}}
    lock = {"training": {"recipe": recipe, "folder": ".", "data": {"train": 1}, "tokenizer": ""}, "model_files": {"a": "1"}}
    with pytest.raises(RecipeError, match="not the same as for the first process: the files of the base model"):
        refuse_another_machine({**lock, "model_files": {"a": "2"}}, lock, tmp_path)
