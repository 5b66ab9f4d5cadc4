"""A run from recipe to results: the only place that wires everything together and writes to disk."""

from __future__ import annotations

import logging
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file

from ftkit.data.splits import Splits, load_splits
from ftkit.diagnostics.examine import quick_findings
from ftkit.errors import FtkitError, MemoryExhaustedError, RecipeError
from ftkit.files import sha256_of, write_atomically, write_text
from ftkit.models.load import trainable_report
from ftkit.models.naming import unusual_backbone
from ftkit.recipe.plan import Plan
from ftkit.recipe.schema import Recipe
from ftkit.report.model_card import model_card
from ftkit.run.baseline import Baseline, comparison_notes, read_baseline_of, refuse_other_rows
from ftkit.run.compiling import compile_failure
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
from ftkit.run.learning import lost_ground, rising_loss, step_losses
from ftkit.run.lockfile import make_lock
from ftkit.run.measurements import gated_split
from ftkit.run.observer import Observer, RecordingObserver
from ftkit.run.phases import PhaseResult, train_earlier
from ftkit.run.planning import make_plan_here
from ftkit.run.refusals import refuse_another_run, refuse_moving_inputs, refuse_other_bases, refuse_other_inputs
from ftkit.run.results import Clock, artifacts, opening, training_facts
from ftkit.run.signals import raising_signals
from ftkit.run.training import Outcome, TrainingSession
from ftkit.run.wiring import Prepared, encode_splits, make_accelerator, prepare_model, prepare_processor

FEW_STEPS = 50
"""Fewer leave the learning rate's schedule hardly time to rise and fall."""

STATUS_OF_EXIT = {2: "refused", 3: "diverged", 4: "gate_not_met", 5: "out_of_memory", 130: "interrupted", 143: "interrupted"}


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
) -> RunResult:
    """Trains what the recipe says and returns the finished run. Raises FtkitError; nothing that exists is lost.

    same_as: folder and lock of a run; raises RunFolderError, before anything is written, if this one would not train the same.
    """
    clock, watching = Clock(), observer or Observer()
    watching.stage("checking the recipe")
    phases: list[PhaseResult] = []
    baseline = read_baseline_of(recipe)
    if recipe.earlier:
        path = output or Path(make_plan_here(recipe).recipe.output)
        options: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "observer": watching, "allow_code": allow_code}
        recipe, phases = train_earlier(recipe, path.absolute(), train, **options)
    plan = make_plan_here(recipe)
    path = (output or Path(plan.recipe.output)).absolute()
    check_run_folder(path, resume=resume, overwrite=overwrite)
    if overwrite:
        refuse_moving_inputs(plan, path)
    watching.stage("reading data")
    task = plan.task()
    task.allow_code = allow_code
    splits = load_splits(plan.recipe.data, task, recipe.origin.base, watching)
    digests = splits.fingerprints(watching)
    if baseline is not None:
        refuse_other_rows(baseline, plan.recipe, gated_split(digests), digests.get(gated_split(digests)))
    processor, key = prepare_processor(plan)
    accelerator = make_accelerator(plan.recipe.train.precision, trackers=list(plan.recipe.trackers), folder=path)
    if accelerator.num_processes > 1:
        message = f"started with {accelerator.num_processes} processes; this version of ftkit trains in one"
        raise RecipeError(message, hint="Start it with `ftkit train`, without a launcher")
    lock = make_lock(plan, splits, key, world_size=accelerator.num_processes)
    refuse_other_bases(plan, lock["model_files"])
    if same_as is not None:
        refuse_other_inputs(*same_as, lock)
    with open_run_folder(path, resume=resume, overwrite=overwrite) as folder:
        if folder.resumed:
            refuse_another_run(folder, lock)
            if (done := folder.results()) and done.get("status") in FINISHED:
                watching.note(f"this run is already finished ({done['status']}); nothing was done")
                return RunResult(path, done, int(done.get("exit_code", 0)))
        run = _Run(plan, folder, clock, watching, splits=splits, lock=lock, accelerator=accelerator, baseline=baseline)
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
        accelerator: Accelerator,
        baseline: Baseline | None,
    ) -> None:
        self.plan, self.folder, self.clock = plan, folder, clock
        self.splits, self.lock, self.accelerator, self.baseline = splits, lock, accelerator, baseline
        self.results = opening(plan, clock, folder.path)
        self.observer = RecordingObserver(observer, self.results["notes"])

    def go(self, task: Any, processor: Any, key: str, allow_code: bool) -> RunResult:
        """The run from a prepared folder on."""
        with self._recorded():
            stores = encode_splits(
                self.splits,
                task,
                processor,
                key,
                cache=self.plan.recipe.data.cache,
                observer=self.observer,
                num_workers=self.plan.recipe.data.num_workers,
            )
            self.observer.stage("loading the model")
            prepared = prepare_model(self.plan, task, processor, seed=self.plan.recipe.seed, allow_code=allow_code)
            parameters = trainable_report(prepared.model, prepared.layout)
            inputs = probe_inputs(prepared, stores.get("validation") or stores.get("test") or stores["train"])
            self._write_beginning(task, inputs)
            session = TrainingSession(prepared, self.splits, stores, self.folder, self.accelerator, self.observer)
            self._note_what_is_thin(session)
            before = self._first_evaluations(session)
            with self._trackers():
                outcome = session.run()
            self.results |= training_facts(outcome, parameters, self.clock, self.accelerator.num_processes)
            self.results["splits"] = self._final_evaluations(session, outcome)
            for name, metrics in before.items():
                self.results["splits"][name]["before"] = metrics
            self.results["exports"] = self._exports(prepared, inputs)
            return self._finish(prepared)

    def _note_what_is_thin(self, session: TrainingSession) -> None:
        """What is allowed, and yet seldom meant."""
        if self.folder.resumed or not session.prepared.method.capabilities.trains:
            return
        if session.trainer.total_steps < FEW_STEPS:
            advice = "more epochs or a smaller batch give the method more to learn from"
            self.observer.note(f"only {session.trainer.total_steps} optimizer steps; {advice}")
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
        for note in [*moved, *self.splits.notes, *compared, *map(str, quick)]:
            self.observer.note(note)
        overrides = "".join(f"# override: {' '.join(override.split())}\n" for override in origin.overrides)
        write_text(folder.path / RECIPE, overrides + origin.text)
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

    @contextmanager
    def _trackers(self) -> Iterator[None]:
        if not self.plan.recipe.trackers:
            yield
            return
        self.accelerator.init_trackers(
            "ftkit", config={"recipe": self.plan.recipe.origin.name, "method": self.plan.recipe.method.name}
        )
        try:
            yield
        finally:
            self.accelerator.end_training()

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
                metrics = {**metrics, **self._calibrate(task, found.predictions, rows)}
            splits[name] = {
                "rows": len(rows),
                "metrics": metrics,
                "intervals": task.intervals(found.predictions, rows),
                "details": task.details(found.predictions, rows),
            }
        splits["train"] = {"rows": len(self.splits.train)}
        return splits

    def _calibrate(self, task: Any, predictions: Any, rows: Any) -> dict[str, Any]:
        """Lets the task decide what the validation split decides; the validation metrics that follow from it."""
        task.calibration = task.calibrate(predictions, rows)
        if not task.calibration:
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

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Keeps log.txt, and writes into results.json how the run ended if it did not end well."""
        with _logging_to(self.folder.path / LOG):
            try:
                with raising_signals():
                    yield
            except FtkitError as error:
                self._record(STATUS_OF_EXIT.get(error.exit_code, "failed"), error.exit_code, str(error))
                raise
            except Exception as error:
                if (memory := _as_memory_error(error)) is not None:
                    self._record("out_of_memory", memory.exit_code, str(memory))
                    raise memory from error
                if (failure := compile_failure(error)) is not None:
                    self._record("refused", failure.exit_code, str(failure))
                    raise failure from error
                logging.getLogger("ftkit").error("internal error\n%s", traceback.format_exc())
                self._record("failed", 2 if isinstance(error, OSError) else 1, f"{type(error).__name__}: {error}")
                raise

    def _record(self, status: str, exit_code: int, text: str) -> None:
        logging.getLogger("ftkit").error("%s: %s", status, text)
        if (self.folder.path / PLAN).is_file():
            self.folder.write(RESULTS, {**self.results, "status": status, "exit_code": exit_code, "error": text})


def _as_memory_error(error: Exception) -> MemoryExhaustedError | None:
    import torch

    text = str(error)
    lacking = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text or "out of memory" in text
    if not lacking:
        return None
    hint = "Halve train.batch_size and double train.gradient_accumulation_steps, or set train.gradient_checkpointing"
    return MemoryExhaustedError(f"out of memory: {text.splitlines()[0] if text else 'no details'}", hint=hint)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("ftkit")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()
