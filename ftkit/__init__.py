"""ftkit: fine-tune any Transformer, by any tuning method, on your own data, from one recipe.

    import ftkit

    recipe = ftkit.load_recipe("recipe.yaml", ["train.epochs=1"])
    ftkit.doctor(recipe)["findings"]        # what is wrong with the data
    report = ftkit.plan(recipe)             # the complete recipe, sizes, parameters, steps
    result = ftkit.train(recipe)            # the run folder and its results
    predictor = ftkit.load(result.folder)   # .predict(rows), .evaluate("test")
    ftkit.export(result.folder, "merged")

Importing ftkit imports neither torch nor transformers; each name is loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ftkit.api import (
        baseline,
        convert_adapter,
        diff,
        diff_adapters,
        doctor,
        doctor_resume,
        export,
        extract_lora,
        fuse_adapters,
        gate,
        inspect,
        inspect_adapter,
        list_adapters,
        load,
        load_adapters,
        load_ensemble,
        load_recipe,
        merge_adapters,
        plan,
        rerun,
        smoke,
        train,
        validate,
    )
    from ftkit.errors import FtkitError

__all__ = [
    "FtkitError",
    "__version__",
    "baseline",
    "convert_adapter",
    "diff",
    "diff_adapters",
    "doctor",
    "doctor_resume",
    "export",
    "extract_lora",
    "fuse_adapters",
    "gate",
    "inspect",
    "inspect_adapter",
    "list_adapters",
    "load",
    "load_adapters",
    "load_ensemble",
    "load_recipe",
    "merge_adapters",
    "plan",
    "rerun",
    "smoke",
    "train",
    "validate",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "FtkitError":
        from ftkit.errors import FtkitError

        return FtkitError
    if name in __all__:
        from ftkit import api

        return getattr(api, name)
    raise AttributeError(f"module 'ftkit' has no attribute {name!r}")
