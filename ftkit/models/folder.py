"""Where a model lies on this machine, which files it is made of, and whether they can be used. No torch here."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from ftkit import files
from ftkit.errors import ModelError, Problem
from ftkit.models.tokenizer_files import TOKENIZER_PARTS, missing_files
from ftkit.paths import PACKAGE_PREFIX, home_expanded, resolve_package
from ftkit.recipe.schema import ModelSpec

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
NO_WEIGHTS = (
    "Download the model again; to train a new one from its config.json: `model: {name: ..., weights: random}` with `method: full`"
)
PICKLED_WEIGHTS = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "model*.bin")
LONGEST_SHOWN = 80
MOST_PROBLEMS = 20
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    WEIGHTS,
    WEIGHTS_INDEX,
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.*",
    "additional_chat_templates/*",
    "preprocessor_config.json",
    "processor_config.json",
    "*.py",
    *TOKENIZER_PARTS,
)


def model_files(path: Path) -> list[Path]:
    """Files that decide what a model computes: config, tokenizer, weights, code. Sorted, without README and the like.

    path: a model folder, or a .gguf file (which is its own only file).
    """
    if path.is_file():
        return [path]
    return sorted({file for pattern in MODEL_FILES for file in path.glob(pattern) if file.is_file()})


def locate(name: str, base: Path | None = None, *, key: str = "model.name") -> Path | None:
    """The folder or .gguf file that `name` means on this machine; None if it can only be a hub id.

    Tried in order: `package:`, relative to the working folder, relative to `base`. A name that looks like a path
    (leading `.`, `/` or `~`, two slashes, or the ending `.gguf`), or that is close to the name of a model folder
    next to it, is never taken for a hub id. Raises ModelError if nothing is there.
    """
    if name.startswith(PACKAGE_PREFIX):
        try:
            return resolve_package(name)
        except FileNotFoundError as error:
            raise ModelError(
                Problem(message=str(error), key=key, hint="Install it (`pip install ...`) or correct the path")
            ) from error
    candidates = [home_expanded(name)]
    if base is not None and not candidates[0].is_absolute():
        candidates.append(base / candidates[0])
    for candidate in candidates:
        if candidate.exists():
            return candidate.resolve()
    sibling = next((near for candidate in candidates if (near := _nearest_sibling(candidate))), None)
    if sibling is None and not _looks_like_path(name):
        return None
    hint = (
        f"Did you mean {str(Path(name).parent / sibling)!r}?"
        if sibling
        else "Give a folder, a .gguf file, a hub id or `package:...`"
    )
    raise ModelError(Problem(message=f"there is no model folder or file {name!r}", key=key, hint=hint))


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.endswith(".gguf")


def _nearest_sibling(path: Path) -> str | None:
    if not path.parent.is_dir():
        return None
    models = [other.name for other in path.parent.iterdir() if (other / "config.json").is_file() or other.suffix == ".gguf"]
    matches = get_close_matches(path.name, models, n=1, cutoff=0.7)
    return matches[0] if matches else None


def read_json(path: Path, *, key: str = "model.name") -> dict[str, Any]:
    """A JSON object from a file of a model or adapter. Raises ModelError if it is not one."""
    hint = "Restore the file from where the model came from"
    try:
        content = files.read_json(path)
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        raise ModelError(Problem(message=f"cannot be read as JSON: {reason}", place=str(path), key=key, hint=hint)) from error
    if not isinstance(content, dict):
        message = f"holds a {type(content).__name__}, expected a JSON object"
        raise ModelError(Problem(message=message, place=str(path), key=key, hint=hint))
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises ModelError if there is none."""
    path = folder / "config.json"
    if path.is_file():
        return read_json(path)
    if (folder / ADAPTER_CONFIG).is_file():
        message, hint = "holds an adapter, not a model", "Name the model that the adapter belongs to"
    elif weights := sorted(folder.glob("*.gguf")):
        message, hint = "has no config.json", f"Name the file itself: {weights[0]}"
    else:
        message, hint = "has no config.json", "A model folder has config.json, model.safetensors and tokenizer files"
    raise ModelError(Problem(message=message, place=str(folder), key="model.name", hint=hint))


def check_remote_code(config: dict[str, Any], path: Path, spec: ModelSpec) -> None:
    """Raises ModelError if a config asks for Python code that ships with the model and the recipe does not allow it."""
    code = config.get("auto_map")
    if not code or spec.trust_remote_code:
        return
    named = ", ".join(f"{name}: {target}" for name, target in code.items()) if isinstance(code, dict) else str(code)
    raise ModelError(
        Problem(
            message=f"`auto_map` asks to run Python code that ships with the model ({named[:200]})",
            place=str(path),
            key="model.trust_remote_code",
            hint="Read that code first; then set `trust_remote_code: true` and pass --trust-remote-code",
        )
    )


def check_no_adapter(folder: Path) -> None:
    """Raises ModelError if an adapter lies in a model's folder: transformers would put it into the model unasked, a pickled one, too."""
    if (folder / ADAPTER_CONFIG).is_file():
        message = f"holds an adapter beside the model ({ADAPTER_CONFIG}), which would be loaded with it unasked"
        hint = f"Move {ADAPTER_CONFIG} and the adapter's weights to a folder of their own"
        raise ModelError(Problem(message=message, place=str(folder), key="model.name", hint=hint))


def check_folder(folder: Path, config: dict[str, Any], spec: ModelSpec, *, text: bool) -> None:
    """Raises ModelError with everything that keeps a model folder from being used.

    text: the model reads text, so it needs a tokenizer (unless the recipe names another one).
    """
    check_remote_code(config, folder / "config.json", spec)
    check_no_adapter(folder)
    problems = _weight_problems(folder) if spec.weights == "pretrained" else []
    if text and spec.tokenizer is None:
        problems += tokenizer_problems(folder, spec)
    if problems:
        raise ModelError(problems)


def tokenizer_problems(folder: Path, spec: ModelSpec, *, key: str = "model.name") -> list[Problem]:
    """What keeps the tokenizer of a folder from being loaded. Raises ModelError if it ships its own code."""
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        check_remote_code(read_json(settings, key=key), settings, spec)
    missing = missing_files(folder)
    if missing:
        message = f"lacks {' and '.join(missing)}, which its tokenizer is made of"
        return [Problem(message=message, place=str(folder), key=key, hint="Copy them from the model's origin")]
    if missing is not None or any(next(folder.glob(pattern), None) for pattern in ("tokenizer.json", *TOKENIZER_PARTS)):
        return []
    hint = "Copy tokenizer.json and tokenizer_config.json next to config.json, or name a tokenizer with `model.tokenizer`"
    return [Problem(message="has no tokenizer files (tokenizer.json or a vocabulary)", place=str(folder), key=key, hint=hint)]


def _weight_problems(folder: Path) -> list[Problem]:
    if (folder / WEIGHTS).is_file():
        return []
    if (folder / WEIGHTS_INDEX).is_file():
        missing = sorted({name for name in shards_of(folder / WEIGHTS_INDEX) if not (folder / name).is_file()})
        message = f"{len(missing)} of its weight files are missing: {', '.join(missing[:5])}"
        return [Problem(message=message, place=str(folder), key="model.name", hint="Download the model again")] if missing else []
    pickled = sorted(file.name for pattern in PICKLED_WEIGHTS for file in folder.glob(pattern))
    if not pickled:
        return [Problem(message=f"has no weights ({WEIGHTS})", place=str(folder), key="model.name", hint=NO_WEIGHTS)]
    return [
        Problem(
            message=f"has its weights only as pickle ({pickled[0]}), which can run code when it is read; ftkit reads {WEIGHTS}",
            place=str(folder),
            key="model.name",
            hint="If you trust the file, convert it once: AutoModel.from_pretrained(folder).save_pretrained(folder)",
        )
    ]


def shards_of(index: Path) -> list[str]:
    """The files that an index of weights names, as often as it does. Raises ModelError for anything but .safetensors files beside it."""

    def problem(message: str) -> Problem:
        return Problem(message=message, place=str(index), key="model.name", hint="Download the model again")

    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(problem(f"its `weight_map` is {shown(shards)}, expected the file name of each weight"))
    found = []
    for weight, name in shards.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            found.append(problem(f"`weight_map` says {shown(name)} for {shown(weight)}, expected the name of a .safetensors file"))
        elif "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            found.append(problem(f"`weight_map` names {shown(name)}, which is not in the model's folder"))
    if found:
        raise ModelError(found[:MOST_PROBLEMS])
    return list(shards.values())


def shown(value: Any) -> str:
    """A value in a message, shortened."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
