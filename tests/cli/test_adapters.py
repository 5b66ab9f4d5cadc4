from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ftkit.cli.app import main
from tests.cli.conftest import Run, strict_json


def make(recipe: Path, folder: Path, *overrides: str) -> Path:
    """A finished run, trained by the command line in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTKIT_CACHE", str(folder.parent / "cache"))
        with pytest.raises(SystemExit) as ending:
            main(["train", str(recipe), *overrides, "--output", str(folder), "--quiet"])
    assert ending.value.code == 0
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """The same with another seed."""
    return make(recipe, tmp_path_factory.mktemp("runs") / "other", "seed=1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A run that tuned the model itself."""
    return make(recipe, tmp_path_factory.mktemp("runs") / "whole", "method=full", "export=[]")


@pytest.fixture(scope="module")
def bottleneck(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    return make(recipe, tmp_path_factory.mktemp("runs") / "bottleneck", "method=adapter")


def test_the_group_lists_its_verbs(ftkit: Run) -> None:
    ended = ftkit("adapters")
    assert ended.code == 0
    for verb in ("list", "inspect", "diff", "merge", "extract", "convert", "fuse"):
        assert verb in ended.out


def test_list(ftkit: Run, trained: Path, model: Path, other: Path) -> None:
    ended = ftkit("adapters", "list", trained.parent, other, "--base", model)
    lines = ended.out.splitlines()
    assert lines[0].split("  ")[0] == "adapter"
    assert "same base" in lines[0]
    assert any(str(trained) in line and "lora" in line and "accuracy" in line and "yes" in line for line in lines)
    found = ftkit("adapters", "list", trained, "--json").document()["adapters"]
    assert [entry["path"] for entry in found] == [str(trained)]


def test_list_of_nothing(ftkit: Run, folder: Path) -> None:
    assert ftkit("adapters", "list", folder).out == "There are no runs or adapters.\n"
    assert ftkit("adapters", "list", "nowhere").code == 2


def test_inspect_and_diff(ftkit: Run, trained: Path, other: Path, bottleneck: Path) -> None:
    ended = ftkit("adapters", "inspect", trained)
    assert ended.code == 0
    assert "effective rank" in ended.out
    assert "bert.encoder.layer.0.attention.self.query" in ended.out
    assert ftkit("adapters", "inspect", trained / "export" / "adapter", "--json").document()["source"] == "low rank"
    ended = ftkit("adapters", "diff", trained, other)
    assert "the same (the same files, by sha256)" in ended.out
    assert "seed" in ended.out
    assert ftkit("adapters", "diff", trained, trained, "--json").document()["equal"]
    settings = ftkit("adapters", "diff", trained, bottleneck).out.partition("\n\n")[2]
    assert re.search(r"^method.rank +\d+ +none$", settings, re.MULTILINE)
    assert re.search(r'^method.targets +\["query", "value"\] +none$', settings, re.MULTILINE)
    assert ftkit("adapters", "diff", trained, trained).out.endswith("All tensors are equal.\n")


def test_merge_and_use_the_result(ftkit: Run, trained: Path, other: Path, folder: Path) -> None:
    ended = ftkit("adapters", "merge", trained, other, "--weights", "0.6,0.4", "--output", "merged")
    assert ended.code == 0, ended.err
    assert "test (16 rows)" in ended.out
    assert "result" in ended.out
    assert len(ftkit("predict", "merged", "--text", "w1", "--json").document()["predictions"]) == 1
    assert ftkit("evaluate", "merged", "--json").document()["rows"] == 16
    results = ftkit(
        "adapters",
        "merge",
        trained,
        other,
        "--combination",
        "ties",
        "--density",
        "0.5",
        "--evaluate",
        "test",
        "--output",
        "b",
        "--json",
    ).document()
    assert results["derived"]["combination"] == "ties"
    assert "metrics" not in results["splits"]["validation"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "0.5,x"], "--weights: 'x' is no number"),
        (["--weights", "1,inf"], "--weights: 'inf' is not finite"),
        (["--weights", "1,2,3"], "3 weights for 2 adapters"),
    ],
)
def test_merge_refuses(arguments: list[str], message: str, ftkit: Run, trained: Path, other: Path) -> None:
    ended = ftkit("adapters", "merge", trained, other, "--output", "out", *arguments)
    assert ended.code == 2
    assert message in ended.err


def test_extract(ftkit: Run, whole: Path, folder: Path) -> None:
    ended = ftkit("adapters", "extract", whole, "--rank", "4", "--output", "lora")
    assert ended.code == 0, ended.err
    for text in ("relative error", "all of these", "left out", "norms", "run folder"):
        assert text in ended.out
    assert ftkit("evaluate", "lora").code == 0
    ended = ftkit("adapters", "extract", whole, "--rank", "4", "--output", "lora", "--json")
    assert "already holds files" in ended.document()["error"]["problems"][0]["message"]


def test_convert(ftkit: Run, bottleneck: Path, model: Path, folder: Path) -> None:
    ended = ftkit("adapters", "convert", bottleneck, "--to", "adapterhub", "--name", "mine", "--output", "hub")
    assert ended.code == 0, ended.err
    assert "left out" in ended.out
    assert re.search(r"^ *cross_adapter +false$", ended.out, re.MULTILINE)
    listed = ftkit("adapters", "list", "hub")
    way = "Convert it: ftkit adapters convert hub --to ftkit --output DIR"
    assert listed.out.splitlines()[-1] == f"not usable: hub: is an adapter of AdapterHub's library. {way}"
    assert (
        ftkit("adapters", "convert", "hub", "--to", "ftkit", "--base", model, "--output", "own", "--json").document()["tensors"]
        == 8
    )


def test_fuse(ftkit: Run, bottleneck: Path, recipe: Path, folder: Path) -> None:
    member = bottleneck / "export" / "adapter"
    ended = ftkit(
        "adapters", "fuse", bottleneck, member, "train.max_steps=2", "~export", "--recipe", recipe, "--output", "fused", "--json"
    )
    assert ended.code == 0, ended.err
    assert (ended.document()["method"], ended.document()["steps"]) == ("adapter-fusion", 2)


def test_predict_with_several_adapters(ftkit: Run, trained: Path, other: Path, bottleneck: Path, folder: Path) -> None:
    ended = ftkit("predict", trained, "--adapter", other, "--adapter", f"bn={bottleneck}", "--text", "w1", "--text", "w21")
    lines = [strict_json(line) for line in ended.out.splitlines()]
    assert [line["adapter"] for line in lines] == ["tiny", "other", "bn"] * 2
    rows = [{"text": "w1", "who": "other"}, {"text": "w21", "who": "tiny"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ended = ftkit("predict", trained, "--adapter", other, "--adapter-column", "who", "--input", "rows.jsonl")
    assert [strict_json(line)["adapter"] for line in ended.out.splitlines()] == ["other", "tiny"]


def test_predict_and_evaluate_together_and_with_blocks_dropped(ftkit: Run, trained: Path, other: Path, bottleneck: Path) -> None:
    assert ftkit("predict", trained, "--ensemble", other, "--text", "w1", "--json").code == 0
    assert ftkit("evaluate", trained, "--ensemble", other, "--json").document()["rows"] == 16
    assert ftkit("evaluate", bottleneck, "--drop-blocks", "1", "--json").document()["rows"] == 16
    one = ftkit("predict", bottleneck, "--drop-blocks", "1", "--text", "w1").out
    assert one != ftkit("predict", bottleneck, "--text", "w1").out
    ended = ftkit("predict", trained, "--drop-blocks", "1", "--text", "w1")
    assert (ended.code, "no bottleneck adapters" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter-column", "who", "--text", "a"], "give the adapters by --adapter"),
        (["--adapter", "x", "--ensemble", "y", "--text", "a"], "give --adapter or --ensemble, not both"),
        (["--ensemble", "x", "--drop-blocks", "1", "--text", "a"], "give --ensemble or --drop-blocks, not both"),
        (["task.max_length=9", "--ensemble", "x", "--text", "a"], "has no effect with --ensemble"),
        (["--adapter", "x", "--interactive"], "--adapter has no effect with --interactive"),
        (["--adapter", "x", "--adapter-column", "who", "--text", "a"], "needs rows with columns"),
        (["--adapter", "nowhere", "--text", "a"], "there is no such folder"),
    ],
)
def test_predict_refuses(arguments: list[str], message: str, ftkit: Run, trained: Path) -> None:
    ended = ftkit("predict", trained, *arguments)
    assert ended.code == 2
    assert message in ended.err
