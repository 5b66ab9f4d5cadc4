"""`ftkit evaluate`, `predict` and `export`: what to do with a finished run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ftkit.cli.files import refuse_existing
from ftkit.cli.options import (
    AdapterColumn,
    Adapters,
    AllowCode,
    AsJson,
    DropBlocks,
    Ensemble,
    Force,
    Plugins,
    PredictionOptions,
    Run,
    load_plugins,
    refuse_both,
)
from ftkit.cli.output import (
    document_text,
    emit,
    one_line,
    print_table,
    say,
    shown_mib,
    shown_number,
    standard_output_for_documents,
)  # fmt: skip
from ftkit.files import refuse_filled

if TYPE_CHECKING:
    from ftkit.run.predictor import Predictor

LABELS_IN_MATRIX = 20


class ExportFormat(str, Enum):
    """What a run can be exported as."""

    adapter = "adapter"
    merged = "merged"


def evaluate(
    run: Run,
    options: PredictionOptions = None,
    split: Annotated[
        str | None, typer.Option("--split", help="A split of the run's recipe (default: test).", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="Other rows, with their targets.", show_default=False)
    ] = None,
    ensemble: Ensemble = None,
    drop_blocks: DropBlocks = 0,
    as_json: AsJson = False,
    plugins: Plugins = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure a run on a split of its recipe, or on other data."""
    refuse_both(split=split, data=data)
    load_plugins(plugins)
    choice = _Choice(run, options or (), ensemble=ensemble or (), drop_blocks=drop_blocks, allow_code=allow_code)
    predictor = _load(choice, as_json)
    found = predictor.evaluate(split=split or "test", data=data)
    if as_json:
        emit(found)
        return
    from ftkit.cli.summary import metric_table

    columns, rows = metric_table({found["split"]: found})
    print_table(columns, rows, right=columns[1:])
    for name, table in found["details"].items():
        _print_details(name.replace("_", " "), table)


def predict(
    run: Run,
    options: PredictionOptions = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="Rows to predict: a data file of any format that recipes know, or `-` for JSON lines on standard input.",
            show_default=False,
        ),
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="A text to predict, instead of --input. Repeatable.", show_default=False)
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Answer what is typed, line by line; generated text as it is written.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Where to write (default: standard output). A table if it ends in .csv or .tsv, else JSON lines.",
            show_default=False,
        ),
    ] = None,
    keep_columns: Annotated[
        bool, typer.Option("--keep-columns", help="Put all columns of a row before its result, not only its `id`.")
    ] = False,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Go on after rows that cannot be used; their result is null, with the reason.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Rows at a time (default: as in training).", show_default=False)
    ] = None,
    force: Force = False,
    adapters: Adapters = None,
    adapter_column: AdapterColumn = None,
    ensemble: Ensemble = None,
    drop_blocks: DropBlocks = 0,
    as_json: AsJson = False,
    plugins: Plugins = None,
    allow_code: AllowCode = False,
) -> None:
    """Predict rows: one JSON line for each, in order, with probabilities.

    Rows stand under the column names of the training data; targets are not needed.
    """
    refuse_both(input=source, text=texts, interactive=interactive)
    useless = {
        "--json": as_json,
        "--output": output,
        "--keep-columns": keep_columns,
        "--batch-size": batch_size,
        "--skip-errors": skip_errors,
        "--adapter": adapters,
    }
    for name, given in useless.items():
        if interactive and given:
            raise typer.BadParameter(f"{name} has no effect with --interactive; leave it out, or give rows by --input or --text")
    if adapter_column and not adapters:
        raise typer.BadParameter("--adapter-column names the adapter of a row; give the adapters by --adapter")
    load_plugins(plugins)
    choice = _Choice(run, options or (), adapters or (), ensemble or (), drop_blocks, allow_code)
    if interactive:
        _converse(choice)
        return
    if not source and not texts:
        raise typer.BadParameter("give --input FILE, --input -, --text TEXT or --interactive")
    if output is not None:
        _check_output(output, source, force)
    from ftkit.cli.predictions import print_predictions, write_predictions

    with standard_output_for_documents():
        wanted: dict[str, Any] = {"batch_size": batch_size, "keep_columns": keep_columns, "skip_errors": skip_errors}
        if choice.adapters:
            found = _predict_with_adapters(choice, texts or str(source), adapter_column, as_json, wanted)
        else:
            predictor = _load(choice, as_json)
            rows: Iterable[Any] = texts if texts else predictor.read(str(source), skip_errors=skip_errors)
            found = predictor.predict(rows, **wanted)
        if output is None:
            print_predictions(found, as_json=as_json)
            return
        count = write_predictions(found, output)
    if as_json:
        emit({"output": str(output.absolute()), "rows": count})
    else:
        say(f"{count:,} predictions in {output}")


def _check_output(output: Path, source: str | None, force: bool) -> None:
    """Raises for an output that would take the place of something. Pipes and devices may be written to."""
    if source and Path(source).exists() and output.exists() and output.samefile(source):
        raise typer.BadParameter(f"--output {output} is the file that is read; give another name")
    if output.is_file() or output.is_dir() or not output.exists():
        refuse_existing(output, force=force)


def export(
    run: Run,
    format: Annotated[
        ExportFormat, typer.Option("--format", help="adapter: what PEFT loads. merged: what plain transformers loads.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Folder to write (default: export/FORMAT in the run).", show_default=False),
    ] = None,
    as_json: AsJson = False,
    plugins: Plugins = None,
    allow_code: AllowCode = False,
) -> None:
    """Export a run, and prove in a new process that the export computes what the run computed."""
    _refuse_unfinished(run)
    refuse_filled((to or run / "export" / format.value).absolute())
    load_plugins(plugins)
    from ftkit import api
    from ftkit.cli.display import make_progress

    with make_progress(as_json=as_json) as display:
        facts = api.export(run, format.value, to=to, allow_code=allow_code, observer=display)
    if as_json:
        emit(facts)
        return
    size, difference = shown_mib(facts["bytes"] / 2**20), f"{facts['max_abs_difference']:.1e}"
    say(f"{one_line(facts['path'])} ({size}, logits within {difference} of the trained model, allowed {facts['tolerance']:.1e})")


def _refuse_unfinished(run: Path) -> None:
    """Raises RunFolderError for what is no finished run, before seconds are spent on loading libraries."""
    from ftkit.run.folder import finished_results, read_run

    finished_results(read_run(run))


@dataclass(frozen=True)
class _Choice:
    """The model that answers: a run, alone, with others beside it, or together with others."""

    run: Path
    options: Sequence[str] = ()
    adapters: Sequence[str] = ()
    ensemble: Sequence[Path] = ()
    drop_blocks: int = 0
    allow_code: bool = False

    def __post_init__(self) -> None:
        refuse_both(adapter=self.adapters, ensemble=self.ensemble)
        refuse_both(ensemble=self.ensemble, drop_blocks=self.drop_blocks)
        if self.ensemble and self.options:
            raise typer.BadParameter(f"{self.options[0]} has no effect with --ensemble; leave it out")


def _load(choice: _Choice, as_json: bool) -> Predictor:
    from ftkit import api
    from ftkit.cli.display import make_progress

    with make_progress(as_json=as_json) as display:
        display.stage("loading the run")
        if choice.ensemble:
            return api.load_ensemble([choice.run, *choice.ensemble], allow_code=choice.allow_code)
        return api.load(choice.run, choice.options, drop_blocks=choice.drop_blocks, allow_code=choice.allow_code)


def _predict_with_adapters(
    choice: _Choice, given: list[str] | str, column: str | None, as_json: bool, wanted: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    from ftkit import api
    from ftkit.cli.display import make_progress

    if column and not isinstance(given, str):
        raise typer.BadParameter("--adapter-column needs rows with columns; give them by --input")
    with make_progress(as_json=as_json) as display:
        display.stage("loading the adapters")
        found = api.load_adapters(
            choice.run, choice.adapters, choice.options, drop_blocks=choice.drop_blocks, allow_code=choice.allow_code
        )
    rows: Iterable[Any] = found.first.read(given, skip_errors=wanted["skip_errors"]) if isinstance(given, str) else given
    return found.predict(rows, column=column, **wanted)


def _converse(choice: _Choice) -> None:
    from ftkit.cli.interactive import converse

    predictor = _load(choice, as_json=False)
    recipe = predictor.plan.recipe
    converse(predictor.session(), title=f"{recipe.task.name}, {recipe.method.name} on {recipe.model.name}")


def _print_details(name: str, table: Any) -> None:
    """A list of mappings as a table, a confusion matrix as a matrix; anything else as JSON."""
    if isinstance(table, list) and table and isinstance(table[0], Mapping):
        columns = list(table[0])
        print_table(columns, [[shown_number(row[column]) for column in columns] for row in table], title=name, right=columns[1:])
    elif isinstance(table, Mapping) and {"labels", "counts"} <= set(table) and len(table["labels"]) <= LABELS_IN_MATRIX:
        labels = [one_line(label, 20) for label in table["labels"]]
        columns = ["truth \\ prediction", *labels]
        rows = [[label, *counts] for label, counts in zip(labels, table["counts"], strict=True)]
        print_table(columns, rows, title=name, right=labels)
    elif isinstance(table, Mapping) and "labels" in table:
        say(f"{name}: {len(table['labels'])} labels; see it with --json\n")
    else:
        say(f"{name}: {document_text(table)}\n")
