from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run, Terminal
from tests.diagnostics.rows import Row, clean_splits
from tests.diagnostics.test_examine import known


def write(model: Path, rows: dict[str, list[Row]]) -> None:
    for name, found in rows.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    sources = ", ".join(f"{name}: {name}.jsonl" for name in rows)
    Path("r.yaml").write_text(f"model: {model}\ntask: text-classification\nmethod: lora\ndata: {{{sources}}}\n", encoding="utf-8")


def test_clean_data(ftkit: Run, model: Path) -> None:
    write(model, known(clean_splits()))
    ended = ftkit("doctor", "r.yaml")
    assert (ended.code, ended.out) == (0, "Nothing found. Usable rows: train 300, validation 150, test 150.\n")


def test_warnings_are_told_with_places_and_a_way_out(ftkit: Run, model: Path) -> None:
    rows = known(clean_splits())
    rows["test"][4] = rows["train"][1]
    write(model, rows)
    ended = ftkit("doctor", "r.yaml")
    assert ended.code == 0
    assert ended.out == (
        "Warnings\n"
        "  leaks: test: 1 of 150 rows (0.67 %) are also train rows\n"
        "      test.jsonl, line 5  = train.jsonl, line 2\n"
        "    → Remove them from train, or set `data.leaks: drop` to leave them out of training\n"
        "\n"
        "Usable rows: train 300, validation 150, test 150.\n"
    )
    assert "\nWarnings" not in ftkit("doctor", "r.yaml", "data.leaks=drop").out


def test_errors_exit_with_2(ftkit: Run, model: Path) -> None:
    rows = known(clean_splits())
    for row in rows["train"][:14]:
        row["text"] = ""
    write(model, rows)
    ended = ftkit("doctor", "r.yaml")
    assert ended.code == 2
    assert ended.out.startswith("Errors\n  unusable-rows: train: 14 of 300 rows")
    assert "      and 4 more\n" in ended.out
    assert ended.err == ""


def test_json_is_one_document(ftkit: Run, model: Path) -> None:
    rows = known(clean_splits())
    rows["train"][0]["text"] = ""
    write(model, rows)
    ended = ftkit("doctor", "r.yaml", "--json")
    report = ended.document()
    assert ended.code == 2
    assert set(report) == {"findings", "rows"}
    assert report["rows"] == {"train": 299, "validation": 150, "test": 150}
    assert report["findings"][0]["check"] == "unusable-rows"
    assert report["findings"][0]["places"] == ["train.jsonl, line 1"]


def test_data_cannot_command_the_terminal(ftkit: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = known(clean_splits())
    rows["train"][0]["label"] = "\x1b[2Jgone"
    write(model, rows)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert ftkit("doctor", "r.yaml").code == 0
    assert "\x1b[1;33mWarnings" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()
    assert "x1b[2Jgone" in terminal.getvalue()


def test_a_recipe_that_does_not_hold_is_an_error_of_its_own(ftkit: Run, model: Path) -> None:
    write(model, known(clean_splits()))
    ended = ftkit("doctor", "r.yaml", "train.epohcs=2")
    assert ended.code == 2
    assert "epohcs" in ended.err


def test_doctor_resume_proves_a_run(ftkit: Run, folder: Path, recipe: Path) -> None:
    options = ["export=[]", "train.max_steps=4", "train.checkpoint_every={steps: 2}", "train.keep_checkpoints=2"]
    assert ftkit("train", recipe, *options, "--output", "run", "--quiet").code == 0
    ended = ftkit("doctor", "resume", "run")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(
        f"exact: steps 3 to 4 of {folder / 'run'}, trained again from the checkpoint of step 2, came out the same"
    )
    assert " lines of metrics.jsonl, " in ended.out.splitlines()[1]
    state = Path("run/lock.json")
    state.write_text(state.read_text().replace('"world_size": 1', '"world_size": 2'))
    log = Path("run/metrics.jsonl")
    lines = log.read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if '"step": 3' in line)
    lines[number] = lines[number].replace('"loss": 0.', '"loss": 1.')
    log.write_text("".join(lines))
    ended = ftkit("doctor", "resume", "run")
    assert ended.code == 4
    assert ended.out.startswith("NOT EXACT: steps 3 to 4 of ")
    assert "the first step whose loss differs: 3 (1." in ended.out
    assert "world_size: 2 in the run, 1 now" in ended.out
    assert "machine.threads" not in ended.out
    assert "OMP_NUM_THREADS" in ended.out
    report = ftkit("doctor", "resume", "run", "--json").document()
    assert (report["exit_code"], report["differences"]["loss"]["step"]) == (4, 3)


def test_doctor_resume_needs_a_run(ftkit: Run, folder: Path) -> None:
    assert "there is no such folder" in ftkit("doctor", "resume", "nowhere").err
    for words in ([], ["one", "two"]):
        ended = ftkit("doctor", "resume", *words)
        assert (ended.code, "takes one run folder" in ended.err) == (2, True)
    Path("resume").write_text("model: nowhere\n", encoding="utf-8")
    assert "nowhere" not in ftkit("doctor", "resume", "a-run").err
    assert ftkit("doctor", "resume").err.startswith("error: resume")
