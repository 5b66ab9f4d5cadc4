from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from ftkit.metrics.base import LOSS
from ftkit.metrics.catalog import all_metrics, compute_metric, families


def test_families_are_found_by_file() -> None:
    assert {"classification", "multi_label_classification", "regression"} <= set(all_metrics())
    assert not {"base", "catalog", "intervals", "interchange"} & set(all_metrics())


def test_every_metric_takes_only_arguments_that_its_family_declares() -> None:
    for module in families().values():
        for name, spec in module.METRICS.items():
            assert spec.name == name
            assert spec.compute is not None
            assert set(inspect.signature(spec.compute).parameters) <= set(module.ARGUMENTS), name


def test_a_metric_without_a_function_cannot_be_computed() -> None:
    with pytest.raises(ValueError, match="loss is not a function of arrays"):
        compute_metric(LOSS, {})


def test_listing_metrics_and_reading_the_task_loads_no_heavy_library() -> None:
    code = (
        "import sys, ftkit.tasks.text_classification as t, ftkit.metrics.catalog as c; c.all_metrics(); "
        "task = t.TextClassification(t.Options()); task.columns(); task.metrics(); task.check_options(); "
        "task.check_row({'text': 'a', 'label': 'b'}); "
        "print(sorted({'torch', 'sklearn', 'transformers', 'datasets', 'evaluate', 'peft', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
