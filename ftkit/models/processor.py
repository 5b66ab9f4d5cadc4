"""Tokenizers and image processors: loading, their identity, and the padding id that a model must share with them."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ftkit.errors import ModelError, Problem
from ftkit.models.facts import ModelFacts
from ftkit.models.folder import locate, read_json, tokenizer_problems
from ftkit.models.quiet import quiet_libraries
from ftkit.paths import PACKAGE_PREFIX
from ftkit.recipe.schema import ModelSpec

_OF_THE_PLACE = frozenset(
    """
    name_or_path is_local local_files_only tokenizer_file vocab_file backend tokenizer_class processor_class model_max_length chat_template
    added_tokens_decoder additional_special_tokens extra_special_tokens src_lang tgt_lang _commit_hash _from_auto gguf_file
    """.split()
)
"""Settings of a tokenizer that say where it comes from, or what its key has from elsewhere."""

NOT_HERE = (
    "It is a hub id. Without access to the hub give a local folder or an installed package (`package:NAME/PATH`), or download it first, "
    "where there is a network: `hf download ID --local-dir FOLDER`"
)


def load_processor(spec: ModelSpec, facts: ModelFacts, base: Path | None = None) -> Any:
    """The tokenizer that a recipe names (the model's own unless `model.tokenizer` is set); for a vision model its image processor.

    A tokenizer without a padding token pads with its end token; the vocabulary is never resized, and padding is masked by
    position, so that a true end token stays visible. Never runs code that ships with a tokenizer. A tokenizer that transformers has
    in Python only is taken as it is (see `ftkit.tasks.parts.tokens`). Raises ModelError if there is none that can be used.
    """
    quiet_libraries()
    if facts.kind == "vision":
        return _load_image_processor(spec, base)
    key = "model.tokenizer" if spec.tokenizer else "model.name"
    tokenizer = _load_tokenizer(spec, key, base)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        message = f"{type(tokenizer).__name__} comes without a vocabulary: its files are not those of this class"
        hint = "Set `tokenizer_class` in its tokenizer_config.json, as at the model's origin"
        raise ModelError(Problem(message=message, key=key, hint=hint))
    if spec.decoder not in (None, spec.name):
        _check_same_vocabulary(spec, tokenizer, base)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            hint = "Set `pad_token` in its tokenizer_config.json to a token of its vocabulary"
            raise ModelError(Problem(message="the tokenizer has neither a padding nor an end token", key=key, hint=hint))
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_tokenizer(spec: ModelSpec, key: str, base: Path | None) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source, arguments = _source(spec, spec.tokenizer or spec.name, key, base)
    if isinstance(source, Path) and "gguf_file" not in arguments and (problems := tokenizer_problems(source, spec, key=key)):
        raise ModelError(problems)
    try:
        # AutoTokenizer puts the class of the model type (Qwen2Tokenizer) above the class that the folder states, and then
        # rebuilds another tokenizer than the one in tokenizer.json.
        if isinstance(source, Path) and _is_plain(source, key):
            return PreTrainedTokenizerFast.from_pretrained(source, **arguments)
        return AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False, **arguments)
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        if _lacks_sentencepiece(source, error):
            message = f"the tokenizer of {spec.tokenizer or spec.name!r} needs the package sentencepiece, which is not installed"
            raise ModelError(Problem(message=message, key=key, hint='pip install "ftkit[sentencepiece]"')) from error
        raise _unloadable("tokenizer", spec.tokenizer or spec.name, key, error) from error


def _lacks_sentencepiece(source: str | Path, error: Exception) -> bool:
    """Whether a tokenizer does not load because of a missing package, for which transformers says so or knows no class for the model."""
    if find_spec("sentencepiece") is not None:
        return False
    unnamed = isinstance(error, ValueError) and "to build an AutoTokenizer" in str(error)
    files = isinstance(source, Path) and any(next(source.glob(pattern), None) for pattern in ("*.model", "*.spm"))
    return "sentencepiece" in str(error).lower() or (unnamed and (files or isinstance(source, str)))


def _check_same_vocabulary(spec: ModelSpec, tokenizer: Any, base: Path | None) -> None:
    """Raises ModelError if the decoder of a pair reads other tokens than the encoder: one tokenizer serves both."""
    other = _load_tokenizer(
        spec.model_copy(update={"name": spec.decoder, "revision": None, "tokenizer": None}), "model.decoder", base
    )
    if other.get_vocab() != tokenizer.get_vocab():
        message = f"{spec.decoder!r} has another vocabulary than {spec.tokenizer or spec.name!r}"
        raise ModelError(Problem(message=message, key="model.decoder", hint="Choose two models with the same tokenizer"))


def _is_plain(folder: Path, key: str) -> bool:
    """Whether a folder says that tokenizer.json is all there is to its tokenizer."""
    settings = folder / "tokenizer_config.json"
    if not settings.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    return read_json(settings, key=key).get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")


def _load_image_processor(spec: ModelSpec, base: Path | None) -> Any:
    from transformers import AutoImageProcessor

    source, arguments = _source(spec, spec.name, "model.name", base)
    if isinstance(source, Path) and not (source / "preprocessor_config.json").is_file():
        hint = "Copy preprocessor_config.json from the model's origin: it states the image size, mean and deviation"
        raise ModelError(Problem(message="has no preprocessor_config.json", place=str(source), key="model.name", hint=hint))
    try:
        # Not torchvision's version, which resizes a little differently: a run would depend on whether torchvision is installed.
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False, backend="pil", **arguments)
    except Exception as error:  # settings of wrong types fail wherever transformers first computes with them
        raise _unloadable("image processor", spec.name, "model.name", error) from error


def _source(spec: ModelSpec, name: str, key: str, base: Path | None) -> tuple[str | Path, dict[str, Any]]:
    """What to hand to from_pretrained: a folder or hub id, and its arguments."""
    path = locate(name, base, key=key)
    if path is None:
        return name, {"revision": spec.revision if name == spec.name else None}
    if path.is_file():
        return path.parent, {"gguf_file": path.name, "local_files_only": True}
    return path, {"local_files_only": True}


def _unloadable(what: str, name: str, key: str, error: Exception) -> ModelError:
    reason = str(error).strip().split("\n")[0][:300]
    message = f"the {what} of {name!r} cannot be loaded ({type(error).__name__}: {reason})"
    # A hub id is no folder; what is wrong with a folder is in the reason.
    is_hub_id = not name.startswith(PACKAGE_PREFIX) and not Path(name).exists()
    return ModelError(Problem(message=message, key=key, hint=NOT_HERE if is_hub_id else ""))


def processor_key(processor: Any) -> str:
    """sha256 over all that decides what a processor does, as hex; the same in every process and folder.

    Truncation and padding are left out: calls set them as they go, and the task's own options decide them.
    """
    from transformers.tokenization_python import PythonBackend

    backend = getattr(processor, "backend_tokenizer", None)
    if isinstance(processor, PythonBackend):
        content: Any = _content_of_python_tokenizer(processor)
    elif backend is None:
        content = {"class": type(processor).__name__, "settings": processor.to_dict()}
    else:
        serialized = json.loads(backend.to_str())
        serialized |= {"truncation": None, "padding": None}
        content = {
            "tokenizer": serialized,
            "special_tokens": {name: str(token) for name, token in processor.special_tokens_map.items()},
            "chat_template": processor.chat_template,
            "model_max_length": processor.model_max_length,
        }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _content_of_python_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """The settings of a tokenizer written in Python and the digests of its vocabulary files; the languages are the task's."""
    with TemporaryDirectory(prefix="ftkit-vocabulary-") as name:
        tokenizer.save_vocabulary(name, filename_prefix=None)
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(name).iterdir())}
    elsewhere = {*_OF_THE_PLACE, *tokenizer.vocab_files_names, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    settings = {key: value for key, value in tokenizer.init_kwargs.items() if key not in elsewhere}
    added = {str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    return {
        "class": type(tokenizer).__name__,
        "files": files,
        "added_tokens": added,
        # Loading fills in what was left out.
        "settings": {key: value for key, value in settings.items() if value not in (None, [], {})},
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "all_special_tokens": sorted(tokenizer.all_special_tokens),
        "chat_template": tokenizer.chat_template,
        "model_max_length": tokenizer.model_max_length,
    }


def save_processor(processor: Any, folder: Path) -> None:
    """Writes the files of a tokenizer or image processor, from which it comes back as it is.

    Vocabulary files of a tokenizer written in Python are copied where it still knows them: BERTweet's own way of writing them
    (transformers 5.23) loses its merges.
    """
    from transformers.tokenization_python import PythonBackend

    files = processor.vocab_files_names if isinstance(processor, PythonBackend) else {}
    known = {name: Path(path) for key, name in files.items() if isinstance(path := getattr(processor, key, None), str)}
    originals = {name: path.read_bytes() for name, path in known.items() if path.is_file()}
    processor.save_pretrained(folder)
    for name, content in originals.items():
        (folder / name).write_bytes(content)


def align_padding(model: Any, processor: Any) -> None:
    """Gives the model's config the padding id of its tokenizer.

    Decoders with a classification head look for the last token that is not padding by this id; without it they refuse
    batches, and with another one than the tokenizer's they read the wrong position.
    """
    padding = getattr(processor, "pad_token_id", None)
    if padding is None:
        return
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = padding
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = padding
