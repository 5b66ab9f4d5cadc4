"""Any other tuner of PEFT by the name of its type: `method: {name: peft, type: RANDLORA, config: {r: 16}}`.

What is trained, and how it enters the forward pass, depends on the type. ftkit checks every setting against PEFT's config class, finds the
layers, adds the task head, and allows the types that keep what it promises of every adapter: exactly the declared parameters train,
a saved adapter loads into another process and computes the same, several adapters can share a base, merging changes no output.
No closed form for the number of parameters. Source: PEFT, Mangrulkar et al. 2022, https://github.com/huggingface/peft, and the paper of
each type (`ftkit.methods.parts.peft_types`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from ftkit.methods.base import Capabilities, Default, Paper, encoder_epochs
from ftkit.methods.parts.peft_types import HARNESS, MEASURED, OWN_METHOD, REFUSED, SET_BY_FTKIT, TUNERS, PeftTuner
from ftkit.methods.parts.targets import BLOCKS_TEXT, BlockRanges, TargetChoice, TargetedMethod, all_conv1d, targets_text
from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

    from ftkit.models.facts import ModelFacts
    from ftkit.models.layout import ModelLayout


def _allowed_type(name: str) -> str:
    if name in TUNERS:
        return name
    if name in OWN_METHOD:
        raise ValueError(f"{name} is a method by itself: write `method: {OWN_METHOD[name]}`")
    if name in REFUSED:
        raise ValueError(f"{name} is refused: {REFUSED[name]}")
    near = get_close_matches(name.upper(), [*TUNERS, *OWN_METHOD, *REFUSED], n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(TUNERS)}"
    raise ValueError(f"PEFT has no type {name!r} that is known here. {hint}")


class Options(Strict):
    """Which tuner, its settings, its place."""

    type: Annotated[str, AfterValidator(_allowed_type)] = Field(
        "DELORA", description="PEFT's name of the tuner, in capitals.", json_schema_extra={"enum": list(TUNERS)}
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="Settings of PEFT's config class for this type; all others keep PEFT's values."
    )
    targets: TargetChoice = Field("auto", description=targets_text("query and value"))
    blocks: BlockRanges | None = Field(None, description=BLOCKS_TEXT)

    @model_validator(mode="after")
    def _settings_fit(self) -> Options:
        if wrong := list(_wrong_settings(self.type, self.config)):
            raise ValueError("; ".join(wrong))
        return self


def _wrong_settings(kind: str, config: Mapping[str, Any]) -> Iterator[str]:
    known = TUNERS[kind].settings
    for name, value in config.items():
        if name in known:
            if not any(_is(alternative, value) for alternative in known[name].split(" | ")):
                yield f"{name} of {kind} must be {known[name].replace(' | ', ' or ')}, not {value!r}"
        elif name in SET_BY_FTKIT:
            yield f"{name} cannot be set: {SET_BY_FTKIT[name]}"
        else:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            yield f"{kind} has no setting {name!r}. " + (f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(known)}")


def _is(kind: str, value: Any) -> bool:
    """Whether a value is of the kind that a table of settings names."""
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    classes = {"boolean": bool, "text": str, "mapping": dict, "null": type(None)}
    return isinstance(value, classes[kind]) if kind in classes else bool(value == kind.strip("'"))


class AnyPeftTuner(TargetedMethod):
    """A tuner of PEFT that is no method by itself."""

    name = "peft"
    summary = "Any other tuner of PEFT, by type: MISS, RANDLORA, FOURIERFT, VBLORA, HRA, ROAD ..."
    update_rule = "that of the chosen type: W is frozen, the tuner's own parameters are trained"
    paper = Paper(
        title="PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods",
        authors="Mangrulkar, Gugger, Debut, Belkada, Paul, Bossan",
        year=2022,
        url="https://github.com/huggingface/peft",
    )
    capabilities = Capabilities(adapter=True, merge=True)
    Options = Options
    prefix = ""

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        tuner = self._tuner
        self.adapts_conv1d = tuner.conv1d
        self.capabilities = Capabilities(adapter=True, merge=tuner.merge, quantized=tuner.quantized)

    @property
    def _tuner(self) -> PeftTuner:
        return TUNERS[self.options.type]

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        tuner = self._tuner
        rate = Default(value=tuner.rate, source=MEASURED)
        if facts.kind == "decoder":
            rate = Default(value=tuner.decoder_rate, source=HARNESS)
        targets = Default(
            value=["query", "value"], source="PEFT's own choice for most types and models, and in its method comparison"
        )
        return {"train.learning_rate": rate, **encoder_epochs(facts), "method.targets": targets}

    def declares(self, name: str, layout: ModelLayout) -> bool:
        return f".{self._tuner.prefix}" in name or ".modules_to_save." in name

    def apply(self, model: nn.Module, layout: ModelLayout) -> nn.Module:
        import torch

        from ftkit.errors import FtkitError, ModelError

        # The default, said aloud: the sparse tuners would make torch warn that nobody chose it.
        torch.sparse.check_sparse_tensor_invariants.disable()
        try:
            return super().apply(model, layout)
        except (FtkitError, MemoryError):
            raise
        # Tuners check sizes and settings each in its own way, some only where they compute with them.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            hint = "Change `method.config` or `method.targets`, or use another type"
            raise ModelError(
                f"PEFT's {self.options.type} does not fit this model with these settings: {reason}", hint=hint
            ) from error

    def config(self, layout: ModelLayout, paths: list[str]) -> PeftConfig:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
        from peft.utils import PeftType

        config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.options.type)]
        config: PeftConfig = config_class(**{**self._tuner.preset, **self.options.config})
        if hasattr(config, "fan_in_fan_out"):
            config.fan_in_fan_out = all_conv1d(layout, paths)
        return config
