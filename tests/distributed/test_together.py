"""Several processes start, stop and fail together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.ranks import DEADLINE, ROOT, command, environment, metrics_of, results_of, run

RecipeFile = Callable[..., Path]
SECONDS = 60.0
"""More than processes may take to end after one of them has; a torch process needs some just to start and to leave."""

LONG = "{epochs: 400.0, batch_size: 8, learning_rate: 1e-3, evaluate_every: {epochs: 400.0}, checkpoint_every: {steps: 20}}"
AT_STEP = """
import os, signal, sys, time
from ftkit.training.loop import Trainer

step, rank = Trainer._step, int(os.environ.get("RANK", 0))


def watched(self, window, windows):
    if rank == {rank} and self.position.step == {step}:
        {what}
    return step(self, window, windows)


Trainer._step = watched
from ftkit.cli.app import main
main(sys.argv[1:])
"""


def script(tmp_path: Path, what: str, *, rank: int = 1, step: int = 3) -> str:
    """A program that is ftkit, and in one process does something at a step."""
    path = tmp_path / "at_step.py"
    path.write_text(AT_STEP.format(rank=rank, step=step, what=what), encoding="utf-8")
    return str(path)


def train(recipe: Path, folder: Path, *more: str) -> list[str]:
    return ["train", str(recipe), "--output", str(folder), *more]


def test_nproc_starts_the_processes_and_ends_with_their_exit_code(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = recipe_file(export="[adapter, merged]", expect="{accuracy: '> 1.5'}")
    done = run(1, ["-m", "ftkit", *train(recipe, tmp_path / "run", "--nproc", "2", "--json")], tmp_path)
    assert done.returncode == 4, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert results == results_of(tmp_path / "run")
    assert results["world_size"] == 2
    assert set(results["exports"]) == {"adapter", "merged"}
    assert done.stderr.count("run folder") <= 1


def test_r1_what_is_wrong_for_all_is_told_once(recipe_file: RecipeFile, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "w1", "label": "calm"}\n{"text": 3}\n', encoding="utf-8")
    done = run(1, ["-m", "ftkit", *train(recipe_file(), tmp_path / "run", "--nproc", "2")], tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_r10_a_used_folder_is_refused_once(recipe_file: RecipeFile, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine", encoding="utf-8")
    done = run(2, ["-m", "ftkit", *train(recipe_file(), tmp_path / "run")], tmp_path)
    assert done.returncode != 0
    # Torchrun adds a summary with the same words.
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ") and "already holds files" in line]
    assert len(told) == 1, done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_r4_one_process_that_fails_ends_all(recipe_file: RecipeFile, tmp_path: Path) -> None:
    what = "from ftkit.errors import DataError, Problem; raise DataError(Problem(message='row is broken', place='x, row 3'))"
    began = time.monotonic()
    done = run(2, [script(tmp_path, what), *train(recipe_file(train=LONG), tmp_path / "run")], tmp_path)
    assert done.returncode != 0
    assert time.monotonic() - began < SECONDS
    assert "process 1 of 0 to 1: row is broken" in done.stderr
    assert results_of(tmp_path / "run")["status"] != "completed"
    assert "exports" not in results_of(tmp_path / "run")


def test_r1_a_process_that_is_killed_ends_all_and_the_run_goes_on_later(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe, folder = recipe_file(train=LONG), tmp_path / "run"
    code = script(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)", step=30)
    done = run(2, [code, *train(recipe, folder)], tmp_path)
    assert done.returncode != 0
    assert results_of(folder)["status"] != "completed"
    stopping = script(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)", rank=0, step=33)
    again = run(1, [stopping, *train(recipe, folder, "--resume")], tmp_path)
    assert again.returncode == 143, again.stderr[-2000:]
    assert "begun in 2 and continued in 1 processes" in "".join(results_of(folder)["notes"])
    assert [line["step"] for line in metrics_of(folder)] == list(range(1, 35))


def test_r4_a_signal_to_one_process_stops_all_at_the_same_step_and_resume_is_exact(recipe_file: RecipeFile, tmp_path: Path) -> None:
    """Also from two processes to two: the dropout of a step is that of the uninterrupted run."""
    recipe = recipe_file(train="{epochs: 4.0, batch_size: 8, learning_rate: 1e-3}", method="full")
    straight = run(2, ["-m", "ftkit", *train(recipe, tmp_path / "straight")], tmp_path)
    assert straight.returncode == 0, straight.stderr[-2000:]
    code = script(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)", rank=1, step=5)
    stopped = run(2, [code, *train(recipe, tmp_path / "run")], tmp_path)
    assert stopped.returncode != 0
    assert "SIGTERM received: stopped after step 6" in stopped.stderr, stopped.stderr[-2000:]
    assert results_of(tmp_path / "run")["exit_code"] == 143
    resumed = run(2, ["-m", "ftkit", *train(recipe, tmp_path / "run", "--resume")], tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "straight")
    first, second = (
        load_file(path / results_of(path)["weights"] / "trainable.safetensors")
        for path in (tmp_path / "run", tmp_path / "straight")
    )
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_ctrl_c_stops_all_with_a_checkpoint(recipe_file: RecipeFile, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(1, "-m", "ftkit", *train(recipe_file(train=LONG), folder, "--nproc", "2")),
        env=environment(tmp_path), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + DEADLINE
        while not (folder / "metrics.jsonl").exists() or len(metrics_of(folder)) < 5:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert results_of(folder)["exit_code"] == 130
    assert list((folder / "checkpoints").glob("step-*"))


SLOW = """
import os, sys, time
from datetime import timedelta
import ftkit.run.joining as joining
import ftkit.run.train as train

joining.TIMEOUT = timedelta(seconds=5)
encode = train.encode_splits


def slow(*arguments, **options):
    if os.environ["RANK"] == "0":
        time.sleep(12)
    return encode(*arguments, **options)


train.encode_splits = slow
from ftkit.cli.app import main
main(sys.argv[1:])
"""


def test_r8_preparing_longer_than_the_time_out_is_no_failure(recipe_file: RecipeFile, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW, encoding="utf-8")
    done = run(2, [str(tmp_path / "slow.py"), *train(recipe_file(), tmp_path / "run")], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert results_of(tmp_path / "run")["world_size"] == 2


def test_another_number_of_processes_than_the_recipe_says_is_refused(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = recipe_file(train="{num_processes: 2, epochs: 1.0}")
    done = run(1, ["-m", "ftkit", *train(recipe, tmp_path / "run")], tmp_path)
    assert done.returncode == 2
    assert "1 process was started, the recipe says 2" in done.stderr
    assert "--nproc 2" in done.stderr


def test_accelerate_launch_that_starts_one_of_two_is_refused(recipe_file: RecipeFile, tmp_path: Path) -> None:
    words = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    started = [sys.executable, *words, "--dynamo_backend", "no", "-m", "ftkit", *train(recipe_file(), tmp_path / "run")]
    done = subprocess.run(
        started, env=environment(tmp_path), capture_output=True, text=True, timeout=DEADLINE, check=False, cwd=ROOT
    )
    assert done.returncode != 0
    assert "asked for 2 processes and started one" in done.stderr
    assert not (tmp_path / "run").exists()


def test_sharding_that_only_the_launcher_knows_of_is_refused(recipe_file: RecipeFile, tmp_path: Path) -> None:
    done = run(1, ["-m", "ftkit", *train(recipe_file(), tmp_path / "run")], tmp_path, ACCELERATE_USE_FSDP="true")
    assert done.returncode == 2
    assert "turns on sharding of its own (ACCELERATE_USE_FSDP)" in done.stderr
    assert "train.sharding: fsdp2" in done.stderr


def test_only_training_runs_in_several_processes(recipe_file: RecipeFile, tmp_path: Path) -> None:
    done = run(1, ["-m", "ftkit", *train(recipe_file(), tmp_path / "run", "--quiet")], tmp_path)
    assert done.returncode == 0, done.stderr
    refused = run(1, ["-m", "ftkit", "evaluate", str(tmp_path / "run")], tmp_path, WORLD_SIZE="2", RANK="1", LOCAL_RANK="1")
    assert refused.returncode == 2
    assert "2 processes were started; only `ftkit train` uses several" in refused.stderr


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "this is process 2 of 2"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', not a number"),
    ],
)
def test_a_senseless_environment_is_refused(variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftkit.errors import RecipeError
    from ftkit.run.world import launched_world

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=told):
        launched_world()
