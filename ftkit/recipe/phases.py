"""Training in phases: a recipe with `phases` is several recipes, each of which starts from the model that the one before it made.

    phases:
      - {method: linear-probe, epochs: 1}
      - {method: {name: lora, rank: 8}, epochs: 3}

A phase has a method and any keys of `train`, which go before those of the recipe.
LP-FT, first the head and then the model, is Kumar et al. 2022, https://arxiv.org/abs/2202.10054
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from ftkit.errors import Problem, RecipeError
from ftkit.recipe.reading import Document, KeyPath
from ftkit.registry import METHODS

KEY = "phases"
EXAMPLE = "Write `phases: [{method: linear-probe, epochs: 1}, {method: lora, epochs: 3}]`"


def has_phases(document: Document) -> bool:
    """Whether a recipe is written in phases."""
    return isinstance(document.value, dict) and document.value.get(KEY) is not None


def phase_documents(document: Document) -> list[Document]:
    """A document for each phase, with the places of what stands in the phase. Raises RecipeError if `phases` is none."""
    phases = document.value[KEY]
    if problems := _problems(document, phases):
        raise RecipeError(problems)
    last = len(phases) - 1
    return [_document(document, phase, number, last=number == last) for number, phase in enumerate(phases)]


def unmergeable_phases(document: Document) -> list[Problem]:
    """A problem for each earlier phase whose method cannot end in the model that the next phase starts from."""
    found = []
    for number, phase in enumerate(document.value[KEY][:-1]):
        name = _method_name(phase)
        if not _merges(name):
            path = (KEY, number, "method")
            message = (
                f"phase {number + 1} must end in a merged model, which phase {number + 2} starts from; "
                f"what {name} trains cannot be merged into the model"
            )
            hint = f"Make {name} the last phase, or train this one with a method that merges, such as lora"
            found.append(Problem(message=message, place=document.place(path), key=".".join(map(str, path)), hint=hint))
    return found


def _method_name(phase: dict[str, Any]) -> Any:
    method = phase["method"]
    return method.get("name") if isinstance(method, dict) else method


def _merges(name: Any) -> bool:
    """Whether a method ends in a whole model; one that is not known is somebody else's problem."""
    if not isinstance(name, str) or name not in METHODS.names():
        return True
    can = METHODS.get(name).capabilities
    return can.merge or not can.adapter


def _problems(document: Document, phases: Any) -> list[Problem]:
    def problem(path: KeyPath, message: str, hint: str = EXAMPLE) -> Problem:
        return Problem(message=message, place=document.place(path), key=".".join(map(str, path)), hint=hint)

    if not isinstance(phases, list) or len(phases) < 2:
        return [problem((KEY,), "is no list of at least two phases")]
    found = []
    for number, phase in enumerate(phases):
        if not isinstance(phase, dict):
            found.append(problem((KEY, number), "is no phase: a mapping with a `method`"))
        elif "method" not in phase:
            near = get_close_matches("method", map(str, phase), n=1)
            place: KeyPath = (KEY, number, near[0]) if near else (KEY, number)
            what = f"unknown key {near[0]!r}" if near else "has no `method`"
            found.append(problem(place, what, "Did you mean 'method'?" if near else EXAMPLE))
    if "method" in document.value:
        found.append(problem(("method",), "stands beside `phases`, which have methods of their own", "Remove one of the two"))
    return found


def _document(document: Document, phase: dict[str, Any], number: int, *, last: bool) -> Document:
    shared = {key: value for key, value in document.value.items() if key != KEY}
    train = shared.get("train")
    own = {key: value for key, value in phase.items() if key != "method"}
    value = {**shared, "method": phase["method"]}
    if isinstance(train, dict) or "train" not in shared:
        value["train"] = {**(train or {}), **own}
    if not last:
        # Only the model counts, which the next phase starts from.
        value = {**value, "export": ["merged"] if _merges(_method_name(phase)) else [], "expect": {}}
    return Document(value, document.name, document.text, {**document.places, **_places(document, number)})


def _places(document: Document, number: int) -> dict[KeyPath, str]:
    """Places of what stands in a phase, under the keys that it becomes."""
    start: KeyPath = (KEY, number)
    inside = {path[2:]: place for path, place in document.places.items() if path[:2] == start and len(path) > 2}
    return {path if path[0] == "method" else ("train", *path): place for path, place in inside.items()}
