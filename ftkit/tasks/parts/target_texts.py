"""Texts that an encoder-decoder learns to write: their tokens, the token that ends them, and the languages of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from ftkit.errors import ModelError, Problem, RecipeError
from ftkit.tasks.parts.texts import cuts


def set_languages(processor: Any, source: str | None, target: str | None) -> None:
    """Tells a multilingual tokenizer (mBART, NLLB) which languages it reads and writes.

    Raises RecipeError if it takes languages and none are given, if it takes none and some are given, or if it does not know one.
    """
    takes = hasattr(processor, "src_lang")
    codes = {"source_language": source, "target_language": target}
    if not takes and (source or target):
        message = "this model's tokenizer knows no languages"
        raise RecipeError(
            Problem(message=message, key="task.source_language", hint="Leave the languages out, or say them in `prefix`")
        )
    if not takes:
        return
    known = [token for token in processor.all_special_tokens if processor.convert_tokens_to_ids(token) != processor.unk_token_id]
    problems = [_unknown(f"task.{key}", code, known) for key, code in codes.items() if code not in known]
    if problems:
        raise RecipeError(problems)
    processor.src_lang, processor.tgt_lang = source, target


def _unknown(key: str, code: str | None, known: Sequence[str]) -> Problem:
    near = get_close_matches(code or "", known, n=3, cutoff=0.3) or [token for token in known if "_" in token][:3]
    message = f"this model's tokenizer knows no language {code!r}" if code else "this model's tokenizer needs to know the languages"
    return Problem(message=message, key=key, hint=f"Give its own code, such as {', '.join(near)}")


def encode_targets(texts: Sequence[str], processor: Any, max_length: int) -> list[tuple[list[int], bool]]:
    """Token ids of each text as a decoder should write it, the end token last (but for a language code); whether it was cut.

    The end of longer texts is cut off, never the special tokens of the tokenizer's template. processor: a fast tokenizer.
    """
    encoded = processor(text_target=list(texts), padding=False, truncation=False, verbose=False)
    _, added = end_token(processor)
    room = max_length - len(added)
    found = []
    for encoding in encoded.encodings:
        ids, cut = list(encoding.ids), len(encoding.ids) > room
        for span in cuts(encoding.sequence_ids, room) if cut else ():
            ids = ids[: span.start] + ids[span.stop :]
        found.append((ids + added, cut))
    return found


def end_token(processor: Any) -> tuple[int, list[int]]:
    """The token that ends a target, and the same as a list if the tokenizer's template does not put it there by itself.

    Raises ModelError if the tokenizer has no such token.
    """
    encoding = processor(text_target=["a"]).encodings[0]
    texts = [index for index, text in enumerate(encoding.sequence_ids) if text is not None]
    after = encoding.ids[texts[-1] + 1 :] if texts else []
    if after:
        return int(after[0]), []
    end = processor.eos_token_id if processor.eos_token_id is not None else processor.sep_token_id
    if end is None:
        message = "the tokenizer has neither an end nor a separator token, so that a model could not learn to stop"
        raise ModelError(Problem(message=message, key="model.name", hint="Set `eos_token` in its tokenizer_config.json"))
    return int(end), [int(end)]


def language_place(processor: Any, language: str) -> tuple[int, bool]:
    """The token of a target language, and whether targets begin with it (NLLB, mBART-50) or the decoder does (mBART)."""
    token = int(processor.convert_tokens_to_ids(language))
    return token, processor(text_target=["a"])["input_ids"][0][0] == token
