"""Data sets of the Hugging Face hub, through `datasets`. Nothing is ever run that ships with a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ftkit.data.readers.columnar import read_batches
from ftkit.data.readers.source_file import SourceFile
from ftkit.data.table import Table
from ftkit.errors import DataError, Problem
from ftkit.recipe.schema import SourceSpec

SAVE = "load it where there is a network, `dataset.save_to_disk(folder)`, and give that folder"


def read(file: SourceFile, name: str, spec: SourceSpec) -> Table:
    """Rows of one split of a hub data set. Raises DataError with a way out when it cannot be had."""
    if Path(name).exists():
        # `datasets` would take it for the data set, with whatever it holds.
        message = f"{name!r} is a file or folder here, and `hub:` asks for a data set of the hub"
        raise DataError(Problem(message=message, hint="Leave out `hub:` to read what is here, or work in another folder."))
    import datasets

    try:
        dataset = datasets.load_dataset(name, spec.config, split=file.split, revision=spec.revision)
    # datasets, huggingface_hub and the HTTP client each raise their own types here.
    except Exception as error:
        raise explain(error, name, file.split) from error
    return table_from_dataset(dataset, file)


def table_from_dataset(dataset: Any, file: SourceFile) -> Table:
    """A table that shares the Arrow storage of a `datasets.Dataset`."""
    plain = dataset.flatten_indices() if dataset._indices is not None else dataset
    return read_batches(file, plain.data.table.to_batches())


def explain(error: Exception, name: str, split: str) -> DataError:
    """What went wrong and one way out, by the text of the error."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    low = f"{type(error).__name__} {error}".lower()
    if "scripts are no longer supported" in low:
        text = "the data set is a Python script, which is never run"
        hint = "Many such data sets have a converted copy: `revision: refs/convert/parquet`."
    elif "config name is missing" in low or "builderconfig" in low:
        hint = "Name a configuration with `config:` of the source."
    elif "unknown split" in low or "bad split" in low:
        hint = f"The data set has no split {split!r}; name one with `split:` of the source."
    elif "gated" in low or "401" in low or "403" in low:
        hint = "Ask for access on its page, then `hf auth login`."
    else:
        hint = f"Without a network: {SAVE}. A local path must exist as written."
    return DataError(Problem(message=f"cannot load the hub data set {name!r}: {text}", hint=hint))
