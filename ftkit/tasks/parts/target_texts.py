"""Texts that an encoder-decoder learns to write: their tokens, the token that ends them, and the languages of both sides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import Any

from ftkit.errors import ModelError, Problem, RecipeError
from ftkit.tasks.parts.texts import cuts
from ftkit.tasks.parts.tokens import around, tokens_of


def set_languages(processor: Any, source: str | None, target: str | None) -> None:
    """Tells a multilingual tokenizer (mBART, NLLB, M2M-100) which languages it reads and writes.

    Raises RecipeError if it takes languages and none are given, if it takes none and some are given, or if it does not know one.
    """
    known = _languages(processor)
    codes = {"source_language": source, "target_language": target}
    if not known and (source or target):
        message = "this model's tokenizer knows no languages"
        raise RecipeError(
            Problem(message=message, key="task.source_language", hint="Leave the languages out, or say them in `prefix`")
        )
    if not known:
        return
    problems = [_unknown(f"task.{key}", code, known) for key, code in codes.items() if code not in known]
    if problems:
        raise RecipeError(problems)
    processor.src_lang, processor.tgt_lang = source, target


def _languages(processor: Any) -> dict[str, int]:
    """The codes of the languages that a tokenizer can be told, with the token of each."""
    if not hasattr(processor, "src_lang"):
        return {}
    # M2M-100 calls a language `de` and its token `__de__`; elsewhere the two are the same.
    ids = getattr(processor, "lang_code_to_id", None)
    if not ids:
        named = {getattr(processor, name) for name in processor.SPECIAL_TOKENS_ATTRIBUTES}
        codes = [token for token in processor.all_special_tokens if token not in named]
        ids = dict(zip(codes, processor.convert_tokens_to_ids(codes), strict=True))
    return {code: int(token) for code, token in ids.items() if token != processor.unk_token_id}


def _unknown(key: str, code: str | None, known: Collection[str]) -> Problem:
    near = get_close_matches(code or "", known, n=3, cutoff=0.3) or list(known)[:3]
    message = f"this model's tokenizer knows no language {code!r}" if code else "this model's tokenizer needs to know the languages"
    return Problem(message=message, key=key, hint=f"Give its own code, such as {', '.join(near)}")


def encode_targets(texts: Sequence[str], processor: Any, max_length: int) -> list[tuple[list[int], bool]]:
    """Token ids of each text as a decoder should write it, the end token last (but for a language code); whether it was cut.

    The end of longer texts is cut off, never the special tokens of the tokenizer's template.
    """
    _, added = end_token(processor)
    room = max_length - len(added)
    found = []
    for item in tokens_of(processor, texts, target=True):
        ids, cut = list(item.ids), len(item.ids) > room
        for span in cuts(item.texts(), room) if cut else ():
            ids = ids[: span.start] + ids[span.stop :]
        found.append((ids + added, cut))
    return found


def end_token(processor: Any) -> tuple[int, list[int]]:
    """The token that ends a target, and the same as a list if the tokenizer's template does not put it there by itself.

    Raises ModelError if the tokenizer has no such token.
    """
    _, after = around(processor, target=True)
    if after:
        return int(after[0]), []
    end = processor.eos_token_id if processor.eos_token_id is not None else processor.sep_token_id
    if end is None:
        message = "the tokenizer has neither an end nor a separator token, so that a model could not learn to stop"
        raise ModelError(Problem(message=message, key="model.name", hint="Set `eos_token` in its tokenizer_config.json"))
    return int(end), [int(end)]


def language_place(processor: Any, language: str) -> tuple[int, bool]:
    """The token of a target language, and whether targets begin with it (NLLB, mBART-50, M2M-100) or the decoder does (mBART)."""
    token = _languages(processor)[language]
    return token, around(processor, target=True)[0][:1] == [token]
