from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import ftkit
from ftkit.errors import ModelError, RecipeError
from ftkit.methods.parts.prompts import prompt_of
from ftkit.methods.prompt_tuning import Options, PromptTuning
from ftkit.models.layout import ModelLayout
from ftkit.registry import METHODS
from ftkit.run.planning import make_plan_here
from tests.methods.cases import facts_of, fresh_model
from tests.tiny import MAX_POSITIONS, TOKENS, tiny_tokenizer

RecipeFile = Callable[..., Path]
BASES = {
    # As the hub's configs say.
    "bert": ("AutoModelForSequenceClassification", 109e6, {}),
    "t5": (
        "AutoModelForSeq2SeqLM",
        222e6,
        {
            "d_model": 768,
            "d_ff": 3072,
            "num_layers": 12,
            "num_decoder_layers": 12,
            "num_heads": 12,
            "d_kv": 64,
            "vocab_size": 32128,
        },
    ),
}


@pytest.mark.parametrize("length", [20, 100])
@pytest.mark.parametrize("family", BASES)
def test_trains_less_than_a_thousandth_of_base_models(family: str, length: int) -> None:
    import transformers

    auto, size, shape = BASES[family]
    with torch.device("meta"):
        model = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(family, **shape))
    layout = ModelLayout(model, {name for name, _ in model.named_parameters() if name.startswith("classifier.")})
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == pytest.approx(size, rel=0.02)
    head = 768 * 2 + 2 if family == "bert" else 0
    count = PromptTuning(Options(length=length)).parameter_count(layout)
    assert count == length * 768 + head
    assert count < total / 1000


def test_starts_from_rows_of_the_vocabulary() -> None:
    model, layout = fresh_model("bert")
    table = model.get_input_embeddings().weight.detach().clone()
    vectors = prompt_of(PromptTuning(Options(length=6)).apply(model, layout)).vectors.detach()
    same = (vectors[:, None] == table).all(-1)
    assert same.any(1).all()
    assert len(set(same.int().argmax(1).tolist())) > 1


def test_starts_from_a_text_without_special_tokens() -> None:
    model, layout = fresh_model("bert")
    table = model.get_input_embeddings().weight.detach().clone()
    method = PromptTuning(Options(length=5, init="text", init_text="w3 w7"))
    method.take_processor(tiny_tokenizer("bert"))
    vectors = prompt_of(method.apply(model, layout)).vectors.detach()
    torch.testing.assert_close(vectors, table[[TOKENS[word] for word in ("w3", "w7", "w3", "w7", "w3")]])


def test_a_text_longer_than_the_prompt_is_cut() -> None:
    model, layout = fresh_model("gpt2")
    table = model.get_input_embeddings().weight.detach().clone()
    method = PromptTuning(Options(length=1, init="text", init_text="w3 w7"))
    method.take_processor(tiny_tokenizer("gpt2"))
    torch.testing.assert_close(prompt_of(method.apply(model, layout)).vectors.detach(), table[[TOKENS["w3"]]])


def test_a_text_needs_a_tokenizer_and_tokens() -> None:
    method = PromptTuning(Options(init="text", init_text=" "))
    with pytest.raises(ModelError, match="needs the model's tokenizer"):
        method.apply(*fresh_model("bert"))
    method.take_processor(tiny_tokenizer("bert"))
    with pytest.raises(ModelError, match="makes no token of ' '"):
        method.apply(*fresh_model("bert"))


def test_random_starts_are_as_large_as_embeddings() -> None:
    model, layout = fresh_model("bert")
    spread = model.get_input_embeddings().weight.std().item()
    vectors = prompt_of(PromptTuning(Options(length=300, init="random")).apply(model, layout)).vectors
    assert vectors.std().item() == pytest.approx(spread, rel=0.05)
    assert abs(vectors.mean().item()) < 0.1 * spread


def test_images_start_as_in_visual_prompt_tuning() -> None:
    vectors = prompt_of(PromptTuning(Options(length=300, init="random")).apply(*fresh_model("vit"))).vectors
    bound = (6 / (1 * 4 * 4 + 16)) ** 0.5
    assert bound * 0.95 < vectors.abs().max().item() <= bound
    assert vectors.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_head_is_trained_beside_it() -> None:
    model = PromptTuning(Options(length=2)).apply(*fresh_model("gpt2"))
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 2 * 16 + 3 * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "greater than or equal to 1"),
        ({"init": "text"}, "needs `init_text`"),
        ({"init_text": "w1"}, "no effect without `init: text`"),
        ({"init": "zeros"}, "'random', 'vocabulary'"),
        ({"init": "text", "init_text": ""}, "at least 1 character"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Options(**options)


def test_what_the_facts_rule_out_is_refused_early() -> None:
    assert PromptTuning(Options()).refusal(facts_of("bert")) == ""
    assert "images have none" in PromptTuning(Options(init="vocabulary")).refusal(facts_of("vit"))
    assert PromptTuning(Options(init="random")).refusal(facts_of("vit")) == ""
    assert "takes 64 tokens in all" in PromptTuning(Options(length=64)).refusal(facts_of("bert"))
    assert "length is 100, but bart takes 64" in PromptTuning(Options()).refusal(facts_of("bart"))
    assert PromptTuning(Options()).refusal(facts_of("t5")) == ""
    assert "input in one sequence" in PromptTuning(Options()).refusal(replace(facts_of("vit"), model_type="swin"))
    assert "input in one sequence" in PromptTuning(Options()).refusal(replace(facts_of("bert"), model_type="funnel"))
    assert "keeps no cache of positions" in PromptTuning(Options()).refusal(replace(facts_of("gpt2"), model_type="mamba"))


@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning", "multitask-prompt-tuning"])
def test_texts_get_the_positions_that_a_prompt_leaves(recipe_file: RecipeFile, name: str) -> None:
    plan = make_plan_here(ftkit.load_recipe(recipe_file(method=f"{{name: {name}, length: 9}}")))
    assert plan.recipe.task.options.max_length == MAX_POSITIONS - 9
    with pytest.raises(RecipeError, match="max_length is 60, but bert takes at most 55 tokens"):
        make_plan_here(ftkit.load_recipe(recipe_file(method=f"{{name: {name}, length: 9}}"), ["task.max_length=60"]))


def test_a_recipe_may_name_the_text(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = recipe_file(method="{name: prompt-tuning, length: 4, init: text, init_text: w1 w2}")
    result = ftkit.train(ftkit.load_recipe(recipe, ["train.max_steps=2", "export=[adapter]"]), output=tmp_path / "run")
    assert result.results["exports"]["adapter"]["max_abs_difference"] <= 1e-5
    assert len(list(ftkit.load(tmp_path / "run").predict(["w1 w2"]))) == 1


def test_kinds_of_models_have_lengths_of_their_own() -> None:
    cls = METHODS.get("prompt-tuning")
    assert cls(Options()).defaults(facts_of("t5"))["method.length"].value == 100
    assert cls(Options()).defaults(facts_of("gpt2"))["method.length"].value == 20
    assert cls(Options()).defaults(facts_of("vit"))["method.init"].value == "random"
