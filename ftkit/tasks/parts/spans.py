"""Answers as spans: reading and checking them, windows of question and context in tokens, the likeliest spans of a window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftkit.errors import ModelError
from ftkit.metrics.question_answering import best_threshold, overlap_f1
from ftkit.tasks.base import Batch, Row, RowError
from ftkit.tasks.parts.labels import shown

if TYPE_CHECKING:
    from torch import Tensor

Answer = tuple[str, int]
"""The text and the character of the context that it begins at."""

Token = tuple[int, int]
"""Id and token type."""

Span = tuple[int, int]
"""Start and end, end excluded."""

# --- answers in rows ---------------------------------------------------------------------------------------------


def read_answers(row: Row) -> list[Answer]:
    """The acceptable answers of a row, none where the question has no answer. Raises RowError if they are not written as such.

    They are {"text": [...], "answer_start": [...]}, a list of {"text", "answer_start"}, or a text or list of texts whose starts are in
    the column `answer_start`. No answer is an empty list or text, or nothing at all where `is_impossible` says so.
    """
    impossible = _flag(row)
    if row.get("answers") is None and impossible:
        return []
    texts, starts, column = _columns_of(row)
    if len(texts) != len(starts):
        raise RowError("answers", f"{len(texts)} texts, but {len(starts)} starts", "Give each answer its start in the context")
    answers = [(_text(text), _start(start, column)) for text, start in zip(texts, starts, strict=True)]
    if answers and impossible:
        raise RowError("is_impossible", f"is true, but there is an answer: {shown(answers[0][0])}", "Correct one of the two")
    return answers


def _flag(row: Row) -> bool:
    value = row.get("is_impossible")
    if str(value).lower() not in ("none", "", "true", "false", "1", "0"):
        raise RowError("is_impossible", f"{shown(value)} is neither true nor false", "Correct the row")
    return str(value).lower() in ("true", "1")


def _columns_of(row: Row) -> tuple[list[Any], list[Any], str]:
    """Texts, starts, and the column that holds the starts."""
    value, column = row.get("answers"), "answers"
    if value is None:
        raise RowError("answers", "the answers are missing", "Fill them in; an empty list where the question has no answer")
    if isinstance(value, dict):
        if "text" not in value:
            message = f"the answers {shown(value)} have no `text`"
            raise RowError("answers", message, 'Write them as {"text": [...], "answer_start": [...]}')
        texts, starts = (value.get(key) for key in ("text", "answer_start"))
    elif isinstance(value, (list, tuple)) and all(isinstance(item, dict) for item in value):
        texts, starts = ([item.get(key) for item in value] for key in ("text", "answer_start"))
    else:
        texts, starts = value, row.get("answer_start")
        column = column if starts is None else "answer_start"
    texts = [] if isinstance(texts, str) and not texts.strip() else texts
    return _listed(texts), _listed(starts) if _listed(texts) else [], column


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError("answers", f"the answer is {shown(value)}, which is not a text with something in it", "Correct the row")
    return value


def _start(value: Any, column: str) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        hint = "answer_start is the number of characters of the context before the answer"
        found = "missing, expected" if value is None else f"{shown(value)}, not"
        raise RowError(column, f"the start of the answer is {found} a whole number from 0", hint)
    return value


def check_answers(row: Row) -> None:
    """Raises RowError unless every answer stands in the context where it says. `context` must be text."""
    context = row["context"]
    for text, start in read_answers(row):
        found = context[start : start + len(text)]
        if found != text:
            has = f"{shown(found)} at {start}" if found else f"{len(context)} characters and nothing at {start}"
            message = f"the context has {has}, but the answer is {shown(text)}"
            raise RowError("answers", message, _way_out(context, text, start))


def _way_out(context: str, text: str, start: int) -> str:
    stripped = text.strip()
    places = _occurrences(context, stripped)
    if not places:
        other_case = _occurrences(context.lower(), stripped.lower())
        where = f" but for upper and lower case, at {other_case[0]}" if other_case else ""
        return f"The context does not contain this text at all{where}; correct or remove the row"
    nearest = min(places, key=lambda place: abs(place - start))
    counted = {
        "in bytes of UTF-8": len(context.encode("utf-8", "surrogatepass")[:start].decode("utf-8", "ignore")),
        "in UTF-16 units": len(context.encode("utf-16-le", "surrogatepass")[: 2 * start].decode("utf-16-le", "ignore")),
        "from the first character that is not blank": start + len(context) - len(context.lstrip()),
    }
    for way, place in counted.items():
        if place in places and place != start:
            return f"The start seems to be counted {way}; in characters it is {place}"
    blanks = " without the blanks around it" if stripped != text else ""
    return f"The nearest place where the text stands{blanks} is {nearest}"


def _occurrences(context: str, text: str) -> list[int]:
    places, at = [], context.find(text)
    while at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    return places


# --- windows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passage:
    """A question and its context in tokens, with the tokenizer's special tokens around them.

    before, question, between, context, after: what follows each other. spans: characters of the context that each of its tokens is,
    blanks at the ends left out; empty where nothing else is left. null: what stands for `no answer`, a place in `before` (from 0) or
    in `after` (negative, from its end).
    """

    before: list[Token]
    question: list[Token]
    between: list[Token]
    context: list[Token]
    after: list[Token]
    spans: list[Span]
    null: int


@dataclass(frozen=True)
class Window:
    """A part of a passage as the model takes it.

    tokens: all of it. first, last: the tokens of the context that it holds, last excluded. at: place of the first of them in `tokens`.
    null: place of the token that stands for `no answer`. cut: whether the question lost its end.
    """

    tokens: list[Token]
    first: int
    last: int
    at: int
    null: int
    cut: bool


def tokenize_passages(pairs: Sequence[tuple[str, str]], processor: Any) -> Iterator[Passage]:
    """The passage of each (question, context). processor: a fast tokenizer.

    `No answer` is the tokenizer's CLS token where its template has one (BERT, RoBERTa, XLNet). Elsewhere it is the last token, the only
    one from which a decoder sees everything; there a token that ends the context (and one that separates it from the question) is added
    if the template has none. Raises ModelError if the tokenizer has no such token.
    """
    questions, contexts = zip(*pairs, strict=True)
    encoded = processor(list(questions), list(contexts), truncation=False, padding=False, verbose=False)
    typed = "token_type_ids" in processor.model_input_names and "token_type_ids" in encoded
    for index, context in enumerate(contexts):
        encoding = encoded.encodings[index]
        types = encoded["token_type_ids"][index] if typed else [0] * len(encoding.ids)
        tokens = list(zip(encoding.ids, types, strict=True))
        yield _passage(tokens, encoding.sequence_ids, encoding.offsets, context, processor)


def _passage(
    tokens: list[Token], sequence_ids: Sequence[int | None], offsets: Sequence[Span], context: str, processor: Any
) -> Passage:
    body = _range(sequence_ids, 1, len(tokens))
    question = _range(sequence_ids, 0, body.start)
    before, between, after = tokens[: question.start], tokens[question.stop : body.start], tokens[body.stop :]
    null = _classifier(before, after, processor.cls_token_id)
    if null is None:
        null = -1
        between = between or [(_separator(processor), 0)]
        after = after or [(_separator(processor), tokens[body.start][1] if body else 0)]
    spans = [_trimmed(context, *offsets[at]) for at in body]
    return Passage(before, [tokens[at] for at in question], between, [tokens[at] for at in body], after, spans, null)


def _range(sequence_ids: Sequence[int | None], text: int, otherwise: int) -> range:
    """Places of a text's tokens; where a tokenizer made none of it, an empty range."""
    start = sequence_ids.index(text) if text in sequence_ids else otherwise
    return range(start, start + sequence_ids.count(text))


def _classifier(before: Sequence[Token], after: Sequence[Token], wanted: int | None) -> int | None:
    """Place of the CLS token as `Passage.null` has it, None if there is none."""
    for tokens, shift in ((before, 0), (after, -len(after))):
        for at, (token, _) in enumerate(tokens):
            if token == wanted:
                return at + shift
    return None


def _separator(processor: Any) -> int:
    token = processor.eos_token_id if processor.eos_token_id is not None else processor.sep_token_id
    if token is None:
        message = "the tokenizer has neither a CLS token in its template nor an EOS or SEP token to stand for `no answer`"
        raise ModelError(message, hint="Choose another model, or set eos_token in tokenizer_config.json")
    return int(token)


def _trimmed(text: str, start: int, end: int) -> Span:
    """The characters without blanks at their ends: byte-level and SentencePiece tokens begin with the space before them."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def windows_of(passage: Passage, max_length: int, stride: int) -> list[Window]:
    """The passage in windows of at most `max_length` tokens; neighbors share `stride` tokens of the context.

    A question that leaves the context less than half of the room loses its end. `stride` is at most half of the context's room; the
    last window is filled up to the left. Raises ValueError if nothing fits.
    """
    room = max_length - len(passage.before) - len(passage.between) - len(passage.after)
    if room < 2:
        raise ValueError(f"max_length {max_length} leaves no room beside {max_length - room} special tokens")
    count = len(passage.context)
    question = passage.question[: max(room // 2, room - count)]
    beginning = [*passage.before, *question, *passage.between]
    size = room - len(question)
    step = size - min(stride, size // 2)
    starts = [*range(0, count - size, step), max(0, count - size)]
    windows = []
    for first in starts:
        tokens = [*beginning, *passage.context[first : first + size], *passage.after]
        null = passage.null if passage.null >= 0 else len(tokens) + passage.null
        cut = len(question) < len(passage.question)
        windows.append(Window(tokens, first, min(first + size, count), len(beginning), null, cut))
    return windows


def tokens_of(spans: Sequence[Span], start: int, end: int) -> Span | None:
    """First and last token (inclusive) of the characters [start, end) of the context; None if no token has one of them."""
    inside = [index for index, (first, last) in enumerate(spans) if first < end and last > start and last > first]
    return (inside[0], inside[-1]) if inside else None


# --- scores of spans ---------------------------------------------------------------------------------------------


def best_spans(start: Tensor, end: Tensor, allowed: Tensor, longest: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` likeliest spans of each window: scores (sum of both logits), first and last tokens (inclusive).

    start, end: float logits (B, T). allowed: bool (B, T), tokens that a span may begin and end at. longest: tokens of a span.
    Result: (B, N) each, best first, N at most `count`; -inf where a window has fewer spans.
    """
    from torch.nn import functional

    longest = min(longest, start.shape[1])
    start, end = (logits.masked_fill(~allowed, -float("inf")) for logits in (start, end))
    ends = functional.pad(end, (0, longest - 1), value=-float("inf")).unfold(1, longest, 1)
    scores = (start[:, :, None] + ends).flatten(1)
    best = scores.topk(min(count, scores.shape[1]))
    first = best.indices // longest
    # Where spans run out, those beyond the last token come up; their score is -inf.
    return best.values, first, (first + best.indices % longest).clamp(max=start.shape[1] - 1)


def window_spans(start: Tensor, end: Tensor, batch: Batch, longest: int, count: int) -> list[dict[str, Any]]:
    """For each window `scores` (float32), `starts` and `ends` (int64, characters) of its best spans, each (n,), best first, and `null`
    (float, score of no answer). start, end: float32 logits (B, T). batch: as the task collates it."""
    import numpy as np

    allowed = batch["char_ends"] > batch["char_starts"]
    scores, first, last = best_spans(start, end, allowed, longest, count)
    at = batch["null_at"][:, None]
    null = (start.gather(1, at) + end.gather(1, at))[:, 0]
    tensors = (null, scores, batch["char_starts"].gather(1, first), batch["char_ends"].gather(1, last))
    found = []
    for nothing, *row in zip(*(tensor.detach().cpu().numpy() for tensor in tensors), strict=True):
        kept = row[0] != -np.inf
        spans = {name: values[kept] for name, values in zip(("scores", "starts", "ends"), row, strict=True)}
        found.append({"null": float(nothing), **spans})
    return found


def position_loss(logits: Tensor, targets: Tensor, mask: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of positions, summed over windows: float32 scalar.

    logits: float32 (B, T). targets: int64 (B,). mask: bool (B, T), the positions that are choices.
    """
    logs = logits.masked_fill(~mask, -float("inf")).log_softmax(-1)
    found = -logs.gather(1, targets[:, None]).sum()
    if not smoothing:
        return found
    uniform = -(logs.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)).sum()
    return (1 - smoothing) * found + smoothing * uniform


def merged_spans(parts: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    """The `count` best of the windows' spans; of those with equal characters the best one. The smallest `null`. See `window_spans`."""
    import numpy as np

    scores, starts, ends = (np.concatenate([part[name] for part in parts]) for name in ("scores", "starts", "ends"))
    order = np.lexsort((ends, starts, -scores))
    _, firsts = np.unique(np.stack([starts[order], ends[order]]), axis=1, return_index=True)
    order = order[np.sort(firsts)][:count]
    null = float(np.min([part["null"] for part in parts]))
    return {"null": null, "scores": scores[order], "starts": starts[order], "ends": ends[order]}


def finite_spans(predictions: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all scores are finite numbers."""
    import numpy as np

    return all(np.isfinite(item["null"]) and bool(np.isfinite(item["scores"]).all()) for item in predictions)


def best_text(prediction: Mapping[str, Any], row: Row) -> str:
    """The text of the best span; there must be one."""
    return str(row["context"][prediction["starts"][0] : prediction["ends"][0]])


def no_answer_threshold(predictions: Sequence[Mapping[str, Any]], rows: Iterable[Row]) -> float | None:
    """The threshold with the best F1 (see `best_threshold`); None unless there are rows with and without an answer."""
    import numpy as np

    found, kinds = [], set()
    for prediction, row in zip(predictions, rows, strict=True):
        if len(prediction["scores"]):
            golds = [text for text, _ in read_answers(row)]
            gains = (overlap_f1(golds, text) for text in (best_text(prediction, row), ""))
            found.append((prediction["null"] - float(prediction["scores"][0]), *gains))
            kinds.add(bool(golds))
    return best_threshold(*np.array(found, np.float64).T) if len(kinds) == 2 else None


def shown_spans(prediction: Mapping[str, Any], context: str, *, none: bool) -> list[dict[str, Any]]:
    """The spans of `merged_spans` as `answer`, `start`, `end` and `score` (softmax over all), best first.

    none: whether no answer ('' at null) is one of them; it is the only one where there is no span.
    """
    import numpy as np

    places: list[tuple[int | None, int | None]] = list(zip(prediction["starts"].tolist(), prediction["ends"].tolist(), strict=True))
    scores = prediction["scores"].astype(np.float64)
    if none or not places:
        places, scores = [*places, (None, None)], np.append(scores, prediction["null"])
    weights = np.exp(scores - scores.max())
    found = [
        {"answer": "" if start is None else context[start:end], "start": start, "end": end, "score": score}
        for (start, end), score in zip(places, (weights / weights.sum()).tolist(), strict=True)
    ]
    return sorted(found, key=lambda entry: -entry["score"])
