"""The recipe as types: every key, its default, its meaning.

`"auto"` means that the method, the task or the machine decides; `ftkit plan` shows the value and where it comes from.
The options of a task or method belong to that task or method (`Task.Options`, `Method.Options`), not to this file.
No key is read anywhere under another spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, WithJsonSchema, model_validator

Auto = Literal["auto"]

LARGEST_BATCH = 2**20
"""Rows; more is a slip of the pen."""


class Strict(BaseModel):
    """A mapping whose every key is known and whose every value has the stated type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    shorthand: ClassVar[str] = ""
    """The key that a plain scalar stands for: `model: x` is `model: {name: x}`."""

    @model_validator(mode="before")
    @classmethod
    def _expand_shorthand(cls, value: Any) -> Any:
        return {cls.shorthand: value} if cls.shorthand and isinstance(value, str) else value


class QuantizationSpec(Strict):
    """How the frozen weights of the blocks are quantized (QLoRA)."""

    shorthand: ClassVar[str] = "type"

    type: Literal["nf4", "fp4", "int8"] = Field(
        description="nf4, fp4: 4 bits a weight (nf4 fits normally distributed weights). int8: 8 bits; it rounds the layers' inputs, too."
    )
    double: bool = Field(True, description="nf4, fp4: quantize the scales as well (4.13 instead of 4.5 bits a weight).")
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="nf4, fp4: type of the products. auto: bfloat16 where the GPU computes in it, else float32."
    )

    @property
    def bits(self) -> int:
        """Bits of a weight, its scale left out."""
        return 8 if self.type == "int8" else 4


class ModelSpec(Strict):
    """The pretrained model to adapt."""

    shorthand: ClassVar[str] = "name"

    name: str = Field(
        min_length=1,
        description="Hub id, local folder, .gguf file, or `package:<importable package>/<path inside it>`.",
    )
    revision: str | None = Field(None, description="Commit, tag or branch of a hub id. Pin a commit for runs that must repeat.")
    decoder: str | None = Field(
        None,
        min_length=1,
        description="Second model, same forms as `name`: the two become encoder and decoder of a sequence-to-sequence model with new "
        "cross-attention. It must have the same vocabulary. `revision` and `trust_remote_code` count for it only if it is `name` again.",
    )
    weights: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: start from random weights; of the folder only config.json is read. Needs method `full`."
    )
    tokenizer: str | None = Field(None, description="Tokenizer to use instead of the model's own; same forms as `name`.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of the frozen weights. Trained weights are float32 whatever this says. auto: float32."
    )
    quantization: QuantizationSpec | None = Field(
        None,
        description="Quantize the frozen weights of the blocks with bitsandbytes. Needs a method that works with it, such as lora.",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="Attention implementation. auto: what transformers picks for the model."
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code that ships with the model. Also needs --trust-remote-code and, for a hub id, a `revision`.",
    )


class SourceSpec(Strict):
    """One place rows come from."""

    shorthand: ClassVar[str] = "path"

    path: str = Field(
        min_length=1,
        description="File, glob, folder of class folders, `package:` path or hub id. `path#500` takes 500 rows, drawn by the split seed.",
    )
    format: Literal[
        "auto", "jsonl", "json", "squad", "csv", "tsv", "conll", "parquet", "arrow", "text", "document", "folder", "image", "hub"
    ] = Field("auto", description="auto: by the file ending.")
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How often each row is seen in an epoch: 2 is twice, 0.5 is a fresh half of the rows in each epoch.",
    )
    encoding: str = Field(
        "utf-8",
        description="Character encoding of text formats; several by comma are tried in turn: `utf-8,latin-1`.",
    )
    delimiter: str | None = Field(None, min_length=1, max_length=1, description="Field separator of csv and conll files.")
    revision: str | None = Field(None, description="Commit, tag or branch of a hub data set.")
    config: str | None = Field(None, description="Configuration name of a hub data set.")
    split: str | None = Field(None, description="Split of a hub data set. Default: the split that this source is listed under.")


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


Sources = Annotated[list[SourceSpec], BeforeValidator(_as_list), Field(min_length=1)]


class SplitSpec(Strict):
    """Held-back shares of the training source."""

    validation: float = Field(0.0, ge=0, lt=1, description="Share of the training rows held back for validation.")
    test: float = Field(0.0, ge=0, lt=1, description="Share of the training rows held back for the final test.")
    seed: int = Field(0, ge=0, description="Seed of the draw.")
    stratify: str = Field(
        "auto",
        description="Column whose values keep their proportions, or `none`. auto: the task's label column, where it has one.",
    )
    group: str | None = Field(None, description="Column whose equal values stay in one split (a user, a document).")


class DataSpec(Strict):
    """Where the rows are and which columns the task reads."""

    train: Sources = Field(description="Training rows: one source or a list of weighted ones.")
    validation: Sources | None = Field(None, description="Validation rows; evaluated during training.")
    test: Sources | None = Field(None, description="Test rows; evaluated once, after training.")
    split: SplitSpec | None = Field(None, description="Make validation and test rows out of the training source.")
    columns: dict[str, str | Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict, description="Which column of the data holds what the task needs: {task column: data column}."
    )
    leaks: Literal["warn", "error", "drop", "off"] = Field(
        "warn", description="What to do when an evaluation row is also a training row. drop: leave it out of training."
    )
    cache: bool = Field(True, description="Reuse encoded rows of an earlier run with the same data, tokenizer and options.")
    num_workers: Annotated[int, Field(ge=1, le=1024)] | Auto = Field(
        "auto",
        description="Processes that encode rows, at most; they are started only where one process would take longer than it takes to "
        "start them. 1: none. auto: one for each processor that ftkit may use, 16 at most. The result is the same.",
    )


class Every(Strict):
    """A distance: in epochs (fractions allowed) or in optimizer steps."""

    epochs: float | None = Field(None, ge=1e-6, le=1e6, description="Passes over the training rows; fractions allowed.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps.")

    @classmethod
    def of_epochs(cls, epochs: float) -> Every:
        """A distance in epochs."""
        return cls(epochs=epochs, steps=None)

    @model_validator(mode="after")
    def _exactly_one(self) -> Every:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class EarlyStoppingSpec(Strict):
    """When to stop before the last epoch."""

    patience: int = Field(3, ge=1, description="Evaluations without an improvement before the run stops.")
    min_delta: float = Field(0.0, ge=0, description="Improvement that counts, in units of the metric.")
    metric: str = Field("auto", description="Metric to watch. auto: `train.best_metric`.")
    mode: Literal["auto", "min", "max"] = Field("auto", description="auto: the metric's own direction.")


class GradualUnfreezingSpec(Strict):
    """Howard & Ruder 2018 (ULMFiT): the head trains first, then one more block from the top at each interval."""

    every: Every = Field(default_factory=lambda: Every.of_epochs(1.0), description="Distance between two unfreezings.")
    blocks: int = Field(1, ge=1, description="Blocks unfrozen at a time.")


class TrainSpec(Strict):
    """The training loop."""

    epochs: Annotated[float, Field(gt=0, le=1e6)] | Auto = Field("auto", description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimizer steps, whatever `epochs` says.")
    batch_size: int = Field(
        32,
        ge=1,
        le=LARGEST_BATCH,
        description="Examples in one forward pass. Several processes share them, so that results do not depend on their number.",
    )
    eval_batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)] | Auto = Field("auto", description="auto: twice `batch_size`.")
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description="Tokens (with padding) in one forward pass: as many rows as fit, `batch_size` at most.",
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=LARGEST_BATCH, description="Batches for one optimizer step, of all processes together."
    )
    num_processes: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Processes the run must have, on all machines together; null: any number. Start them with `--nproc` or a launcher.",
    )
    bucket_by_length: bool = Field(
        True, description="Put rows of similar length into one batch; the order stays random across batches."
    )
    optimizer: Literal["adamw", "sgd", "adafactor", "adamw_8bit"] = Field("adamw", description="adamw_8bit needs bitsandbytes.")
    learning_rate: Annotated[float, Field(gt=0)] | Auto = Field("auto", description="Peak learning rate. auto: the method's own.")
    weight_decay: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto", description="Decoupled weight decay; never on biases and norms."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the running mean of gradients.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the running mean of squared gradients.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Added to the denominator of the update.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of sgd.")
    schedule: Literal["linear", "cosine", "constant", "inverse_sqrt"] = Field("linear", description="Learning rate after warm-up.")
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | Auto = Field(
        "auto", description="Share of the optimizer steps with a rising rate."
    )
    warmup_steps: int | None = Field(None, ge=0, description="Instead of `warmup_ratio`.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Gradient norm to clip at; null: no clipping.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Training loss only; evaluation uses the plain loss.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Type of the arithmetic. auto: bf16 on a GPU that has it, else fp32. fp16 needs a GPU."
    )
    out_of_memory: Literal["halve", "stop"] = Field(
        "halve",
        description="halve: batches that do not fit into memory go through the model in parts; the gradient stays that of the whole. "
        "stop: the run ends with exit code 5.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory, more time.")
    sharding: Literal["none", "fsdp2"] = Field(
        "none", description="fsdp2: each of several processes holds its share of the weights and of the optimizer's state."
    )
    compile: bool = Field(False, description="torch.compile the model.")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="Discriminative learning rates: each block's rate is that of the block above times this."
    )
    gradual_unfreezing: GradualUnfreezingSpec | None = Field(None, description="Train the head first, then block after block.")
    evaluate_every: Every = Field(default_factory=lambda: Every.of_epochs(1.0), description="Distance between evaluations.")
    evaluate_first: bool = Field(
        False, description="Evaluate validation and test before the first step too: what the model could do untrained."
    )
    checkpoint_every: Every = Field(
        default_factory=lambda: Every.of_epochs(1.0), description="Distance between checkpoints; each evaluation writes one too."
    )
    keep_checkpoints: int = Field(1, ge=1, description="Latest checkpoints to keep; the best weights are kept beside them.")
    best_metric: str = Field("auto", description="Metric that picks the exported weights. auto: the task's first.")
    early_stopping: EarlyStoppingSpec | None = Field(None, description="Stop when the metric no longer improves.")

    @model_validator(mode="after")
    def _one_warmup(self) -> TrainSpec:
        if self.warmup_steps is not None and self.warmup_ratio != "auto":
            raise ValueError("give warmup_ratio or warmup_steps, not both")
        return self


class Component(BaseModel):
    """A task or method by name, with its own options (an instance of its `Options`)."""

    model_config = ConfigDict(frozen=True)

    name: str
    options: SerializeAsAny[Strict]


_GATE = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"bound": {"type": "string"}, "confident": {"type": "boolean"}},
            "required": ["bound"],
            "additionalProperties": False,
        },
    ]
}
_VERSUS = {"type": "object", "properties": {"file": {"type": "string"}}, "required": ["file"], "additionalProperties": _GATE}
_GATES = {"type": "object", "properties": {"vs": _VERSUS}, "additionalProperties": _GATE}
"""The form of `expect`, for editors; `recipe.expectations` checks it."""


class RecipeBody(Strict):
    """Every key of a recipe except the options of the task and the method, which those declare."""

    model: ModelSpec
    data: DataSpec
    train: TrainSpec = Field(default_factory=lambda: TrainSpec())
    export: Annotated[list[Literal["adapter", "merged"]], BeforeValidator(_as_list)] = Field(
        default_factory=list, description="adapter: what PEFT loads; merged: what plain transformers loads."
    )
    expect: Annotated[dict[str, Any], WithJsonSchema(_GATES)] = Field(
        default_factory=dict,
        description='Gates: `{accuracy: ">= 0.95"}`, read off the test split (validation where there is no test). A metric or a '
        'resource (`peak_memory_mib: "< 4000"`); `{bound: ">= 0.95", confident: true}`: the unfavorable end of the 95 % interval must '
        'hold; `vs: {file: baseline.json, accuracy: ">= -0.005"}`: the difference to a baseline.',
    )
    phases: list[dict[str, Any]] | None = Field(
        None,
        exclude=True,
        description="Instead of `method`: at least two trainings one after the other, each from the model that the one before "
        "made. A phase is a `method` and keys of `train` that go before the recipe's: "
        "`[{method: linear-probe, epochs: 1}, {method: lora, epochs: 3}]`.",
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        default_factory=list, description="Experiment trackers, through Accelerate. None is used unless named."
    )
    output: str = Field("auto", min_length=1, description="The run folder. auto: runs/<recipe file name>.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of initialization, order and dropout.")


@dataclass(frozen=True)
class Origin:
    """Where a recipe came from: its name (file stem), the folder its relative paths start from, its text and the overrides.

    phase: which of the recipe's phases this is, from 1, and where that stands; 0 for a recipe without phases.
    gate_places: where each key below `expect` stands, by dotted key.
    """

    name: str
    base: Path
    text: str
    overrides: tuple[str, ...] = ()
    phase: int = 0
    phase_place: str = ""
    gate_places: Mapping[str, str] = field(default_factory=dict)


class Recipe(RecipeBody):
    """A whole recipe, checked."""

    task: Component
    method: Component
    origin: Origin = Field(exclude=True)
    earlier: tuple[Recipe, ...] = Field((), exclude=True)
    """What is trained before this, each from the model that the one before it made; see `recipe.phases`."""
