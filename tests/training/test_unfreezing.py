from __future__ import annotations

import pytest

from ftkit.errors import RecipeError
from ftkit.models.layout import ModelLayout
from ftkit.recipe.schema import Every, GradualUnfreezingSpec
from ftkit.training.unfreezing import GradualUnfreezing
from tests.tiny import tiny_model


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_blocks_join_from_the_top_and_embeddings_last(family: str) -> None:
    model = tiny_model(family)
    layout = ModelLayout(model)
    top = len(layout.blocks) + 1
    gradual = GradualUnfreezing(model, layout, GradualUnfreezingSpec())
    for epoch in range(top + 3):
        lowest = gradual.update(step=epoch * 7, epoch=float(epoch))
        assert lowest == max(0, top - epoch)
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (layout.depth(name) >= lowest), name


def test_distance_in_steps_and_several_blocks_at_a_time() -> None:
    model = tiny_model("bert")
    gradual = GradualUnfreezing(model, ModelLayout(model), GradualUnfreezingSpec(every=Every(steps=10, epochs=None), blocks=2))
    assert [gradual.update(step=step, epoch=0.0) for step in (0, 9, 10, 20, 30)] == [3, 3, 1, 0, 0]
    gradual.update(step=0, epoch=0.0)
    gradual.thaw()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("step", "epoch", "frozen"),
    [(0, 0.0, "2 of 2 blocks and the embeddings"), (9, 2.0, "the embeddings"), (9, 2.99, "the embeddings"), (9, 3.0, "")],
)
def test_what_a_run_does_not_reach_is_told(step: int, epoch: float, frozen: str) -> None:
    model = tiny_model("bert")
    gradual = GradualUnfreezing(model, ModelLayout(model), GradualUnfreezingSpec())
    assert gradual.never_trained(step=step, epoch=epoch) == frozen


def test_a_head_alone_has_nothing_to_unfreeze() -> None:
    model = tiny_model("bert")
    layout = ModelLayout(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in layout.head_parameters())
    with pytest.raises(RecipeError, match="nothing to unfreeze"):
        GradualUnfreezing(model, layout, GradualUnfreezingSpec())
