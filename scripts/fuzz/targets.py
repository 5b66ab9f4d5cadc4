"""What is fuzzed: each target takes bytes, hands them to a part of ftkit that reads files of others, and lets FtkitError alone come out.

A target returns whether ftkit took the input (True) or refused it (False). Whatever else comes out of it is a defect.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ftkit import api
from ftkit.data.sources import read_source
from ftkit.data.splits import load_splits
from ftkit.errors import FtkitError
from ftkit.models.facts import facts_of_config, read_facts
from ftkit.models.gguf_header import read_gguf_header
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.plan import make_plan, recipe_values
from ftkit.recipe.schema import DataSpec, ModelSpec, SourceSpec
from ftkit.registry import TASKS

Target = Callable[[bytes], bool]

CONFIGS: tuple[dict[str, Any], ...] = (
    {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 64, "vocab_size": 64},
    {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "architectures": ["LlamaForCausalLM"], "vocab_size": 64},
    {"model_type": "t5", "d_model": 16, "num_layers": 2, "is_encoder_decoder": True, "vocab_size": 64},
    {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4, "num_channels": 1},
)

SEPARATOR = b"\0\xff\0"
"""Between the files of one input."""

LONGEST_ROWS = 500


@contextmanager
def refusals() -> Any:
    """Passes over FtkitError; says in a list whether there was one."""
    refused: list[bool] = []
    try:
        yield refused
    except FtkitError as error:
        if not str(error) or not all(problem.message for problem in error.problems):
            raise AssertionError("an error without a message") from error
        refused.append(True)


@contextmanager
def _folder() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="ftkit-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def recipe(data: bytes) -> bool:
    """Recipe text. What is a recipe is planned for four kinds of models; a plan reads back as itself."""
    with refusals() as refused:
        text = data.decode("utf-8", errors="surrogatepass") if _is_text(data) else data.decode("latin-1")
        read = parse_recipe(text, "fuzz", base=Path("/nonexistent"))
        for config in CONFIGS:
            with refusals():
                plan = make_plan(read, facts_of_config(config, None), gpu=False, gpu_bf16=False)
                again = parse_recipe(plan.to_yaml(), "plan", base=Path("/nonexistent"))
                assert recipe_values(again) == recipe_values(plan.recipe), "a plan reads back as another one"
    return not refused


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", errors="surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def rows(data: bytes, *, suffix: str, form: str = "auto", task: str = "text-classification", **options: Any) -> bool:
    """A data file: read whole, then checked for a task as training does it."""
    with refusals() as refused, _folder() as folder:
        path = folder / f"rows{suffix}"
        path.write_bytes(gzip.compress(data, 1) if suffix.endswith(".gz") else data)
        spec = SourceSpec.model_validate({"path": path.name, "format": form, **options})
        table = read_source(spec, base=folder)
        for _, row in zip(range(LONGEST_ROWS), table, strict=False):
            assert isinstance(row, dict)
        table.fingerprint()
        with refusals():
            data_spec = DataSpec.model_validate({"train": [spec.model_dump()]})
            load_splits(data_spec, TASKS.get(task)(TASKS.get(task).Options()), folder)
    return not refused


def adapter(data: bytes) -> bool:
    """The folder of an adapter: config and weights. Listed, inspected, converted, taken as a member of a fusion."""
    from ftkit.adapters.converting import convert
    from ftkit.adapters.listing import list_adapters
    from ftkit.adapters.sources import read_trained
    from ftkit.files import read_json
    from ftkit.tuners.fusion_members import read_member

    config, _, weights = data.partition(SEPARATOR)
    with refusals() as refused, _folder() as folder:
        (folder / "adapter_config.json").write_bytes(config)
        for name in ("adapter_model.safetensors", "pytorch_adapter.safetensors"):
            (folder / name).write_bytes(weights)
        list_adapters([folder])
        for to in ("ftkit", "adapterhub"):
            with refusals():
                convert(folder, to, folder / "out", base=None, name="", allow_code=False)
        found = read_trained(folder)
        with refusals():
            api.inspect_adapter(folder)
        with refusals():
            fields = read_json(folder / "adapter_config.json")
            if fields.get("peft_type") in ("ADAPTER", "COMPACTER"):
                read_member(folder, fields)
        with refusals():
            found.tensors()
    return not refused


def run(data: bytes) -> bool:
    """The JSON and YAML of a run folder."""
    from ftkit.adapters.listing import list_adapters
    from ftkit.adapters.sources import read_trained
    from ftkit.run.folder import read_learned, recorded_base
    from ftkit.training.checkpoint import BEST, complete_checkpoints, open_checkpoint

    parts = [*data.split(SEPARATOR), b"", b"", b"", b"", b""]
    with refusals() as refused, _folder() as folder:
        checkpoint = folder / "checkpoints" / "best-00000001"
        checkpoint.mkdir(parents=True)
        places = (
            folder / "plan.yaml",
            folder / "results.json",
            folder / "lock.json",
            folder / "task.json",
            checkpoint / "manifest.json",
        )
        for path, part in zip(places, parts, strict=False):
            path.write_bytes(part)
        (checkpoint / "state.json").write_bytes(b"{}")
        list_adapters([folder])
        complete_checkpoints(folder / "checkpoints", BEST)
        with refusals():
            open_checkpoint(checkpoint).tensors("trainable")
        with refusals():
            recorded_base(folder)
        found = read_trained(folder)
        read_learned(folder, found.results)
    return not refused


def model(data: bytes) -> bool:
    """The JSON of a model folder: config, tokenizer settings, index of weights."""
    parts = [*data.split(SEPARATOR), b"", b"", b""]
    with refusals() as refused, _folder() as folder:
        for name, part in zip(("config.json", "tokenizer_config.json", "model.safetensors.index.json"), parts, strict=False):
            (folder / name).write_bytes(part)
        (folder / "tokenizer.json").write_bytes(b"{}")
        (folder / "part.safetensors").write_bytes(b"")
        read_facts(ModelSpec(name=str(folder)))
    return not refused


def gguf(data: bytes) -> bool:
    """A GGUF file, of which the header is read."""
    with refusals() as refused, _folder() as folder:
        (folder / "model.gguf").write_bytes(data)
        try:
            read_gguf_header(folder / "model.gguf")
        except ValueError:
            refused.append(True)
        read_facts(ModelSpec(name=str(folder / "model.gguf")))
    return not refused


TARGETS: Mapping[str, Target] = {
    "recipe": recipe,
    "csv": partial(rows, suffix=".csv"),
    "tsv": partial(rows, suffix=".tsv", encoding="utf-8,latin-1"),
    "jsonl": partial(rows, suffix=".jsonl"),
    "gzip": partial(rows, suffix=".jsonl.gz"),
    "json": partial(rows, suffix=".json", task="question-answering"),
    "squad": partial(rows, suffix=".json", form="squad", task="question-answering"),
    "conll": partial(rows, suffix=".conll", task="token-classification"),
    "text": partial(rows, suffix=".txt", task="language-modeling"),
    "utf-16": partial(rows, suffix=".csv", encoding="utf-16"),
    "parquet": partial(rows, suffix=".parquet"),
    "arrow": partial(rows, suffix=".arrow"),
    "image": partial(rows, suffix=".png", task="image-classification"),
    "adapter": adapter,
    "run": run,
    "model": model,
    "gguf": gguf,
}
