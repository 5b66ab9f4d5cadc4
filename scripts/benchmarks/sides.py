"""One measurement in a process of its own: `python sides.py REQUEST.json RESULT.json`.

Three kinds. `ftkit`: trains a recipe with `ftkit.train`. `trainer`: trains the same with transformers' Trainer, around a model built
with transformers and PEFT alone. `start`: shows that both begin with the same model, before anything is trained.

Both sides train without evaluations, checkpoints and early stopping and end with the weights of the last step. Seconds count from
the first step to the end of the last; loading, tokenizing and evaluating are outside on both sides.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ftkit
from ftkit.data.features import FeatureStore
from ftkit.data.splits import load_splits
from ftkit.errors import FtkitError, RecipeError
from ftkit.models.folder import locate
from ftkit.recipe.plan import Plan
from ftkit.run.observer import Observer
from ftkit.run.planning import make_plan_here
from ftkit.run.results import peak_memory_mib
from ftkit.run.wiring import encode_splits, prepare_model, prepare_processor
from ftkit.training.events import StepEvent
from ftkit.training.loop import warmup_steps
from ftkit.training.seeding import seed_everything

NEVER = 10**9
"""Steps between evaluations and checkpoints: only the last step has one."""
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
METRICS = ("accuracy", "f1_macro")
START_ROWS = 16
_BLOCK = re.compile(r"\.(?:layer|layers|h|block)\.(\d+)\.")


def planned(request: dict[str, Any]) -> Plan:
    """The recipe of a request with every default filled in, without evaluations during training and without exports.

    Raises RecipeError for what the Trainer cannot do the same way.
    """
    settings = [
        *request["overrides"],
        f"seed={request['seed']}",
        f"train.precision={request['precision']}",
        "train.early_stopping=null",
        f"train.evaluate_every={{steps: {NEVER}}}",
        f"train.checkpoint_every={{steps: {NEVER}}}",
        "export=[]",
        "expect={}",
        "trackers=[]",
    ]
    plan = make_plan_here(ftkit.load_recipe(request["recipe"], settings))
    train, task = plan.recipe.train, plan.task()
    options: Any = plan.recipe.task.options
    reasons = {
        "task": plan.recipe.task.name != "text-classification" or options.problem_type != "single_label",
        "task.metrics": not set(METRICS) <= {metric.name for metric in task.metrics()},
        "train.gradient_accumulation_steps": train.gradient_accumulation_steps != 1,
        "train.max_tokens": train.max_tokens is not None,
        "train.optimizer": train.optimizer != "adamw",
        "train.schedule": train.schedule not in SCHEDULES,
        "train.layer_decay": train.layer_decay is not None,
        "train.gradual_unfreezing": train.gradual_unfreezing is not None,
        "data.train.weight": any(source.weight != 1 for source in plan.recipe.data.train),
    }
    if found := [key for key, refused in reasons.items() if refused]:
        raise RecipeError(f"the Trainer has no equal of this recipe's {', '.join(found)}", hint="Override these keys")
    return plan


class Prepared:
    """Rows, tokenizer and task of a plan: the same for both sides."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.task = plan, plan.task()
        splits = load_splits(plan.recipe.data, self.task, plan.recipe.origin.base)
        if splits.test is None:
            raise RecipeError("the comparison needs a test split", hint="Set data.test or data.split.test")
        self.tokenizer, key = prepare_processor(plan)
        self.stores = encode_splits(splits, self.task, self.tokenizer, key, cache=plan.recipe.data.cache, observer=Observer())


def clocks() -> tuple[float, float]:
    """Seconds on the wall and of processor time (of all threads together)."""
    return time.perf_counter(), time.process_time()


def durations(began: tuple[float, float], ended: tuple[float, float]) -> dict[str, float]:
    """Seconds between two readings of the clocks."""
    return {"seconds": ended[0] - began[0], "cpu_seconds": ended[1] - began[1]}


# --- ftkit -----------------------------------------------------------------------------------------------------------


class Watch(Observer):
    """Notes when training began and ended, and the largest memory up to then."""

    def __init__(self) -> None:
        self.began = self.ended = (0.0, 0.0)
        self.total_steps, self.peak_mib = 0, 0.0

    def training_starts(self, *, total_steps: int, first_step: int, metrics: list[str], best_metric: str) -> None:
        """See Observer."""
        self.total_steps, self.began = total_steps, clocks()

    def step(self, event: StepEvent, *, tokens_per_second: float, seconds_left: float) -> None:
        """See Observer."""
        if event.step == self.total_steps:
            self.ended, self.peak_mib = clocks(), peak_memory_mib()


def measure_ftkit(request: dict[str, Any]) -> dict[str, Any]:
    """Trains with `ftkit.train`, as a user would."""
    plan, watch = planned(request), Watch()
    with tempfile.TemporaryDirectory() as folder:
        results = ftkit.train(plan.recipe, output=Path(folder) / "run", observer=watch).results
    return {
        "steps": results["steps"],
        **durations(watch.began, watch.ended),
        "peak_memory_mib": watch.peak_mib,
        "trainable": results["parameters"]["trainable"],
        **{name: results["splits"]["test"]["metrics"][name] for name in METRICS},
    }


# --- transformers' Trainer -------------------------------------------------------------------------------------------


def reference_model(prepared: Prepared) -> Any:
    """The model of the recipe, built with transformers and PEFT alone. Its fresh weights come from the same seeds as ftkit's."""
    from transformers import AutoModelForSequenceClassification

    recipe = prepared.plan.recipe
    source = locate(recipe.model.name, recipe.origin.base)
    head = prepared.task.head().config
    torch.manual_seed(recipe.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        source or recipe.model.name, dtype=torch.float32, ignore_mismatched_sizes=True, **head
    )
    seed_everything(recipe.seed)
    return _with_method(model, recipe.method.name, recipe.method.options)


def _with_method(model: Any, name: str, options: Any) -> Any:
    if name == "lora":
        return _with_lora(model, options)
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


def _with_lora(model: Any, options: Any) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    # Query and value are what PEFT takes by itself, under the names that the model's family has for them.
    targets = None if options.targets == ["query", "value"] else options.targets
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        use_rslora=options.rslora,
        use_dora=options.dora,
        init_lora_weights=True if options.init == "default" else options.init,
    )
    return get_peft_model(model, config)


def as_dataset(store: FeatureStore) -> Any:
    """Encoded rows as the Trainer takes them, in the order of the split."""
    from datasets import Dataset

    rows = []
    for feature in store.take(range(len(store))):
        row = {name: list(feature[name]) for name in ("input_ids", "token_type_ids") if name in feature}
        rows.append({**row, "attention_mask": [1] * len(row["input_ids"]), "labels": int(feature["label"])})
    return Dataset.from_list(rows)


def trainer_arguments(plan: Plan, rows: int, folder: str) -> Any:
    """The recipe's hyperparameters; all else as the Trainer has it by default, but silent and without checkpoints."""
    from transformers import TrainingArguments

    train = plan.recipe.train
    per_epoch = math.ceil(rows / train.batch_size)
    total = train.max_steps or math.ceil(float(train.epochs) * per_epoch - 1e-9)
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=int(train.eval_batch_size),
        num_train_epochs=float(train.epochs),
        max_steps=train.max_steps or -1,
        learning_rate=float(train.learning_rate),
        lr_scheduler_type=SCHEDULES[train.schedule],
        warmup_steps=warmup_steps(train, total),
        weight_decay=float(train.weight_decay),
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm or 0.0,
        label_smoothing_factor=train.label_smoothing,
        gradient_checkpointing=train.gradient_checkpointing,
        torch_compile=train.compile,
        seed=plan.recipe.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def measure_trainer(request: dict[str, Any]) -> dict[str, Any]:
    """Trains with transformers' Trainer: dynamic padding, random order, and metrics by scikit-learn on its own predictions."""
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import Trainer, TrainerCallback

    prepared = Prepared(planned(request))
    model = reference_model(prepared)
    rows = {name: as_dataset(prepared.stores[name]) for name in ("train", "test")}
    marks: dict[str, Any] = {}

    class Marks(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            marks["began"] = clocks()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks["ended"], marks["peak_mib"] = clocks(), peak_memory_mib()

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=trainer_arguments(prepared.plan, len(rows["train"]), folder),
            train_dataset=rows["train"],
            processing_class=prepared.tokenizer,
            callbacks=[Marks()],
        )
        trainer.train()
        found: Any = trainer.predict(rows["test"])
    predictions, labels = found.predictions.argmax(-1), found.label_ids
    return {
        "steps": trainer.state.global_step,
        **durations(marks["began"], marks["ended"]),
        "peak_memory_mib": marks["peak_mib"],
        "trainable": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "accuracy": float(accuracy_score(labels, predictions)),
        "f1_macro": float(f1_score(labels, predictions, average="macro", zero_division=0)),
    }


# --- where both begin ------------------------------------------------------------------------------------------------


def compare_start(request: dict[str, Any]) -> dict[str, Any]:
    """Loss, gradient norm (both without dropout) and trainable parameters of both sides on the first training rows.

    Equal losses mean equal weights, equal gradient norms that the same weights train. Also fills the cache of encoded rows, so that
    tokenizing is in no measurement that follows.
    """
    from transformers import DataCollatorWithPadding

    prepared = Prepared(planned(request))
    recipe, store = prepared.plan.recipe, prepared.stores["train"]
    first = range(min(START_ROWS, len(store)))
    model = prepare_model(prepared.plan, prepared.task, prepared.tokenizer, seed=recipe.seed, allow_code=False).model.eval()
    batch = prepared.task.collate(store.take(first), prepared.tokenizer)
    loss = prepared.task.loss(prepared.task.forward(model, batch), batch) / prepared.task.target_count(batch)
    ours = _start_facts(model, loss)
    model = reference_model(prepared).eval()
    rows = as_dataset(store).select(first)
    loss = model(**DataCollatorWithPadding(prepared.tokenizer)([rows[index] for index in first])).loss
    sizes = {name: len(found) for name, found in prepared.stores.items()}
    return {"ftkit": ours, "trainer": _start_facts(model, loss), "method": recipe.method.name, "rows": sizes}


def _start_facts(model: Any, loss: Any) -> dict[str, Any]:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    norm = sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None) ** 0.5
    return {"loss": float(loss.detach()), "gradient_norm": norm, "trainable": sum(weight.numel() for weight in trained)}


KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ftkit": measure_ftkit,
    "trainer": measure_trainer,
    "start": compare_start,
}


def main(request_file: str, result_file: str) -> None:
    """Carries out the request in one JSON file and writes the result to another."""
    from ftkit.models.quiet import quiet_libraries

    quiet_libraries()
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    try:
        result = KINDS[request["side"]](request)
    except FtkitError as error:
        sys.exit(str(error))
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
