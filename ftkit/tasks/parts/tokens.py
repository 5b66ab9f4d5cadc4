"""Texts in tokens, and which token is of which text, from fast tokenizers and from those written in Python.

Fast tokenizers say for each token where it stands in the text. Those written in Python (Marian, M2M-100, ByT5, BERTweet) do not. What
they put around texts is found out with a text of one letter; the texts themselves are tokenized without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from ftkit.errors import ModelError, Problem

_PROBE = "a"


@dataclass(frozen=True)
class Tokens:
    """A text or pair in tokens, whole.

    values: `input_ids` and, where the model has them, `token_type_ids`. texts: tells for each token which text it is of (0, 1), None
    for special tokens around texts.
    """

    values: dict[str, list[int]]
    texts: Callable[[], list[int | None]]

    @property
    def ids(self) -> list[int]:
        """`input_ids`."""
        return self.values["input_ids"]


def gives_offsets(processor: Any) -> bool:
    """Whether a tokenizer says which characters of a text each of its tokens is."""
    return bool(processor.is_fast)


def tokens_of(processor: Any, texts: Sequence[str], pairs: Sequence[str] | None = None, *, target: bool = False) -> list[Tokens]:
    """The tokens of each text or pair, nothing cut. target: texts that a model is to write, in a vocabulary or language of their own.

    Raises ModelError for a tokenizer that cannot be found out about.
    """
    return (_from_encodings if gives_offsets(processor) else _from_parts)(processor, texts, pairs, target)


def plain_ids(processor: Any, texts: Sequence[str], *, target: bool = False) -> list[list[int]]:
    """The token ids of each text without any special token around them."""
    return _call(processor, texts, target, add_special_tokens=False)["input_ids"] if len(texts) else []


def around(processor: Any, *, target: bool = False) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    found = tokens_of(processor, [_PROBE], target=target)[0]
    inside = [place for place, text in enumerate(found.texts()) if text is not None]
    return (found.ids[: inside[0]], found.ids[inside[-1] + 1 :]) if inside else (found.ids, [])


def _call(processor: Any, texts: Sequence[str], target: bool, **settings: Any) -> Any:
    named = {"text_target" if target else "text": list(texts)}
    return processor(**named, truncation=False, padding=False, verbose=False, **settings)


def _from_encodings(processor: Any, texts: Sequence[str], pairs: Sequence[str] | None, target: bool) -> list[Tokens]:
    encoded = _call(processor, texts, target, **({} if pairs is None else {"text_pair": list(pairs)}))
    names = [name for name in ("input_ids", "token_type_ids") if name in processor.model_input_names and name in encoded]
    return [
        Tokens({name: encoded[name][index] for name in names}, partial(getattr, encoding, "sequence_ids"))
        for index, encoding in enumerate(encoded.encodings)
    ]


def _from_parts(processor: Any, texts: Sequence[str], pairs: Sequence[str] | None, target: bool) -> list[Tokens]:
    columns = [texts] if pairs is None else [texts, pairs]
    frame = _frame(processor, len(columns), target)
    bodies = [plain_ids(processor, column, target=target) for column in columns]
    typed = "token_type_ids" in processor.model_input_names
    found = []
    for parts in zip(*bodies, strict=True):
        values = {"input_ids": [*frame[0], *chain.from_iterable(chain(*zip(parts, frame[1:], strict=True)))]}
        if typed:
            values["token_type_ids"] = processor.create_token_type_ids_from_sequences(*map(list, parts))
        sizes = [len(part) for part in parts]
        found.append(Tokens(values, partial(_places, frame, sizes)))
    return found


def _places(frame: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[int | None]:
    places: list[int | None] = [None] * len(frame[0])
    for text, (size, special) in enumerate(zip(sizes, frame[1:], strict=True)):
        places += [text] * size + [None] * len(special)
    return places


def _frame(processor: Any, count: int, target: bool) -> list[list[int]]:
    """Special tokens before the first of so many texts, and after each."""
    body = plain_ids(processor, [_PROBE], target=target)[0]
    more = {} if count == 1 else {"text_pair": [_PROBE]}
    rest, frame = list(_call(processor, [_PROBE], target, **more)["input_ids"][0]), []
    for _ in range(count):
        start = next((place for place in range(len(rest)) if rest[place : place + len(body)] == body), None) if body else None
        if start is None:
            message = (
                f"{type(processor).__name__} does not show what it puts around a text: {_PROBE!r} is not found again in its tokens"
            )
            raise ModelError(Problem(message=message, key="model.name", hint="Choose a model with another tokenizer"))
        frame.append(rest[:start])
        rest = rest[start + len(body) :]
    return [*frame, rest]
