"""What the references share: the rows of a plan, the model as transformers and PEFT build it, and the Trainer's settings."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from ftkit.data.features import FeatureStore
from ftkit.data.splits import load_splits
from ftkit.errors import RecipeError
from ftkit.models.folder import locate
from ftkit.recipe.plan import Plan
from ftkit.run.observer import Observer
from ftkit.run.wiring import encode_splits, prepare_processor
from ftkit.training.loop import warmup_steps
from ftkit.training.seeding import seed_everything

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
IGNORED = -100
"""Label of what the loss leaves out."""
_BLOCK = re.compile(r"\.(?:layer|layers|h|block)\.(\d+)\.")

Example = dict[str, Any]
"""A row as the reference encodes it: what the model takes, and under names that begin with `_` what only the metrics need."""


class Prepared:
    """Rows, tokenizer and task of a plan: the same for both sides. Raises RecipeError without a test split."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.task = plan, plan.task()
        self.splits = load_splits(plan.recipe.data, self.task, plan.recipe.origin.base)
        if self.splits.test is None:
            raise RecipeError("the comparison needs a test split", hint="Set data.test or data.split.test")
        self.tokenizer, self._key = prepare_processor(plan)

    @cached_property
    def stores(self) -> dict[str, FeatureStore]:
        """The splits as ftkit encodes them."""
        cache = self.plan.recipe.data.cache
        return encode_splits(self.splits, self.task, self.tokenizer, self._key, cache=cache, observer=Observer())

    def rows(self, split: str) -> list[Mapping[str, Any]]:
        """The rows of a split under the task's column names."""
        return list(getattr(self.splits, split))


def refuse(reasons: Mapping[str, bool]) -> None:
    """Raises RecipeError that names the recipe keys for which a reason holds."""
    if found := [key for key, refused in reasons.items() if refused]:
        raise RecipeError(f"the Trainer has no equal of this recipe's {', '.join(found)}", hint="Override these keys")


class Reference(ABC):
    """How transformers' example script does a task: rows to features, batches, and results without a line of ftkit.

    task: its name in ftkit. metrics: name in ftkit's results and title of those that are compared, the first one shown in passing.
    auto_class, peft_task_type, heads: what loads the model, PEFT's name of the task, and modules that PEFT has to be told to train.
    batch: examples of a batch in the check before training; 1 where padding changes what transformers computes.
    """

    task: ClassVar[str]
    metrics: ClassVar[Mapping[str, str]]
    auto_class: ClassVar[str]
    peft_task_type: ClassVar[str | None]
    heads: ClassVar[list[str] | None] = None
    batch: ClassVar[int] = 16

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.plan, self.tokenizer = prepared, prepared.plan, prepared.tokenizer
        self.options: Any = prepared.plan.recipe.task.options
        refuse(self.refusals())

    @abstractmethod
    def refusals(self) -> Mapping[str, bool]:
        """Recipe keys, and whether the script has no equal of their values."""

    @abstractmethod
    def examples(self, rows: Sequence[Mapping[str, Any]], *, training: bool) -> list[Example]:
        """The rows as the script encodes them."""

    @abstractmethod
    def translated(self, feature: Mapping[str, Any]) -> Example:
        """What a feature of ftkit says, in the words of `examples`: tokens and targets."""

    @abstractmethod
    def score(self, found: Any, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`metrics` of what `predict` found for the examples of these rows."""

    def predict(self, trainer: Any, examples: Sequence[Example]) -> Any:
        """What the trained model says about each example."""
        return trainer.predict(as_dataset(examples))

    def collator(self) -> Any:
        """What makes a batch of examples: by default each is padded to the longest."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(self.tokenizer)

    def model(self) -> Any:
        """The recipe's model, built with transformers and PEFT alone. Its fresh weights come from the same seeds as ftkit's."""
        recipe = self.plan.recipe
        torch.manual_seed(recipe.seed)
        model = self.load(locate(recipe.model.name, recipe.origin.base) or recipe.model.name)
        seed_everything(recipe.seed)
        return self._with_method(model, recipe.method.name, recipe.method.options)

    def load(self, source: Path | str) -> Any:
        """A model folder, .gguf file or hub id as a model for this task."""
        import transformers

        arguments: dict[str, Any] = dict(self.prepared.task.head().config)
        if self.plan.recipe.model.attention != "auto":
            arguments["attn_implementation"] = self.plan.recipe.model.attention
        if isinstance(source, Path) and source.is_file():
            # Without the config the model counts as quantized, and the Trainer refuses to train its weights.
            arguments |= {"gguf_file": source.name, "quantization_config": transformers.GgufConfig(dequantize=True)}
            source = source.parent
        auto_class = getattr(transformers, self.auto_class)
        return auto_class.from_pretrained(source, dtype=torch.float32, ignore_mismatched_sizes=True, **arguments)

    def _with_method(self, model: Any, name: str, options: Any) -> Any:
        if name == "lora":
            return self._with_lora(model, options)
        body = f"{model.base_model_prefix}."
        depth = model.config.num_hidden_layers
        trains: dict[str, Callable[[str], Any]] = {
            "full": lambda _: True,
            "linear-probe": lambda _: False,
            "bitfit": lambda parameter: parameter.endswith("bias"),
            "partial": lambda parameter: (found := _BLOCK.search(parameter)) and int(found[1]) >= depth - options.top_blocks,
        }
        if name not in trains:
            raise RecipeError(f"the comparison knows no equal of the method {name}", hint=f"Known: lora, {', '.join(trains)}")
        for parameter, weight in model.named_parameters():
            weight.requires_grad_(not parameter.startswith(body) or bool(trains[name](parameter)))
        return model

    def _with_lora(self, model: Any, options: Any) -> Any:
        from peft import LoraConfig, get_peft_model

        # Query and value are what PEFT takes by itself, under the names that the model's family has for them.
        targets = None if options.targets == ["query", "value"] else options.targets
        config = LoraConfig(
            task_type=self.peft_task_type,
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=targets,
            use_rslora=options.rslora,
            use_dora=options.dora,
            init_lora_weights=True if options.init == "default" else options.init,
            modules_to_save=self.heads,
        )
        return get_peft_model(model, config)

    def trainer(self, model: Any, train: Sequence[Example], folder: str, *, callbacks: Sequence[Any] = (), **settings: Any) -> Any:
        """The Trainer around a model. settings: `TrainingArguments` that differ from the recipe's."""
        from transformers import Trainer

        return Trainer(
            model=model,
            args=self.arguments(len(train), folder, **settings),
            train_dataset=as_dataset(train),
            data_collator=self.collator(),
            processing_class=self.tokenizer,
            callbacks=list(callbacks),
        )

    def arguments(self, examples: int, folder: str, **settings: Any) -> Any:
        """The recipe's hyperparameters; all else as the Trainer has it by default, but silent and without checkpoints."""
        from transformers import TrainingArguments

        train = self.plan.recipe.train
        given = {
            "per_device_train_batch_size": train.batch_size,
            "per_device_eval_batch_size": int(train.eval_batch_size),
            "num_train_epochs": float(train.epochs),
            "max_steps": train.max_steps or -1,
            "learning_rate": float(train.learning_rate),
            "lr_scheduler_type": SCHEDULES[train.schedule],
            "warmup_steps": warmup_steps(train, count_steps(self.plan, examples)),
            "weight_decay": float(train.weight_decay),
            "adam_beta1": train.adam_beta1,
            "adam_beta2": train.adam_beta2,
            "adam_epsilon": train.adam_epsilon,
            "max_grad_norm": train.max_grad_norm or 0.0,
            "label_smoothing_factor": train.label_smoothing,
            "gradient_checkpointing": train.gradient_checkpointing,
            "torch_compile": train.compile,
            "seed": self.plan.recipe.seed,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        return TrainingArguments(output_dir=folder, **{**given, **settings})


def count_steps(plan: Plan, examples: int) -> int:
    """Optimizer steps of a training with so many training examples."""
    train = plan.recipe.train
    return train.max_steps or math.ceil(float(train.epochs) * math.ceil(examples / train.batch_size) - 1e-9)


def as_dataset(examples: Sequence[Example]) -> Any:
    """What the model takes of the examples, as the Trainer wants it."""
    from datasets import Dataset

    return Dataset.from_list([of_model(example) for example in examples])


def of_model(example: Example) -> Example:
    """What the model takes of an example."""
    return {name: value for name, value in example.items() if not name.startswith("_")}
