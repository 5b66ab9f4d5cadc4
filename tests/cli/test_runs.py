from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ftkit import load
from tests.cli.conftest import Run, strict_json


def test_evaluate_prints_metrics_and_details(ftkit: Run, trained: Path) -> None:
    ended = ftkit("evaluate", trained)
    assert ended.code == 0
    assert ended.out.startswith("metric")
    assert "test (16 rows)" in ended.out
    assert "accuracy" in ended.out
    assert "truth \\ prediction  cold  warm" in ended.out


def test_evaluate_as_json_on_a_split_and_on_other_rows(ftkit: Run, trained: Path, data: Path) -> None:
    assert ftkit("evaluate", trained, "--split", "validation", "--json").document()["split"] == "validation"
    found = ftkit("evaluate", trained, "--data", data, "--json").document()
    assert found["rows"] == 80
    assert 0 <= found["metrics"]["accuracy"] <= 1


def test_evaluate_takes_a_split_or_data(ftkit: Run, trained: Path, data: Path) -> None:
    ended = ftkit("evaluate", trained, "--split", "test", "--data", data)
    assert (ended.code, ended.err.splitlines()[0]) == (2, "error: command line: give --split or --data, not both")


def test_predict_texts_gives_a_json_line_each(ftkit: Run, trained: Path) -> None:
    ended = ftkit("predict", trained, "--text", "w1 w2", "--text", "w21 w22")
    lines = [strict_json(line) for line in ended.out.splitlines()]
    assert (ended.code, ended.err) == (0, "")
    assert [set(line["probabilities"]) for line in lines] == [{"cold", "warm"}] * 2


def test_predict_a_file_in_any_order_of_formats_gives_the_same(ftkit: Run, trained: Path, folder: Path) -> None:
    texts = ["w1 w2 w3", "w21", "w22 w1"]
    Path("rows.csv").write_text("text\n" + "\n".join(texts) + "\n", encoding="utf-8")
    Path("rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    first = ftkit("predict", trained, "--input", "rows.csv").out
    assert len(first.splitlines()) == 3
    assert ftkit("predict", trained, "--input", "rows.jsonl").out == first
    assert ftkit("predict", trained, *(word for text in texts for word in ("--text", text))).out == first


def test_predict_to_a_file(ftkit: Run, trained: Path, folder: Path) -> None:
    ended = ftkit("predict", trained, "--text", "w1", "--output", "out.jsonl", "--json")
    assert ended.document() == {"output": str(folder / "out.jsonl"), "rows": 1}
    assert set(strict_json(Path("out.jsonl").read_text(encoding="utf-8"))) == {"label", "score", "probabilities"}
    assert [path.name for path in folder.iterdir()] == ["out.jsonl"]


def test_predict_as_one_document(ftkit: Run, trained: Path) -> None:
    assert len(ftkit("predict", trained, "--text", "w1", "--text", "w2", "--json").document()["predictions"]) == 2


def test_predict_answers_standard_input_line_by_line(trained: Path) -> None:
    command = [sys.executable, "-m", "ftkit", "predict", str(trained), "--input", "-", "--batch-size", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("w1", "w21"):
            process.stdin.write(json.dumps({"text": text}) + "\n")
            process.stdin.flush()
            assert "label" in strict_json(process.stdout.readline())
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_rows_that_cannot_be_used_may_be_skipped(ftkit: Run, trained: Path, folder: Path) -> None:
    rows = [{"id": 1, "text": "w1 w2"}, {"id": 2, "text": ""}, {"id": 3, "text": "w3"}, {"id": 4, "text": " "}]
    Path("some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ended = ftkit("predict", trained, "--input", "some.jsonl")
    assert ended.code == 2
    assert "--skip-errors" in ended.err
    for size in (1, 3, 8):
        found = ftkit("predict", trained, "--input", "some.jsonl", "--skip-errors", "--batch-size", size, "--json").document()
        results = found["predictions"]
        assert [result["id"] for result in results] == [1, 2, 3, 4]
        assert ["label" in result for result in results] == [True, False, True, False]
        assert all(result["prediction"] is None and result["error"] for result in (results[1], results[3]))


def test_rows_of_other_kinds_are_skipped_alone(ftkit: Run, trained: Path, folder: Path) -> None:
    """A column of a file has one kind of values; one row of another kind took the whole column away."""
    values = ["w1 w2", 7, "w3", ["w4"], None, "w5", "\ud800", 10**30, {"a": 1}, "w6"]
    lines = [json.dumps({"id": number, "text": value}) + "\n" for number, value in enumerate(values, start=1)]
    Path("mixed.jsonl").write_text("".join(lines), encoding="utf-8")
    good = {1, 3, 6, 10}
    for size in (1, 4, 32):
        found = ftkit("predict", trained, "--input", "mixed.jsonl", "--skip-errors", "--batch-size", size, "--json").document()
        results = found["predictions"]
        assert [result["id"] for result in results] == list(range(1, 11))
        assert {result["id"] for result in results if "label" in result} == good
        assert all(result["error"].startswith(f"input, row {result['id']}: text: ") for result in results if "error" in result)
    ended = ftkit("predict", trained, "--input", "mixed.jsonl")
    assert ended.code == 2
    assert "input, row 2: text: 7 is a whole number" in ended.err
    assert "the same type. Rows that can be used are predicted with --skip-errors" in ended.err


def test_images_that_are_missing_or_damaged_are_skipped_alone(ftkit: Run, folder: Path) -> None:
    from PIL import Image
    from transformers import ViTConfig, ViTImageProcessorPil

    blocks = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTConfig(**blocks, image_size=16, patch_size=8).save_pretrained("vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained("vit")
    (folder / "data").mkdir()
    rows = [{"image": f"{number}.png", "label": "ab"[number % 2]} for number in range(8)]
    for number, row in enumerate(rows):
        Image.new("RGB", (16, 16), (20 * number, 0, 90)).save(folder / "data" / row["image"])
    Path("data/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("r.yaml").write_text(
        "model: {name: vit, weights: random}\ntask: image-classification\ndata: {train: data/rows.jsonl}\nmethod: full\n"
        "train: {max_steps: 1, batch_size: 4}\n",
        encoding="utf-8",
    )
    assert ftkit("train", "r.yaml", "--output", "run", "--quiet").code == 0
    (folder / "data" / "1.png").unlink()
    (folder / "data" / "3.png").write_bytes(b"\x89PNG is cut short")
    assert "there is no file '1.png'" in ftkit("predict", "run", "--input", "data/rows.jsonl").err
    results = ftkit("predict", "run", "--input", "data/rows.jsonl", "--skip-errors", "--json").document()["predictions"]
    assert ["error" in result for result in results] == [number in (1, 3) for number in range(8)]
    assert results[1]["error"] == "input, row 2: image: there is no file '1.png'"
    assert results[3]["error"].startswith("input, row 4: image: ")


def test_good_rows_are_encoded_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    predictor = load(trained)
    plain = type(predictor.task).encode

    def noting(self: Any, rows: Any, processor: Any, *, training: bool = False) -> Any:
        encoded.extend(row["text"] for row in rows)
        return plain(self, rows, processor, training=training)

    monkeypatch.setattr(type(predictor.task), "encode", noting)
    texts = ["w1", "w2", "w3", " ", "w4", "w5"]
    found = list(predictor.predict([{"text": text} for text in texts], batch_size=6, skip_errors=True))
    assert ["error" in result for result in found] == [text == " " for text in texts]
    assert sorted(encoded) == ["w1", "w2", "w3", "w4", "w5"]


def test_a_bad_row_leaves_no_half_file(ftkit: Run, trained: Path, folder: Path) -> None:
    Path("rows.jsonl").write_text('{"text": "w1"}\n{"text": ""}\n', encoding="utf-8")
    ended = ftkit("predict", trained, "--input", "rows.jsonl", "--output", "out.jsonl", "--batch-size", "1")
    assert ended.code == 2
    assert "text" in ended.err
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --input FILE, --input -, --text TEXT or --interactive"),
        (["--text", "a", "--input", "b"], "give --input or --text, not both"),
        (["--text", "a", "--output", "nowhere/x.jsonl"], "its folder does not exist"),
    ],
)
def test_predict_refuses(arguments: list[str], message: str, ftkit: Run, trained: Path) -> None:
    ended = ftkit("predict", trained, *arguments)
    assert ended.code == 2
    assert message in ended.err


def test_export_to_a_folder(ftkit: Run, trained: Path, folder: Path) -> None:
    facts = ftkit("export", trained, "--format", "merged", "--to", "merged", "--json").document()
    assert facts["format"] == "merged"
    assert facts["max_abs_difference"] <= facts["tolerance"]
    assert (folder / "merged" / "model.safetensors").is_file()
    ended = ftkit("export", trained, "--format", "adapter", "--to", "adapter")
    assert ended.out.startswith(f"{folder / 'adapter'} (")


def test_an_unknown_format_is_answered_with_the_known_ones(ftkit: Run, trained: Path) -> None:
    ended = ftkit("export", trained, "--format", "onnx")
    assert ended.code == 2
    assert "adapter" in ended.err
    assert "merged" in ended.err


@pytest.mark.parametrize("verb", [["evaluate"], ["predict", "--text", "a"], ["export", "--format", "merged"]])
def test_a_folder_that_is_no_run(verb: list[str], ftkit: Run, folder: Path) -> None:
    ended = ftkit(verb[0], folder, *verb[1:], "--json")
    assert ended.code == 2
    assert ended.document()["error"]["kind"] == "RunFolderError"


def test_predictions_go_through_links_and_into_pipes(ftkit: Run, trained: Path, folder: Path) -> None:
    Path("real.jsonl").write_text("")
    Path("link.jsonl").symlink_to("real.jsonl")
    assert ftkit("predict", trained, "--text", "w1", "--output", "link.jsonl", "--force").code == 0
    assert Path("link.jsonl").is_symlink()
    assert "label" in json.loads(Path("real.jsonl").read_text())
    os.mkfifo("pipe")
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_text()), daemon=True)
    reader.start()
    assert ftkit("predict", trained, "--text", "w1", "--output", "pipe").code == 0
    reader.join(10)
    assert "label" in json.loads(received[0])
    assert Path("pipe").is_fifo()
