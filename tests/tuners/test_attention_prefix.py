"""A prefix is Attention(q, [P_K; K], [P_V; V]), for every kind of attention that a model has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ftkit.errors import ModelError
from ftkit.methods.prefix_tuning import Options, PrefixTuning
from ftkit.models.layout import ModelLayout
from ftkit.tuners.attention_prefix import group_of
from ftkit.tuners.prefixed_attention import add_prefix
from tests.tuners.prompted import LENGTH, frozen_but_for, gradient, plain_model, tokens, with_prefix

MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def as_cache(prefix: Tensor, layers: int, heads: int, rows: int) -> Any:
    """The prefix as the cache of earlier tokens: transformers' own way to more keys and values."""
    from transformers import DynamicCache

    parts = prefix.view(LENGTH, layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
    return DynamicCache([(part[0].expand(rows, -1, -1, -1), part[1].expand(rows, -1, -1, -1)) for part in parts])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "heads"), [("gpt2", 2), ("llama", 2), ("qwen2", 1)])
def test_decoders_compute_what_a_filled_cache_gives(family: str, heads: int, implementation: str) -> None:
    model, prefixes = with_prefix(family, "AutoModelForCausalLM")
    model.get_base_model().set_attn_implementation(implementation)
    plain = plain_model(family, "AutoModelForCausalLM")
    (prefix,) = prefixes.values()
    copy = prefix.detach().clone().requires_grad_()
    wide = torch.cat([torch.ones(2, LENGTH, dtype=torch.int64), MASK], dim=1)
    positions = torch.arange(6)[None]  # A prefix moves no position.
    expected = plain(
        tokens(), attention_mask=wide, position_ids=positions, past_key_values=as_cache(copy, 2, heads, 2), use_cache=True
    ).logits
    found = model(tokens(), attention_mask=MASK).logits
    torch.testing.assert_close(found[MASK.bool()], expected[MASK.bool()], **CLOSE)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)) * MASK[..., None]
    expected_gradient = gradient((expected * weights).sum(), copy)
    torch.testing.assert_close(gradient((found * weights).sum(), prefix), expected_gradient, **CLOSE)
    torch.testing.assert_close(model(tokens()).logits[0], found[0], **CLOSE)
    found.sum().backward()
    frozen_but_for(model, [prefix])


# --- by hand, inside the model -------------------------------------------------------------------------------------------

LAYERS = {
    "bert": ("bert.encoder.layer.1.attention.self", "query", "key", "value", ""),
    "distilbert": ("distilbert.transformer.layer.1.attention", "q_lin", "k_lin", "v_lin", "out_lin"),
    "deberta-v2": ("deberta.encoder.layer.1.attention.self", "query_proj", "key_proj", "value_proj", ""),
    "vit": ("vit.layers.1.attention", "q_proj", "k_proj", "v_proj", "o_proj"),
    "t5": ("encoder.block.0.layer.0.SelfAttention", "q", "k", "v", "o"),
    "t5 decoder": ("decoder.block.0.layer.0.SelfAttention", "q", "k", "v", "o"),
    "t5 cross": ("decoder.block.1.layer.1.EncDecAttention", "q", "k", "v", "o"),
    "bart": ("model.encoder.layers.1.self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    "bart decoder": ("model.decoder.layers.1.self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    "bart cross": ("model.decoder.layers.1.encoder_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
}
"""Path of one attention module, and of its projections of queries, keys, values and output."""

HEADS = 2


class Caught:
    """What went into a module and came out of it."""

    def __init__(self, module: nn.Module) -> None:
        module.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        seen = kwargs.get("key_value_states")
        self.queries, self.keys, self.output = states.detach(), (states if seen is None else seen).detach(), output[0]


def by_hand(kind: str, module: Any, caught: Caught, prefix: Tensor, visible: Tensor) -> Tensor:
    """softmax(s q [P_K; K] + bias) [P_V; V] out of plain tensor operations; the prefix (length, 2, width) has no bias."""
    _, *names, out = LAYERS[kind]
    query, key, value = (
        nn.functional.linear(states, getattr(module, name).weight, getattr(module, name).bias)
        for name, states in zip(names, (caught.queries, caught.keys, caught.keys), strict=True)
    )
    size = query.shape[-1] // HEADS
    scale = {"t5": 1.0, "deberta-v2": (3 * size) ** -0.5}.get(kind.split()[0], size**-0.5)
    bias = position_bias(kind, module, query, key, scale)
    heads = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        of_tokens = query[..., part] @ key[..., part].transpose(1, 2) * scale + bias[:, head]
        of_tokens = of_tokens.masked_fill(~visible, -1e30)
        of_prefix = query[..., part] @ prefix[:, 0, part].T * scale
        weights = torch.cat([of_prefix, of_tokens], dim=2).softmax(-1)
        heads.append(weights[..., :LENGTH] @ prefix[:, 1, part] + weights[..., LENGTH:] @ value[..., part])
    joined = torch.cat(heads, dim=-1)
    return joined if not out else nn.functional.linear(joined, getattr(module, out).weight, getattr(module, out).bias)


def position_bias(kind: str, module: Any, query: Tensor, key: Tensor, scale: float) -> Tensor:
    """What the model adds to scores by position: (1 or B, heads, Tq, Tk)."""
    if kind in ("t5", "t5 decoder"):
        return module.compute_bias(query.shape[1], key.shape[1])
    if kind != "deberta-v2":
        return torch.zeros(1, HEADS, 1, 1)

    def split(states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], HEADS, -1).permute(0, 2, 1, 3)

    table = plain_model("deberta-v2", "AutoModelForTokenClassification").deberta.encoder.rel_embeddings.weight[None]
    span, count = module.pos_ebd_size, query.shape[1]
    relative = torch.arange(count)[:, None] - torch.arange(count)
    to_position = split(query) @ split(module.pos_key_proj(table)).transpose(2, 3)
    from_position = split(key) @ split(module.pos_query_proj(table)).transpose(2, 3)
    rows = torch.arange(count)[:, None]
    content_to_position = to_position[:, :, rows, (relative + span).clamp(0, 2 * span - 1)]
    position_to_content = from_position[:, :, torch.arange(count), (relative + span).clamp(0, 2 * span - 1)]
    return (content_to_position + position_to_content) * scale


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", LAYERS)
def test_each_kind_of_attention(kind: str, implementation: str) -> None:
    family = kind.split()[0]
    auto = "AutoModelForSeq2SeqLM" if family in ("t5", "bart") else "AutoModelForTokenClassification"
    model, prefixes = with_prefix(family, auto)
    if family != "deberta-v2":
        model.get_base_model().set_attn_implementation(implementation)
    path = LAYERS[kind][0]
    module = model.get_base_model().get_submodule(path)
    caught, visible = Caught(module), MASK.bool()[:, None]
    if family == "vit":
        model(pixel_values=torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
        visible = torch.ones(2, 1, 5, dtype=torch.bool)
    else:
        written = {"decoder_input_ids": tokens(length=4, seed=9)} if family in ("t5", "bart") else {}
        model(input_ids=tokens(), attention_mask=MASK, **written)
    if kind.endswith("decoder"):
        visible = torch.ones(4, 4, dtype=torch.bool).tril()[None]
    number = int(path.split(".")[3 if family not in ("vit", "t5") else 2])
    whole = prefixes[group_of(path)]
    copy = whole.detach().clone().requires_grad_()
    expected = by_hand(kind, module, caught, copy.view(LENGTH, 2, 2, -1)[:, number], visible)
    # What padding attends to is nobody's business, and DeBERTa lets it see nothing but the prefix.
    rows = MASK.bool() if expected.shape[1] == MASK.shape[1] else torch.ones(expected.shape[:2], dtype=torch.bool)
    torch.testing.assert_close(caught.output[rows], expected[rows], **CLOSE)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)) * rows[..., None]
    found = gradient((caught.output * weights).sum(), whole).view(LENGTH, 2, -1)[:, number]
    torch.testing.assert_close(found, gradient((expected * weights).sum(), copy).view(LENGTH, 2, -1)[:, number], **CLOSE)


# --- the rest of the model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto", ["AutoModelForTokenClassification", "AutoModelForQuestionAnswering"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2"])
def test_padding_changes_nothing(family: str, auto: str) -> None:
    model, _ = with_prefix(family, auto)
    outputs, alone = model(input_ids=tokens(), attention_mask=MASK), model(input_ids=tokens()[1:, :4])
    for name in alone.keys() & {"logits", "start_logits", "end_logits"}:
        assert outputs[name].shape[:2] == (2, 6)
        torch.testing.assert_close(outputs[name][1:, :4], alone[name], **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_packed_documents_each_see_the_prefix_and_not_each_other(family: str) -> None:
    model, _ = with_prefix(family, "AutoModelForCausalLM")
    first, second = tokens(1, 4), tokens(1, 3, seed=8)
    same = torch.tensor([0] * 4 + [1] * 3)
    mask = (same[:, None] == same) & torch.ones(7, 7, dtype=torch.bool).tril()
    packed = {"input_ids": torch.cat([first, second], dim=1), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}
    logits = model(**packed, attention_mask=mask[None, None]).logits
    torch.testing.assert_close(logits[:, :4], model(first).logits, **CLOSE)
    torch.testing.assert_close(logits[:, 4:], model(second).logits, **CLOSE)


@pytest.mark.parametrize(
    ("family", "auto"), [("bert", "AutoModelForTokenClassification"), ("deberta-v2", "AutoModelForTokenClassification")]
)
def test_unloaded_models_are_the_plain_ones(family: str, auto: str) -> None:
    plain = plain_model(family, auto)
    names, expected = list(plain.state_dict()), plain(tokens()).logits
    model, _ = with_prefix(family, auto)
    assert not torch.allclose(model(input_ids=tokens()).logits, expected, atol=1e-3)
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=tokens()).logits, expected, **CLOSE)
    unloaded = model.unload()
    assert list(unloaded.state_dict()) == names
    torch.testing.assert_close(unloaded(tokens()).logits, expected, **CLOSE)
    unloaded.config.to_dict()


def test_the_model_keeps_its_config() -> None:
    model, _ = with_prefix("bert", "AutoModelForTokenClassification")
    assert model.config._attn_implementation == "sdpa"
    part = model.get_base_model().bert.encoder.layer[0].attention.self.config
    assert part.hidden_size == 16
    with pytest.raises(AttributeError):
        part.no_such_entry  # noqa: B018


def test_another_attention_is_refused() -> None:
    model = plain_model("bert", "AutoModelForTokenClassification")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ModelError, match="sdpa and eager, and the model runs flex_attention"):
        PrefixTuning(Options()).apply(model, ModelLayout(model))
    model, _ = with_prefix("bert", "AutoModelForTokenClassification")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="sdpa and eager, not flex_attention"):
        model(input_ids=tokens())
    with pytest.raises(ValueError, match="Linear computes attention in a way of its own"):
        add_prefix(nn.Linear(2, 2), lambda: None)


def test_adapters_may_serve_different_blocks() -> None:
    model = plain_model("gpt2", "AutoModelForCausalLM")
    upper = PrefixTuning(Options(blocks=[1], reparametrization=False, length=2)).apply(model, ModelLayout(model)).eval()
    expected = upper(tokens()).logits
    whole, _ = with_prefix("gpt2", "AutoModelForCausalLM")
    upper.add_adapter("whole", whole.peft_config["default"])
    encoders = upper.base_model.layer.attention_prefix_encoder
    encoders["whole"].load_state_dict(whole.base_model.layer.attention_prefix_encoder["default"].state_dict())
    upper.set_adapter("whole")
    torch.testing.assert_close(upper(tokens()).logits, whole(tokens()).logits, **CLOSE)
    upper.set_adapter("default")
    torch.testing.assert_close(upper(tokens()).logits, expected)


def test_a_network_gives_what_is_saved(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    model = plain_model("bart", "AutoModelForSeq2SeqLM")
    method = PrefixTuning(Options(length=4, reparametrization=True, hidden_size=5))
    wrapped = method.apply(model, ModelLayout(model)).eval()
    method.save_adapter(wrapped, tmp_path)
    saved = {name.split(".")[-2]: value for name, value in load_file(tmp_path / "adapter_model.safetensors").items()}
    encoders = wrapped.base_model.layer.attention_prefix_encoder["default"]
    assert saved.keys() == encoders.keys() == {
        "model-encoder-layers-self_attn", "model-decoder-layers-self_attn", "model-decoder-layers-encoder_attn"
    }  # fmt: skip
    for name, encoder in encoders.items():
        first, _, last = encoder.network
        expected = torch.tanh(encoder.inputs @ first.weight.T + first.bias) @ last.weight.T + last.bias
        torch.testing.assert_close(saved[name], expected, **CLOSE)
