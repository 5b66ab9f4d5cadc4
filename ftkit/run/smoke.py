"""The whole life of a recipe on a slice of its rows: train, be killed, resume, export, reload, evaluate, predict.

What works here works for hours, too, as far as memory and time allow: every part of ftkit, of the method, the task and the machine that a
run needs has been at work once. Nothing is left behind.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ftkit.data.splits import Splits, load_splits
from ftkit.errors import FtkitError
from ftkit.files import json_text, parse_json, read_json, sha256_of
from ftkit.recipe.phase_plans import whole_yaml
from ftkit.recipe.plan import Plan
from ftkit.recipe.schema import Recipe
from ftkit.run.folder import METRICS, RESULTS
from ftkit.run.observer import Observer
from ftkit.run.planning import make_plan_here
from ftkit.run.signals import raising_signals
from ftkit.run.smoke_process import Ended, Request, raise_error, run_process
from ftkit.run.smoke_slice import CHECKPOINT, STEPS, changes, slice_of, smaller_plan

if TYPE_CHECKING:
    from ftkit.run.predictor import Predictor

Line = dict[str, Any]
"""An entry of metrics.jsonl."""

KILLED_IN = CHECKPOINT + 1
PREDICTED = 4
"""Rows."""

TOLERANCE, TOLERANCE_ON_GPU = 1e-6, 1e-2
"""Largest relative difference between numbers of the run and of the resumed or reloaded one. GPUs sum in an order of their own."""

REPORT_IT = "Please report this with the output of `ftkit env` and the recipe"


def smoke(recipe: Recipe, *, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """Tries the whole life of a recipe on few rows and returns what was done.

    {`recipe`, `seconds`, `stages`: [{`name`, `seconds`, and facts}], `changes`: keys of the recipe with their values in `recipe` and
    `smoke`, `notes`}. Raises what the run would raise, with the name of the stage in the message; FtkitError where a part of that life does
    not go on from the one before.
    """
    remark = "the smoke test is over, and nothing is left of it"
    with raising_signals(remark), TemporaryDirectory(prefix="ftkit-smoke-") as name:
        return _Life(recipe, Path(name).resolve(), observer or Observer(), allow_code).live()


class _Life:
    """One run in a folder that goes in the end."""

    def __init__(self, recipe: Recipe, folder: Path, observer: Observer, allow_code: bool) -> None:
        self.recipe, self.folder, self.observer, self.allow_code = recipe, folder, observer, allow_code
        self.run = folder / "run"
        self.stages: list[dict[str, Any]] = []
        self._current = ""
        self._of: dict[str, int] = {}
        self.notes: list[str] = []

    def live(self) -> dict[str, Any]:
        """All stages in turn."""
        begin = time.monotonic()
        with self._stage("read") as facts:
            facts["rows"] = self._read()
        if self.plan.method().capabilities.trains:
            self._train_and_resume()
        else:
            self.notes.append(f"{self.recipe.method.name} trains nothing: there was nothing to kill and to resume")
            self._train_at_once()
        self._use()
        return {
            "recipe": self.recipe.origin.name,
            "seconds": round(time.monotonic() - begin, 3),
            "stages": self.stages,
            "changes": changes(self.plan, self.smaller),
            "notes": self.notes,
        }

    @contextmanager
    def _stage(self, name: str) -> Iterator[dict[str, Any]]:
        """A stage, to whose facts what happens inside adds; what goes wrong inside is told with its name."""
        self.observer.stage(name)
        self._current = name
        facts: dict[str, Any] = {}
        begin = time.monotonic()
        try:
            yield facts
        except Exception as error:
            _name_stage(error, self._current)
            raise
        self._add(name, time.monotonic() - begin, facts)

    def _add(self, name: str, seconds: float, facts: Mapping[str, Any]) -> None:
        self.stages.append({"name": name, "seconds": round(seconds, 3), **facts})

    # --- reading -----------------------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> Plan:
        """The plan that a run of the recipe would have."""
        return make_plan_here(self.recipe)

    @cached_property
    def smaller(self) -> Plan:
        """The plan that is trained here."""
        return smaller_plan(self.plan)

    @cached_property
    def rows(self) -> Splits:
        """The rows that are used here, of the last phase."""
        task = self.plan.task()
        task.allow_code = self.allow_code
        splits = load_splits(self.plan.recipe.data, task, self.recipe.origin.base, self.observer)
        self._of = {name: len(table) for name, table in splits.items()}
        return slice_of(splits, task, plan=self.smaller)

    def _read(self) -> dict[str, dict[str, int]]:
        return {name: {"used": len(table), "of": self._of[name]} for name, table in self.rows.items()}

    # --- training ----------------------------------------------------------------------------------------------------

    def _train_and_resume(self) -> None:
        with self._stage("train") as facts:
            begin, phase = time.time(), len(self.recipe.earlier) + 1
            first = self._process("first", kill=(phase, KILLED_IN))
            over = time.time()
            if first.code != -signal.SIGKILL or not (killed := first.of("kill")):
                raise_error(first)
            facts |= {"phases": phase, "steps": CHECKPOINT, "checkpoint": f"step {CHECKPOINT}"}
        self.stages[-1]["seconds"] = round(killed[0]["time"] - begin, 3)
        self._add("kill", over - killed[0]["time"], {"signal": "SIGKILL", "in_step": KILLED_IN})
        with self._stage("resume") as facts:
            before, cut = self._killed_log()
            second = self._finished("second", resume=True)
            again = self._check_it_went_on(second, before)
            self._check_it_went_on_the_same(cut, again)
            facts |= {"from_step": CHECKPOINT, "to_step": STEPS, "exact": again == cut}
        self._divide_off_exports(second)

    def _train_at_once(self) -> None:
        with self._stage("train"):
            ended = self._finished("only", resume=False)
        self._divide_off_exports(ended)

    def _process(self, name: str, *, resume: bool = False, kill: tuple[int, int] | None = None) -> Ended:
        place = self.folder / name
        place.mkdir()
        request = Request(
            text=whole_yaml(self.smaller),
            name=self.recipe.origin.name,
            base=str(self.recipe.origin.base),
            run=str(self.run),
            resume=resume,
            kill=kill,
            allow_code=self.allow_code,
        )
        return run_process(request, place)

    def _finished(self, name: str, *, resume: bool) -> Ended:
        ended = self._process(name, resume=resume)
        if ended.code != 0:
            if _exports([event["name"] for event in ended.of("stage")][-1:]):
                self._current = "export"
            raise_error(ended)
        return ended

    def _killed_log(self) -> tuple[bytes, Line]:
        """What metrics.jsonl held when the checkpoint was written, and the line of the step in which the run was killed.

        Raises FtkitError unless the killed run left both.
        """
        from ftkit.training.checkpoint import RESUMABLE, complete_checkpoints

        found, _ = complete_checkpoints(self.run / "checkpoints", RESUMABLE)
        if not found or found[-1].step != CHECKPOINT:
            raise FtkitError(f"the run that was killed in step {KILLED_IN} left no checkpoint of step {CHECKPOINT}", hint=REPORT_IT)
        log = (self.run / METRICS).read_bytes()
        return log[: int(found[-1].state()["metrics_bytes"])], _steps(log)[KILLED_IN]

    def _check_it_went_on(self, ended: Ended, before: bytes) -> Line:
        """The line of the step that was repeated. Raises FtkitError unless the resumed run added the steps after the checkpoint to what
        there was, and nothing else."""
        after = (self.run / METRICS).read_bytes()
        steps = _steps(after)
        first = [event["first_step"] for event in ended.of("training")][-1:]
        if not after.startswith(before) or list(steps) != list(range(1, STEPS + 1)) or first != [CHECKPOINT]:
            message = f"resumed from step {CHECKPOINT}, the run began after step {first}, and {METRICS} has the steps {list(steps)}"
            raise FtkitError(message, hint=REPORT_IT)
        return steps[KILLED_IN]

    def _check_it_went_on_the_same(self, cut: Line, again: Line) -> None:
        """Raises FtkitError if the step in which the run was killed has another loss when it is repeated; notes smaller differences."""
        if not _equal(cut["loss"], again["loss"]):
            both = f"{again['loss']} after resuming, and had {cut['loss']} before"
            message = f"step {KILLED_IN} has the loss {both}: a checkpoint lacks something"
            raise FtkitError(message, hint="Is there a method or task of your own that changes what it does not save?")
        if cut != again:
            self.notes.append(f"step {KILLED_IN} came out otherwise after resuming, in the last digits, as it does on some GPUs")

    def _divide_off_exports(self, ended: Ended) -> None:
        """Makes a stage of its own of what the last process did from its first export on."""
        if not (exports := self._results["exports"]):
            return
        begin = next(event["time"] for event in ended.of("stage") if _exports([event["name"]]))
        last = self.stages[-1]
        seconds = min(last["seconds"], time.time() - begin)
        last["seconds"] = round(last["seconds"] - seconds, 3)
        facts = {form: {"bytes": fact["bytes"], "max_abs_difference": fact["max_abs_difference"]} for form, fact in exports.items()}
        self._add("export", seconds, {"exports": facts})

    # --- using -------------------------------------------------------------------------------------------------------

    @cached_property
    def _results(self) -> dict[str, Any]:
        return dict(read_json(self.run / RESULTS))

    def _use(self) -> None:
        from ftkit.run.predictor import load_predictor

        with self._stage("reload") as facts:
            predictor = load_predictor(self.run, allow_code=self.allow_code)
            weights = self.run / self._results["weights"] / "trainable.safetensors"
            if weights.is_file():
                facts["sha256"] = sha256_of(weights)
        if any(name != "train" for name, _ in self.rows.items()):
            with self._stage("evaluate") as facts:
                facts["metrics"] = self._evaluate(predictor)
        with self._stage("predict") as facts:
            facts["rows"] = self._predict(predictor)

    def _evaluate(self, predictor: Predictor) -> dict[str, Any]:
        """The metrics of each split; raises FtkitError if they are not those that the run had."""
        found = {}
        for name, table in self.rows.items():
            if name == "train":
                continue
            found[name] = metrics = predictor.measure(table, cache=False)[0]["metrics"]
            expected = self._results["splits"][name]["metrics"]
            if wrong := sorted(key for key in {**expected, **metrics} if not _equal(expected.get(key), metrics.get(key))):
                both = f"{metrics.get(wrong[0])} reloaded, {expected.get(wrong[0])} in the run"
                raise FtkitError(f"the reloaded run does not compute what the run did: {name} {wrong[0]} is {both}", hint=REPORT_IT)
        return found

    def _predict(self, predictor: Predictor) -> int:
        """How many rows were predicted from their inputs alone."""
        tables = [table for _, table in self.rows.items()]
        rows = [_as_input(row, predictor) for row in tables[-1].rows(range(min(PREDICTED, len(tables[-1]))))]
        found = list(predictor.predict(rows))
        if len(found) != len(rows):
            raise FtkitError(f"{len(rows)} rows gave {len(found)} predictions", hint=REPORT_IT)
        json_text(found)
        return len(found)


def _as_input(row: Mapping[str, Any], predictor: Predictor) -> dict[str, Any]:
    """A row as the data has it, without its targets. row: under the task's column names."""
    columns, mapping, found = predictor.task.columns(), predictor.plan.recipe.data.columns, dict[str, Any]()
    for name, value in row.items():
        source = mapping.get(name, name)
        if not columns[name].target:
            found |= {source: value} if isinstance(source, str) else dict(zip(source, value, strict=True))
    return found


def _steps(log: bytes) -> dict[int, Line]:
    """The lines of optimizer steps, by step."""
    return {line["step"]: line for line in map(parse_json, log.decode().splitlines()) if line["type"] == "step"}


def _exports(stages: Sequence[str]) -> bool:
    """Whether a stage of a run, as observers are told them, is about its exports."""
    return any(stage.startswith(("exporting ", "verifying ")) for stage in stages)


def _equal(a: Any, b: Any) -> bool:
    import torch

    numbers = all(isinstance(value, (int, float)) for value in (a, b))
    tolerance = TOLERANCE_ON_GPU if torch.cuda.is_available() else TOLERANCE
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) if numbers else bool(a == b)


def _name_stage(error: Exception, name: str) -> None:
    """Adds the stage to the message of an error."""
    if isinstance(error, FtkitError):
        error.problems = [replace(problem, message=f"{problem.message} (stage: {name})") for problem in error.problems]
        error.args = ("\n".join(map(str, error.problems)),)
    elif isinstance(error, OSError):
        error.strerror = f"{error.strerror or error} (stage: {name})"
    else:
        error.args = (f"{error} (stage: {name})",)
