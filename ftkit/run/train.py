"""A run from recipe to results: the only place that wires everything together and writes to disk."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file

from ftkit.data.splits import Splits, load_splits
from ftkit.diagnostics.examine import quick_findings
from ftkit.errors import RecipeError
from ftkit.files import sha256_of, write_atomically, write_text
from ftkit.models.load import trainable_report
from ftkit.models.naming import unusual_backbone
from ftkit.models.sharding import is_sharded
from ftkit.recipe.plan import Plan
from ftkit.recipe.schema import Recipe
from ftkit.report.model_card import model_card
from ftkit.run.baseline import Baseline, comparison_notes, read_baseline_of, refuse_other_rows
from ftkit.run.exporting import export_all, probe_inputs
from ftkit.run.folder import (
    CARD,
    FINISHED,
    LOCK,
    LOG,
    METRICS,
    PLAN,
    PROBE,
    RECIPE,
    RESULTS,
    TASK,
    TASK_DIGEST,
    RunFolder,
    check_run_folder,
    open_run_folder,
)
from ftkit.run.gating import MISSED, gates, missed
from ftkit.run.joining import Meeting, meeting_of
from ftkit.run.learning import lost_ground, rising_loss, step_losses
from ftkit.run.lockfile import make_lock
from ftkit.run.measurements import gated_split
from ftkit.run.observer import Observer, RecordingObserver
from ftkit.run.phases import PhaseResult, train_earlier
from ftkit.run.planning import disk_of, make_plan_here
from ftkit.run.recording import recorded
from ftkit.run.refusals import (
    refuse_another_machine,
    refuse_another_run,
    refuse_moving_inputs,
    refuse_other_bases,
    refuse_other_inputs,
)
from ftkit.run.rehearsal import refuse_full_disk, rehearse
from ftkit.run.results import Clock, artifacts, opening, training_facts
from ftkit.run.tested_versions import untested
from ftkit.run.tracking import Tracking
from ftkit.run.training import Outcome, TrainingSession
from ftkit.run.wiring import Prepared, encode_splits, load_weights, make_accelerator, prepare_model, prepare_processor
from ftkit.run.world import HOW_TO_START, launched_world, refuse_other_size
from ftkit.secrets import redacted
from ftkit.tasks.base import Task

FEW_STEPS = 50
"""Fewer leave the learning rate's schedule hardly time to rise and fall."""


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder, the content of results.json, and the exit code (0, or 4 if a gate was not met)."""

    folder: Path
    results: dict[str, Any]
    exit_code: int


def train(
    recipe: Recipe,
    *,
    output: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
    allow_code: bool = False,
    same_as: tuple[Path, dict[str, Any]] | None = None,
    take: Callable[[Splits, Task], Splits] | None = None,
) -> RunResult:
    """Trains what the recipe says and returns the finished run. Raises FtkitError; nothing that exists is lost.

    same_as: folder and lock of a run; raises RunFolderError, before anything is written, if this one would not train the same.
    take: the rows to use of those that the recipe names, from which the task has learned (all).
    In a process of several that is not the main one, the results are empty and the exit code is 0.
    """
    world = launched_world()
    meeting = meeting_of(world)
    clock, watching = Clock(), observer if observer and world.is_main else Observer()
    watching.stage("checking the recipe")
    phases: list[PhaseResult] = []
    with meeting.agreeing():
        baseline = read_baseline_of(recipe)
    if recipe.earlier:
        path = output or Path(make_plan_here(recipe).recipe.output)
        options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "observer": watching, "allow_code": allow_code}
        recipe, phases = train_earlier(recipe, path.absolute(), partial(train, take=take), **options)
    with ExitStack() as stack:
        with meeting.agreeing() as said:
            plan = make_plan_here(recipe)
            refuse_other_size(world, plan.recipe.train)
            path = (output or Path(plan.recipe.output)).absolute()
            if world.is_main:
                check_run_folder(path, resume=resume, overwrite=overwrite)
            if overwrite:
                refuse_moving_inputs(plan, path)
            watching.stage("reading data")
            task = plan.task()
            task.allow_code = allow_code
            splits = load_splits(plan.recipe.data, task, recipe.origin.base, watching)
            splits = splits if take is None else take(splits, task)
            digests = splits.fingerprints(watching)
            if baseline is not None:
                refuse_other_rows(baseline, plan.recipe, gated_split(digests), digests.get(gated_split(digests)))
            processor, key = prepare_processor(plan)
            lock = make_lock(plan, splits, key, world_size=world.size)
            refuse_other_bases(plan, lock["model_files"])
            if same_as is not None:
                refuse_other_inputs(*same_as, lock)
            folder = RunFolder(path, writes=False)
            if world.is_main:
                folder = stack.enter_context(open_run_folder(path, resume=resume, overwrite=overwrite))
            said["resumed"], said["done"], said["lock"], remarks = folder.resumed, None, lock, []
            if folder.resumed:
                remarks = refuse_another_run(folder, lock)
                said["done"] = done if (done := folder.results()) and done.get("status") in FINISHED else None
        with meeting.agreeing():
            refuse_another_machine(said["lock"], lock, path)
        folder.resumed = said["resumed"]
        if said["done"]:
            watching.note(f"this run is already finished ({said['done']['status']}); nothing was done")
            return RunResult(path, said["done"], int(said["done"].get("exit_code", 0)))
        run = _Run(plan, folder, clock, watching, splits=splits, lock=lock, meeting=meeting, baseline=baseline)
        for remark in remarks:
            run.observer.note(remark)
        if phases:
            run.results["phases"] = [asdict(phase) for phase in phases]
        return run.go(task, processor, key, allow_code)


class _Run:
    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        clock: Clock,
        observer: Observer,
        *,
        splits: Splits,
        lock: dict[str, Any],
        meeting: Meeting,
        baseline: Baseline | None,
    ) -> None:
        self.plan, self.folder, self.clock = plan, folder, clock
        self.splits, self.lock, self.meeting, self.baseline = splits, lock, meeting, baseline
        self.results = opening(plan, clock, folder.path)
        self.observer = RecordingObserver(observer, self.results["notes"])

    def go(self, task: Any, processor: Any, key: str, allow_code: bool) -> RunResult:
        """The run from a prepared folder on."""
        with recorded(self.folder.path / LOG if self.folder.writes else None, self._record, self.meeting.world):
            with self.meeting.agreeing():
                stores = encode_splits(
                    self.splits,
                    task,
                    processor,
                    key,
                    cache=self.plan.recipe.data.cache,
                    observer=self.observer,
                    num_workers=self.plan.recipe.data.num_workers,
                )
            self.meeting.join()
            with self.meeting.agreeing():
                accelerator = self._accelerator()
                self.observer.stage("loading the model")
                prepared = prepare_model(self.plan, task, processor, seed=self.plan.recipe.seed, allow_code=allow_code)
                parameters = trainable_report(prepared.model, prepared.layout)
                if self.folder.writes and not self.folder.resumed:
                    refuse_full_disk(self.folder.path, disk_of(self.plan, parameters))
                inputs = probe_inputs(prepared, stores.get("validation") or stores.get("test") or stores["train"])
                if self.folder.writes:
                    self._write_beginning(task, inputs)
            tracking = Tracking(accelerator, self.plan.recipe.trackers, self.observer)
            session = TrainingSession(prepared, self.splits, stores, self.folder, accelerator, self.observer, tracking)
            self._note_what_is_thin(session)
            rehearse(session)
            before = self._first_evaluations(session)
            with tracking.running({"recipe": self.plan.recipe.origin.name, "method": self.plan.recipe.method.name}):
                outcome = session.run()
            self.results |= training_facts(outcome, parameters, self.clock, accelerator.num_processes)
            self.results["splits"] = self._final_evaluations(session, outcome)
            if not self.folder.writes:
                return RunResult(self.folder.path, {}, 0)
            for name, metrics in before.items():
                self.results["splits"][name]["before"] = metrics
            if is_sharded(prepared.model):
                # Merging and saving want the whole model, which no process holds.
                prepared = prepare_model(self.plan, task, processor, seed=self.plan.recipe.seed, allow_code=allow_code)
                load_weights(prepared, outcome.weights.tensors)
            self.results["exports"] = self._exports(prepared, inputs)
            return self._finish(prepared)

    def _accelerator(self) -> Accelerator:
        recipe, size = self.plan.recipe, self.meeting.world.size
        accelerator = make_accelerator(recipe.train.precision, trackers=list(recipe.trackers), folder=self.folder.path)
        if accelerator.num_processes != size:
            raise RecipeError(f"{size} processes were started and Accelerate found {accelerator.num_processes}", hint=HOW_TO_START)
        return accelerator

    def _note_what_is_thin(self, session: TrainingSession) -> None:
        """What is allowed, and yet seldom meant."""
        if self.folder.resumed or not session.prepared.method.capabilities.trains:
            return
        if session.trainer.total_steps < FEW_STEPS:
            advice = "more epochs or a smaller batch give the method more to learn from"
            self.observer.note(f"only {session.trainer.total_steps} optimizer steps; {advice}")
        if frozen := session.trainer.never_trained():
            advice = "more epochs, a smaller `train.gradual_unfreezing.every` or more of its `blocks` at a time reach them"
            self.observer.note(f"gradual unfreezing ends before {frozen}: these never train; {advice}")
        if self.splits.validation is None:
            self.observer.note(
                "no validation rows: the last weights are kept, whether they are the best or not (data.split.validation)"
            )

    def _write_beginning(self, task: Any, inputs: dict[str, Any]) -> None:
        """The files that make the folder a run; the plan last, since it is what tells a run from a stray folder."""
        folder, origin = self.folder, self.plan.recipe.origin
        if folder.resumed:
            self._write_task(task)
            write_text(folder.path / PLAN, self.plan.to_yaml())
            return
        self.observer.stage("looking at rows")
        quick = quick_findings(self.splits, task, self.plan.recipe.train)
        moved = [f"what was in {folder.path} before is in {folder.moved_aside}"] if folder.moved_aside else []
        compared = comparison_notes(self.baseline, self.plan.recipe, self.lock) if self.baseline else []
        for note in [*moved, *untested(), *self.splits.notes, *compared, *map(str, quick)]:
            self.observer.note(note)
        overrides = "".join(f"# override: {' '.join(override.split())}\n" for override in origin.overrides)
        # Comments may hold what no value may.
        write_text(folder.path / RECIPE, redacted(overrides + origin.text))
        folder.write(LOCK, self.lock)
        self._write_task(task)
        folder.write(RESULTS, self.results)
        write_atomically(
            folder.path / PROBE, lambda path: save_file({key: value.contiguous() for key, value in inputs.items()}, path)
        )
        write_text(folder.path / PLAN, self.plan.to_yaml())

    def _write_task(self, task: Any) -> None:
        self.folder.write(TASK, {"name": task.name, "state": task.state(), "calibration": task.calibration})
        self.results[TASK_DIGEST] = sha256_of(self.folder.path / TASK)

    def _first_evaluations(self, session: TrainingSession) -> dict[str, dict[str, Any]]:
        """Metrics by split of the model as it was loaded. A resumed run computes them anew, before it takes its weights up."""
        if not self.plan.recipe.train.evaluate_first:
            return {}
        found = {}
        for name in [name for name, _ in self.splits.items() if name != "train"]:
            self.observer.stage(f"evaluating {name} before training")
            found[name] = session.evaluate_split(name).metrics
        return found

    def _final_evaluations(self, session: TrainingSession, outcome: Outcome) -> dict[str, Any]:
        splits, task = {}, session.prepared.task
        # Validation first: what it decides (thresholds) holds for the test.
        for name, rows in sorted(self.splits.items(), key=lambda split: split[0] != "validation"):
            if name == "train":
                continue
            self.observer.stage(f"evaluating {name}")
            found = session.evaluate_split(name)
            metrics = found.metrics
            if name == "validation":
                self._compare_with_training(metrics, outcome)
                metrics = {**metrics, **self._calibrate(session, found.predictions, rows)}
            if not self.folder.writes:
                continue
            splits[name] = {
                "rows": len(rows),
                "metrics": metrics,
                "intervals": task.intervals(found.predictions, rows),
                "details": task.details(found.predictions, rows),
            }
        splits["train"] = {"rows": len(self.splits.train)}
        return splits

    def _calibrate(self, session: TrainingSession, predictions: Any, rows: Any) -> dict[str, Any]:
        """Lets the task decide what the validation split decides; the validation metrics that follow from it."""
        task = session.prepared.task
        task.calibration = session.trainer.processes.agreed(task.calibrate(predictions, rows) if self.folder.writes else {})
        if not task.calibration or not self.folder.writes:
            return {}
        self._write_task(task)
        self.results["calibration"] = task.calibration
        return dict(task.score(predictions, rows))

    def _compare_with_training(self, metrics: dict[str, Any], outcome: Outcome) -> None:
        """The reloaded best weights must give the value that made them the best."""
        watched = self.plan.recipe.train.best_metric
        value = metrics.get(watched)
        if outcome.best_value is not None and (
            value is None or abs(value - outcome.best_value) > 1e-6 * max(1.0, abs(outcome.best_value))
        ):
            raise RuntimeError(f"the best weights gave {watched} {outcome.best_value} when saved and {value} when loaded back")

    def _exports(self, prepared: Prepared, inputs: dict[str, Any]) -> dict[str, Any]:
        forms = self.plan.recipe.export
        if not forms:
            return {}
        targets: dict[str, Path] = {form: self._fresh_export_folder(form) for form in forms}
        facts = export_all(prepared, targets, inputs, observer=self.observer)
        return {form: {**fact, "path": f"export/{form}"} for form, fact in facts.items()}

    def _fresh_export_folder(self, form: str) -> Path:
        """An empty place for an export; what an interrupted earlier attempt left there goes."""
        target = self.folder.export / form
        shutil.rmtree(target, ignore_errors=True)
        return target

    def _warning(self, task: Any) -> str | None:
        """What there is to say of a run that ended well and learned nothing."""
        train = self.plan.recipe.train
        direction = next(metric.direction for metric in task.metrics() if metric.name == train.best_metric)
        lost = lost_ground(self.results["splits"], train.best_metric, direction)
        found = "; ".join(filter(None, [rising_loss(step_losses(self.folder.path / METRICS)), lost]))
        return (
            f"{found}. Lower train.learning_rate (it was {train.learning_rate:g}), or raise train.warmup_ratio" if found else None
        )

    def _finish(self, prepared: Prepared) -> RunResult:
        if warning := self._warning(prepared.task):
            self.results["notes"].append(warning)
            logging.getLogger("ftkit").warning(warning)
        self.results["warning"] = warning
        self.results["gates"] = gates(self.plan.recipe.expect, self.results, self.baseline)
        code = MISSED if missed(self.results["gates"]) else 0
        self.results |= {
            "status": "gate_not_met" if code else "completed",
            "exit_code": code,
            "artifacts": artifacts(self.folder.path),
        }
        self.results["seconds"]["this_process"] = self.clock.seconds()
        backbone = unusual_backbone(prepared.layout.model)
        write_text(self.folder.path / CARD, model_card(self.plan, self.results, prepared.task, self.lock, backbone))
        self.folder.write(RESULTS, self.results)
        self.observer.finished(self.results)
        return RunResult(self.folder.path, self.results, code)

    def _record(self, status: str, exit_code: int, text: str) -> None:
        if not self.folder.writes:
            return
        text = redacted(text)
        logging.getLogger("ftkit").error("%s: %s", status, text)
        if (self.folder.path / PLAN).is_file():
            self.folder.write(RESULTS, {**self.results, "status": status, "exit_code": exit_code, "error": text})
