"""The run folder's README.md: what was trained, on what, how well, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ftkit.paths import PACKAGE_PREFIX, resolve_package
from ftkit.recipe.plan import Plan
from ftkit.recipe.schema import Recipe
from ftkit.registry import METHODS, TASKS
from ftkit.tasks.base import Head, Task

SPLITS = ("train", "validation", "test")
MERGED = ("export", "merged")
"""Where a run has its merged export."""


def model_card(plan: Plan, results: Mapping[str, Any], task: Task, lock: Mapping[str, Any], backbone: str = "") -> str:
    """Markdown with metrics, intervals, parameters, resources, data and loading code. Values come from `results` alone.

    backbone: see `ftkit.models.naming.unusual_backbone`.
    """
    recipe = plan.recipe
    library = "transformers" if "merged" in results["exports"] else "peft" if "adapter" in results["exports"] else ""
    phases = results.get("phases") or ()
    bases = [phases[0]["model"], phases[0]["decoder"]] if phases else [recipe.model.name, recipe.model.decoder]
    base = " and ".join(f"`{_shown_path(name)}`" for name in bases if name)
    methods = [*(phase["method"] for phase in phases), f"**{recipe.method.name}**"]
    head = [
        "---",
        *([f"library_name: {library}"] if library else []),
        *([f"pipeline_tag: {task.pipeline_tag}"] if task.pipeline_tag else []),
        "tags: [ftkit]",
        "---",
        "",
        f"# {recipe.origin.name}: {recipe.task.name} with {recipe.method.name}",
        "",
        f"{base} adapted to {recipe.task.name} with {', then '.join(methods)} by ftkit {results['ftkit_version']}.",
        "",
        f"{TASKS.get(recipe.task.name).summary} {METHODS.get(recipe.method.name).summary}",
        "",
    ]
    parts = [
        head,
        _metrics(results),
        _phases(results),
        _derivation(results) if results.get("derived") else _facts(plan, results),
        _data(results, lock),
        _loading(plan, results, task, backbone, lock),
        _method(plan),
    ]
    return without_folders("\n".join(line for part in parts for line in part) + "\n", recipe)


def _shown_path(name: str) -> str:
    """A model or a run without the folder that it lies in on the machine of the run; of the export of a run the run, too."""
    path = Path(name)
    if not path.is_absolute():
        return name
    return "/".join(path.parts[-3:]) if path.parts[-2:] == MERGED else path.name


def without_folders(card: str, recipe: Recipe) -> str:
    """The card, which travels with the model, without the folders that data lie in on the machine of the run (notes name files).

    Files of a package are named as recipes name them.
    """
    sources = [source for name in SPLITS for source in getattr(recipe.data, name) or ()]
    files = [Path(source.path) for source in sources if Path(source.path).is_absolute()]
    for source in sources:
        with suppress(FileNotFoundError):
            card = card.replace(str(_installed(source.path)), _without_rows(source.path))
    folders = {str(folder) for folder in (recipe.origin.base, Path.home(), *(file.parent for file in files)) if folder.name}
    for folder in sorted(folders, key=len, reverse=True):
        card = card.replace(f"{folder}/", "")
    return card


def _installed(path: str) -> Path:
    """The folder that a source inside a package is. Raises FileNotFoundError for other sources."""
    if not path.startswith(PACKAGE_PREFIX):
        raise FileNotFoundError(path)
    return resolve_package(_without_rows(path))


def _without_rows(path: str) -> str:
    return re.sub(r"#[0-9]+$", "", path)


def _metrics(results: Mapping[str, Any]) -> list[str]:
    evaluated = {name: facts for name, facts in results["splits"].items() if "metrics" in facts}
    if not evaluated:
        return ["No validation or test rows were given, so nothing was measured.", ""]
    lines = ["## Results", "", "| metric | " + " | ".join(evaluated) + " |", "|---|" + "---|" * len(evaluated)]
    names = list(next(iter(evaluated.values()))["metrics"])
    lines += [f"| {name} | " + " | ".join(_cell(facts, name) for facts in evaluated.values()) + " |" for name in names]
    return [*lines, "", "Square brackets: 95 % bootstrap interval over examples.", ""]


def _cell(facts: Mapping[str, Any], name: str) -> str:
    value = facts["metrics"].get(name)
    interval = facts["intervals"].get(name)
    text = "undefined" if value is None else f"{value:.4f}"
    return f"{text} [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else text


def _phases(results: Mapping[str, Any]) -> list[str]:
    """Of a run in phases, what came before the phase that the rest of the card is about."""
    if not (phases := results.get("phases") or ()):
        return []
    lines = [
        f"{number}. {phase['method']} on `{_shown_path(phase['model'])}`, {phase['steps']:,} steps:"
        f" the run `{phase['folder']}`, beside this one"
        for number, phase in enumerate(phases, 1)
    ]
    base = "/".join((phases[-1]["folder"], *MERGED))
    now = f"{len(phases) + 1}. {results['method']} on `{base}`: this run, which the rest of this page is about"
    return ["## Phases", "", *lines, now, ""]


def _facts(plan: Plan, results: Mapping[str, Any]) -> list[str]:
    parameters, seconds = results["parameters"], results["seconds"]
    share = 100 * parameters["trainable"] / parameters["total"]
    train = plan.recipe.train
    lines = [
        "## Training",
        "",
        f"- trained parameters: {parameters['trainable']:,} of {parameters['total']:,} ({share:.3g} %)",
        f"- steps: {results['steps']:,} of {results['total_steps']:,} planned, {results['epochs']:.2f} epochs"
        + (", stopped early" if results["stopped_early"] else ""),
        f"- learning rate {train.learning_rate:g} ({train.schedule}), batch size {train.batch_size}"
        f" x {train.gradient_accumulation_steps}, {train.optimizer}, {train.precision}, seed {results['seed']}",
        f"- {seconds['training']:.0f} s training, {seconds['evaluation']:.0f} s evaluation,"
        f" {results['tokens_per_second'] or 0:,.0f} {results['length_unit']}/s, peak memory {results['peak_memory_mib']:,.0f} MiB",
    ]
    if results["best"]["step"] is not None:
        lines.append(f"- weights of step {results['best']['step']:,}, the best by validation {train.best_metric}")
    return [*lines, ""]


def _derivation(results: Mapping[str, Any]) -> list[str]:
    """Of a run that was not trained but made out of others."""
    derived, parameters = results["derived"], results["parameters"]
    share = 100 * parameters["trainable"] / parameters["total"]
    lines = [
        "## Made from other runs",
        "",
        f"Not trained: made by `ftkit adapters {derived['by']}` out of",
        "",
        *(f"- `{_shown_path(source)}`" for source in derived["from"]),
        "",
        f"- parameters of the adapter and head: {parameters['trainable']:,} of {parameters['total']:,} ({share:.3g} %)",
    ]
    settings = {name: value for name, value in derived.items() if isinstance(value, (str, int, float)) and name != "by"}
    lines += [
        f"- {name.replace('_', ' ')}: {value:g}" if isinstance(value, float) else f"- {name.replace('_', ' ')}: {value}"
        for name, value in settings.items()
    ]
    return [*lines, ""]


def _data(results: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    lines = ["## Data", "", "| split | rows | sha256 |", "|---|---|---|"]
    recorded = lock["training"]["data"]
    lines += [f"| {name} | {facts['rows']:,} | `{recorded[name]['sha256'][:16]}` |" for name, facts in results["splits"].items()]
    notes = [f"- {note}" for note in results["notes"]]
    return [*lines, "", *notes, *([""] if notes else [])]


def _loading(plan: Plan, results: Mapping[str, Any], task: Task, backbone: str, lock: Mapping[str, Any]) -> list[str]:
    head = task.head()
    example = "--input rows.jsonl" if _input_columns(task) else "--text 'your text'"
    lines = ["## Use", "", "In the folder of this file:", "", "```bash", f"ftkit predict . {example}", "```", ""]
    reader, variable = ("AutoImageProcessor", "processor") if "vision" in task.model_kinds else ("AutoTokenizer", "tokenizer")
    if "merged" in results["exports"]:
        lines += [
            "The merged model needs transformers only:", "", "```python", f"from transformers import {reader}, {head.auto_class}", "",
            f'model = {head.auto_class}.from_pretrained("{results["exports"]["merged"]["path"]}")',
            f'{variable} = {reader}.from_pretrained("{results["exports"]["merged"]["path"]}")',
            *task.code_example(), "```", "",
        ]  # fmt: skip
    if "adapter" in results["exports"]:
        lines += _loading_adapter(plan, results, head, backbone, lock)
    return lines


def _input_columns(task: Task) -> bool:
    """Whether a row to predict is more than one text."""
    needed = [column for column in task.columns().values() if column.required and not column.target]
    return len(needed) != 1 or needed[0].file


def _loading_adapter(plan: Plan, results: Mapping[str, Any], head: Head, backbone: str, lock: Mapping[str, Any]) -> list[str]:
    known = {key: head.config[key] for key in ("num_labels", "id2label", "label2id") if key in head.config}
    arguments = "".join(f", {key}={value!r}" for key, value in known.items())
    name, adapter = plan.recipe.model.name, results["exports"]["adapter"]["path"]
    imports, base = base_code(name)
    local = Path(name).is_absolute()
    own = not METHODS.get(plan.recipe.method.name).known_to_peft
    return [
        "The adapter needs the base model and PEFT:", "", "```python", *([imports, ""] if imports else []),
        *(["import ftkit.tuners  # registers the tuners that PEFT lacks"] if own else []),
        f"from peft import {'PeftConfig, ' if local else ''}PeftModel",
        f"from transformers import {'AutoModel, ' if backbone else ''}{head.auto_class}", "",
        *([f'base_model = PeftConfig.from_pretrained("{adapter}").base_model_name_or_path'] if local else []),
        f"base = {head.auto_class}.from_pretrained({base}{arguments})",
        # transformers found none of the backbone's weights, and only warned.
        *([f"base.{backbone} = AutoModel.from_pretrained({base})"] if backbone else []),
        f'model = PeftModel.from_pretrained(base, "{adapter}")', "```", "",
        *(_finding_base(name, adapter, lock["model_files"]) if local else []),
    ]  # fmt: skip


def base_code(name: str) -> tuple[str, str]:
    """An import ('' for none), and what `from_pretrained` takes for a base model; a local one stands in `base_model`.

    transformers knows hub ids and folders, not `package:`, and a GGUF file only by its folder and its name.
    """
    *folders, file = name.split("/")
    gguf = f', gguf_file="{file}"' if file.lower().endswith(".gguf") else ""
    if Path(name).is_absolute():
        return ("import os", f"os.path.dirname(base_model){gguf}") if gguf else ("", "base_model")
    if not name.startswith(PACKAGE_PREFIX):
        return "", f'"{name}"'
    package, _, inner = ("/".join(folders) if gguf else name).removeprefix(PACKAGE_PREFIX).partition("/")
    # Unlike importlib.resources it imports nothing: what a package asks for need not be installed.
    place = f"find_spec({package!r}).submodule_search_locations[0]"
    return "from importlib.util import find_spec", (f'f"{{{place}}}/{inner}"' if inner else place) + gguf


def _finding_base(name: str, adapter: str, hashes: Mapping[str, str]) -> list[str]:
    """How an adapter finds a base that is a folder of the machine of the run."""
    weights = [f"{file} `{digest[:16]}`" for file, digest in hashes.items() if Path(file).suffix in (".safetensors", ".gguf")]
    more = f" and {len(weights) - 1} more files" if len(weights) > 1 else ""
    said = f" (sha256 of {weights[0]}{more}; `lock.json` has all of them)" if weights else ""
    return [
        f"The base is the folder `{_shown_path(name)}`{said}. `base_model_name_or_path` in `{adapter}/adapter_config.json` is its",
        "place on the machine of the run: elsewhere, and before the adapter is passed on, write there where others find the base.",
        "",
    ]


def _method(plan: Plan) -> list[str]:
    method = METHODS.get(plan.recipe.method.name)
    lines = ["## Method", "", f"{method.name}: `{method.update_rule}`"]
    if method.paper:
        lines += ["", f"{method.paper.authors} ({method.paper.year}). {method.paper.title}. {method.paper.url}"]
    return [*lines, ""]
