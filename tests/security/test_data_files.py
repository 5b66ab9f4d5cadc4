"""Hostile data: pickles under every name, types that would unpickle, folders with code, archives, pipes, paths out of the folder."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ftkit.data.readers import hub
from ftkit.data.readers.source_file import SourceFile
from ftkit.data.sources import read_source
from ftkit.errors import DataError
from ftkit.recipe.schema import SourceSpec
from tests.security.conftest import Command
from tests.security.hostile import Mark

Make = Callable[[Mark], bytes]

PICKLES: dict[str, Make] = {
    "rows.pkl": Mark.pickle,
    "rows.pickle": Mark.pickle,
    "rows.pt": Mark.torch_file,
    "rows.bin": Mark.pickle,
    "rows.npy": Mark.npy,
    "rows.npz": Mark.npz,
    "rows.joblib": Mark.pickle,
    "rows.csv": Mark.pickle,
    "rows.tsv": Mark.npz,
    "rows.jsonl": Mark.pickle,
    "rows.json": Mark.npy,
    "rows.parquet": Mark.pickle,
    "rows.arrow": Mark.torch_file,
    "rows.conll": Mark.pickle,
    "rows.txt": Mark.torch_file,
    "rows.png": Mark.pickle,
    "rows.jsonl.gz": Mark.pickle,
}


def recipe_for(folder: Path, model: Path, source: str, task: str = "text-classification") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"model: {model}\ntask: {task}\ndata: {{train: {json.dumps(source)}}}\nmethod: lora\n")
    return path


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_no_data_under_any_name(name: str, mark: Mark, command: Command, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / name).write_bytes(PICKLES[name](mark))
    ended = command("validate", recipe_for(tmp_path, tiny_folder, name))
    assert ended.code == 2, ended.said
    assert name in ended.err


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "conll", "text", "document", "parquet", "arrow", "image", "squad"])
def test_pickles_are_no_data_in_any_format_that_a_recipe_names(form: str, mark: Mark, tmp_path: Path) -> None:
    (tmp_path / "rows.pkl").write_bytes(mark.pickle())
    if form == "image":  # a row is the bytes of the file; the task looks at them
        assert [row["image"]["bytes"] for row in read_source(SourceSpec(path="rows.pkl", format=form), base=tmp_path)] == [
            mark.pickle()
        ]
        return
    with pytest.raises(DataError, match=r"rows\.pkl"):
        read_source(SourceSpec(path="rows.pkl", format=form), base=tmp_path)


def test_pickles_in_class_folders_are_text_or_images_or_refused(mark: Mark, command: Command, tmp_path: Path, vit: Path) -> None:
    for label in ("calm", "angry"):
        (tmp_path / "images" / label).mkdir(parents=True)
        (tmp_path / "images" / label / "a.pt").write_bytes(mark.torch_file())
        (tmp_path / "images" / label / "b.png").write_bytes(mark.pickle())
    ended = command("validate", recipe_for(tmp_path, vit, "images", "image-classification"))
    assert ended.code == 2
    assert "images and other files" in ended.err
    for label in ("calm", "angry"):
        (tmp_path / "images" / label / "a.pt").rename(tmp_path / "images" / label / "a.jpg")
    ended = command("validate", recipe_for(tmp_path, vit, "images", "image-classification"))
    assert ended.code == 2
    assert "is no image" in ended.err


EXTENSIONS = (
    "arrow.py_extension_type",
    "pandas_object",
    "ray.data.arrow_pickled_object",
    "datasets.features.features.Array2DExtensionType",
)


@pytest.mark.parametrize("kind", EXTENSIONS)
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_extension_types_are_never_unpickled(kind: str, form: str, mark: Mark, tmp_path: Path) -> None:
    """CVE-2023-47248: Arrow once unpickled what the metadata of a column said."""
    metadata = {"ARROW:extension:name": kind, "ARROW:extension:metadata": mark.pickle()}
    values = pa.array([mark.pickle()], pa.binary())
    fields = [pa.field("text", pa.string()), pa.field("blob", pa.binary(), metadata=metadata)]
    table = pa.Table.from_arrays([pa.array(["a"]), values], schema=pa.schema(fields, metadata={b"pandas": mark.pickle()}))
    file = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    rows: list[str] = []
    # Where `datasets` was imported, it reads the metadata of its own types, as JSON, which a pickle is not.
    with suppress(DataError):
        rows = [row["text"] for row in read_source(SourceSpec(path=str(file)), base=tmp_path)]
    assert rows in ([], ["a"])


def test_metadata_of_data_sets_is_data(mark: Mark, tmp_path: Path) -> None:
    info = {
        "info": {
            "features": {"label": {"_type": "ClassLabel", "names": ["a"], "code": mark.code()}, "text": {"_type": "os.system"}}
        }
    }
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())], metadata={b"huggingface": json.dumps(info).encode()})
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array([0])], schema=schema), tmp_path / "rows.parquet")
    assert list(read_source(SourceSpec(path="rows.parquet"), base=tmp_path)) == [{"text": "x", "label": "a"}]


@pytest.mark.parametrize(
    "content", ['{"features": 5}', '{"info": 5}', '{"info": {"features": [1]}}', "[" * 5000, '{"info": {"features": 7}}']
)
def test_damaged_metadata_of_data_sets_is_passed_over(content: str, tmp_path: Path) -> None:
    schema = pa.schema([("text", pa.string())], metadata={b"huggingface": content.encode()})
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])], schema=schema), tmp_path / "rows.parquet")
    assert list(read_source(SourceSpec(path="rows.parquet"), base=tmp_path)) == [{"text": "x"}]


def test_scripts_of_data_sets_are_never_run(mark: Mark, command: Command, tmp_path: Path, tiny_folder: Path) -> None:
    folder = tmp_path / "work" / "reviews"
    folder.mkdir(parents=True)
    for name in ("reviews.py", "__init__.py", "dataset.py"):
        (folder / name).write_text(mark.code())
    (folder / "data.csv").write_text("text,label\na,b\n")
    (folder / "dataset_infos.json").write_text("{}")
    for source in ("reviews", "hub:reviews"):
        ended = command("validate", recipe_for(tmp_path, tiny_folder, source))
        assert ended.code == 2, ended.said
    with pytest.raises(DataError, match="is a file or folder here"):
        hub.read(SourceFile(path=Path(), label="x"), "reviews", SourceSpec(path="hub:reviews"))


def test_saved_data_sets_read_arrow_files_of_their_own_folder_only(mark: Mark, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "rows.arrow").write_bytes(mark.pickle())
    for name in ("../rows.arrow", "/etc/passwd", "evil.pkl"):
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match="saved"):
            read_source(SourceSpec(path="saved"), base=tmp_path)


def archives(folder: Path) -> dict[str, bytes]:
    """Archives whose members would land outside a folder that they are unpacked in. None is unpacked."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../../escaped.csv", "text,label\na,b\n")
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        entry = tarfile.TarInfo(str(folder / "escaped.csv"))
        archive.addfile(entry, io.BytesIO(b""))
    return {
        "rows.zip": zipped.getvalue(),
        "rows.csv": zipped.getvalue(),
        "rows.tar.gz": tarred.getvalue(),
        "rows.tgz": tarred.getvalue(),
    }


@pytest.mark.parametrize("name", list(archives(Path("x"))))
def test_archives_are_never_unpacked(name: str, command: Command, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / name).write_bytes(archives(tmp_path)[name])
    ended = command("validate", recipe_for(tmp_path, tiny_folder, name))
    assert ended.code == 2
    assert name in ended.err
    assert not list(tmp_path.parent.rglob("escaped.csv"))


def test_pipes_and_devices_are_no_rows(command: Command, tmp_path: Path, tiny_folder: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("rows.jsonl", "zero.csv"):
        ended = command("validate", recipe_for(tmp_path, tiny_folder, name))
        assert ended.code == 2
        assert name in ended.err


def test_pictures_of_a_data_file_are_plain_files_of_a_kind(command: Command, tmp_path: Path, vit: Path) -> None:
    huge = io.BytesIO()
    PIL.Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    (tmp_path / "huge.png").write_bytes(huge.getvalue())
    (tmp_path / "page.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n")
    for name, wrong in {"huge.png": "too large", "page.eps": "is no image", "/dev/zero": "a pipe, a socket or a device"}.items():
        (tmp_path / "rows.jsonl").write_text(json.dumps({"image": name, "label": "a"}) + "\n")
        ended = command("validate", recipe_for(tmp_path, vit, "rows.jsonl", "image-classification"))
        assert ended.code == 2, ended.said
        assert wrong in ended.err


def test_cells_are_never_formulas_or_code(mark: Mark, tmp_path: Path) -> None:
    cells = [
        f"=cmd|'{mark.shell()}'!A1",
        f"$({mark.shell()})",
        f"`{mark.shell()}`",
        "{{ 7 * 7 }}",
        "${7*7}",
        "!!python/object:os.system x",
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": cell}) + "\n" for cell in cells))
    assert [row["text"] for row in read_source(SourceSpec(path="rows.jsonl"), base=tmp_path)] == cells
