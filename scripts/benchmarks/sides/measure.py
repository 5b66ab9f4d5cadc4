"""The three kinds of measurement, each in a process of its own.

`ftkit`: trains a recipe with `ftkit.train`. `trainer`: trains the same with transformers' Trainer, around a model built with
transformers and PEFT alone. `start`: shows that both begin with the same model, before anything is trained.

Both sides train without evaluations, checkpoints and early stopping and end with the weights of the last step. Seconds count from
the first step to the end of the last; loading, tokenizing and evaluating are outside on both sides.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import ftkit
from ftkit.errors import RecipeError
from ftkit.recipe.plan import Plan
from ftkit.run.observer import Observer
from ftkit.run.planning import make_plan_here
from ftkit.run.results import peak_memory_mib
from ftkit.run.wiring import prepare_model
from ftkit.training.events import StepEvent
from sides import references
from sides.common import SCHEDULES, Example, Prepared, Reference, count_steps, of_model, refuse

NEVER = 10**9
"""Steps between evaluations and checkpoints: only the last step has one."""
START_EXAMPLES = 16


def planned(request: dict[str, Any]) -> Plan:
    """The recipe of a request with every default filled in, without evaluations during training and without exports. A file of
    validation rows is left unread: the weights of the last step count.

    Raises RecipeError for what the Trainer cannot do the same way.
    """
    settings = [
        *request["overrides"],
        f"seed={request['seed']}",
        f"train.precision={request['precision']}",
        "data.validation=null",
        "train.early_stopping=null",
        "train.evaluate_first=false",
        f"train.evaluate_every={{steps: {NEVER}}}",
        f"train.checkpoint_every={{steps: {NEVER}}}",
        "export=[]",
        "expect={}",
        "trackers=[]",
    ]
    plan = make_plan_here(ftkit.load_recipe(request["recipe"], settings))
    model, train = plan.recipe.model, plan.recipe.train
    compared = reference_of(plan).metrics
    refuse(
        {
            "task.metrics": not {*compared} <= {metric.name for metric in plan.task().metrics()},
            "model.weights": model.weights != "pretrained",
            "model.decoder": model.decoder is not None,
            "model.dtype": model.dtype not in ("auto", "float32"),
            "train.gradient_accumulation_steps": train.gradient_accumulation_steps != 1,
            "train.max_tokens": train.max_tokens is not None,
            "train.optimizer": train.optimizer != "adamw",
            "train.schedule": train.schedule not in SCHEDULES,
            "train.layer_decay": train.layer_decay is not None,
            "train.gradual_unfreezing": train.gradual_unfreezing is not None,
            "data.train.weight": any(source.weight != 1 for source in plan.recipe.data.train),
        }
    )
    return plan


def reference_of(plan: Plan) -> type[Reference]:
    """The reference of a plan's task. Raises RecipeError if there is none."""
    found, name = references(), plan.recipe.task.name
    if name not in found:
        raise RecipeError(f"the comparison knows no equal of the task {name}", hint=f"Known: {', '.join(sorted(found))}")
    return found[name]


def make_reference(plan: Plan) -> Reference:
    """The reference of a plan with its rows. Raises RecipeError for what it has no equal of."""
    return reference_of(plan)(Prepared(plan))


# --- ftkit -----------------------------------------------------------------------------------------------------------


def clocks() -> tuple[float, float]:
    """Seconds on the wall and of processor time (of all threads together)."""
    return time.perf_counter(), time.process_time()


def durations(began: tuple[float, float], ended: tuple[float, float]) -> dict[str, float]:
    """Seconds between two readings of the clocks."""
    return {"seconds": ended[0] - began[0], "cpu_seconds": ended[1] - began[1]}


class Watch(Observer):
    """Notes when training began and ended, and the largest memory up to then."""

    def __init__(self) -> None:
        self.began = self.ended = (0.0, 0.0)
        self.total_steps, self.peak_mib = 0, 0.0

    def training_starts(self, *, total_steps: int, first_step: int, metrics: list[str], best_metric: str, unit: str) -> None:
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
        "metrics": {name: results["splits"]["test"]["metrics"][name] for name in reference_of(plan).metrics},
    }


# --- transformers' Trainer -------------------------------------------------------------------------------------------


def measure_trainer(request: dict[str, Any]) -> dict[str, Any]:
    """Trains with transformers' Trainer in random order; metrics without ftkit."""
    from transformers import TrainerCallback

    reference = make_reference(planned(request))
    model, train = reference.model(), reference.examples(reference.prepared.rows("train"), training=True)
    marks: dict[str, Any] = {}

    class Marks(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            marks["began"] = clocks()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            marks["ended"], marks["peak_mib"] = clocks(), peak_memory_mib()

    with tempfile.TemporaryDirectory() as folder:
        trainer = reference.trainer(model, train, folder, callbacks=[Marks()])
        trainer.train()
        metrics = test_scores(reference, trainer)
    return {
        "steps": trainer.state.global_step,
        **durations(marks["began"], marks["ended"]),
        "peak_memory_mib": marks["peak_mib"],
        "trainable": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "metrics": metrics,
    }


def test_scores(reference: Reference, trainer: Any) -> dict[str, float]:
    """The reference's metrics of a Trainer's model on the test split."""
    rows = reference.prepared.rows("test")
    examples = reference.examples(rows, training=False)
    return reference.score(reference.predict(trainer, examples), examples, rows)


# --- where both begin ------------------------------------------------------------------------------------------------


def compare_start(request: dict[str, Any]) -> dict[str, Any]:
    """What both sides make of the rows, and on training examples that are the same on both sides, the loss and gradient norm (both
    without dropout) and the trainable parameters.

    Equal losses mean equal weights, equal gradient norms that the same weights train. Raises RecipeError if no example is the same.
    """
    reference = make_reference(planned(request))
    prepared, plan = reference.prepared, reference.plan
    theirs = {name: reference.examples(prepared.rows(name), training=name == "train") for name in ("train", "test")}
    shared = same_examples(reference, theirs["train"])
    if not shared:
        raise RecipeError("the two sides make no training example with the same tokens and targets", hint="Compare another recipe")
    counts = {
        name: {"rows": len(prepared.rows(name)), "ftkit": len(prepared.stores[name]), "trainer": len(examples)}
        for name, examples in theirs.items()
    }
    counts["train"]["same"] = len(shared)
    first = [shared[at : at + reference.batch] for at in range(0, min(START_EXAMPLES, len(shared)), reference.batch)]
    return {
        "ftkit": {**_our_start(reference, first), "steps": count_steps(plan, counts["train"]["ftkit"])},
        "trainer": {**_their_start(reference, theirs["train"], first), "steps": count_steps(plan, counts["train"]["trainer"])},
        "method": plan.recipe.method.name,
        "metrics": dict(reference.metrics),
        "examples": counts,
    }


def same_examples(reference: Reference, theirs: Sequence[Example]) -> list[tuple[int, int]]:
    """Pairs of places, ftkit's and the reference's, of training examples with the same tokens and targets, each in one pair."""
    store = reference.prepared.stores["train"]
    ours = [reference.translated(feature) for feature in store.take(range(len(store)))]
    names = list(ours[0])
    waiting: dict[str, list[int]] = {}
    for place in reversed(range(len(theirs))):
        waiting.setdefault(repr([theirs[place][name] for name in names]), []).append(place)
    keys = [repr([example[name] for name in names]) for example in ours]
    return [(place, waiting[key].pop()) for place, key in enumerate(keys) if waiting.get(key)]


def _our_start(reference: Reference, batches: Sequence[Sequence[tuple[int, int]]]) -> dict[str, Any]:
    prepared, plan = reference.prepared, reference.plan
    task, store = prepared.task, prepared.stores["train"]
    seed = plan.recipe.seed
    model = prepare_model(plan, task, prepared.tokenizer, seed=seed, allow_code=False).model.eval()

    def loss(pairs: Sequence[tuple[int, int]]) -> Any:
        batch = task.collate(store.take([ours for ours, _ in pairs]), prepared.tokenizer)
        return task.loss(task.forward(model, batch), batch) / task.target_count(batch)

    return _start_facts(model, [lambda pairs=pairs: loss(pairs) for pairs in batches])


def _their_start(reference: Reference, examples: Sequence[Example], batches: Sequence[Sequence[tuple[int, int]]]) -> dict[str, Any]:
    model, collate = reference.model().eval(), reference.collator()
    return _start_facts(
        model,
        [lambda pairs=pairs: model(**collate([of_model(examples[theirs]) for _, theirs in pairs])).loss for pairs in batches],
    )


def _start_facts(model: Any, losses: Sequence[Callable[[], Any]]) -> dict[str, Any]:
    """Mean of the losses, norm of its gradient, and how many weights train."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    total = 0.0
    for compute in losses:
        loss = compute() / len(losses)
        loss.backward()
        total += float(loss.detach())
    norm = sum(float(weight.grad.double().square().sum()) for weight in trained if weight.grad is not None) ** 0.5
    return {"loss": total, "gradient_norm": norm, "trainable": sum(weight.numel() for weight in trained)}


KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ftkit": measure_ftkit,
    "trainer": measure_trainer,
    "start": compare_start,
}
