"""Two pretrained models as one: what is new trains under every method, and the whole comes back from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM

from ftkit.errors import ModelError
from ftkit.models.facts import read_facts
from ftkit.models.load import LoadedModel, load_model, load_processor, trainable_report
from ftkit.models.trainable import load_trainable, to_uniform_dtype, trainable_state
from ftkit.recipe.schema import ModelSpec
from ftkit.registry import METHODS
from ftkit.run.lockfile import hash_model
from ftkit.tasks.base import Head
from ftkit.tasks.parts.generation import GenerationOptions, generate_tokens
from ftkit.tuners.wrap import load_adapter, merge
from tests.methods.cases import FITTING
from tests.tiny import save_tiny, tiny_config, tiny_tokenizer

HEAD = Head(auto_class="AutoModelForSeq2SeqLM", peft_task_type="SEQ_2_SEQ_LM", pretrained=True)
PAIRS = {"bert": ("bert", "bert"), "roberta": ("roberta", "roberta"), "gpt2": ("bert", "gpt2"), "wide": ("bert", "wide")}
INPUTS = {
    "input_ids": torch.tensor([[2, 8, 9, 10, 3], [2, 20, 21, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
    "decoder_input_ids": torch.tensor([[2, 30, 31], [2, 40, 41]]),
}
TARGETS = torch.tensor([[30, 31, 3], [40, 41, 3]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for family in ("bert", "roberta", "gpt2"):
        save_tiny(folder / family, family, "AutoModel", seed=1)
    from transformers import AutoModelForMaskedLM

    AutoModelForMaskedLM.from_config(tiny_config("bert", hidden_size=24)).save_pretrained(folder / "wide")
    for name in ("wide", "gpt2"):
        tiny_tokenizer("bert").save_pretrained(folder / name)
    return folder


def _spec(folders: Path, pair: str, **changes: Any) -> ModelSpec:
    encoder, decoder = PAIRS[pair]
    return ModelSpec(name=str(folders / encoder), decoder=str(folders / decoder), **changes)


def _load(folders: Path, pair: str, seed: int = 0, **changes: Any) -> LoadedModel:
    return load_model(_spec(folders, pair, **changes), HEAD, seed=seed)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**INPUTS).logits.float()


def _loss(model: Any) -> torch.Tensor:
    return functional.cross_entropy(model(**INPUTS).logits.float().flatten(0, 1), TARGETS.flatten())


def _train(model: Any, method: Any = None, steps: int = 6) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        added = method and method.extra_loss(model)
        (_loss(model) if added is None else _loss(model) + added).backward()
        optimizer.step()
        optimizer.zero_grad()


# --- facts and loading -------------------------------------------------------------------------------------------------


def test_facts_are_those_of_both(folders: Path) -> None:
    facts = read_facts(_spec(folders, "wide"))
    assert (facts.kind, facts.model_type, facts.block_count, facts.hidden_size) == ("encoder-decoder", "encoder-decoder", 4, 24)
    assert (facts.path, facts.decoder_path, facts.vocab_size) == (folders / "bert", folders / "wide", 64)
    assert read_facts(_spec(folders, "roberta")).max_positions == 64
    hashes = hash_model(facts)
    assert hashes["model.safetensors"] != hashes["decoder/model.safetensors"]
    same = read_facts(_spec(folders, "bert"))
    assert not any(name.startswith("decoder/") for name in hash_model(same))


@pytest.mark.parametrize("pair", list(PAIRS))
def test_pretrained_weights_arrive_and_only_new_parts_are_fresh(folders: Path, pair: str) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    loaded = _load(folders, pair)
    encoder, decoder = (AutoModel.from_pretrained(folders / name).state_dict() for name in PAIRS[pair])
    for part, expected in ((loaded.model.encoder, encoder), (loaded.model.decoder.base_model, decoder)):
        found = part.state_dict()
        shared = found.keys() & expected.keys()
        assert len(shared) > 20
        assert all(torch.equal(found[name], expected[name]) for name in shared)
    assert any("crossattention" in name for name in loaded.fresh)
    assert ("enc_to_dec_proj.weight" in loaded.fresh) == (pair == "wide")
    assert loaded.fresh <= set(loaded.layout.head_parameters())
    if pair == "wide":  # A masked language model brings its output layers along.
        kept = AutoModelForCausalLM.from_pretrained(folders / "wide", is_decoder=True).cls.state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in loaded.model.decoder.cls.state_dict().items())
        assert not any(".cls." in name for name in loaded.fresh)


def test_new_weights_are_a_function_of_the_seed(folders: Path) -> None:
    one, again, other = (_load(folders, "bert", seed) for seed in (3, 3, 4))
    assert torch.equal(_logits(one.model), _logits(again.model))
    assert not torch.equal(_logits(one.model), _logits(other.model))
    assert not one.model.training


def test_the_layout_tells_encoder_decoder_and_new_parts_apart(folders: Path) -> None:
    layout = _load(folders, "bert").layout
    assert [block.stack for block in layout.blocks] == ["encoder", "encoder", "decoder", "decoder"]
    assert layout.depth("decoder.bert.encoder.layer.0.attention.self.query.weight") == 3
    assert layout.depth("decoder.bert.encoder.layer.0.crossattention.self.query.weight") == 5
    assert not [path for path in layout.linears("all") if "crossattention" in path]
    assert len(layout.linears("query")) == 4


def test_ids_come_from_the_tokenizer(folders: Path) -> None:
    model: Any = _load(folders, "bert").model
    for config in (model.config, model.generation_config):
        assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (2, 3, 0)


@pytest.mark.parametrize("pair", list(PAIRS))
def test_it_generates_what_it_computes(folders: Path, pair: str) -> None:
    model: Any = _load(folders, pair).model
    _train(model, steps=40)
    ids = {name: INPUTS[name] for name in ("input_ids", "attention_mask")}
    found = generate_tokens(model.eval(), ids, GenerationOptions(), max_new_tokens=8, stop_ids=[3], pad_id=0)
    assert found == [[30, 31], [40, 41]]


def test_random_weights(folders: Path) -> None:
    loaded = _load(folders, "bert", weights="random")
    assert not loaded.fresh
    assert not torch.equal(_logits(loaded.model), _logits(_load(folders, "bert").model))
    trained = METHODS.get("full")(METHODS.get("full").Options()).apply(loaded.model, loaded.layout)
    assert all(parameter.requires_grad for parameter in trained.parameters())


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"decoder": "t5"}, "model.decoder", "of the kind 'encoder-decoder'"),
        ({"name": "gpt2", "decoder": "gpt2"}, "model.name", "of the kind 'decoder'"),
        ({"decoder": "./absent"}, "model.decoder", "there is no model folder"),
        ({"decoder": "distilbert"}, "model.decoder", "no AutoModelForCausalLM for the architecture 'distilbert'"),
        ({"decoder": "llama"}, "model.decoder", "encoder hidden states"),
        ({"decoder": "other"}, "model.decoder", "another vocabulary"),
    ],
)
def test_what_makes_no_pair_is_refused(folders: Path, changes: dict[str, str], key: str, message: str) -> None:
    for family in ("t5", "distilbert", "llama"):
        if not (folders / family).exists():
            save_tiny(folders / family, family, "AutoModel")
            tiny_tokenizer("bert").save_pretrained(folders / family)
    if not (folders / "other").exists():
        save_tiny(folders / "other", "bert", "AutoModel")
        tokenizer = tiny_tokenizer("bert")
        tokenizer.add_tokens(["one", "more"])
        tokenizer.save_pretrained(folders / "other")
    names = {name: value if value.startswith(".") else str(folders / value) for name, value in changes.items()}
    spec = ModelSpec(**{"name": str(folders / "bert"), **names})
    with pytest.raises(ModelError, match=message) as caught:
        load_model(spec, HEAD, seed=0)
    assert caught.value.problems[0].key == key


def test_another_task_is_told_to_leave_it_out(folders: Path) -> None:
    head = Head(auto_class="AutoModelForSequenceClassification", peft_task_type="SEQ_CLS")
    with pytest.raises(ModelError, match="choose the task seq2seq"):
        load_model(_spec(folders, "bert"), head, seed=0)


# --- methods -----------------------------------------------------------------------------------------------------------


def _applied(folders: Path, pair: str, name: str, seed: int = 0, **changes: Any) -> tuple[Any, Any, LoadedModel]:
    loaded, cls = _load(folders, pair, seed, **changes), METHODS.get(name)
    typed = cls.Options(**FITTING.get(name, lambda _: {})("bert"))
    known = cls(typed).defaults(loaded.facts)
    fill = {key.removeprefix("method."): default.value for key, default in known.items() if key.startswith("method.")}
    method = cls(typed.model_copy(update={key: value for key, value in fill.items() if getattr(typed, key) == "auto"}))
    if reason := method.refusal(loaded.facts):
        pytest.fail(f"{name} refuses encoder-decoders: {reason}")
    return method.apply(loaded.model, loaded.layout), method, loaded


METHOD_NAMES = [name for name in METHODS.names() if METHODS.get(name).capabilities.trains and not METHODS.get(name).needs]


ONE_WIDTH = {"hypernetwork", "unipelt"}
"""Methods with parts that all blocks share."""


@pytest.mark.parametrize("name", sorted(ONE_WIDTH))
def test_methods_that_need_blocks_of_one_width_say_so(folders: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"wid(e|th).*Use `"):
        _applied(folders, "wide", name)


@pytest.mark.parametrize(
    ("name", "pair"),
    [(name, pair) for name in METHOD_NAMES for pair in ("bert", "wide") if pair == "bert" or name not in ONE_WIDTH],
)
def test_new_parts_train_and_come_back(folders: Path, tmp_path: Path, name: str, pair: str) -> None:
    model, method, loaded = _applied(folders, pair, name)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {key for key, _ in model.named_parameters() if method.declares(key, loaded.layout)}
    assert loaded.fresh <= {loaded.layout.canonical(key) for key in trained}
    count = method.parameter_count(loaded.layout)
    assert count in (None, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))
    assert trainable_report(model, loaded.layout)["groups"]["head"]["trainable"] > 0
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    loss = _loss(model).item()
    _train(model, method)
    assert _loss(model).item() < loss
    assert {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])} == trained
    expected = _logits(model)

    again, _, _ = _applied(folders, pair, name, seed=9)
    assert not torch.equal(_logits(again), expected)
    load_trainable(again, trainable_state(model))
    assert torch.equal(_logits(again), expected)

    if isinstance(model, PeftModel):
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        other = _load(folders, pair, 11)
        torch.testing.assert_close(_logits(load_adapter(other.model, other.layout, tmp_path / "adapter")), expected)
        torch.testing.assert_close(
            _logits(PeftModel.from_pretrained(_load(folders, pair, 12).model, tmp_path / "adapter")), expected
        )
    if not method.capabilities.merge:
        return
    plain: Any = to_uniform_dtype(merge(model) if isinstance(model, PeftModel) else model, torch.float32)
    plain.save_pretrained(tmp_path / "merged")
    found, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    torch.testing.assert_close(_logits(found), expected, rtol=1e-4, atol=1e-5)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert str(folders) not in (tmp_path / "merged" / "config.json").read_text()


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_half_precision_bases_train_in_float32(folders: Path, name: str) -> None:
    model, method, _ = _applied(folders, "bert" if name in ONE_WIDTH else "wide", name, dtype="bfloat16")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)
    loss = _loss(model).item()
    _train(model, method)
    assert _loss(model).item() < loss


def test_an_exported_pair_is_a_model_to_start_from(folders: Path, tmp_path: Path) -> None:
    model: Any = _load(folders, "wide").model
    model.save_pretrained(tmp_path / "pair")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "pair")
    spec = ModelSpec(name=str(tmp_path / "pair"))
    facts = read_facts(spec)
    assert (facts.kind, facts.block_count, facts.hidden_size, facts.max_positions) == ("encoder-decoder", 4, 24, 64)
    again = load_model(spec, HEAD, seed=5)
    assert not again.fresh
    torch.testing.assert_close(_logits(again.model), _logits(model))
    # No gradient reaches the pooler, which distributed training would wait for.
    _loss(again.model).backward()
    assert all(parameter.grad is not None for parameter in again.model.parameters())
    assert load_processor(spec, facts).cls_token_id == again.model.config.decoder_start_token_id  # type: ignore[union-attr]
