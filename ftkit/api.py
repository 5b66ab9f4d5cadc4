"""The public Python API. The command line only calls these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.models.quiet import quiet_libraries
from ftkit.recipe import load as recipe_load
from ftkit.recipe.schema import Recipe
from ftkit.run.observer import Observer

if TYPE_CHECKING:
    from ftkit.run.adapter_set import AdapterSet
    from ftkit.run.predictor import Predictor
    from ftkit.run.train import RunResult


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A checked recipe. `overrides` are `key.path=value` texts, as on the command line. Raises RecipeError."""
    return recipe_load.load_recipe(Path(path), overrides)


def validate(recipe: Recipe, *, observer: Observer | None = None) -> dict[str, Any]:
    """Checks recipe, model folder, method and every data row without torch; returns the resolved recipe and split sizes.

    Raises RecipeError, ModelError or DataError with all problems found.
    """
    from ftkit.run.planning import validation_report

    return validation_report(recipe, observer)


def plan(recipe: Recipe, *, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """The complete resolved recipe with the source of each default, sizes, parameters, steps, memory (MiB) and disk (MiB)."""
    from ftkit.run.planning import plan_report

    return plan_report(recipe, observer=observer, allow_code=allow_code)


def doctor(recipe: Recipe, *, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """Defects of the data: `findings`, worst first (see `ftkit.diagnostics.findings.Finding`), and `rows`, usable ones by split.

    Data that cannot be read or used is a finding too. allow_code: see `train`. Raises RecipeError or ModelError if the recipe itself
    does not hold.
    """
    quiet_libraries()
    from ftkit.diagnostics.examine import examine
    from ftkit.run.planning import make_plan_here

    watching = observer or Observer()
    return examine(make_plan_here(recipe), stage=watching.stage, allow_code=allow_code).to_json()


def doctor_resume(run: str | Path, *, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """Whether resuming a run is exact on this machine: trains a stretch of it again, and compares bit by bit; see `ftkit.run.replaying`.

    The run is only read. Raises RunFolderError where there is nothing to compare, or where data, tokenizer or base model are others.
    """
    quiet_libraries()
    from ftkit.run.replaying import prove_resuming

    return prove_resuming(Path(run), observer=observer, allow_code=allow_code)


def inspect(recipe: Recipe, *, split: str = "train", rows: int = 3) -> list[dict[str, Any]]:
    """The first rows of a split, token by token with labels and masks, as the model will see them."""
    from ftkit.run.planning import inspect_rows

    return inspect_rows(recipe, split=split, rows=rows)


def train(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
    allow_code: bool = False,
) -> RunResult:
    """Trains, evaluates and exports what the recipe says.

    output: the run folder (default: the recipe's). resume: continue an interrupted run exactly where its last checkpoint stands.
    overwrite: move an existing folder aside. allow_code: the consent that `model.trust_remote_code` and `evaluate:` metrics need
    beside the recipe. Raises FtkitError subclasses; the result's exit code is 4 where a gate of `expect:` was not met.
    """
    quiet_libraries()
    from ftkit.run.train import train as run_train

    folder = Path(output) if output is not None else None
    return run_train(recipe, output=folder, resume=resume, overwrite=overwrite, observer=observer, allow_code=allow_code)


def smoke(recipe: Recipe, *, observer: Observer | None = None, allow_code: bool = False) -> dict[str, Any]:
    """Tries the whole life of a recipe on few rows, in a folder that goes in the end; see `ftkit.run.smoke`.

    Trains four steps, is killed in the third, resumes, exports, reloads, evaluates and predicts. Raises what `train` would raise, with the
    name of the stage.
    """
    quiet_libraries()
    from ftkit.run.smoke import smoke as try_out

    return try_out(recipe, observer=observer, allow_code=allow_code)


def load(run: str | Path, overrides: Sequence[str] = (), *, drop_blocks: int = 0, allow_code: bool = False) -> Predictor:
    """The model of a finished run: `.predict(rows)`, `.session()` and `.evaluate(split)`.

    overrides: options that concern nothing but prediction, as `task.generation.max_new_tokens=64`. Raises RecipeError for others.
    drop_blocks: leave the bottleneck adapters of so many lowest blocks out (AdapterDrop).
    """
    quiet_libraries()
    from ftkit.run.predictor import load_predictor

    predictor = load_predictor(Path(run), overrides, allow_code=allow_code)
    if drop_blocks:
        from ftkit.run.dropping import drop_blocks as drop

        drop(predictor, drop_blocks)
    return predictor


def load_ensemble(runs: Sequence[str | Path], *, allow_code: bool = False) -> Predictor:
    """Finished runs of one recipe with other seeds (or data) that answer together, by votes or by the mean of their logits.

    Raises RecipeError for runs that differ in base, task, method or labels, or that write text.
    """
    quiet_libraries()
    from ftkit.run.ensemble import load_ensemble as load_members

    return load_members([Path(run) for run in runs], allow_code=allow_code)


def load_adapters(
    run: str | Path,
    adapters: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    drop_blocks: int = 0,
    allow_code: bool = False,
) -> AdapterSet:
    """A run and others on the same base, which is in memory once: `.predict(rows, column=...)`, `.names`, `.predictor(name)`.

    adapters: run folders, or `NAME=FOLDER`. Raises ModelError for another base, RecipeError for names that come twice.
    """
    quiet_libraries()
    from ftkit.run.adapter_set import load_adapters as load_members

    found = load_members(Path(run), [str(adapter) for adapter in adapters], overrides, allow_code=allow_code)
    if drop_blocks:
        from ftkit.run.dropping import drop_blocks as drop

        for name in found.names:
            drop(found.members[name].predictor, drop_blocks)
    return found


def gate(run: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Holds a finished run against gates again, without training: `{folder, recipe, splits, gates, notes, exit_code}` (0, or 4).

    overrides: other gates than its own (`expect={accuracy: ">= 0.9"}`). Raises RecipeError for gates that cannot be, RunFolderError for
    what is no finished run.
    """
    from ftkit.run.gating import gate_run

    return gate_run(Path(run), overrides)


def rerun(
    run: str | Path, *, output: str | Path | None = None, allow_code: bool = False, observer: Observer | None = None
) -> dict[str, Any]:
    """Trains a run's plan again in a new folder (default: `RUN-rerun`) and says what came out otherwise; see `ftkit.run.rerunning`.

    Raises RunFolderError where data, tokenizer or base model are others than the run was trained on.
    """
    quiet_libraries()
    from ftkit.run.rerunning import rerun as run_again

    return run_again(Path(run), output=Path(output) if output else None, observer=observer, allow_code=allow_code)


def diff(a: str | Path, b: str | Path) -> dict[str, Any]:
    """In what two finished runs differ: recipe, data, versions, results; see `ftkit.run.comparing`. Raises RunFolderError."""
    from ftkit.run.comparing import diff_runs

    return diff_runs(Path(a), Path(b))


def baseline(run: str | Path) -> dict[str, Any]:
    """What the baseline file of a finished run holds, which `expect: {vs: {file: ...}}` compares with. Raises RunFolderError."""
    from ftkit.run.baseline import make_baseline

    return make_baseline(Path(run))


def export(
    run: str | Path, format: str, *, to: str | Path | None = None, allow_code: bool = False, observer: Observer | None = None
) -> dict[str, Any]:
    """Exports a finished run as `adapter` or `merged` and proves the export in a new process.

    to: the folder to write (default: `export/<format>` in the run). Raises RecipeError if the method has no such form,
    ExportError if the export does not compute what the run computed.
    """
    quiet_libraries()
    from ftkit.run.exporting import export_run

    return export_run(Path(run), format, to=Path(to) if to else None, allow_code=allow_code, observer=observer or Observer())


# --- what was trained --------------------------------------------------------------------------------------------------


def list_adapters(folders: Sequence[str | Path], *, base: str | None = None) -> list[dict[str, Any]]:
    """Runs and exported adapters at or below folders: method, base, parameters, size, task, best metric, when.

    base: a model folder that each is compared with, by the sha256 of its files (`base_matches`). Raises RunFolderError, ModelError.
    """
    from ftkit.adapters.listing import list_adapters as find

    return find([Path(folder) for folder in folders], base)


def inspect_adapter(path: str | Path, *, allow_code: bool = False) -> dict[str, Any]:
    """Parameters, norm and effective rank of what a run or adapter holds, by layer; see `ftkit.adapters.inspecting`."""
    quiet_libraries()
    from ftkit.adapters.inspecting import inspect_adapter as look
    from ftkit.adapters.sources import read_trained

    return look(read_trained(Path(path)), allow_code=allow_code)


def diff_adapters(a: str | Path, b: str | Path) -> dict[str, Any]:
    """In what two runs or adapters differ: tensors, settings, base; see `ftkit.adapters.differing.diff`."""
    quiet_libraries()
    from ftkit.adapters.differing import diff
    from ftkit.adapters.sources import read_trained

    return diff(read_trained(Path(a)), read_trained(Path(b)))


def merge_adapters(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] = (),
    combination: str = "",
    rank: int | None = None,
    density: float | None = None,
    head: str = "average",
    evaluate: Sequence[str] | None = None,
    allow_code: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Makes one run out of several with adapters of one base and one label set; returns its results, `derived.before` of the members.

    weights: one for each (default: equal, summing to 1). combination: PEFT's `combination_type` (default: `cat`, exact). rank: with svd.
    density: share of values to keep, with ties, dare and magnitude_prune. head: `average`, or the number (from 1) or folder of the run
    whose head to take. evaluate: splits to measure before and after (default: validation and test; `none`: nothing).
    Raises RecipeError, ModelError or RunFolderError for what does not go together.
    """
    quiet_libraries()
    from ftkit.adapters.merging import MergeRequest
    from ftkit.adapters.merging import merge_adapters as merge

    request = MergeRequest(
        runs=[Path(run) for run in runs],
        output=Path(output),
        weights=weights,
        combination=combination,
        rank=rank,
        density=density,
        head=head,
        evaluate=evaluate,
        allow_code=allow_code,
    )
    return merge(request, observer or Observer())


def extract_lora(
    run: str | Path,
    rank: int,
    output: str | Path,
    *,
    base: str | None = None,
    keep_rest: bool = False,
    evaluate: Sequence[str] | None = None,
    allow_code: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Makes a LoRA run out of one that tuned the model itself; returns its results, `derived` with the errors by layer.

    base: the model to take the updates against (default: that of the run's recipe). keep_rest: the adapter also holds what is no linear
    layer's weight (embeddings, norms, biases), whole. evaluate: as for `merge_adapters`.
    """
    quiet_libraries()
    from ftkit.adapters.extracting import ExtractRequest
    from ftkit.adapters.extracting import extract_lora as extract

    request = ExtractRequest(
        run=Path(run), rank=rank, output=Path(output), base=base, evaluate=evaluate, allow_code=allow_code, keep_rest=keep_rest
    )
    return extract(request, observer or Observer())


def convert_adapter(
    source: str | Path, to: str, output: str | Path, *, base: str | None = None, name: str = "", allow_code: bool = False
) -> dict[str, Any]:
    """Rewrites a bottleneck adapter of AdapterHub's library for ftkit (`to="ftkit"`), or one of ftkit for it (`to="adapterhub"`).

    base: the base model's folder (default: of a run its own). name: what AdapterHub is to call the adapter (default: the source's name).
    Returns {`path`, `to`, `name`, `settings`, `tensors`, `left_out`}. Raises RecipeError with each setting that the other side cannot
    express, ModelError if names or shapes do not fit the base.
    """
    quiet_libraries()
    from ftkit.adapters.converting import convert

    return convert(Path(source), to, Path(output), base=base, name=name, allow_code=allow_code)


def fuse_adapters(
    adapters: Sequence[str | Path],
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
    allow_code: bool = False,
) -> RunResult:
    """Trains an AdapterFusion of trained adapters on the data of a recipe: `train` with the method replaced.

    overrides: as for `load_recipe`, applied after that. Raises as `train` does.
    """
    from ftkit.adapters.fusing import fusion_overrides

    chosen = load_recipe(recipe, fusion_overrides([Path(adapter) for adapter in adapters], overrides))
    return train(chosen, output=output, resume=resume, overwrite=overwrite, observer=observer, allow_code=allow_code)
