"""ftkit as its users start it: a process, killed, blocked from the network, under a launcher, with a plug-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RecipeFile = Callable[..., Path]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "FTKIT_CACHE": str(tmp_path / "cache"), "CI": "1"}


def ftkit_process(arguments: list[str], environment: dict[str, str], code: str | None = None) -> subprocess.Popen[str]:
    start = ["-c", code] if code else ["-m", "ftkit"]
    return subprocess.Popen(
        [sys.executable, *start, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(arguments: list[str], environment: dict[str, str], code: str | None = None) -> subprocess.CompletedProcess[str]:
    process = ftkit_process(arguments, environment, code)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_with_their_code_and_a_checkpoint(
    recipe_file: RecipeFile, tmp_path: Path, environment: dict[str, str], number: int, code: int
) -> None:
    recipe = recipe_file(train="{epochs: 500.0, batch_size: 4, evaluate_every: {steps: 100000}, checkpoint_every: {steps: 100000}}")
    process = ftkit_process(["train", str(recipe), "--output", str(tmp_path / "run")], environment)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert "--resume" in error
    assert "Traceback" not in error
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


def test_a_second_process_on_the_same_run_is_refused(recipe_file: RecipeFile, tmp_path: Path, environment: dict[str, str]) -> None:
    recipe = str(recipe_file(train="{epochs: 2000.0, batch_size: 4, evaluate_every: {steps: 100000}}"))
    first = ftkit_process(["train", recipe, "--output", str(tmp_path / "run")], environment)
    try:
        while first.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.01)
        second = run(["train", recipe, "--output", str(tmp_path / "run"), "--resume"], environment)
    finally:
        first.kill()
        first.communicate()
    assert second.returncode == 2
    assert "another process is working on this run" in second.stderr


def test_u5_runs_without_standard_input_and_never_imports_a_tracker(
    recipe_file: RecipeFile, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text("raise SystemExit('wandb was imported')\n")
    done = run(
        ["train", str(recipe_file()), "--output", str(tmp_path / "run")], {**environment, "PYTHONPATH": str(tmp_path / "fake")}
    )
    assert done.returncode == 0, done.stderr
    assert "wandb" not in done.stderr + done.stdout


PLUGIN_METHOD = '''
from ftkit.methods.base import Capabilities, Default, Method


class HeadBiases(Method):
    """Trains the biases of the head: b' = b + d."""

    name = "head-biases"
    summary = "Trains the biases of the head."
    update_rule = "b' = b + d"
    capabilities = Capabilities(adapter=False, merge=True)

    def defaults(self, facts):
        return {"train.learning_rate": Default(value=1e-2, source="a guess")}

    def apply(self, model, layout):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.declares(name, layout))
        return model

    def declares(self, name, layout):
        return layout.canonical(name) in layout.head_parameters() and name.endswith("bias")
'''


def test_a_plug_in_method_trains_exports_and_predicts(recipe_file: RecipeFile, tmp_path: Path, environment: dict[str, str]) -> None:
    plugin = tmp_path / "head_biases.py"
    plugin.write_text(PLUGIN_METHOD)
    recipe, folder = str(recipe_file(method="head-biases", export="[merged]")), str(tmp_path / "run")
    without = run(["train", recipe, "--output", folder], environment)
    assert without.returncode == 2
    assert "unknown method 'head-biases'" in without.stderr
    trained = run(["train", recipe, "--output", folder, "--plugin", str(plugin), "--json"], environment)
    assert trained.returncode == 2 or trained.returncode == 0, trained.stderr
    if trained.returncode == 2:
        pytest.fail(trained.stdout)
    assert json.loads(trained.stdout)["parameters"]["trainable"] == 3
    listed: dict[str, Any] = json.loads(run(["predict", folder, "--text", "w1", "--plugin", str(plugin)], environment).stdout)
    assert set(listed["probabilities"]) == {"calm", "angry", "glad"}
