"""Language modeling as transformers' run_clm.py does it: documents one after the other, cut into blocks; perplexity by plain torch.

Three things are as ftkit has them, so that both sides train on the same blocks: the end token after each document
(`task.end_token`), the last block, which run_clm.py drops where it is not full, and the documents of a block, which do not see each
other: they have positions of their own, as in transformers' DataCollatorWithFlattening, and no document is continued by the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sides.common import IGNORED, Example, Reference


class LanguageModeling(Reference):
    """The next token of plain texts. Evaluation blocks never hold two documents."""

    task = "language-modeling"
    metrics = {"perplexity": "Perplexity", "loss": "Loss"}
    auto_class = "AutoModelForCausalLM"
    peft_task_type = "CAUSAL_LM"
    batch = 4

    def refusals(self) -> Mapping[str, bool]:
        """Evaluation windows that overlap."""
        return {"task.stride": self.options.stride != self.options.max_length}

    def examples(self, rows: Sequence[Mapping[str, Any]], *, training: bool) -> list[Example]:
        """Blocks of tokens."""
        documents, length = [self._tokens(row["text"]) for row in rows], self.options.max_length
        if training and self.options.packing:
            return list(blocks(documents, length))
        return [block for document in documents for block in blocks([document], length)]

    def _tokens(self, text: str) -> list[int]:
        tokens, end = list(self.tokenizer(text, verbose=False)["input_ids"]), self.tokenizer.eos_token_id
        return [*tokens, end] if self.options.end_token and end is not None and tokens[-1:] != [end] else tokens

    def translated(self, feature: Mapping[str, Any]) -> Example:
        """`input_ids` and `labels`: all tokens but those that begin a document or the block."""
        tokens, starts = list(feature["input_ids"]), set(feature["starts"])
        return {"input_ids": tokens, "labels": [IGNORED if at in starts else token for at, token in enumerate(tokens)]}

    def load(self, source: Path | str) -> Any:
        """A model that keeps no keys and values, as the Trainer has it: with these, transformers does not look for packed documents."""
        model = super().load(source)
        model.config.use_cache = False
        return model

    def collator(self) -> Any:
        """Pads the last block of documents."""
        return lambda examples: padded(examples, self.tokenizer.pad_token_id)

    def predict(self, trainer: Any, examples: Sequence[Example]) -> Any:
        """Sum of the losses of all blocks, float, and number of the tokens that they are of."""
        model, collate, size = trainer.model.eval(), self.collator(), trainer.args.per_device_eval_batch_size
        total, count = 0.0, 0
        for start in range(0, len(examples), size):
            batch = {name: value.to(model.device) for name, value in collate(examples[start : start + size]).items()}
            labels = batch.pop("labels")
            with torch.no_grad():
                loss, targets = summed_loss(model(**batch).logits, labels)
            total, count = total + loss, count + targets
        return total, count

    def score(self, found: Any, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Mean loss of a token, and its exponential."""
        total, count = found
        return {"perplexity": math.exp(total / count), "loss": total / count}


def blocks(documents: Sequence[Sequence[int]], length: int) -> Iterator[Example]:
    """All documents one after the other in blocks of `length` tokens, the last one as long as it is.

    Tokens that begin a document or a block are no targets. `position_ids` where any block has a document that begins inside it,
    else `attention_mask`: with it, transformers does not look at positions.
    """
    tokens = list(chain.from_iterable(documents))
    begins = {*accumulate((len(document) for document in documents), initial=0)}
    starts = begins | {*range(0, len(tokens), length)}
    labels = [IGNORED if at in starts else token for at, token in enumerate(tokens)]
    positions = list(accumulate((at in starts for at in range(len(tokens))), lambda last, new: 0 if new else last + 1, initial=-1))[
        1:
    ]
    several = any(start % length for start in begins if start < len(tokens))
    for at in range(0, len(tokens), length):
        part = slice(at, at + length)
        seen = {"position_ids": positions[part]} if several else {"attention_mask": [1] * len(tokens[part])}
        yield {"input_ids": tokens[part], "labels": labels[part], **seen}


def padded(examples: Sequence[Mapping[str, Any]], padding: int) -> dict[str, torch.Tensor]:
    """A batch of blocks, int64 (B, T) each."""
    fillers = {"input_ids": padding, "labels": IGNORED, "position_ids": 0, "attention_mask": 0}
    width = max(len(example["input_ids"]) for example in examples)
    return {
        name: torch.tensor([[*example[name], *[filler] * (width - len(example[name]))] for example in examples])
        for name, filler in fillers.items()
        if name in examples[0]
    }


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Sum of the cross-entropies of the labels, each by the position before it, and the number of labels.

    logits: (B, T, V). labels: int64 (B, T), -100 where a token is not predicted.
    """
    wanted = labels[:, 1:]
    losses = cross_entropy(logits[:, :-1].float().transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
    return float(losses.double().sum()), int((wanted != IGNORED).sum())
