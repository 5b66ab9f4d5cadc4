"""Trains a stretch of a run again, as `--resume` would, and says whether it comes out the same, bit by bit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ftkit.data.features import FeatureStore
from ftkit.data.splits import Splits, load_splits
from ftkit.errors import InterruptedRunError, Problem, RecipeError, RunFolderError
from ftkit.files import read_json
from ftkit.recipe.plan import Plan
from ftkit.run.comparing import diff_surroundings
from ftkit.run.folder import METRICS, RESULTS, RunFolder, read_run, readable, unchanging
from ftkit.run.lockfile import make_lock
from ftkit.run.observer import Observer
from ftkit.run.planning import make_plan_here
from ftkit.run.recording import recorded
from ftkit.run.refusals import refuse_other_inputs
from ftkit.run.rehearsal import rehearse
from ftkit.run.replay_comparison import compare
from ftkit.run.rerunning import planned_recipe
from ftkit.run.signals import raising_signals
from ftkit.run.tracking import Tracking
from ftkit.run.training import TrainingSession
from ftkit.run.wiring import encode_splits, make_accelerator, prepare_model, prepare_processor
from ftkit.run.world import launched_world
from ftkit.tasks.base import Task
from ftkit.training.checkpoint import BEST, RESUMABLE, Checkpoint, complete_checkpoints, save_checkpoint

OTHERWISE = 4
"""Exit code of a stretch that came out otherwise."""

KEEP_TWO = "Train with train.keep_checkpoints=2: what lies between the two is then trained again"
ALONE = ["train.sharding=none", "train.num_processes=null"]
"""The stretch is trained in one process, whatever the run was trained in."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What is trained again: from a checkpoint (None: the start of training) to a later one.

    cut: where there is none to start from, the step after which the repetition itself is interrupted and resumed.
    """

    begin: Checkpoint | None
    end: Checkpoint
    cut: int | None = None

    @property
    def first(self) -> int:
        """The step that it begins after."""
        return 0 if self.begin is None else self.begin.step

    @property
    def log_begin(self) -> int:
        """Bytes in metrics.jsonl before it."""
        return 0 if self.begin is None else _log_length(self.begin)

    @property
    def log_end(self) -> int:
        """Bytes in metrics.jsonl at its end."""
        return _log_length(self.end)


def prove_resuming(run: Path, *, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """Trains what lies between the last two resumable checkpoints of a run again, in a folder that goes in the end, and compares.

    Where only one is kept: all from the start of training to it, interrupted and resumed half way. The run is only read. Returns {`run`,
    `exact`, `from_step`, `to_step`, `resumed_after` (step), `compared` (`metrics_lines`, `tensors` by file), `differences` (see
    `replay_comparison`), `versions` and `environment` (what is not the same as in the run), `notes`, `exit_code`: 0 or 4}.
    Raises RunFolderError where there is nothing to compare, where inputs changed, or while a process works on the run.
    """
    folder, watching = read_run(run).absolute(), observer or Observer()
    if (world := launched_world()).several:
        raise RecipeError(f"{world.size} processes were started; this takes one", hint="Start it without a launcher")
    remark = "there is nothing to compare yet, and the run is as it was"
    with raising_signals(remark), unchanging(folder), TemporaryDirectory(prefix="ftkit-replay-") as name:
        stretch, notes = _choose(folder)
        replay = _Replay(folder, Path(name).resolve(), watching, allow_code)
        try:
            with recorded(None, lambda status, code, text: None, world):
                replay.train(stretch)
        except InterruptedRunError as error:
            message = "stopped before there was anything to compare; the run is as it was"
            raise InterruptedRunError(message, exit_code=error.exit_code) from error
        watching.stage("comparing")
        found = compare(folder, replay.copy, stretch.end, (stretch.log_begin, stretch.log_end))
    exact = not any(found["differences"].values())
    return {
        "run": str(folder),
        "exact": exact,
        "from_step": stretch.first,
        "to_step": stretch.end.step,
        "resumed_after": stretch.first if stretch.begin else stretch.cut,
        **found,
        **replay.surroundings,
        "notes": notes,
        "exit_code": 0 if exact else OTHERWISE,
    }


def _choose(folder: Path) -> tuple[Stretch, list[str]]:
    """The stretch, and what to know of it. Raises RunFolderError where a run has none."""
    found, notes = complete_checkpoints(folder / "checkpoints", RESUMABLE)
    if not found:
        raise _refused(folder, "has no complete checkpoint that it could be resumed from, so there is nothing to compare")
    end = found[-1]
    if len(found) > 1:
        stretch = Stretch(begin=found[-2], end=end)
    else:
        notes.append(f"only one checkpoint is kept: all {end.step:,} steps up to it were trained again. {KEEP_TWO}")
        stretch = Stretch(begin=None, end=end, cut=end.step // 2 or None)
    log = folder / METRICS
    if not log.is_file() or log.stat().st_size < stretch.log_end:
        raise _refused(log, "is shorter than when the checkpoint was written, so there is nothing to compare with")
    return stretch, notes


def _refused(place: Path, message: str) -> RunFolderError:
    return RunFolderError(Problem(message=message, place=str(place), hint=KEEP_TWO))


def _log_length(checkpoint: Checkpoint) -> int:
    state = checkpoint.state()
    with readable(checkpoint.path / "state.json"):
        return int(state["metrics_bytes"])


class _Replay:
    """A stretch of a run, trained again in a folder beside it.

    copy: a run folder with no more in it than a resumed run reads. surroundings: the machine and the versions that are others.
    """

    def __init__(self, run: Path, copy: Path, observer: Observer, allow_code: bool) -> None:
        self.run, self.copy, self.observer, self.allow_code = run, copy, observer, allow_code
        self.plan, self.lock = self._planned()
        self.surroundings: dict[str, Any] = {}

    def _planned(self) -> tuple[Plan, dict[str, Any]]:
        with readable(self.run / RESULTS):
            name = str(read_json(self.run / RESULTS)["recipe"])
        recipe, lock = planned_recipe(self.run, name, ALONE)
        return make_plan_here(recipe), lock

    def train(self, stretch: Stretch) -> None:
        """Leaves in `copy` what the run had written at the end of the stretch."""
        self.observer.stage("reading data")
        task = self.plan.task()
        task.allow_code = self.allow_code
        splits = load_splits(self.plan.recipe.data, task, self.plan.recipe.origin.base, self.observer)
        processor, key = prepare_processor(self.plan)
        lock = make_lock(self.plan, splits, key, world_size=1)
        refuse_other_inputs(self.run, self.lock, lock)
        with readable(self.run / "lock.json"):
            self.surroundings = diff_surroundings(self.lock, lock)
        data = self.plan.recipe.data
        stores = encode_splits(splits, task, processor, key, cache=data.cache, observer=self.observer, num_workers=data.num_workers)
        if stretch.begin is not None:
            self._restore(stretch.begin, stretch.log_begin)
        elif stretch.cut is not None:
            self._session(task, processor, splits, stores, resumed=False).replay(stretch.cut)
        resumed = stretch.begin is not None or stretch.cut is not None
        self._session(task, processor, splits, stores, resumed=resumed).replay(stretch.end.step)

    def _restore(self, begin: Checkpoint, log: int) -> None:
        """Takes the run back to a checkpoint, in the copy."""
        checkpoints = self.copy / "checkpoints"
        shutil.copytree(begin.path, checkpoints / begin.path.name)
        with (self.run / METRICS).open("rb") as stream:
            (self.copy / METRICS).write_bytes(stream.read(log))
        with readable(begin.path / "state.json"):
            best = begin.state()["stopping"]["best_step"]
        if best is not None:
            # A run wants its best weights to be there. Those of this time may be gone, and they play no part until training is over.
            save_checkpoint(checkpoints, BEST, best, {"trainable": begin.tensors("trainable")}, {"metrics": {}})

    def _session(
        self, task: Task, processor: Any, splits: Splits, stores: dict[str, FeatureStore], *, resumed: bool
    ) -> TrainingSession:
        """A session with a model of its own, as a new process has one."""
        recipe = self.plan.recipe
        accelerator = make_accelerator(recipe.train.precision, trackers=[], folder=None)
        self.observer.stage("loading the model")
        prepared = prepare_model(self.plan, task, processor, seed=recipe.seed, allow_code=self.allow_code)
        folder = RunFolder(self.copy, resumed=resumed)
        tracking = Tracking(accelerator, [], self.observer)
        session = TrainingSession(prepared, splits, stores, folder, accelerator, self.observer, tracking)
        rehearse(session)
        return session
