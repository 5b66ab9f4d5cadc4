"""Tasks of language models: the loss comes from the scores of target tokens, not from logits of the whole batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftkit.recipe.schema import Strict
from ftkit.tasks.base import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ftkit.tasks.parts.language_loss import LanguageScorer


class ScoredTargets(Task):
    """A task whose batches have `targets`: int64 (B, T), the token that each position predicts, or -100.

    Subclasses set `_scorer` in `bind`. A batch without `targets` is one to predict.
    """

    supports_label_smoothing = True

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self._scorer: LanguageScorer | None = None

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """`TargetScores` of the targets."""
        if self._scorer is None:
            raise ValueError("bind() was not called")
        inputs = {name: batch[name] for name in self.model_inputs if name in batch}
        return self._scorer.score(model, inputs, batch["targets"])

    def target_count(self, batch: Batch) -> int:
        """Tokens to predict."""
        from ftkit.tasks.parts.language_loss import IGNORED

        return int((batch["targets"] != IGNORED).sum()) if "targets" in batch else 0

    def loss(self, outputs: Any, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy, summed over the tokens to predict."""
        return outputs.loss(label_smoothing)
