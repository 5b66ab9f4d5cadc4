"""What can be known of a model from its folder alone, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftkit.errors import ModelError, Problem
from ftkit.models.folder import check_folder, check_no_adapter, check_remote_code, locate, model_files, read_config, shown
from ftkit.models.gguf_header import read_gguf_header
from ftkit.models.tokenizer_files import written_in_python
from ftkit.recipe.schema import ModelSpec

__all__ = ["ModelFacts", "model_files", "read_facts"]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model as its config describes it.

    kind: `encoder`, `decoder`, `encoder-decoder` or `vision`; `multimodal` and `audio` for what no task here handles;
        `unknown` for a hub id that is not on this machine (then all sizes are 0 and nothing can be checked before loading).
    model_type: transformers' name of the architecture (`bert`, `llama` ...).
    hidden_size, block_count: width and number of transformer blocks (encoder + decoder).
    max_positions: longest input in tokens, None where the architecture has no limit.
    path: the folder (or .gguf file) it lies in; None for a hub id that is not on this machine.
    channels: of the images that it takes; None where the config does not say.
    decoder_path: where the decoder lies, if it is a model of its own.
    architectures: the classes that the config names; empty where it does not say.
    tied: whether a language model's output layer is its token embeddings; None where the config does not say.
    offsets: whether its tokenizer says which characters its tokens are; those that transformers has in Python only do not. True where
        the files do not tell.
    """

    kind: str
    model_type: str
    hidden_size: int
    block_count: int
    max_positions: int | None
    vocab_size: int | None
    path: Path | None
    channels: int | None = None
    decoder_path: Path | None = None
    tied: bool | None = None
    architectures: tuple[str, ...] = ()
    offsets: bool = True

    @property
    def narrow_encoder(self) -> bool:
        """Whether it is an encoder at most 512 wide (MiniLM, BERT small): such models train well at rates far above those of BERT base."""
        return self.kind == "encoder" and 0 < self.hidden_size <= 512

    @property
    def only_pretrained(self) -> bool:
        """Whether the config says that the checkpoint comes straight from its pretraining, without a head for any other task."""
        return bool(self.architectures) and all(name.endswith(_PRETRAINED) for name in self.architectures)


UNKNOWN = ModelFacts(kind="unknown", model_type="", hidden_size=0, block_count=0, max_positions=None, vocab_size=None, path=None)

# Beginnings of model types that are decoders even where `architectures` does not say so (bare or classification checkpoints).
_DECODERS = tuple(
    """
    apertus arcee biogpt bitnet bloom codegen cohere ctrl dbrx deepseek diffllama doge ernie4_5 exaone falcon gemma glm gpt granite
    helium hunyuan jamba jetmoe lfm2 llama mamba minimax mistral mixtral mpt nemotron olmo openai-gpt persimmon phi qwen
    recurrent_gemma rwkv seed_oss smollm stablelm starcoder xglm zamba
    """.split()
)
_ENCODER_DECODERS = frozenset({"t5", "mt5", "umt5", "longt5", "bart", "mbart", "pegasus", "marian", "led", "m2m_100", "blenderbot"})
# Ends of class names; the bare model of an architecture, and GPT-2's LMHeadModel, end in `Model`.
_PRETRAINED = ("Model", "ForCausalLM", "ForMaskedLM", "ForPreTraining", "ForConditionalGeneration", "ForMaskedImageModeling")
_AUDIO_KEYS = ("conv_dim", "num_mel_bins")
_VISION_KEYS = ("image_size", "patch_size", "num_channels")
# These count positions from padding_idx + 1, so that many rows of the table are no positions of the text.
_OFFSET_POSITIONS = frozenset(
    """
    roberta xlm-roberta xlm-roberta-xl camembert roberta-prelayernorm mpnet longformer data2vec-text xmod luke ibert esm lilt
    layoutlmv3 markuplm
    """.split()
)
_UNLIMITED = frozenset({"t5", "mt5", "umt5", "longt5", "xlnet", "bloom", "mpt", "mamba", "mamba2", "rwkv"})

_WRITE_AGAIN = "Write it again with transformers: AutoConfig.from_pretrained(folder).save_pretrained(folder)"
_HIDDEN_KEYS = ("hidden_size", "d_model", "n_embd", "dim", "model_dim")
_BLOCK_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_encoder_position_embeddings", "max_seq_len", "seq_length")


def read_facts(spec: ModelSpec, base: Path | None = None) -> ModelFacts:
    """The facts of the model that a recipe names.

    base: folder that relative paths are tried against after the working folder (the recipe's own).
    A hub id is looked up in the local hub cache only, never on the network; if it is not there, kind is `unknown`.
    Raises ModelError if a local model is missing, damaged, not safe to read (pickle, its own code) or lacks its tokenizer, or if
    `name` and `decoder` make no pair.
    """
    if spec.decoder is not None:
        return _of_pair(spec, base)
    path = locate(spec.name, base)
    if path is None:
        return _from_hub_cache(spec, base)
    if path.is_file():
        return _from_gguf(path)
    config = read_config(path)
    facts = facts_of_config(config, path)
    check_folder(path, config, spec, text=facts.kind != "vision")
    return _with_tokenizer(facts, spec, base)


def _of_pair(spec: ModelSpec, base: Path | None) -> ModelFacts:
    encoder = read_facts(encoder_spec(spec), base)
    try:
        decoder = read_facts(decoder_spec(spec), base)
    except ModelError as error:
        raise ModelError([replace(problem, key="model.decoder") for problem in error.problems]) from error
    for key, facts, kinds in (("name", encoder, ("encoder",)), ("decoder", decoder, ("encoder", "decoder"))):
        if facts.kind not in (*kinds, "unknown"):
            message = f"{facts.model_type} is of the kind {facts.kind!r}; a pair needs one of the kind {' or '.join(kinds)} here"
            raise ModelError(Problem(message=message, key=f"model.{key}", hint="Leave out `decoder`, or choose another model"))
    pair = _joined(encoder, decoder, encoder.path)
    return replace(pair, decoder_path=decoder.path)


def encoder_spec(spec: ModelSpec) -> ModelSpec:
    """The first model of a pair by itself."""
    return spec.model_copy(update={"decoder": None})


def decoder_spec(spec: ModelSpec) -> ModelSpec:
    """The second model of a pair by itself."""
    changes: dict[str, Any] = {"name": spec.decoder, "decoder": None}
    return spec.model_copy(
        update=changes if spec.decoder == spec.name else {**changes, "revision": None, "trust_remote_code": False}
    )


def _joined(encoder: ModelFacts, decoder: ModelFacts, path: Path | None) -> ModelFacts:
    limits = [facts.max_positions for facts in (encoder, decoder) if facts.max_positions is not None]
    return ModelFacts(
        kind="encoder-decoder",
        model_type="encoder-decoder",
        hidden_size=decoder.hidden_size,
        block_count=encoder.block_count + decoder.block_count if encoder.block_count and decoder.block_count else 0,
        max_positions=min(limits, default=None),
        vocab_size=decoder.vocab_size,
        path=path,
    )


def _from_hub_cache(spec: ModelSpec, base: Path | None) -> ModelFacts:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(spec.name, "config.json", revision=spec.revision)
    except HFValidationError as error:
        message = f"{spec.name!r} is neither a file or folder here nor a hub id"
        raise ModelError(Problem(message=message, key="model.name", hint="A hub id reads `owner/name`")) from error
    if not isinstance(cached, str):
        return UNKNOWN
    config = read_config(Path(cached).parent)
    check_remote_code(config, Path(cached), spec)
    check_no_adapter(Path(cached).parent)
    return _with_tokenizer(facts_of_config(config, Path(cached).parent), spec, base)


def _with_tokenizer(facts: ModelFacts, spec: ModelSpec, base: Path | None) -> ModelFacts:
    """The facts with what the files of the tokenizer tell."""
    folder = facts.path if spec.tokenizer is None else locate(spec.tokenizer, base, key="model.tokenizer")
    if facts.kind == "vision" or folder is None:
        return facts
    return replace(facts, offsets=not written_in_python(folder))


def facts_of_config(config: Mapping[str, Any], path: Path | None) -> ModelFacts:
    """The facts that a config.json states. Raises ModelError if it names no architecture or no sizes."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        hint = "transformers writes it; copy config.json from the model's origin"
        raise ModelError(Problem(message="config.json names no `model_type`", place=str(path or ""), key="model.name", hint=hint))
    architectures = config.get("architectures")
    if architectures is not None and not isinstance(architectures, list):
        message = f"config.json: `architectures` is {shown(architectures)}, expected a list of class names"
        raise ModelError(Problem(message=message, place=str(path or ""), key="model.name", hint=_WRITE_AGAIN))
    if model_type == "encoder-decoder" and all(isinstance(config.get(part), dict) for part in ("encoder", "decoder")):
        return _joined(facts_of_config(config["encoder"], path), facts_of_config(config["decoder"], path), path)
    text = {**config, **config["text_config"]} if isinstance(config.get("text_config"), dict) else config
    kind = _kind(config, model_type)
    return ModelFacts(
        kind=kind,
        model_type=model_type,
        hidden_size=_hidden_size(text, path),
        block_count=_block_count(text, kind, path),
        max_positions=None if kind == "vision" else _max_positions(text, model_type),
        vocab_size=_first(text, ("vocab_size",)),
        path=path,
        channels=_first(config, ("num_channels",)),
        architectures=tuple(name for name in config.get("architectures") or () if isinstance(name, str)),
        tied=config["tie_word_embeddings"] if isinstance(config.get("tie_word_embeddings"), bool) else None,
    )


def _kind(config: Mapping[str, Any], model_type: str) -> str:
    names = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    # XLM and Flaubert call their masked models ...WithLMHeadModel.
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) and not name.endswith("WithLMHeadModel") for name in names)
    if any(key in config for key in _AUDIO_KEYS):
        return "audio"
    if config.get("is_encoder_decoder", model_type in _ENCODER_DECODERS):
        return "encoder-decoder"
    if causal or model_type == "opt" or model_type.startswith(_DECODERS):
        return "decoder"
    if "vision_config" in config:
        return "multimodal"
    return "vision" if any(key in config for key in _VISION_KEYS) else "encoder"


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    numbers = (config[key] for key in keys if isinstance(config.get(key), int) and not isinstance(config[key], bool))
    return next((number for number in numbers if number >= 0), None)


def _missing(config: Mapping[str, Any], path: Path | None, keys: tuple[str, ...]) -> ModelError:
    stated = ", ".join(f"{key}: {shown(config[key])}" for key in keys if config.get(key) is not None)
    message = f"config.json states none of {', '.join(keys)} as a whole number{f'; it says {stated}' if stated else ''}"
    return ModelError(Problem(message=message, place=str(path or ""), key="model.name", hint=_WRITE_AGAIN))


def _hidden_size(config: Mapping[str, Any], path: Path | None) -> int:
    size = _first(config, _HIDDEN_KEYS)
    if size is None and isinstance(config.get("depths"), list) and (width := _first(config, ("embed_dim",))):
        # Hierarchical vision models (Swin) double the width from stage to stage.
        size = width * 2 ** (len(config["depths"]) - 1)
    if size is None:
        raise _missing(config, path, _HIDDEN_KEYS)
    return size


def _block_count(config: Mapping[str, Any], kind: str, path: Path | None) -> int:
    if isinstance(depths := config.get("depths"), list):
        if not all(isinstance(depth, int) for depth in depths):
            raise _missing(config, path, ("depths",))
        return sum(depths)
    if kind == "encoder-decoder":
        encoder = _first(config, ("encoder_layers", *_BLOCK_KEYS))
        decoder = _first(config, ("decoder_layers", "num_decoder_layers", *_BLOCK_KEYS))
        count = encoder + decoder if encoder is not None and decoder is not None else None
    else:
        count = _first(config, (*_BLOCK_KEYS, "encoder_layers", "decoder_layers"))
    if count is None:
        raise _missing(config, path, _BLOCK_KEYS)
    return count


def _max_positions(config: Mapping[str, Any], model_type: str) -> int | None:
    if model_type in _UNLIMITED:
        return None
    positions = _first(config, _POSITION_KEYS)
    if positions is not None and model_type in _OFFSET_POSITIONS:
        padding = config.get("pad_token_id")
        return positions - (padding if isinstance(padding, int) else 1) - 1
    return positions


def _from_gguf(path: Path) -> ModelFacts:
    try:
        header = read_gguf_header(path)
    except (ValueError, OSError) as error:
        hint = "Give a GGUF file or a model folder"
        raise ModelError(Problem(message=str(error), place=str(path), key="model.name", hint=hint)) from error
    architecture = header.get("general.architecture")
    hidden_size = header.get(f"{architecture}.embedding_length")
    block_count = header.get(f"{architecture}.block_count")
    if not isinstance(architecture, str) or not isinstance(hidden_size, int) or not isinstance(block_count, int):
        message = "its metadata names no general.architecture, embedding_length or block_count"
        raise ModelError(Problem(message=message, place=str(path), key="model.name", hint="Convert the model again"))
    seq2seq = architecture in _ENCODER_DECODERS
    kind = "encoder-decoder" if seq2seq else "encoder" if "bert" in architecture else "decoder"
    # llama.cpp states the decoder's depth only where it differs from the encoder's.
    decoder_blocks = header.get(f"{architecture}.decoder_block_count", block_count) if seq2seq else 0
    vocab_size = header.get("tokenizer.ggml.tokens")
    return ModelFacts(
        kind=kind,
        model_type=architecture,
        hidden_size=hidden_size,
        block_count=block_count + decoder_blocks,
        max_positions=None if architecture in _UNLIMITED else header.get(f"{architecture}.context_length"),
        vocab_size=vocab_size if isinstance(vocab_size, int) else None,
        path=path,
    )
