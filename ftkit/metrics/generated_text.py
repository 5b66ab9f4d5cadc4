"""Texts that a model wrote against texts that people wrote. ROUGE by rouge-score, BLEU and chrF by sacreBLEU.

references: (n,), each a list of one text or more, not all of the same number. predictions: (n,) texts.
ROUGE and exact match run from 0 to 1, as in the papers that report them times 100; BLEU and chrF from 0 to 100, as sacreBLEU prints
them. Every metric is None for no examples. Nothing is downloaded.

ROUGE compares what is left of a text when everything but a-z and 0-9 is a space (Lin's original does too) and words are stemmed
(Porter): it is made for English and says nothing about texts in other scripts. Examples without a reference that has the n words of
ROUGE-n do not count. BLEU is None where no reference has four tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from ftkit.metrics.base import MetricSpec

if TYPE_CHECKING:
    from numpy import ndarray

ARGUMENTS = {"references": "[str]", "predictions": "str"}

_ROUGE_WORDS = {"rouge1": 1, "rouge2": 2, "rougeL": 1, "rougeLsum": 1}
_BLEU_ORDER = 4
_SENTENCE_END = re.compile("([.!?…][.!?…\"'”\u2019)\\]]*)\\s+(?![a-z])")

Compute = Callable[["ndarray", "ndarray"], "float | None"]
Resampling = Callable[["ndarray", "ndarray"], Callable[["ndarray"], "float | None"]]


def as_arrays(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, ndarray]:
    """`references` and `predictions` as the metrics take them."""
    import numpy as np

    arrays = {"references": np.empty(len(references), dtype=object), "predictions": np.empty(len(predictions), dtype=object)}
    for index, (texts, prediction) in enumerate(zip(references, predictions, strict=True)):
        arrays["references"][index], arrays["predictions"][index] = list(texts), prediction
    return arrays


def sentences(text: str) -> list[str]:
    """The text in sentences, for ROUGE-Lsum: divided at line breaks, and at white space after `.`, `!`, `?` or `…` (with closing
    quotation marks and brackets) unless a small letter a-z follows."""
    return [sentence for sentence in _SENTENCE_END.sub(r"\1\n", text).split("\n") if sentence.strip()]


def signatures(references: ndarray, predictions: ndarray) -> dict[str, str]:
    """What sacreBLEU says of how BLEU and chrF were computed, to be reported with them; nothing for no examples."""
    if not len(references):
        return {}
    found = {}
    for name in ("bleu", "chrf"):
        metric = _sacrebleu(name)
        metric.corpus_score(*_as_streams(references, predictions))
        found[name] = str(metric.get_signature())
    return found


# --- exact match -------------------------------------------------------------------------------------------------------


def _matches(references: ndarray, predictions: ndarray) -> ndarray:
    import numpy as np

    pairs = zip(references, predictions, strict=True)
    return np.array([_squeezed(prediction) in map(_squeezed, texts) for texts, prediction in pairs], dtype=np.float64)


def _squeezed(text: str) -> str:
    return " ".join(str(text).split())


# --- ROUGE -------------------------------------------------------------------------------------------------------------


def _rouge_values(kind: str, references: ndarray, predictions: ndarray) -> ndarray:
    import numpy as np

    pairs = zip(references, predictions, strict=True)
    return np.array([_rouge(kind, tuple(map(str, texts)), str(prediction)) for texts, prediction in pairs], dtype=np.float64)


@lru_cache(maxsize=2**15)
def _rouge(kind: str, references: tuple[str, ...], prediction: str) -> float:
    """F1 against the reference that fits best, not a number where no reference has the words it takes."""
    usable = [text for text in references if len(_tokenizer().tokenize(text)) >= _ROUGE_WORDS[kind]]
    if not usable:
        return float("nan")
    if kind == "rougeLsum":
        usable, prediction = ["\n".join(sentences(text)) for text in usable], "\n".join(sentences(prediction))
    scorer = _scorer(kind)
    return max(float(scorer.score(text, prediction)[kind].fmeasure) for text in usable)


@cache
def _scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], tokenizer=_tokenizer())


@cache
def _tokenizer() -> Any:
    """rouge-score's own tokenizer with its stemmer, which remembers words: stemming takes most of the time otherwise."""
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer(use_stemmer=True)
    tokenizer._stemmer.stem = lru_cache(maxsize=2**16)(tokenizer._stemmer.stem)
    return tokenizer


# --- BLEU and chrF -----------------------------------------------------------------------------------------------------


def _sacrebleu(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    # force: no advice about texts that end in a separate full stop.
    return BLEU(force=True) if name == "bleu" else CHRF()


def _as_streams(references: ndarray, predictions: ndarray) -> tuple[list[str], list[list[str | None]]]:
    """Predictions, and the first, second ... references of all examples, None where one has fewer."""
    count = max(map(len, references))
    streams = [[str(texts[index]) if index < len(texts) else None for texts in references] for index in range(count)]
    return list(map(str, predictions)), streams


def _resampled_corpus_score(name: str) -> Resampling:
    def resampled(references: ndarray, predictions: ndarray) -> Callable[[ndarray], float | None]:
        import numpy as np

        metric = _sacrebleu(name)
        # What sacreBLEU's own resampling builds on: counts of each example, whose sums give the score of a corpus.
        counts = np.array(metric._extract_corpus_statistics(*_as_streams(references, predictions)))

        def compute(indices: ndarray) -> float | None:
            drawn = counts[indices]
            if name == "bleu" and drawn[:, 1].max() < _BLEU_ORDER:
                return None
            return min(100.0, float(metric._compute_score_from_stats(drawn.sum(axis=0).tolist()).score))

        return compute

    return resampled


# --- the family --------------------------------------------------------------------------------------------------------


def _resampled_mean(values_of: Callable[[ndarray, ndarray], ndarray]) -> Resampling:
    def resampled(references: ndarray, predictions: ndarray) -> Callable[[ndarray], float | None]:
        import numpy as np

        values = values_of(references, predictions)

        def compute(indices: ndarray) -> float | None:
            defined = values[indices]
            defined = defined[~np.isnan(defined)]
            return float(defined.mean()) if len(defined) else None

        return compute

    return resampled


def _rouge_resampled(kind: str) -> Resampling:
    return _resampled_mean(lambda references, predictions: _rouge_values(kind, references, predictions))


def _whole(resampled: Resampling) -> Compute:
    """The metric over all examples, given its version for resampling."""

    def compute(references: ndarray, predictions: ndarray) -> float | None:
        import numpy as np

        return resampled(references, predictions)(np.arange(len(references))) if len(references) else None

    return compute


RESAMPLED: dict[str, Resampling] = {
    **{kind: _rouge_resampled(kind) for kind in _ROUGE_WORDS},
    "bleu": _resampled_corpus_score("bleu"),
    "chrf": _resampled_corpus_score("chrf"),
    "exact_match": _resampled_mean(_matches),
}
"""For a metric, a function of its arrays that counts once and returns a fast function of example indices."""

_SUMMARIES = {
    "rouge1": "ROUGE-1: F1 of the words, against the best reference (Lin 2004), 0 to 1.",
    "rouge2": "ROUGE-2: F1 of pairs of words, 0 to 1.",
    "rougeL": "ROUGE-L: F1 of the longest common subsequence of words, 0 to 1.",
    "rougeLsum": "ROUGE-L sentence by sentence, 0 to 1.",
    "bleu": "Corpus BLEU by sacreBLEU (Papineni et al. 2002, Post 2018), 0 to 100.",
    "chrf": "Corpus chrF by sacreBLEU: F-score of character n-grams (Popović 2015), 0 to 100.",
    "exact_match": "Share of texts that equal a reference, apart from the amount of white space.",
}
METRICS = {
    name: MetricSpec(name=name, summary=summary, direction="max", headline=True, compute=_whole(RESAMPLED[name]))
    for name, summary in _SUMMARIES.items()
}
