"""What becomes of rows as tokens: cut, left out, unknown, without a target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ftkit.data.features import FeatureStore, encode_table
from ftkit.data.pool import number_of_workers
from ftkit.data.splits import Splits
from ftkit.data.table import Table
from ftkit.diagnostics.findings import Finding, Hits, Severity, about_rows, percent, share
from ftkit.diagnostics.roles import Roles, text_of
from ftkit.errors import DataError, ModelError
from ftkit.recipe.plan import Plan
from ftkit.tasks.base import Features, Task

CUT_SHARE = 0.05
"""Share of rows from which cutting them is a warning."""

LEFT_OUT_SHARE = 0.5
"""Share of training rows from which leaving them out is an error: most of the data is not what the model is trained on."""

UNKNOWN_WARNED, UNKNOWN_NOTED = 0.01, 0.001
"""Shares of tokens that the tokenizer does not know. A hundredth is one in every few sentences; subword tokenizers stay far below."""

SAMPLE = 1000
"""Features that are looked at one by one for having no target."""

ROWS_AT_A_TIME = 1000
LENGTHS_SHOWN = (50, 95, 99)
LENGTH_STEP = 8


@dataclass
class TokenCounts:
    """Tokens of a split, counted feature by feature.

    lengths: tokens of each row after cutting, int64 (rows,). cut: rows that lost tokens.
    """

    lengths: np.ndarray
    cut: list[int] = field(default_factory=list)
    tokens: int = 0
    unknown: int = 0
    rows_with_unknown: Hits = field(default_factory=Hits)


def encoding_findings(plan: Plan, task: Task, splits: Splits, roles: Mapping[str, Roles], *, cache: bool) -> list[Finding]:
    """Findings about encoded rows; one if the tokenizer cannot be loaded. The task must have learned.

    roles: of the columns, by split. cache: whether encoded rows may be kept for the run.
    """
    from ftkit.models.processor import load_processor, processor_key

    try:
        processor = load_processor(plan.recipe.model, plan.facts)
    except ModelError as error:
        message = f"tokens were not looked at: {error.problems[0].message}"
        return [Finding(check="no-tokenizer", severity="warning", message=message, hint=error.problems[0].hint)]
    found: list[Finding] = []
    for name, table in splits.items():
        try:
            store = encode_table(
                table,
                task,
                processor,
                processor_key=processor_key(processor),
                cache=cache,
                training=name == "train",
                num_workers=number_of_workers(plan.recipe.data.num_workers),
            )
        except DataError as error:
            found += [_refused(name, error)]
            continue
        if name == "train":
            found += _left_out(table, store, task)
        found += _without_target(name, table, store, task, processor)
        if hasattr(processor, "unk_token_id"):
            found += _token_findings(name, table, store, plan, processor, roles[name])
    return found


def _refused(name: str, error: DataError) -> Finding:
    problems = error.problems
    places = tuple(problem.place for problem in problems if problem.place)[:10]
    message = f"{name}: rows cannot be encoded: {problems[0].message}"
    return Finding(check="unusable-rows", severity="error", message=message, rows=len(places), places=places, hint=problems[0].hint)


def _left_out(table: Table, store: FeatureStore, task: Task) -> list[Finding]:
    missing = np.setdiff1d(np.arange(len(table)), store.example) if task.left_out else np.empty(0, np.int64)
    if not len(missing):
        return []
    hits = Hits()
    for row in missing.tolist():
        hits.add(row)
    severity: Severity = "error" if len(missing) > LEFT_OUT_SHARE * len(table) else "warning"
    message = f"train: {share(len(missing), len(table))} are left out of training: {task.left_out}"
    return [about_rows("left-out-rows", severity, message, table, hits, "Raise task.max_length, or shorten these rows")]


def _without_target(name: str, table: Table, store: FeatureStore, task: Task, processor: Any) -> list[Finding]:
    """Features of which nothing counts in the loss, in a sample. Tasks that must see the model first are left alone."""
    if type(task).bind is not Task.bind or not len(store):
        return []
    chosen = np.unique(np.linspace(0, len(store) - 1, min(SAMPLE, len(store))).astype(np.int64))
    hits = Hits()
    for features in store.take(chosen):
        if not task.target_count(task.collate([features], processor)):
            hits.add(int(features["example"]))
    if not hits.count:
        return []
    message = f"{name}: {hits.count:,} of {len(chosen):,} encoded rows that were looked at have no target that counts"
    return [about_rows("no-target", "warning", message, table, hits, "Nothing is learned from them; see `ftkit inspect`")]


def _token_findings(name: str, table: Table, store: FeatureStore, plan: Plan, processor: Any, roles: Roles) -> list[Finding]:
    counts = count_tokens(store, len(table), unknown_id(processor))
    found = []
    if counts.cut:
        columns = (*roles.texts, *(roles.text_targets if plan.facts.kind == "decoder" else ()))
        whole = whole_lengths(table, counts, columns, processor)
        found.append(_cut(name, table, counts, whole, plan))
    if counts.tokens and counts.unknown >= UNKNOWN_NOTED * counts.tokens:
        found.append(_unknown(name, table, counts))
    return found


def unknown_id(processor: Any) -> int | None:
    """The token for what the tokenizer does not know; None if it has none of its own."""
    others = {processor.pad_token_id, processor.eos_token_id, processor.bos_token_id}
    return None if processor.unk_token_id in others else processor.unk_token_id


def count_tokens(store: FeatureStore, rows: int, unknown: int | None) -> TokenCounts:
    """Counts the tokens of encoded rows. unknown: id of the unknown token."""
    counts = TokenCounts(np.zeros(rows, dtype=np.int64))
    for features in _all(store):
        row = int(features["example"])
        counts.lengths[row] += int(features["length"])
        if features.get("truncated"):
            counts.cut.append(row)
        ids = features.get("input_ids", ())
        counts.tokens += len(ids)
        if unknown is not None and (times := list(ids).count(unknown)):
            counts.unknown += times
            counts.rows_with_unknown.add(row, f"{times:,} of {len(ids):,} tokens")
    counts.cut = sorted(set(counts.cut))
    return counts


def _all(store: FeatureStore) -> Iterator[Features]:
    for start in range(0, len(store), ROWS_AT_A_TIME):
        yield from store.take(np.arange(start, min(start + ROWS_AT_A_TIME, len(store))))


def whole_lengths(table: Table, counts: TokenCounts, columns: Sequence[str], processor: Any) -> np.ndarray:
    """Tokens of each row as if nothing were cut, int64 (rows,): those of its texts, and what a template would add, if that is known."""
    lengths = counts.lengths.copy()
    special = processor.num_special_tokens_to_add(pair=False)
    projected = table.project({name: name for name in columns})
    for start in range(0, len(counts.cut), ROWS_AT_A_TIME):
        rows = counts.cut[start : start + ROWS_AT_A_TIME]
        totals = np.full(len(rows), special)
        for name in columns:
            texts = [text_of(value[name]) for value in projected.rows(rows)]
            encoded = processor(texts, add_special_tokens=False, truncation=False, padding=False, verbose=False)
            totals += np.array([len(ids) for ids in encoded["input_ids"]])
        lengths[rows] = np.maximum(lengths[rows], totals)
    return lengths


def _cut(name: str, table: Table, counts: TokenCounts, whole: np.ndarray, plan: Plan) -> Finding:
    hits = Hits()
    for row in counts.cut:
        hits.add(row, f"{whole[row]:,} tokens")
    lost = percent(int((whole - counts.lengths).sum()) / max(1, int(whole.sum())))
    spread = ", ".join(f"{part} % up to {int(np.percentile(whole, part)):,}" for part in LENGTHS_SHOWN)
    severity: Severity = "warning" if len(counts.cut) >= CUT_SHARE * len(table) else "note"
    limit = getattr(plan.recipe.task.options, "max_length", None)
    where = f" at task.max_length {limit}" if limit else ""
    message = (
        f"{name}: {share(len(counts.cut), len(table))} are cut{where}; {lost} of all tokens are lost "
        f"(tokens of a row: {spread}, the longest {int(whole.max()):,})"
    )
    return about_rows("cut-rows", severity, message, table, hits, _advice(whole, plan))


def _advice(whole: np.ndarray, plan: Plan) -> str:
    """How fewer rows would be cut."""
    options, limit = plan.recipe.task.options, plan.facts.max_positions
    present = getattr(options, "max_length", None) or 0
    for part in (95, 99, 100):
        wanted = -(-int(np.percentile(whole, part)) // LENGTH_STEP) * LENGTH_STEP
        if wanted > present and (limit is None or wanted <= limit):
            return f"`task.max_length: {wanted}` keeps {part} % of the rows whole"
    windows = ", or set `task.long_texts: windows`" if hasattr(options, "long_texts") else ""
    if limit is not None and present < limit:
        return (
            f"`task.max_length: {limit}`, all that the model takes, keeps {percent(float(np.mean(whole <= limit)))} whole{windows}"
        )
    return f"The model takes no more: shorten the texts, choose another model{windows}"


def _unknown(name: str, table: Table, counts: TokenCounts) -> Finding:
    part = counts.unknown / counts.tokens
    message = f"{name}: the tokenizer does not know {counts.unknown:,} of {counts.tokens:,} tokens ({percent(part)})"
    hint = "The model sees nothing of these words: clean the texts, or choose a model for this language or alphabet"
    severity: Severity = "warning" if part >= UNKNOWN_WARNED else "note"
    return about_rows("unknown-tokens", severity, message, table, counts.rows_with_unknown, hint)
