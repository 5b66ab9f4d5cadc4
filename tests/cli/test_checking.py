from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ftkit.cli.plan_view import _flat
from ftkit.cli.token_view import print_row
from tests.cli.conftest import Run, Terminal


def test_validate_says_what_it_found(ftkit: Run, recipe: Path) -> None:
    ended = ftkit("validate", recipe)
    assert ended.code == 0
    assert ended.out == f"{recipe} is valid. Rows: train 48, validation 16, test 16.\n"


def test_validate_as_json(ftkit: Run, recipe: Path) -> None:
    report = ftkit("validate", recipe, "train.epochs=2", "--json").document()
    assert report["plan"]["train"]["epochs"] == 2
    assert report["splits"]["test"] == {"rows": 16}


def test_validate_shows_every_problem_with_its_place(ftkit: Run, folder: Path, recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8").replace("epochs", "epohcs").replace("method: lora", "method: lroa")
    Path("wrong.yaml").write_text(text, encoding="utf-8")
    ended = ftkit("validate", "wrong.yaml")
    assert ended.code == 2
    assert "wrong.yaml:7:1: method: unknown method 'lroa'" in ended.err
    assert "wrong.yaml:8:9: train.epohcs: unknown key 'epohcs'\n  Did you mean 'epochs'?" in ended.err


def test_notes_are_shown(ftkit: Run, folder: Path, model: Path, data: Path) -> None:
    Path("leaky.yaml").write_text(
        f"model: {model}\ntask: text-classification\nmethod: lora\ndata: {{train: {data}, test: {data}}}\n", encoding="utf-8"
    )
    assert "\nnote: " in ftkit("validate", "leaky.yaml").out


def test_a_model_that_is_not_here_is_said_not_to_be_checked(ftkit: Run, folder: Path, data: Path) -> None:
    Path("hub.yaml").write_text(f"model: some/model\ntask: text-classification\ndata: {{train: {data}}}\nmethod: lora\n")
    assert "note: the model itself was not checked: some/model is a hub id" in ftkit("validate", "hub.yaml").out


def test_an_export_may_be_a_single_word(ftkit: Run, recipe: Path) -> None:
    assert ftkit("validate", recipe, "export=adapter").code == 0
    ended = ftkit("validate", recipe, "method=adapter", "export=[adapter, merged]")
    assert ended.code == 2
    assert "on the command line `export=adapter`" in ended.err


def test_plan_has_every_section(ftkit: Run, recipe: Path) -> None:
    ended = ftkit("plan", recipe)
    assert ended.code == 0
    for text in (
        "learning_rate: 0.01",
        "Splits\n",
        "truncated",
        "Labels\n",
        "cold",
        "Parameters\n",
        "head",
        "trainable: ",
        "Memory\n",
        "Disk\n",
    ):
        assert text in ended.out
    assert "24 (50.0 %)" in ended.out
    assert "total      6" in ended.out


def test_plan_yaml_runs_again(ftkit: Run, folder: Path, recipe: Path) -> None:
    ended = ftkit("plan", recipe, "method.rank=4", "--yaml")
    Path("plan.yaml").write_text(ended.out, encoding="utf-8")
    assert yaml.safe_load(ended.out)["method"]["rank"] == 4
    assert ftkit("validate", "plan.yaml").code == 0


def test_plan_yaml_in_a_terminal_dims_comments(ftkit: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    ftkit("plan", recipe, "--yaml")
    assert "  early_stopping: null\n" in terminal.getvalue()
    assert "\x1b[2m  # twice train.batch_size" in terminal.getvalue()


def test_plan_as_json(ftkit: Run, recipe: Path) -> None:
    report = ftkit("plan", recipe, "--json").document()
    assert set(report) >= {"recipe", "yaml", "sources", "splits", "parameters", "steps", "memory", "disk", "notes"}


def test_inspect_shows_tokens_and_labels(ftkit: Run, recipe: Path, data: Path) -> None:
    ended = ftkit("inspect", recipe, "--rows", "2", "--split", "test")
    assert ended.code == 0
    assert ended.out.count("row ") == 2
    assert "rows.jsonl, line " in ended.out
    assert "<cls>[special token] w" in ended.out
    assert "label: " in ended.out


def test_inspect_as_json(ftkit: Run, recipe: Path) -> None:
    document = ftkit("inspect", recipe, "--rows", "1", "--json").document()
    assert document["split"] == "train"
    assert ["<cls>", "special token"] in document["rows"][0]["tokens"]


def test_inspect_refuses_a_split_that_is_not_there(ftkit: Run, recipe: Path) -> None:
    ended = ftkit("inspect", recipe, "--split", "tset")
    assert ended.code == 2
    assert "train, validation, test" in ended.err


def test_tokens_are_colored_by_their_note() -> None:
    terminal, colors = Terminal(), {}
    row = {
        "row": 1,
        "place": "a.csv, line 2",
        "tokens": [["Ann", "B-PER"], ["\x1b[2J", ""], ["Bo", "B-PER"], ["x", "B-LOC"], ["", "end"]],
    }
    print_row(row, colors, terminal)
    assert list(colors) == ["B-PER", "B-LOC"]
    assert terminal.getvalue().count("\x1b[1;32mAnn") == 1
    assert "\x1b[1;36mx" in terminal.getvalue()
    assert "\\x1b[2J" in terminal.getvalue()


def test_a_shipped_recipe_goes_by_its_name(ftkit: Run, monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    monkeypatch.setattr("ftkit.cli.shipped.shipped_recipes", lambda: {"tiny/one": recipe})
    assert ftkit("validate", "tiny/one").code == 0
    assert ftkit("validate", "tiny/two").code == 2


def test_labels_with_escape_sequences_are_printed_harmlessly(ftkit: Run, folder: Path, model: Path) -> None:
    rows = [{"text": f"w{number}", "label": label} for number in range(20) for label in ("\x1b[31mred", "\x9b2Jgone")]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("r.yaml").write_text(
        f'model: {model}\ntask: text-classification\nmethod: bitfit\ndata: {{train: rows.jsonl, leaks: "off"}}\n', encoding="utf-8"
    )
    for arguments in (["plan", "r.yaml"], ["plan", "r.yaml", "--json"], ["inspect", "r.yaml"]):
        ended = ftkit(*arguments)
        assert ended.code == 0
        assert "\x1b" not in ended.out
        assert "\x9b" not in ended.out
        assert "31mred" in ended.out


def test_a_recipe_that_is_no_file_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo("recipe.yaml")
    for name in ("recipe.yaml", "/dev/zero"):
        command = [sys.executable, "-m", "ftkit", "validate", name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2
        assert f"{name}: is a pipe, a socket or a device, not a recipe file" in done.stderr


def test_a_recipe_may_come_from_another_command(recipe: Path) -> None:
    command = (
        f"{sys.executable} -m ftkit validate <(cat {recipe}) && {sys.executable} -m ftkit validate /dev/stdin < <(cat {recipe})"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout.count(" is valid.")) == (0, 2), done.stderr


def test_whole_numbers_are_shown_without_digits() -> None:
    assert _flat({"median": 20.0, "mean": 20.5, "longest": 3000}) == "median 20, mean 20.5000, longest 3,000"
