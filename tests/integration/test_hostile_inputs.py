"""What a trial of hundreds of hostile recipes, files and kills broke stays mended."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import ftkit
from ftkit.data.sources import read_source
from ftkit.errors import DataError, DivergedError, RecipeError, RunFolderError
from ftkit.recipe.load import parse_recipe
from ftkit.recipe.overriding import apply_overrides
from ftkit.recipe.reading import read_text
from ftkit.recipe.schema import SourceSpec
from ftkit.run.folder import open_run_folder
from ftkit.training.checkpoint import BEST, RESUMABLE, complete_checkpoints, damage, prune, save_checkpoint

RecipeFile = Callable[..., Path]


def test_views_and_run_ends_of_arrow_are_read(tmp_path: Path) -> None:
    labels = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["x", "y"]))
    table = pa.table({"text": pa.array(["a", "b", "c"], pa.string_view()), "label": labels})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    found = read_source(SourceSpec(path="x.arrow"), base=tmp_path)
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}, {"text": "c", "label": "y"}]
    assert found.rows([0, 1, 2]) == list(found) == rows


def test_an_arrow_file_cut_while_it_is_in_use_ends_nothing(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text {number}" for number in range(5000)]})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    found = read_source(SourceSpec(path="x.arrow"), base=tmp_path)
    os.truncate(tmp_path / "x.arrow", 0)
    assert found[4999] == {"text": "text 4999"}


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"_data_files": 5}', '{"_data_files": [{}]}'])
def test_damaged_saved_datasets(content: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "state.json").write_text(content)
    with pytest.raises(DataError):
        read_source(SourceSpec(path="set"), base=tmp_path)


@pytest.mark.parametrize("name", ["hub:", "hub:../..", "hub:a/b/c", "hub:/etc"])
def test_what_is_no_hub_id(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no hub data set"):
        read_source(SourceSpec(path=name), base=tmp_path)


def test_a_pipe_is_no_data_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="is no regular file"):
        read_source(SourceSpec(path="x.jsonl"), base=tmp_path)


def test_the_home_of_nobody_is_a_name_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_source(SourceSpec(path="~nobody-of-that-name/x.jsonl"), base=tmp_path)


@pytest.mark.parametrize("key", ["data.train[" + "9" * 5000 + "]", "a" + "[0]" * 5000, ".".join("a" * 5000)])
def test_absurd_override_paths(key: str) -> None:
    with pytest.raises(RecipeError, match="not an override"):
        apply_overrides(read_text("data: {}", "r"), [f"{key}=1"])


@pytest.mark.parametrize("form", ["[{0}]", '"{0}"'])
def test_references_that_grow_without_measure(form: str) -> None:
    quote, comma = ('"', ", ") if form[0] == "[" else ("", " ")
    lines = [f"a{level}: " + form.format(comma.join([f"{quote}${{a{level + 1}}}{quote}"] * 10)) for level in range(8)]
    with pytest.raises(RecipeError, match="grow without measure"):
        parse_recipe("\n".join([*lines, "a8: " + "x" * 50]))


def test_endless_files_are_no_recipes() -> None:
    with pytest.raises(RecipeError, match="not a recipe"):
        ftkit.load_recipe("/dev/zero")


@pytest.mark.parametrize("blocks", ["[0-99999999]", "[0-999999999999]"])
def test_absurd_block_ranges(blocks: str) -> None:
    with pytest.raises(RecipeError, match="is no block number"):
        parse_recipe(f"model: a/b\ntask: text-classification\ndata: {{train: x.csv}}\nmethod: {{name: lora, blocks: {blocks}}}")


def test_a_users_copies_of_checkpoints_are_left_alone(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, RESUMABLE, step, {}, {})
    for name in ("best-keep", "step-00000001.bak"):
        (tmp_path / name).mkdir()
    assert [checkpoint.step for checkpoint in complete_checkpoints(tmp_path, RESUMABLE)[0]] == [1, 2]
    assert complete_checkpoints(tmp_path, BEST) == ([], [])
    prune(tmp_path, keep=1, best_step=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-keep", "step-00000001.bak", "step-00000002"]


@pytest.mark.parametrize("manifest", ['{"files": {}}', '{"files": []}', '{"files": {"state.json": 5}}', "[" * 100_000])
def test_manifests_that_vouch_for_nothing(manifest: str, tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, RESUMABLE, 1, {}, {})
    (saved.path / "manifest.json").write_text(manifest)
    assert damage(saved.path)


def test_overwriting_waits_for_no_other_process_and_says_where_things_went(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = ftkit.load_recipe(recipe_file())
    folder = tmp_path / "run"
    with open_run_folder(folder, resume=False, overwrite=False):
        (folder / "kept").write_text("x")
        with pytest.raises(RunFolderError, match="another process"):
            ftkit.train(recipe, output=folder, overwrite=True)
        assert (folder / "kept").read_text() == "x"
    result = ftkit.train(recipe, output=folder, overwrite=True)
    moved = next(tmp_path.glob("run.old-*"))
    assert (moved / "kept").read_text() == "x"
    assert any(str(moved) in note for note in result.results["notes"])


def test_overwriting_never_moves_what_the_recipe_needs(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe = ftkit.load_recipe(recipe_file())
    with pytest.raises(RunFolderError, match="would move away what the recipe needs"):
        ftkit.train(recipe, output=tmp_path, overwrite=True)
    assert (tmp_path / "train.jsonl").is_file()


def test_a_resumed_run_mends_its_plan_and_refuses_a_shortened_log(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe, folder = ftkit.load_recipe(recipe_file()), tmp_path / "run"
    ftkit.train(recipe, output=folder)
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "status": "interrupted"}))
    (folder / "plan.yaml").write_text("garbage")
    (folder / "task.json").unlink()
    ftkit.train(recipe, output=folder, resume=True)
    assert list(ftkit.load(folder).predict(["w1"]))
    (folder / "results.json").write_text(json.dumps({**results, "status": "interrupted"}))
    os.truncate(folder / "metrics.jsonl", 10)
    with pytest.raises(RunFolderError, match="is shorter than when the checkpoint was written"):
        ftkit.train(recipe, output=folder, resume=True)


def test_weights_that_are_not_finite_are_never_kept(recipe_file: RecipeFile, tmp_path: Path) -> None:
    settings = [
        "method=full",
        "train.learning_rate=1e38",
        "train.max_steps=1",
        "train.warmup_ratio=0.0",
        "train.max_grad_norm=null",
    ]
    with pytest.raises(DivergedError, match="the validation loss is nan"):
        ftkit.train(
            ftkit.load_recipe(recipe_file(), [*settings, "train.optimizer=sgd", "train.momentum=0.0"]), output=tmp_path / "run"
        )
    assert not (tmp_path / "run" / "export").exists()


def test_weights_of_sources_that_leave_no_row(recipe_file: RecipeFile, tmp_path: Path) -> None:
    path = recipe_file()
    settings = ["data.train={path: train.jsonl, weight: 0.0001}"]
    with pytest.raises(DataError, match="an epoch has no rows"):
        ftkit.train(ftkit.load_recipe(path, settings), output=tmp_path / "run")


@pytest.mark.parametrize(
    "sent", [b"\xff\n", b"[" * 100_000 + b"\n", b'{"text": ' + b"9" * 5000 + b"}\n"], ids=["bytes", "nested", "digits"]
)
def test_hostile_lines_on_standard_input(
    sent: bytes, recipe_file: RecipeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ftkit.train(ftkit.load_recipe(recipe_file()), output=tmp_path / "run")
    predictor = ftkit.load(tmp_path / "run")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sent), encoding="utf-8"))
    with pytest.raises(DataError, match="standard input"):
        list(predictor.predict(predictor.read("-")))


def test_dates_that_python_has_no_year_for(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "day": pa.array([2**31 - 1], pa.date32())})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    found = read_source(SourceSpec(path="x.arrow"), base=tmp_path)
    with pytest.raises(DataError, match=r"x\.arrow: holds a value that cannot be read"):
        list(found)


def test_numbers_of_thousands_of_digits_in_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"text": ' + "9" * 5000 + "}]")
    with pytest.raises(DataError, match=r"x\.json:1:2: invalid JSON: a number is too long"):
        read_source(SourceSpec(path="x.json"), base=tmp_path)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("methods >&-", 0),
        ("methods --json >&-", 0),
        ("methods --nosuch 2>&-", 2),
        ("methods >/dev/full", 2),
        ("methods --json >/dev/full", 2),
    ],
)
def test_closed_and_full_standard_streams(command: str, code: int) -> None:
    ended = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m ftkit {command}'],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ("No space left on device" in ended.stderr) == ("full" in command)
