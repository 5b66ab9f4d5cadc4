"""`train.compile`: another way to compute the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import ftkit
from tests.tiny import tiny_config, tiny_tokenizer

ROWS = [{"text": " ".join(f"w{(i * j) % 20 + 20 * (i % 2)}" for j in range(3 + i % 4)), "label": "ab"[i % 2]} for i in range(16)]
RECIPE = """\
model: {model}
task: text-classification
data: {{train: rows.jsonl, split: {{validation: 0.25}}}}
method: {{name: lora, rank: 2}}
train: {{max_steps: 3, batch_size: 4, learning_rate: 1e-2}}
export: [adapter, merged]
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One block and no dropout, whose random numbers a compiled model draws in another order."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.manual_seed(0)
    config = tiny_config("bert", num_hidden_layers=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tmp_path / "model"), encoding="utf-8")
    return tmp_path / "recipe.yaml"


def losses(folder: Path) -> list[float]:
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event["loss"] if event["type"] == "step" else event["metrics"]["loss"] for event in events]


def test_a_compiled_run_computes_exports_and_reloads_what_a_plain_one_does(recipe: Path, tmp_path: Path) -> None:
    runs: dict[str, Any] = {}
    torch._dynamo.utils.counters.clear()
    try:
        if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            # Inductor, torch's default, writes C++.
            torch.compiler.set_default_backend("aot_eager")
        for name, overrides in {"plain": [], "compiled": ["train.compile=true"]}.items():
            runs[name] = ftkit.train(ftkit.load_recipe(recipe, overrides), output=tmp_path / name)
            compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            assert (compiled > 0) == (name == "compiled")
    finally:
        torch.compiler.set_default_backend(None)
        torch.compiler.reset()
    assert len(losses(tmp_path / "plain")) == 4
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    for facts in runs["compiled"].results["exports"].values():
        assert facts["max_abs_difference"] <= facts["tolerance"]
    found, expected = (next(iter(ftkit.load(tmp_path / name).predict("w1 w2"))) for name in ("compiled", "plain"))
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-4)
    exported = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "compiled" / "export" / "merged")
    inputs = tiny_tokenizer("bert")("w1 w2", return_tensors="pt")
    with torch.no_grad():
        values = exported(**inputs).logits.softmax(-1)[0].tolist()
    assert dict(zip("ab", values, strict=True)) == pytest.approx(found["probabilities"], abs=1e-5)


def test_a_machine_that_cannot_compile_is_told_so(recipe: Path, tmp_path: Path) -> None:
    settings = {"CXX": str(tmp_path / "none"), "FTKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ftkit", "train", str(recipe), "train.compile=true", "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})
    assert (done.returncode, "train.compile: torch cannot compile this model here" in done.stderr) == (2, True), done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["status"] == "refused"
