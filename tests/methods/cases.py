"""What the contract suite runs: every method that the registry finds, on every family of models that it does not refuse."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftkit.methods.base import Method
from ftkit.models.facts import ModelFacts, facts_of_config
from ftkit.models.layout import ModelLayout
from ftkit.registry import METHODS
from tests.tiny import FAMILIES, HIDDEN_SIZE, tiny_config, tiny_model

SOME = ("bert", "gpt2", "t5")
PEFT_TYPES: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "ADAMSS": ({"r": 8, "num_subspaces": 2}, ("bert", "llama")),
    "C3A": ({"block_size": 8}, ("roberta", "t5")),
    "DEFT": ({"r": 4}, ("bert", "gpt2")),
    "DELORA": ({"r": 4}, ("vit", "llama")),
    "FOURIERFT": ({"n_frequency": 50}, ("bert", "gpt2")),
    "FROD": ({"sparse_rate": 0.2}, ("vit", "gpt2")),
    # GLoRA also scales biases, which are zero in the tiny models that have some.
    "GLORA": ({"r": 2}, ("t5", "llama")),
    "GRALORA": ({"r": 4}, ("distilbert", "gpt2")),
    "HIRA": ({"r": 4}, ("bert", "gpt2")),
    "HRA": ({"r": 4}, ("vit", "t5")),
    "LILY": ({"r": 4}, ("bert", "bart")),
    "MISS": ({"r": 4}, ("roberta", "t5", "llama")),
    "PEANUT": ({"r": 4}, ("deberta-v2", "llama")),
    "PSOFT": ({"r": 4}, ("bert", "bart")),
    "PVERA": ({"r": 8}, ("vit", "gpt2")),
    "RANDLORA": ({"r": 4}, ("bert", "gpt2", "t5")),
    "ROAD": ({"group_size": 8}, ("bert", "llama")),
    "SHIRA": ({"r": 2}, ("roberta", "bart")),
    "SUPERTUNING": ({"sparsity": 0.9}, ("vit", "t5")),
    "TINYLORA": ({"u": 8}, ("bert", "gpt2")),
    "UNILORA": ({"theta_d_length": 32}, ("vit", "gpt2")),
    "VBLORA": ({"vector_length": 8, "num_vectors": 8, "r": 2}, ("bert", "gpt2")),
    "WAVEFT": ({"n_frequency": 50}, ("roberta", "gpt2")),
}
"""Settings that fit the tiny models, and families to try on, for each type of the method `peft`."""

VARIANTS: Mapping[str, list[tuple[dict[str, Any], tuple[str, ...]]]] = {
    "adalora": [
        # T5's classification head sees one position of the decoder, where a query matters so little that AdaLoRA takes it all ranks.
        ({}, tuple(family for family in FAMILIES if family != "t5")),
        ({"rank": 3, "initial_rank": 4, "targets": ["ffn_in", "ffn_out"], "dropout": 0.1, "orthogonality": 0.0}, SOME),
    ],
    "adapter": [
        ({}, tuple(FAMILIES)),
        ({"placement": "houlsby", "bottleneck": 3, "norms": True, "cross_attention": True}, ("bert", "gpt2", "t5", "bart", "vit")),
        ({"placement": "parallel", "scaling": "learned", "layer_norm": "before", "dropout": 0.1}, (*SOME, "distilbert", "bart")),
        (
            {"layer_norm": "after", "bottleneck": None, "reduction_factor": 4.0, "blocks": [1], "norms": True},
            ("deberta-v2", "llama", "bart"),
        ),
    ],
    "adapter-fusion": [({}, tuple(FAMILIES)), ({"regularization": 0.0, "dropout": 0.1}, ("bert",))],
    "bitfit": [({}, tuple(FAMILIES)), ({"subset": "query-ffn"}, ("bert", "bart", "qwen2"))],
    "boft": [({}, tuple(FAMILIES)), ({"factors": 2, "block_size": 2, "targets": ["query"], "dropout": 0.5}, SOME)],
    "compacter": [
        ({}, tuple(FAMILIES)),
        ({"placement": "parallel", "rank": None, "shared_factors": False, "kronecker_terms": 2}, SOME),
        ({"placement": "pfeiffer", "rank": 2, "norms": False, "bottleneck": 8}, ("distilbert", "qwen2", "bart")),
    ],
    "diff-pruning": [
        ({}, tuple(FAMILIES)),
        ({"structured": False, "fixed_share": 0.0, "density": 0.2, "embeddings": False}, ("bert", "llama", "bart", "vit")),
    ],
    "fish-mask": [
        ({}, tuple(FAMILIES)),
        ({"density": 0.1, "selection": "per-tensor", "embeddings": False, "batches": 2}, ("bert", "gpt2", "t5", "vit")),
    ],
    "hypernetwork": [
        ({}, tuple(FAMILIES)),
        ({"generated_norm": False, "norms": False, "task_size": 4, "dropout": 0.1}, ("distilbert", "gpt2", "t5")),
        ({"cross_attention": True, "embedding_size": 3, "hidden_size": 5, "blocks": ["1-3"]}, ("bart", "t5")),
        ({"source_column": "origin"}, tuple(FAMILIES)),
    ],
    "ia3": [({}, tuple(FAMILIES)), ({"targets": ["query", "attention_out", "ffn_in"], "blocks": [0]}, (*SOME, "bart", "vit"))],
    "layernorm": [
        ({}, tuple(FAMILIES)),
        ({"norms": "attention", "biases": False}, ("bert", "llama", "bart", "vit")),
        ({"norms": "feed-forward"}, ("distilbert", "gpt2", "t5")),
        ({"norms": "final"}, ("bert", "t5", "llama")),
    ],
    "loha": [
        ({}, tuple(FAMILIES)),
        ({"rank": 3, "alpha": 5.0, "targets": "all-linear", "module_dropout": 0.2, "rank_dropout": 0.2}, ("roberta", "t5", "vit")),
    ],
    "lokr": [
        ({}, tuple(FAMILIES)),
        ({"rank": None, "targets": "all-linear"}, ("bert", "t5", "vit")),
        ({"rank": 1, "decompose_both": True, "factor": 8, "init": "lycoris"}, ("bert", "bart")),
    ],
    "lora": [
        ({}, tuple(FAMILIES)),
        ({"targets": "all-linear", "rslora": True, "rank": 3, "alpha": 5.0}, ("roberta", "gpt2", "bart", "vit")),
        ({"dora": True, "dropout": 0.1, "targets": ["re:.*(query|c_attn|SelfAttention.o)"]}, SOME),
        ({"init": "pissa", "rank": 4, "targets": "all-linear"}, SOME),
        ({"init": "pissa", "pissa_iterations": 2, "rslora": True, "rank": 3}, SOME),
        ({"init": "olora", "rank": 4, "dora": True, "targets": "all-linear"}, SOME),
        ({"init": "eva", "rank": 4, "loraplus_lr_ratio": 4.0}, ("bert", "gpt2", "bart", "vit")),
        ({"init": "orthogonal", "rank": 4, "blocks": [1]}, SOME),
        ({"init": "gaussian", "targets": ["ffn_in", "key"]}, SOME),
        ({"lora_bias": True, "modules_to_save": ["word_embeddings", "LayerNorm"], "targets": "all-linear"}, ("bert",)),
        ({"lora_bias": True, "modules_to_save": ["ln_f"]}, ("gpt2",)),
    ],
    "mam": [
        ({}, tuple(FAMILIES)),
        ({"length": 3, "reparametrization": False, "bottleneck": 4, "scaling": 1.0, "dropout": 0.1}, (*SOME, "deberta-v2", "bart")),
        ({"length": 2, "hidden_size": 6, "reduction_factor": 4.0, "blocks": [1]}, ("bert", "llama", "bart", "vit")),
    ],
    "multitask-prompt-tuning": [({}, tuple(FAMILIES)), ({"source_column": "origin"}, tuple(FAMILIES))],
    "oft": [
        ({}, tuple(FAMILIES)),
        ({"block_size": 4, "share_blocks": True, "exact": True, "targets": ["attention_out"]}, ("bert", "t5", "vit")),
    ],
    "partial": [
        ({}, tuple(FAMILIES)),
        ({"blocks": ["0"], "norms": True}, ("bert", "bart", "llama")),
        ({"pattern": "bias$", "embeddings": True}, ("bert", "vit")),
    ],
    "p-tuning": [
        ({}, tuple(FAMILIES)),
        ({"length": 4, "network": "mlp", "hidden_size": 6}, ("roberta", "llama", "t5", "vit")),
        ({"length": 3, "hidden_size": 4, "dropout": 0.3}, ("gpt2", "bart")),
    ],
    "prefix-tuning": [
        ({}, tuple(FAMILIES)),
        ({"length": 4, "reparametrization": True, "hidden_size": 6}, (*SOME, "deberta-v2", "qwen2", "bart", "vit")),
        ({"length": 3, "reparametrization": False, "blocks": [1]}, (*SOME, "bart")),
    ],
    "prompt-tuning": [({}, tuple(FAMILIES)), ({"length": 3, "init": "random"}, (*SOME, "bart"))],
    "peft": [({"type": kind, "config": config}, families) for kind, (config, families) in PEFT_TYPES.items()],
    "unipelt": [
        ({}, tuple(FAMILIES)),
        ({"reparametrization": False, "rank": 2, "alpha": 4.0, "length": 3, "dropout": 0.1}, (*SOME, "bart", "qwen2")),
        ({"hidden_size": 6, "blocks": [1], "reduction_factor": 2.0}, ("bert", "llama", "vit")),
    ],
    "vera": [
        ({}, tuple(FAMILIES)),
        ({"rank": 8, "d_initial": 1.0, "targets": "all-linear", "dropout": 0.1}, ("gpt2", "bart", "qwen2")),
    ],
}
"""Options to try beside the families to try them on. A method that is not listed is tried without options on all families."""

REWRITTEN = {"lora init=pissa", "lora init=olora"}
"""Cases that train beside a changed base, and whose adapter files are written against the untouched one."""


@cache
def _fusion_members(family: str) -> Mapping[str, Any]:
    """Two adapters with random values, the same in every process."""
    folder, members = Path(tempfile.mkdtemp(prefix="ftkit-members-")), []
    atexit.register(shutil.rmtree, folder)
    for seed in (1, 2):
        model, layout = fresh_model(family, head_seed=seed)
        member = make_method("adapter", {"bottleneck": 2 + seed}, family)
        generator, model = torch.Generator().manual_seed(seed), member.apply(model, layout)
        for name, parameter in model.named_parameters():
            if member.declares(name, layout):
                parameter.data.normal_(0, 0.3, generator=generator)
        member.save_adapter(model, folder / str(seed))
        members.append(str(folder / str(seed)))
    return {"adapters": members}


FITTING: Mapping[str, Callable[[str], Mapping[str, Any]]] = {
    "adapter": lambda _: {"bottleneck": 4},
    "adapter-fusion": _fusion_members,
    "diff-pruning": lambda _: {"density": 0.05},
    "fish-mask": lambda _: {"density": 0.05},
    "hypernetwork": lambda _: {"reduction_factor": 4.0},
    "mam": lambda _: {"length": 5},
    "multitask-prompt-tuning": lambda _: {"length": 5},
    "oft": lambda _: {"block_size": 8},
    "p-tuning": lambda _: {"length": 5},
    "prompt-tuning": lambda _: {"length": 5},
    "unipelt": lambda _: {"reduction_factor": 4.0},
}
"""By family: what the method needs, or what suits models this narrow (a bottleneck of one ReLU unit may learn nothing)."""


@dataclass(frozen=True)
class Case:
    """One method with some options on one family."""

    method: str
    options: tuple[tuple[str, Any], ...]
    family: str

    def __str__(self) -> str:
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.options), self.family])

    @property
    def plain(self) -> bool:
        """Without options; the types of `peft`, which need some sizes, are like methods without options."""
        return {name for name, _ in self.options} <= {"type", "config"}

    @property
    def tolerance(self) -> float:
        """Of logits computed from an adapter file; wider where the file adds up what the run computed otherwise."""
        return 1e-5 if REWRITTEN & {f"{self.method} {name}={value}" for name, value in self.options} else 1e-6


@cache
def facts_of(family: str) -> ModelFacts:
    return facts_of_config(tiny_config(family).to_dict(), None)


def make_method(name: str, options: Mapping[str, Any], family: str) -> Method:
    """The method as a plan makes it: each option left at `auto` is filled in."""
    cls = METHODS.get(name)
    typed = cls.Options(**{**FITTING.get(name, lambda _: {})(family), **options})
    known = cls(typed).defaults(facts_of(family))
    fill = {key.removeprefix("method."): default.value for key, default in known.items() if key.startswith("method.")}
    method = cls(typed.model_copy(update={key: value for key, value in fill.items() if getattr(typed, key) == "auto"}))
    if method.source_column is not None:
        method.take_sources(SOURCES)
    return method


def method_of(case: Case) -> Method:
    return make_method(case.method, thawed(case.options), case.family)


def all_cases() -> list[Case]:
    return list(_cases())


TRAINING_METHODS = [name for name in METHODS.names() if METHODS.get(name).capabilities.trains]


def _cases() -> Iterator[Case]:
    for name in TRAINING_METHODS:
        for options, families in VARIANTS.get(name, [({}, tuple(FAMILIES))]):
            for family in families:
                if not make_method(name, options, family).refusal(facts_of(family)):
                    yield Case(name, frozen(options), family)


def frozen(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Options as something to look up by: lists and mappings become tuples."""
    kinds = {list: tuple, dict: frozen}
    return tuple((key, kinds[type(value)](value) if type(value) in kinds else value) for key, value in options.items())


def thawed(options: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """The inverse of `frozen`."""
    return {key: _thawed(value) for key, value in options}


def _thawed(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    return thawed(value) if value and all(isinstance(item, tuple) for item in value) else list(value)


def fresh_model(family: str, head_seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, ModelLayout]:
    """A model as loaded from a checkpoint without a head (nor BERT's pooler): body the same each time, head from the seed."""
    model = tiny_model(family)
    fresh = {*ModelLayout(model).head_parameters(), *(name for name, _ in model.named_parameters() if ".pooler." in name)}
    body, head = torch.Generator().manual_seed(0), torch.Generator().manual_seed(head_seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # The usual 0.02 gives a model this narrow the same output for every input.
            if name in fresh or parameter.ndim > 1:
                parameter.normal_(0, HIDDEN_SIZE**-0.5, generator=head if name in fresh else body)
    model = model.to(dtype).eval()
    return model, ModelLayout(model, fresh)


def batch_of(family: str) -> dict[str, Tensor]:
    """Four examples of a toy classification task."""
    generator = torch.Generator().manual_seed(7)
    if family == "vit":
        return {"pixel_values": torch.randn(4, 1, 8, 8, generator=generator)}
    tokens = torch.randint(7, 60, (4, 6), generator=generator)
    # BART reads the class off the one end token (id 5).
    return {"input_ids": torch.cat([tokens, torch.full((4, 1), 5)], dim=1), "attention_mask": torch.ones(4, 7, dtype=torch.long)}


LABELS = torch.tensor([0, 1, 2, 0])
SOURCES = ("calm", "glad", "sad")


def sources_of(model: nn.Module) -> dict[str, Tensor]:
    """Which of SOURCES the examples are from, for a model that treats them differently."""
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    by_source = any(getattr(config, "sources", None) for config in configs.values())
    return {"source_ids": torch.tensor([2, 0, 1, 0])} if by_source else {}


def logits_of(model: nn.Module, family: str) -> Tensor:
    training = model.training
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(**batch_of(family), **sources_of(model)).logits
    model.train(training)
    return logits


def loss_of(model: nn.Module, family: str, inputs: dict[str, Tensor] | None = None) -> Tensor:
    return nn.functional.cross_entropy(model(**(inputs or batch_of(family)), **sources_of(model)).logits.float(), LABELS)


def train(model: nn.Module, method: Method, family: str, steps: int, learning_rate: float = 1e-2) -> None:
    """Plain AdamW on the toy batch, with the method's own hooks."""
    torch.manual_seed(1)
    method.training_begins(model, steps)
    if method.batches_before_training():
        model.eval()
        method.prepare(model, [lambda: loss_of(model, family)] * 3)
        model.zero_grad()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0)
    model.train()
    for step in range(1, steps + 1):
        extra = method.extra_loss(model)
        loss = loss_of(model, family) + (0 if extra is None else extra)
        loss.backward()
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
    model.eval()
