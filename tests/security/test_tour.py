"""E1 and S3: the whole tour with sockets blocked, in every process that takes part. No attempt is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

RecipeFile = Callable[..., Path]

BLOCK = """
import os, sys

def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        with open(os.environ["ATTEMPTS"], "a") as log:
            log.write(f"{os.getpid()} {event} {arguments[1:]!r}\\n")
        raise OSError("blocked")

sys.addaudithook(watch)
with open(os.environ["ATTEMPTS"] + ".processes", "a") as log:
    log.write(f"{os.getpid()}\\n")
"""
"""Python tells its audit hooks of every connect, bind, send and look-up of a name, however it is reached."""

TOUR = """
import json, sys
from ftkit.cli.app import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ending:
        if ending.code:
            sys.exit(f"{arguments} ended with {ending.code}")
"""


@pytest.fixture
def blocked(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose sockets, and those of its children, are blocked and counted."""
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    paths = [str(tmp_path / "block"), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    names = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "ATTEMPTS": str(tmp_path / "attempts"), "CI": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    return {**kept, **names, "FTKIT_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hub")}


@pytest.mark.timeout(1800)  # on a machine that is busy with other things
def test_the_whole_tour_opens_no_socket_in_any_process(recipe_file: RecipeFile, tmp_path: Path, blocked: dict[str, str]) -> None:
    """Checked, planned, trained, killed, resumed, evaluated, used and exported, by four processes and more."""
    train = "{max_steps: 60, batch_size: 4, learning_rate: 1e-3, checkpoint_every: {steps: 5}, evaluate_every: {steps: 50}}"
    recipe, run = str(recipe_file(train=train, export="[adapter]")), str(tmp_path / "run")
    arguments = ["train", recipe, "--output", run, "--quiet"]
    first = subprocess.Popen([sys.executable, "-c", TOUR, json.dumps([arguments])], env=blocked, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.01)
    first.kill()
    first.communicate()
    tour = [
        ["validate", recipe],
        ["plan", recipe],
        ["inspect", recipe],
        [*arguments, "--resume"],
        ["evaluate", run],
        ["predict", run, "--text", "w1 w2"],
        ["export", run, "--format", "merged", "--to", str(tmp_path / "again")],
        ["env"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", TOUR, json.dumps(tour)], env=blocked, capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    attempts = tmp_path / "attempts"
    assert not attempts.exists(), attempts.read_text()
    # The two of the tour, and one for each of its verifications of exports, at least.
    assert len(set((tmp_path / "attempts.processes").read_text().split())) >= 4
    assert (tmp_path / "again" / "model.safetensors").is_file()


def test_attempts_are_seen(tmp_path: Path, blocked: dict[str, str]) -> None:
    """That nothing was counted above means something."""
    script = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')"
    done = subprocess.run([sys.executable, "-c", script], env=blocked, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "socket." in (tmp_path / "attempts").read_text()
