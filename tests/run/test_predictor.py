from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ftkit
from ftkit.errors import DataError, ExportError, FtkitError, ModelError, RecipeError, RunFolderError
from ftkit.files import sha256_of

RecipeFile = Callable[..., Path]


@pytest.fixture
def run_folder(recipe_file: RecipeFile, tmp_path: Path) -> Path:
    ftkit.train(ftkit.load_recipe(recipe_file()), output=tmp_path / "run")
    return tmp_path / "run"


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_c12_evaluation_later_gives_what_training_reported(run_folder: Path) -> None:
    reported = results(run_folder)["splits"]
    predictor = ftkit.load(run_folder)
    for split in ("test", "validation"):
        found = predictor.evaluate(split)
        assert found["metrics"] == pytest.approx(reported[split]["metrics"], abs=1e-6)
        assert found["rows"] == reported[split]["rows"]


def test_evaluation_of_another_file(run_folder: Path, tmp_path: Path) -> None:
    reported = results(run_folder)["splits"]["test"]["metrics"]
    found = ftkit.load(run_folder).evaluate(data=str(tmp_path / "test.jsonl"))
    assert found["metrics"] == pytest.approx(reported, abs=1e-6)
    with pytest.raises(RecipeError, match="no 'nothing' split"):
        ftkit.load(run_folder).evaluate("nothing")


def test_predictions_do_not_depend_on_their_company(run_folder: Path) -> None:
    """C8's rule for classifiers: a row alone, in a batch, in any order gives the same answer."""
    texts = [{"text": text} for text in ("w1", "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10", "w30 w11", "w21 w22 w23")]
    predictor = ftkit.load(run_folder)
    together = list(predictor.predict(texts, batch_size=4))
    alone = [next(iter(predictor.predict([text], batch_size=1))) for text in texts]
    assert [answer["label"] for answer in together] == [answer["label"] for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)
        assert sum(one["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)


def test_predict_is_a_stream(run_folder: Path) -> None:
    taken = []

    def endless() -> Any:
        while True:
            taken.append(1)
            yield {"text": "w1"}

    answers = ftkit.load(run_folder).predict(endless(), batch_size=3)
    assert next(answers)["label"] in {"calm", "angry", "glad"}
    assert len(taken) <= 6


def test_bad_rows_are_named(run_folder: Path) -> None:
    predictor = ftkit.load(run_folder)
    with pytest.raises(DataError, match="input, row 2: text"):
        list(predictor.predict([{"text": "w1"}, {"text": 5}]))
    with pytest.raises(DataError, match="no column 'text'"):
        list(predictor.predict([{"words": "w1"}]))


def test_c18_weights_are_loaded_strictly(run_folder: Path) -> None:
    file = run_folder / results(run_folder)["weights"] / "trainable.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file)
    with pytest.raises(RunFolderError, match="not what was written"):
        ftkit.load(run_folder)


def test_e5_another_base_model_is_refused(run_folder: Path, recipe_file: RecipeFile, tmp_path: Path, tiny_folder: Path) -> None:
    other = tmp_path / "moved"
    shutil.copytree(tiny_folder, other)
    ftkit.train(ftkit.load_recipe(recipe_file(model=str(other))), output=tmp_path / "second")
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if tensors[name].is_floating_point())
    tensors[name] = tensors[name] + 1.0
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"not the one this run was trained on: model.safetensors changed"):
        ftkit.load(tmp_path / "second")


def test_folders_that_are_no_finished_run(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no such folder\. Runs here: .*run"):
        ftkit.load(tmp_path / "rnu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="is not a run folder"):
        ftkit.load(tmp_path / "empty")
    unfinished = {key: value for key, value in results(run_folder).items() if key != "weights"}
    (run_folder / "results.json").write_text(json.dumps({**unfinished, "status": "interrupted"}))
    with pytest.raises(RunFolderError, match=r"not finished \(status: interrupted\).*--resume"):
        ftkit.load(run_folder)


@pytest.mark.parametrize("change", [{"splits": 1}, {"splits": {"test": []}}, {"splits": {"test": {"metrics": 2}}}, {"gates": {}}])
def test_results_of_other_types_are_named(run_folder: Path, change: dict[str, Any]) -> None:
    (run_folder / "results.json").write_text(json.dumps({**results(run_folder), **change}))
    with pytest.raises(RunFolderError, match=r"results\.json: cannot be read \(not what ftkit wrote"):
        ftkit.load(run_folder)


@pytest.mark.parametrize("name", ["results.json", "plan.yaml", "lock.json", "task.json"])
@pytest.mark.parametrize("damage", ["truncate", "garbage", "list", "deep", "folder"])
def test_damaged_run_files_are_named(run_folder: Path, name: str, damage: str) -> None:
    file = run_folder / name
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes(
            {"truncate": content[: len(content) // 3], "garbage": b"\xff\xfe\x00", "list": b"[1, 2]", "deep": b"[" * 5000}[damage]
        )
    with pytest.raises(FtkitError, match=name) as caught:
        ftkit.load(run_folder)
    assert caught.value.exit_code == 2


def test_weights_that_are_garbage_with_a_fitting_manifest_are_refused(run_folder: Path) -> None:
    (best,) = (run_folder / "checkpoints").glob("best-*")
    (best / "trainable.safetensors").write_bytes(b"garbage" * 9)
    manifest = json.loads((best / "manifest.json").read_text())
    facts = {"bytes": 63, "sha256": sha256_of(best / "trainable.safetensors")}
    manifest["files"]["trainable.safetensors"] = facts
    (best / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match=r"trainable\.safetensors: the checkpoint is not usable: it holds no tensors"):
        ftkit.load(run_folder)


def test_labels_that_were_swapped_later_are_refused(run_folder: Path) -> None:
    learned = json.loads((run_folder / "task.json").read_text())
    learned["state"]["labels"] = learned["state"]["labels"][::-1]
    (run_folder / "task.json").write_text(json.dumps(learned))
    with pytest.raises(
        RunFolderError, match=r"task\.json: is not what the run wrote: its sha256 is .*, results\.json says"
    ) as caught:
        ftkit.load(run_folder)
    assert caught.value.problems[0].hint


@pytest.mark.parametrize(("old", "new"), [("alpha: 8.0", "alpha: 32.0"), ("max_length: 64", "max_length: 48")])
def test_a_plan_that_was_edited_later_is_refused(run_folder: Path, old: str, new: str) -> None:
    plan = run_folder / "plan.yaml"
    text = plan.read_text()
    assert old in text
    plan.write_text(text.replace(old, new))
    with pytest.raises(RunFolderError, match=f"was changed after training: .*{old.partition(':')[0]}: was .*, is ") as caught:
        ftkit.load(run_folder)
    assert caught.value.exit_code == 2
    plan.write_text(text + "# a remark\n")
    assert list(ftkit.load(run_folder).predict(["w1"]))


def test_a_run_can_be_moved(run_folder: Path, tmp_path: Path) -> None:
    expected = list(ftkit.load(run_folder).predict([{"text": "w1 w2"}]))
    (tmp_path / "far").mkdir()
    run_folder.rename(tmp_path / "far" / "away")
    assert list(ftkit.load(tmp_path / "far" / "away").predict([{"text": "w1 w2"}])) == expected


def test_export_again_and_its_refusals(run_folder: Path, tmp_path: Path) -> None:
    for form in ("adapter", "merged"):
        facts = ftkit.export(run_folder, form, to=tmp_path / "out" / form)
        assert facts["max_abs_difference"] <= facts["tolerance"]
    with pytest.raises(RunFolderError, match="already holds files"):
        ftkit.export(run_folder, "merged", to=tmp_path / "out" / "merged")
    with pytest.raises(RecipeError, match="unknown export format"):
        ftkit.export(run_folder, "onnx")


def test_e6_merged_loads_with_plain_transformers_and_adapter_with_plain_peft(
    run_folder: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for form in ("adapter", "merged"):
        ftkit.export(run_folder, form, to=tmp_path / form)
    answer = next(iter(ftkit.load(run_folder).predict([{"text": "w1 w2 w30"}])))
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=3, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "merged")("w1 w2 w30", return_tensors="pt")
    for model in (merged, adapted):
        with torch.no_grad():
            probabilities = model(**inputs).logits.softmax(-1)[0]
        assert {merged.config.id2label[index]: float(value) for index, value in enumerate(probabilities)} == pytest.approx(
            answer["probabilities"], abs=1e-5
        )


def test_c17_an_export_that_computes_something_else_is_refused(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ftkit.run.exporting as module

    real = module.export_merged

    def damaged(model: Any, processor: Any, target: Path, *, dtype: torch.dtype) -> Any:
        merged = real(model, processor, target, dtype=dtype)
        tensors = load_file(target / "model.safetensors")
        tensors["classifier.bias"] = tensors["classifier.bias"] + 0.5
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        return merged

    monkeypatch.setattr(module, "export_merged", damaged)
    with pytest.raises(ExportError, match=r"differs from the trained model: logits by 0\.5"):
        ftkit.export(run_folder, "merged", to=tmp_path / "merged")


def test_rows_may_stand_under_the_tasks_own_columns_or_be_texts(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = recipe_file()
    for name in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        renamed = [{"message": row["text"], **{key: value for key, value in row.items() if key != "text"}} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    ftkit.train(ftkit.load_recipe(recipe, ["data.columns={text: message}"]), output=tmp_path / "run")
    predictor = ftkit.load(tmp_path / "run")
    expected = list(predictor.predict([{"message": "w1 w2"}]))
    assert list(predictor.predict([{"text": "w1 w2"}])) == expected
    assert list(predictor.predict(["w1 w2"])) == expected
    assert list(predictor.predict("w1 w2")) == expected
    with pytest.raises(DataError, match="input, row 1: 7 is no row"):
        list(predictor.predict([7]))  # type: ignore[list-item]
