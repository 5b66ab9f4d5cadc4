"""Broken data files of every format, for every task: each ends in exit code 2 with its place, the value, what was expected and a way out.

A case is a file (or a folder) with one thing wrong. The command line is run on it as a user does it: what `validate` says `train` says
too, and no run folder comes of it.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.main import get_command

from ftkit.cli import app
from ftkit.data.sources import FORMAT_OF_SUFFIX, READERS
from ftkit.registry import TASKS
from tests.tiny import save_tiny

FAMILIES = {
    "text-classification": "bert",
    "token-classification": "bert",
    "question-answering": "bert",
    "language-modeling": "llama",
    "instruction-tuning": "llama",
    "seq2seq": "bart",
    "image-classification": "vit",
}
TEXT, TOKENS, QA, LM, CHAT, SEQ, IMAGE = FAMILIES

Files = Mapping[str, bytes] | Callable[[Path], Any]


@dataclass(frozen=True)
class Broken:
    """One thing that is wrong.

    files: content by name, or what makes them in a folder. place: of the first bad row, as messages name it. key: column or field, ''
    where it concerns none. says: what the message holds besides, in this order: the value, what was expected. hint: of the way out.
    train: the source (default: the first file). verbs: those that find it; what only decoding an image tells, `validate` does not see.
    """

    name: str
    task: str
    files: Files
    place: str
    key: str
    says: Sequence[str]
    hint: str
    train: Any = None
    validation: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    verbs: tuple[str, str] = ("validate", "train")

    @property
    def source(self) -> Any:
        return self.train or next(iter(self.files))  # type: ignore[arg-type]


# --- making files ------------------------------------------------------------------------------------------------------


def lines(*rows: Any) -> bytes:
    """JSON lines; texts and bytes are taken as they are."""
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n"


def document(value: Any) -> bytes:
    return json.dumps(value).encode()


def parquet(columns: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), stream)
    return stream.getvalue()


def arrow(columns: Mapping[str, Any]) -> bytes:
    stream, table = io.BytesIO(), pa.table(dict(columns))
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def picture(kind: str = "PNG", mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def pets(**files: bytes) -> dict[str, bytes]:
    """Two class folders with a picture each, and other files for the second one: `x__png` is `x.png`."""
    good = {"pets/cat/1.png": picture(), "pets/dog/1.png": picture()}
    return {**good, **{f"pets/dog/{name.replace('__', '.')}": content for name, content in files.items()}}


def linked(name: str, target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for path, content in pets().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        (folder / name).symlink_to(target)

    return make


def class_labels(folder: Path) -> None:
    """What `datasets` saves, with -1 for a row without a class."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features=features).save_to_disk(folder / "d")


# --- rows to break -----------------------------------------------------------------------------------------------------

GOOD = [{"text": "Goal!", "label": "sport"}, {"text": "Rain today", "label": "weather"}]
TWO = b"text,label\na,x\nb,y\n"
SEVERAL = {"problem_type": "multi_label"}
NUMBER = {"problem_type": "regression"}
NER = {"tokens": ["Anna", "lives"], "tags": ["B-PER", "O"]}
SCHEME = {"scheme": "IOB2"}
CONTEXT = "the cat and the dog and the cat"
USER, ANSWER, SYSTEM = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello"), ("system", "Be kind"))
)
TALK = {"messages": [USER, ANSWER]}
SHARED = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
BOTH = {"source": "translation", "target": "translation"}
PAIR = {"options": {"translation_keys": ["de", "en"]}, "columns": BOTH}
A_PNG = {"a.png": picture()}
WHOLE = parquet({"text": ["a", "b"], "label": ["x", "y"]})
NO_ROWS = "Give a file with rows"
ROW = "remove the row"
DECODING = ("inspect", "train")


def asked(start: Any, text: Any = "cat", **more: Any) -> dict[str, Any]:
    return {"question": "Who?", "context": CONTEXT, "answers": {"text": [text], "answer_start": [start]}, **more}


def talk(*turns: Any, **more: Any) -> bytes:
    """A good conversation, then one of these turns."""
    return lines(TALK, {"messages": list(turns), **more})


def calls(*made: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(made)}


def squad(question: Any, **paragraph: Any) -> bytes:
    """SQuAD's nesting: a good article, then one with this question or these keys of a paragraph."""
    good = {"id": "1", "question": "Who?", "answers": [{"text": "cat", "answer_start": 4}]}
    paragraphs = [{"context": CONTEXT, "qas": [good]}], [{"context": CONTEXT, "qas": [question], **paragraph}]
    return document({"version": "1.1", "data": [{"title": "t", "paragraphs": part} for part in paragraphs]})


# --- the cases ---------------------------------------------------------------------------------------------------------

CASES = [
    # Text classification: one label.
    Broken("null-label", TEXT, {"d.jsonl": lines(*GOOD, {"text": "x", "label": None})},
           "d.jsonl, line 3", "label", ["the label is missing"], ROW),
    Broken("label-of-mixed-types", TEXT, {"d.jsonl": lines(*GOOD, {"text": "x", "label": {"name": "sport"}})},
           "d.jsonl, line 3", "label", ["{'name': 'sport'} is an object", "'sport' (d.jsonl, line 1) is text"], "the same type"),
    Broken("label-with-a-point", TEXT, {"d.parquet": parquet({"text": ["a", "b"], "label": [1.0, 0.5]})},
           "d.parquet, row 1", "label", ["label 1.0 is a number with a point"], "task.problem_type to regression"),
    Broken("label-nan", TEXT, {"d.jsonl": lines(b'{"text": "a", "label": NaN}', b'{"text": "b", "label": NaN}')},
           "d.jsonl, line 1", "label", ["NaN", "not a label"], ROW),
    Broken("label-of-blanks-after-a-line-break", TEXT, {"d.csv": b'text,label\na,x\n"b\nb",y\n"c\nc","\xc2\xa0 "\n'},
           "d.csv, line 5", "label", ["the label is empty"], ROW),
    Broken("label-a-date", TEXT, {"d.parquet": parquet({"text": ["a"], "label": pa.array([1], pa.date32())})},
           "d.parquet, row 1", "label", ["datetime.date(1970, 1, 2)", "not text, a whole number or true/false"], "Write it as text"),
    Broken("label-too-large", TEXT, {"d.jsonl": lines({"text": "a", "label": 1}, {"text": "b", "label": 2**70})},
           "d.jsonl, line 2", "label", ["1180591620717411303424", "64 bits"], "Correct the value"),
    Broken("label-a-lone-surrogate", TEXT, {"d.json": b'[{"text": "a", "label": "x"}, {"text": "b", "label": "\\udc00"}]'},
           "d.json, row 2", "label", [r"'\udc00'", "no character"], "Correct the value"),
    Broken("label-not-among-the-named", TEXT, {"d.csv": TWO + b"c,z\n"},
           "d.csv, line 4", "label", ["'z'", "task.labels: 'x', 'y'"], "Add it", options={"labels": ["x", "y"]}),
    Broken("label-unseen-in-training", TEXT, {"d.jsonl": lines(*GOOD), "v.tsv": b"text\tlabel\na\tsport\nb\tSport \n"},
           "v.tsv, line 3", "label", ["'Sport '", "which have 'sport', 'weather'"], "Correct the row", validation="v.tsv"),
    Broken("one-label-alone", TEXT, {"d.csv": b"text,label\na,x\nb,x\n"},
           "d.csv", "label", ["only the label 'x'"], "single_label needs at least 2"),
    Broken("saved-without-a-class", TEXT, class_labels, "d, row 3", "label", ["the label is missing"], ROW, train="d"),
    # Texts.
    Broken("text-a-number", TEXT, {"d.jsonl": lines({"text": 12, "label": "a"}, {"text": 13, "label": "b"})},
           "d.jsonl, line 1", "text", ["12", "not text"], "Correct the row"),
    Broken("text-nested-in-parquet", TEXT, {"d.parquet": parquet({"text": [{"en": "a"}, {"en": "b"}], "label": ["x", "y"]})},
           "d.parquet, row 1", "text", ["{'en': 'a'}", "not text"], "another column under data.columns"),
    Broken("text-bytes-in-parquet", TEXT, {"d.parquet": parquet({"text": [b"a", b"b"], "label": ["x", "y"]})},
           "d.parquet, row 1", "text", ["b'a'", "not text"], "Correct the row"),
    Broken("text-null-in-arrow", TEXT, {"d.arrow": arrow({"text": ["a", None], "label": ["x", "y"]})},
           "d.arrow, row 2", "text", ["missing"], "Correct the row"),
    Broken("text-half-a-character", TEXT, {"d.jsonl": lines(*GOOD, b'{"text": "half \\ud83d of it", "label": "sport"}')},
           "d.jsonl, line 3", "text", [r"half \ud83d of it", "lone surrogate"], "Correct the value"),
    Broken("empty-file-in-a-class-folder", TEXT, {"d/a/1.txt": b"hi", "d/b/2.txt": b" \n"},
           "d/b/2.txt", "text", ["the text is empty"], ROW, train="d"),
    Broken("second-text-missing", TEXT, {"d.jsonl": lines(*({"text": "a", "text_pair": "b", "label": name} for name in "xy"), GOOD[0])},
           "d.jsonl, line 3", "text_pair", ["the second text is missing"], "Give every row"),
    Broken("second-text-blank", TEXT, {"d.tsv": b"sentence1\tsentence2\tlabel\na\tb\tx\nc\t \ty\n"},
           "d.tsv, line 3", "sentence2", ["the text is empty"], ROW),
    # Several labels, numbers.
    Broken("labels-with-null", TEXT, {"d.jsonl": lines({"text": "a", "label": ["x"]}, {"text": "b", "label": ["x", None]})},
           "d.jsonl, line 2", "label", ["label 2 of ['x', None]", "text, a whole number or true/false"], ROW, options=SEVERAL),
    Broken("labels-nested", TEXT, {"d.jsonl": lines({"text": "a", "label": ["x"]}, {"text": "b", "label": [["x"]]})},
           "d.jsonl, line 2", "label", ["label 1 of [['x']]", "text, a whole number or true/false"], ROW, options=SEVERAL),
    Broken("labels-as-one-text", TEXT, {"d.csv": b"text,label\na,x|y\nb,y\n"},
           "d.csv, line 2", "label", ["'x|y'", "list of labels"], "task.label_separator", options=SEVERAL),
    Broken("labels-a-mapping", TEXT, {"d.jsonl": lines({"text": "a", "label": {"x": 1}})},
           "d.jsonl, line 1", "label", ["{'x': 1}", "list of labels"], "0/1 columns", options=SEVERAL),
    Broken("labels-twice", TEXT, {"d.jsonl": lines({"text": "a", "label": ["x"]}, {"text": "b", "label": ["y", "x", "y"]})},
           "d.jsonl, line 2", "label", ["'y' occurs twice in ['y', 'x', 'y']"], "task.labels", options=SEVERAL),
    Broken("flag-of-two", TEXT, {"d.csv": b"text,x,y\na,1,0\nb,0,2\n"},
           "d.csv, line 3", "x, y", ["'y' is '2'", "expected 0 or 1"], ROW,
           options={**SEVERAL, "labels": ["x", "y"]}, columns={"label": ["x", "y"]}),
    Broken("score-nan", TEXT, {"d.parquet": parquet({"text": ["a", "b"], "score": [1.0, float("nan")]})},
           "d.parquet, row 2", "score", ["nan", "finite number"], ROW, options=NUMBER),
    Broken("score-beyond-floats", TEXT, {"d.json": b'[{"text": "a", "score": 1.5},\n {"text": "b", "score": -1e999}]'},
           "d.json, row 2", "score", ["-inf", "finite number"], ROW, options=NUMBER),
    Broken("score-with-a-comma", TEXT, {"d.csv": b'text,score\na,1.5\nb,"2,5"\n'},
           "d.csv, line 3", "score", ["'2,5'", "finite number"], "with a point", options=NUMBER),
    Broken("score-empty", TEXT, {"d.csv": b"text,score\na,1.5\nb,\n"},
           "d.csv, line 3", "score", ["''", "finite number"], ROW, options=NUMBER),
    Broken("score-true", TEXT, {"d.jsonl": lines({"text": "a", "score": True})},
           "d.jsonl, line 1", "score", ["True", "finite number"], "task.problem_type", options=NUMBER),
    # csv and tsv.
    Broken("ragged-rows", TEXT, {"d.csv": b"text,label\na,x\nHello, world,y\nz\n"},
           "d.csv, line 3", "", ["3 fields ('Hello' ...)", "the header has 2: text, label"], "must be quoted"),
    Broken("quote-never-closed", TEXT, {"d.csv": b'text,label\na,x\n"open,y\nb,z\n'},
           "d.csv, line 3", "", ["unexpected end of data", '\'"open,y\''], "write a quote character twice"),
    Broken("quotes-inside-quotes", TEXT, {"d.csv": b'text,label\na,x\n"he said "hi" to me",y\n'},
           "d.csv, line 3", "", ["expected after", 'he said "hi"'], "write a quote character twice"),
    Broken("header-twice", TEXT, {"d.csv": b"text,label,label\na,x,y\n"},
           "d.csv, line 1", "", ["'label' more than once"], "name the columns"),
    Broken("header-empty", TEXT, {"d.csv": b",\na,x\n"}, "d.csv, line 1", "", ["2 of 2 columns without a name"], "name the columns"),
    Broken("header-missing", TEXT, {"d.csv": b"Goal!,sport\nRain,weather\n"},
           "d.csv", "data.columns.text", ["no column 'text'", "usual names: text, sentence"], "Columns: Goal!, sport"),
    Broken("header-with-blanks", TEXT, {"d.csv": b"text, label\na,x\n"},
           "d.csv", "data.columns.label", ["no column 'label'"], '{label: " label"}'),
    Broken("other-delimiter", TEXT, {"d.csv": b"text;label\na;b\n"},
           "d.csv", "data.columns.text", ["no column 'text'"], "set `delimiter: ';'`"),
    Broken("column-misspelt", TEXT, {"d.csv": b"body,topic\na,x\n"},
           "d.csv", "data.columns.label", ["no column 'topics'"], "Did you mean 'topic'", columns={"text": "body", "label": "topics"}),
    Broken("old-mac-line-ends", TEXT, {"d.csv": TWO.replace(b"\n", b"\r")},
           "d.csv, line 1", "", ["old Macs", r"'text,label\ra,x"], r"\n between the lines"),
    Broken("header-alone", TEXT, {"d.tsv": b"text\tlabel\n"}, "d.tsv", "", ["holds no rows"], NO_ROWS),
    Broken("blank-lines-alone", TEXT, {"d.csv": b"\n\n\n"}, "d.csv", "", ["holds no rows"], NO_ROWS),
    # JSON.
    Broken("json-mapping-of-rows", TEXT, {"d.json": document({"1": GOOD[0], "2": GOOD[1]})},
           "d.json", "", ["no list under `data`", "1, 2"], "`[{...}, {...}]`"),
    Broken("json-text", TEXT, {"d.json": b'"text"'}, "d.json", "", ["neither a list of objects", "'\"text\"'"], "Write the rows as"),
    Broken("json-null-row", TEXT, {"d.json": b'[{"text": "a", "label": "x"}, null]'},
           "d.json, row 2", "", ["None is not an object"], '{"column": value, ...}'),
    Broken("json-comma-at-the-end", TEXT, {"d.json": b'[\n {"text": "a", "label": "x"},\n]\n'},
           "d.json:3:1", "", ["Expecting value: ']'"], "Remove the comma"),
    Broken("json-key-twice", TEXT, {"d.json": b'[{"text": "a", "label": "x"},\n {"text": "b", "text": "c", "label": "y"}]'},
           "d.json:2:2", "text", ["'text' comes twice"], "Keep one"),
    Broken("json-web-page", TEXT, {"d.json": b"<html><body>404 Not Found</body></html>"},
           "d.json", "", ["neither a list", "'<html><body>404 Not '"], "Write the rows as"),
    Broken("json-empty-list", TEXT, {"d.json": b'{"data": []}'}, "d.json", "", ["holds no rows"], NO_ROWS),
    Broken("jsonl-two-on-a-line", TEXT, {"d.jsonl": lines(GOOD[0], b'{"text": "b", "label": "y"}{"text": "c"}')},
           "d.jsonl:2:28", "", ["Extra data: '{\"text\": \"c\"}'"], "on a line of its own"),
    Broken("jsonl-key-twice", TEXT, {"d.jsonl": lines(GOOD[0], b'{"text": "b", "label": "x", "label": "y"}')},
           "d.jsonl, line 2", "label", ["'label' comes twice"], "Keep one"),
    Broken("jsonl-python", TEXT, {"d.jsonl": lines(GOOD[0], b'{"text": "b", "label": None}')},
           "d.jsonl:2:24", "", ["Expecting value: 'None}'"], "null, true and false"),
    Broken("jsonl-single-quotes", TEXT, {"d.jsonl": lines(GOOD[0], b"{'text': 'b'}")},
           "d.jsonl:2:2", "", ["double quotes: \"'text': 'b'}\""], "in double quotes"),
    Broken("jsonl-cut", TEXT, {"d.jsonl": lines(*GOOD) + b'{"text": "c", "lab'},
           "d.jsonl:3:15", "", ["Unterminated string: '\"lab'"], "Is the file whole?"),
    Broken("jsonl-path-of-windows", TEXT, {"d.jsonl": lines(GOOD[0], b'{"text": "C:\\Users", "label": "y"}')},
           "d.jsonl:2:13", "", ["escape", "Users"], "written twice"),
    Broken("jsonl-nested-without-end", TEXT, {"d.jsonl": lines(*GOOD) + b"[" * 100_000},
           "d.jsonl:3:1", "", ["nested too deeply"], "remove the line"),
    Broken("jsonl-list", TEXT, {"d.jsonl": lines(["text", "label"], ["a", "x"])},
           "d.jsonl, line 1", "", ["['text', 'label'] is not an object"], "set `format: json`"),
    Broken("jsonl-blank-lines", TEXT, {"d.jsonl": b"\n \n\n"}, "d.jsonl", "", ["holds no rows"], NO_ROWS),
    Broken("jsonl-zeros-of-a-crash", TEXT, {"d.jsonl": lines(*GOOD) + b"\0" * 40},
           "d.jsonl, line 3", "", ["byte 0x00 (byte 1 of the line)"], "Take the zero bytes out"),
    Broken("second-file-of-a-glob", TEXT, {"a.jsonl": lines(*GOOD), "b.jsonl": lines(GOOD[0], {"text": "", "label": "sport"})},
           "b.jsonl, line 2", "text", ["the text is empty"], ROW, train="*.jsonl"),
    Broken("files-that-disagree", TEXT, {"a.jsonl": lines({"text": "a", "label": 0}), "b.jsonl": lines({"text": "b", "label": "one"})},
           "b.jsonl", "label", ["text here, but a whole number in a.jsonl"], "same type", train=["a.jsonl", "b.jsonl"]),
    # Encodings and files of another kind.
    Broken("latin-1", TEXT, {"d.tsv": "text\tlabel\na\tx\ncafé\ty\n".encode("latin-1")},
           "d.tsv, line 3", "encoding", ["byte 0xE9 (byte 4 of the line)", "not valid utf-8"], "`encoding: latin-1`"),
    Broken("latin-1-in-a-class-folder", TEXT, {"d/a/1.txt": b"hi", "d/b/2.txt": b"ok\ncaf\xe9"},
           "d/b/2.txt, line 2", "encoding", ["byte 0xE9", "not valid utf-8"], "`encoding: latin-1`", train="d"),
    Broken("utf-16-without-a-mark", TEXT, {"d.jsonl": lines(*GOOD).decode().encode("utf-16-le")},
           "d.jsonl, line 1", "encoding", ["byte 0x00 (byte 2 of the line)"], "`encoding: utf-16-le`"),
    Broken("utf-16-of-other-order", TEXT, {"d.csv": TWO.decode().encode("utf-16-be")},
           "d.csv, line 1", "encoding", ["byte 0x00 (byte 1 of the line)"], "`encoding: utf-16-be`"),
    Broken("utf-16-cut", TEXT, {"d.csv": TWO.decode().encode("utf-16")[:-1]},
           "d.csv, after line 2", "encoding", ["not valid utf-16", "truncated data"], "Is the file whole",
           train={"path": "d.csv", "encoding": "utf-16"}),
    Broken("excel-named-csv", TEXT, {"d.csv": b"PK\x03\x04\x14\0\x06\0\x08\0"}, "d.csv", "", ["an Excel file", r"b'PK\x03"], "as csv"),
    Broken("parquet-named-csv", TEXT, {"d.csv": WHOLE}, "d.csv", "", ["a Parquet file", "b'PAR1"], "`format: parquet`"),
    Broken("gzip-named-jsonl", TEXT, {"d.jsonl": gzip.compress(lines(*GOOD))}, "d.jsonl", "", ["a gzip file", r"b'\x1f"], ".gz"),
    Broken("gzip-with-a-bad-row", TEXT, {"d.jsonl.gz": gzip.compress(lines(*GOOD, {"text": "a", "label": [1]}))},
           "d.jsonl.gz, line 3", "label", ["[1] is a list", "is text"], "same type"),
    Broken("gzip-with-a-wrong-checksum", LM, {"d.txt.gz": gzip.compress(b"hello\n" * 50)[:-6] + b"\0" * 6},
           "d.txt.gz", "", ["not a whole gzip file", "CRC"], "Copy or write it again"),
    Broken("plain-text-named-gzip", LM, {"d.txt.gz": b"plain text\n"}, "d.txt.gz", "", ["b'pl'"], "Take .gz off"),
    Broken("pointer-of-git-lfs", TEXT, {"d.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"},
           "d.parquet", "", ["a Git LFS pointer"], "git lfs pull"),
    # Parquet, Arrow, saved data sets.
    Broken("parquet-cut", TEXT, {"d.parquet": WHOLE[: len(WHOLE) // 2]}, "d.parquet", "", ["not a whole Parquet file"], "write it again"),
    Broken("parquet-of-other-magic", TEXT, {"d.parquet": b"PAR2" + WHOLE[4:-4] + b"PAR2"},
           "d.parquet", "", ["not a whole Parquet file", "magic bytes"], "write it again"),
    Broken("parquet-damaged-inside", TEXT, {"d.parquet": WHOLE[:30] + b"\xff" * 20 + WHOLE[50:]},
           "d.parquet", "", ["not a whole Parquet file"], "write it again"),
    Broken("parquet-without-rows", TEXT, {"d.parquet": parquet({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())})},
           "d.parquet", "", ["holds no rows"], NO_ROWS),
    Broken("parquet-without-columns", TEXT, {"d.parquet": parquet({})}, "d.parquet", "", ["holds no rows"], NO_ROWS),
    Broken("arrow-cut", TEXT, {"d.arrow": arrow({"text": ["a"], "label": ["x"]})[:-60]},
           "d.arrow", "", ["not a whole Arrow file"], "write it again"),
    Broken("csv-named-arrow", TEXT, {"d.arrow": b"text,label\n"}, "d.arrow", "", ["not a whole Arrow file"], "write it again"),
    Broken("saved-without-its-file", TEXT, {"d/state.json": b'{"_data_files": [{"filename": "data-0.arrow"}]}'},
           "d", "", ["not a whole Arrow file", "data-0.arrow"], "write it again", train="d"),
    Broken("saved-without-its-split", TEXT, {"d/dataset_dict.json": b'{"splits": ["train"]}'},
           "d/train/state.json", "", ["cannot be read: No such file"], "write it again", train="d"),
    # What is no file.
    Broken("folder-named-jsonl", TEXT, lambda folder: (folder / "d.jsonl").mkdir(),
           "d.jsonl", "", ["a folder without class folders"], "Give a file", train="d.jsonl"),
    Broken("link-to-nowhere", TEXT, linked("d.jsonl", "gone.jsonl"), "d.jsonl", "", ["a link to 'gone.jsonl'"], "another path",
           train="d.jsonl"),
    Broken("file-without-an-ending", TEXT, {"data": TWO}, "data", "", ["no ending that tells its format"], "Say `format:`"),
    Broken("zero-bytes", LM, {"d.txt": b""}, "d.txt", "", ["the file is empty"], NO_ROWS),
    # Token classification.
    Broken("inside-after-outside", TOKENS, {"d.conll": b"Anna B-PER\nlives O\n\nin O\nNew I-LOC\nYork I-LOC\n"},
           "d.conll, line 4", "tags", ["word 2 ('New'): I-LOC follows O", "IOB2 does not allow"], "task.on_invalid", options=SCHEME),
    Broken("inside-of-another-type", TOKENS, {"d.bio": b"Anna B-PER\nLondon I-LOC\n"},
           "d.bio, line 1", "tags", ["word 2 ('London'): I-LOC follows B-PER"], "Correct the tags", options=SCHEME),
    Broken("entity-without-an-end", TOKENS, {"d.conll": b"Anna S-PER\n\nNew B-LOC\nYork O\n"},
           "d.conll, line 3", "tags", ["word 1 ('New'): B-LOC", "BIOES does not allow"], "Correct the tags", options={"scheme": "BIOES"}),
    Broken("tag-in-small-letters", TOKENS, {"d.conll": b"Anna B-PER\n\nBonn b-loc\n"},
           "d.conll, line 3", "tags", ["'b-loc' is no tag of IOB2", "O, B-<type>, I-<type>"], "task.scheme", options=SCHEME),
    Broken("line-without-its-tag", TOKENS, {"d.conll": b"Anna NNP B-PER\nlives VBZ O\n\nin IN\n"},
           "d.conll, line 4", "", ["2 columns ('in IN')", "line 1 has 3"], "a line with all columns"),
    Broken("empty-tag", TOKENS, {"d.conll.gz": gzip.compress(b"Anna\tNNP\tB-PER\nlives\tVBZ\t\n")},
           "d.conll.gz, line 2", "", ["the last column is empty ('lives VBZ ')"], "all columns"),
    Broken("words-alone", TOKENS, {"d.iob2": b"Anna\nlives\n"}, "d.iob2", "data.columns.tags", ["no column 'tags'"], "Columns: tokens"),
    Broken("marks-alone", TOKENS, {"d.conll": b"-DOCSTART- -X- O\n\n"}, "d.conll", "", ["holds no rows"], NO_ROWS),
    Broken("nothing-but-outside", TOKENS, {"d.conll": b"Anna O\nlives O\n"}, "d.conll", "tags", ["only the tag 'O'"], "data.columns"),
    Broken("conll-in-utf-16", TOKENS, {"d.conll": "Anna B-PER\n".encode("utf-16-le")},
           "d.conll, line 1", "encoding", ["byte 0x00"], "utf-16-le"),
    Broken("fewer-tags-than-words", TOKENS, {"d.jsonl": lines(NER, {"tokens": ["a", "b", "c"], "tags": ["O", "O"]})},
           "d.jsonl, line 2", "tags", ["2 tags for 3 words"], "one tag"),
    Broken("tag-null", TOKENS, {"d.jsonl": lines(NER, {**NER, "tags": ["O", None]})},
           "d.jsonl, line 2", "tags", ["tag 2 is None", "not text"], "Correct the row"),
    Broken("tag-number-too-large", TOKENS, {"d.jsonl": lines({**NER, "tags": [1, 0]}, {**NER, "tags": [0, 3]})},
           "d.jsonl, line 2", "tags", ["tag 2 is 3", "0 to 2 in task.labels"], "Name all tags",
           options={"labels": ["O", "B-X", "I-X"]}),
    Broken("word-a-list", TOKENS, {"d.jsonl": lines(NER, {**NER, "tokens": [["Anna"], "lives"]})},
           "d.jsonl, line 2", "tokens", ["word 1 is ['Anna']", "not text"], "Correct the row"),
    Broken("lists-written-as-text", TOKENS, {"d.csv": b"tokens,tags\n\"['Anna', 'lives']\",\"['B-PER', 'O']\"\n"},
           "d.csv, line 2", "tags", ["\"['B-PER', 'O']\"", "a list that was written as text"], "spaces between them"),
    Broken("word-of-half-a-character", TOKENS, {"d.jsonl": lines(NER, b'{"tokens": ["a\\ud800"], "tags": ["O"]}')},
           "d.jsonl, line 2", "tokens", [r"\ud800", "no character"], "Correct the value"),
    Broken("type-unseen-in-training", TOKENS, {"d.conll": b"Anna B-PER\nlives O\n", "v.conll": b"# 1\nAnna B-PER\n\nBonn B-LOC\n"},
           "v.conll, line 4", "tags", ["type 'LOC'", "which have 'PER'"], "task.labels", validation="v.conll"),
    # Question answering.
    Broken("start-off-by-one", QA, {"d.jsonl": lines(asked(4), asked(5))},
           "d.jsonl, line 2", "answers", ["'at ' at 5", "the answer is 'cat'"], "is 4"),
    Broken("start-in-another-occurrence", QA, {"d.jsonl": lines(asked(4), asked(12, "the cat"))},
           "d.jsonl, line 2", "answers", ["'the dog' at 12", "the answer is 'the cat'"], "is 0"),
    Broken("start-beyond-the-context", QA, {"d.jsonl": lines(asked(4), asked(99))},
           "d.jsonl, line 2", "answers", ["31 characters and nothing at 99"], "is 28"),
    Broken("start-negative", QA, {"d.jsonl": lines(asked(4), asked(-1))},
           "d.jsonl, line 2", "answers", ["-1", "a whole number from 0"], "number of characters of the context before"),
    Broken("start-true", QA, {"d.jsonl": lines(asked(4), asked(True))},
           "d.jsonl, line 2", "answers", ["True", "a whole number from 0"], "number of characters"),
    Broken("start-a-text-of-another-place", QA, {"d.jsonl": lines(asked("4"), asked("12"))},
           "d.jsonl, line 2", "answers", ["'the' at 12"], "is 4"),
    Broken("start-in-words", QA, {"d.csv": b"question,context,answers,answer_start\nWho?,the cat,cat,4\nWho?,the dog,dog,four\n"},
           "d.csv, line 3", "answer_start", ["'four'", "a whole number from 0"], "number of characters"),
    Broken("start-missing", QA, {"d.jsonl": lines({**asked(4), "answers": [{"text": "cat"}]})},
           "d.jsonl, line 1", "answers", ["missing", "a whole number from 0"], "number of characters"),
    Broken("start-in-bytes", QA, {"d.jsonl": lines({**asked(10, "Köln"), "context": "Käse aus Köln"})},
           "d.jsonl, line 1", "answers", ["'öln' at 10"], "in bytes of UTF-8; in characters it is 9"),
    Broken("answer-in-other-case", QA, {"d.jsonl": lines(asked(4), asked(4, "Cat"))},
           "d.jsonl, line 2", "answers", ["'cat' at 4", "'Cat'"], "upper and lower case, at 4"),
    Broken("answer-of-other-keys", QA, {"d.jsonl": lines({**asked(4), "answers": {"txt": ["cat"]}})},
           "d.jsonl, line 1", "answers", ["{'txt': ['cat']} have no `text`"], '"answer_start": [...]'),
    Broken("answers-of-other-number", QA, {"d.jsonl": lines({**asked(4), "answers": {"text": ["cat", "dog"], "answer_start": [4]}})},
           "d.jsonl, line 1", "answers", ["2 texts, but 1 starts"], "Give each answer its start"),
    Broken("impossible-with-an-answer", QA, {"d.jsonl": lines(asked(4), asked(4, is_impossible=True))},
           "d.jsonl, line 2", "is_impossible", ["is true", "there is an answer: 'cat'"], "Correct one"),
    Broken("squad-start", QA, {"d.json": squad({"question": "Q?", "answers": [{"text": "dog", "answer_start": 4}]})},
           "d.json, row 2", "answers", ["'cat' at 4", "'dog'"], "is 16"),
    Broken("squad-questions-no-list", QA, {"d.json": squad(None, qas={"question": "Who?"})},
           "d.json, article 2, paragraph 1", "qas", ["{'question': 'Who?'}", "list of objects"], "{context, qas: [{question, answers}]}"),
    Broken("squad-context-a-number", QA, {"d.json": squad(None, context=5)},
           "d.json, article 2, paragraph 1", "context", ["5 is not text"], "A paragraph is"),
    Broken("squad-answer-a-text", QA, {"d.json": squad({"question": "Q?", "answers": ["dog"]})},
           "d.json, article 2, paragraph 1, question 1, answer 1", "answers", ["'dog' is not an object"], "{text, answer_start}"),
    Broken("squad-cut", QA, {"d.json": squad({"question": "Q?", "answers": []})[:-12]},
           "d.json:1:", "", ["invalid JSON"], "Is the file whole?"),
    Broken("squad-of-rows", QA, {"d.json": document([asked(4)])}, "d.json, article 1", "paragraphs", ["None is not a list"],
           "need no `format: squad`", train={"path": "d.json", "format": "squad"}),
    # Language modeling.
    Broken("document-of-blanks", LM, {"d.txt": b"\n  \n\t\n"}, "d.txt, row 1", "text", ["the text is empty"], ROW),
    Broken("lines-of-blanks", LM, {"d.txt": b"\n  \n\t\n"}, "d.txt", "", ["holds no rows"], NO_ROWS,
           train={"path": "d.txt", "format": "text"}),
    Broken("document-of-zeros", LM, {"d.txt": b"one\n" + b"\0" * 100}, "d.txt, line 2", "", ["byte 0x00"], "Take the zero bytes out"),
    Broken("document-in-utf-16", LM, {"d.txt": "one\ntwo\n".encode("utf-16-le")}, "d.txt, line 1", "encoding", ["0x00"], "utf-16-le"),
    Broken("document-in-cp1252", LM, {"d.txt": "one\n“two”\n".encode("cp1252")},
           "d.txt, line 2", "encoding", ["byte 0x93", "not valid utf-8"], "`encoding: cp1252`"),
    Broken("pdf-named-txt", LM, {"d.txt": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"}, "d.txt", "", ["is a PDF", "b'%PDF-1.4"], "Extract its text"),
    Broken("document-null", LM, {"d.jsonl": lines({"text": "a"}, {"txt": "b"})}, "d.jsonl, line 2", "text", ["missing"], "data.columns"),
    # Instruction tuning.
    Broken("role-unknown", CHAT, {"d.jsonl": talk(USER, {"role": "bot", "content": "x"})},
           "d.jsonl, line 2", "messages", ["turn 2: `role` is 'bot'", "system, user, assistant or tool"], "Name the role"),
    Broken("role-in-parquet", CHAT, {"d.parquet": parquet({"messages": [[USER, ANSWER], [USER, {"role": "Assistant", "content": "x"}]]})},
           "d.parquet, row 2", "messages", ["turn 2: `role` is 'Assistant'"], "Name the role"),
    Broken("two-system-turns", CHAT, {"d.jsonl": talk(SYSTEM, SYSTEM, USER, ANSWER)},
           "d.jsonl, line 2", "messages", ["turn 2 is of the role 'system'", "expected user after system"], ROW),
    Broken("two-turns-of-the-user", CHAT, {"d.jsonl": talk(USER, USER, ANSWER)},
           "d.jsonl, line 2", "messages", ["turn 2 is of the role 'user'", "expected assistant"], ROW),
    Broken("no-answer", CHAT, {"d.jsonl": talk(SYSTEM, USER)},
           "d.jsonl, line 2", "messages", ["there is no turn of the assistant"], "Add the answer"),
    Broken("content-null", CHAT, {"d.jsonl": talk(USER, {"role": "assistant", "content": None})},
           "d.jsonl, line 2", "messages", ["turn 2 (assistant): `content` is missing", "expected text"], ROW),
    Broken("content-with-an-image", CHAT, {"d.jsonl": talk({"role": "user", "content": [{"type": "image_url", "url": "u"}]}, ANSWER)},
           "d.jsonl, line 2", "messages", ["turn 1: `content` is [{'type': 'image_url'", "expected text"], "images are not read"),
    Broken("content-of-half-a-character", CHAT, {"d.jsonl": talk(USER, {"role": "assistant", "content": "\ud800"})},
           "d.jsonl, line 2", "messages", ["lone surrogate"], "Correct the value"),
    Broken("turns-of-text", CHAT, {"d.jsonl": talk("Hi", "Hello")},
           "d.jsonl, line 2", "messages", ["turn 1 is 'Hi'", "`role` and `content`"], "{role, content}"),
    Broken("conversation-written-as-text", CHAT, {"d.csv": b'messages\n"[{""role"": ""user"", ""content"": ""x""}]"\n'},
           "d.csv, line 2", "messages", ["'[{\"role\": \"user\"", "expected a list of turns"], "jsonl or parquet"),
    Broken("tool-calls-a-text", CHAT, {"d.jsonl": talk(USER, {**calls(), "tool_calls": "{not json"})},
           "d.jsonl, line 2", "messages", ["turn 2: `tool_calls` is '{not json'", "a list of calls"], "A call is"),
    Broken("arguments-not-json", CHAT, {"d.jsonl": talk(USER, calls({"function": {"name": "f", "arguments": '{"a": '}}))},
           "d.jsonl, line 2", "messages", ["`arguments` of 'f' are '{\"a\": '", "expected an object"], "A call is"),
    Broken("call-without-a-name", CHAT, {"d.jsonl": talk(USER, calls({"function": {"arguments": "{}"}}))},
           "d.jsonl, line 2", "messages", ["{'function': {'arguments': '{}'}}", "a function with its `name`"], "A call is"),
    Broken("tools-not-json", CHAT, {"d.jsonl": lines({**TALK, "tools": "[]"}, {**TALK, "tools": "[{]"})},
           "d.jsonl, line 2", "tools", ["'[{]' is not JSON"], "Give a list of tools"),
    Broken("tools-no-list", CHAT, {"d.jsonl": lines(TALK, {**TALK, "tools": {"name": "f"}})},
           "d.jsonl, line 2", "tools", ["{'name': 'f'}", "not a list of tools"], "`name` and `parameters`"),
    Broken("sharegpt-without-from", CHAT, {"d.jsonl": lines(SHARED, {"conversations": [{"value": "a"}]})},
           "d.jsonl, line 2", "conversations", ["turn 1: `from` is None", "human, gpt"], "Name the role"),
    Broken("sharegpt-without-value", CHAT, {"d.json": document([SHARED, {"conversations": [{"from": "human", "text": "b"}]}])},
           "d.json, row 2", "conversations", ["turn 1 (human): `value` is missing"], ROW),
    Broken("alpaca-without-output", CHAT, {"d.json": document([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": None}])},
           "d.json, row 2", "output", ["the answer is missing"], "Correct the row"),
    Broken("alpaca-instruction-a-list", CHAT, {"d.json": document([{"instruction": ["a"], "output": "b"}])},
           "d.json, row 1", "instruction", ["['a']", "expected text"], "Correct the row"),
    Broken("completion-empty", CHAT, {"d.csv": b"prompt,completion\na,b\nc, \n"},
           "d.csv, line 3", "completion", ["the answer is empty"], ROW),
    Broken("prompt-null", CHAT, {"d.jsonl": lines({"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "c"})},
           "d.jsonl, line 2", "prompt", ["missing"], "Correct the row"),
    Broken("layout-unknown", CHAT, {"d.csv": b"ask,reply\na,b\n"},
           "d.csv", "data", ["no column of instruction-tuning"], "Columns: ask, reply"),
    # Sequence to sequence.
    Broken("reference-null", SEQ, {"d.jsonl": lines({"source": "a", "target": ["b"]}, {"source": "a", "target": ["b", None]})},
           "d.jsonl, line 2", "target", ["reference 2 is None", "expected a text"], ROW),
    Broken("references-empty", SEQ, {"d.parquet": parquet({"source": ["a", "b"], "target": [["b"], []]})},
           "d.parquet, row 2", "target", ["the list of references is empty"], ROW),
    Broken("reference-a-list", SEQ, {"d.jsonl": lines({"source": "a", "target": ["b"]}, {"source": "a", "target": [["b"]]})},
           "d.jsonl, line 2", "target", ["reference 1 is ['b']", "expected a text"], ROW),
    Broken("references-beside-texts", SEQ, {"d.jsonl": lines({"source": "a", "target": "b"}, {"source": "a", "target": ["b"]})},
           "d.jsonl, line 2", "target", ["['b'] is a list", "is text"], "same type"),
    Broken("target-empty", SEQ, {"d.csv": b"source,target\na,b\nc,\n"}, "d.csv, line 3", "target", ["the text is empty"], ROW),
    Broken("language-missing", SEQ, {"d.jsonl": lines({"translation": {"de": "a", "en": "b"}}, {"translation": {"de": "a"}})},
           "d.jsonl, line 2", "translation", ["no 'en' in {'de': 'a'}"], "task.translation_keys", **PAIR),
    Broken("languages-not-named", SEQ, {"d.jsonl": lines({"translation": {"de": "a", "en": "b"}})},
           "d.jsonl, line 1", "translation", ["a mapping, not a text"], "this row has de, en", columns=BOTH),
    # Images.
    Broken("text-named-png", IMAGE, pets(x__png=b"not an image, sorry\n"),
           "pets/dog/x.png", "image", ["'dog/x.png' is no image", "b'not an image"], "Convert it", train="pets"),
    Broken("image-of-no-bytes", IMAGE, pets(x__png=b""), "pets/dog/x.png", "image", ["the image file is empty"], ROW, train="pets"),
    Broken("image-of-no-pixels", IMAGE, pets(x__png=png_of(0, 0)), "pets/dog/x.png", "image", ["0 pixels"], ROW, train="pets"),
    Broken("decompression-bomb", IMAGE, pets(x__png=png_of(60_000, 60_000)),
           "pets/dog/x.png", "image", ["too large", "pixels, Pillow's limit"], "Make it smaller", train="pets"),
    Broken("program-named-png", IMAGE, pets(x__png=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
           "pets/dog/x.png", "image", ["is no image", "b'%!PS-Adobe"], "Convert it", train="pets"),
    Broken("image-cut", IMAGE, pets(x__png=picture()[:-30]),
           "pets/dog/x.png", "image", ["'dog/x.png' cannot be decoded", "truncated"], "Replace it", train="pets", verbs=DECODING),
    Broken("four-colors-cut", IMAGE, pets(x__jpg=picture("JPEG", "CMYK")[:400]),
           "pets/dog/x.jpg", "image", ["cannot be decoded", "truncated"], "Replace it", train="pets", verbs=DECODING),
    Broken("pixels-without-a-range", IMAGE, pets(x__tif=picture("TIFF", "F")),
           "pets/dog/x.tif", "image", ["pixels of mode F"], "8 or 16 bits", train="pets", verbs=DECODING),
    Broken("notes-beside-images", IMAGE, pets(notes__txt=b"x"), "pets", "", ["cat/1.png, dog/notes.txt"], "Keep one kind", train="pets"),
    Broken("image-linked-to-nowhere", IMAGE, linked("pets/dog/x.png", "gone.png"),
           "pets/dog/x.png", "", ["a link to 'gone.png'"], "Restore the file", train="pets"),
    Broken("image-alone", IMAGE, {"d.png": picture()}, "d.png", "data.columns.label", ["no column 'label'"], "no other column than image"),
    Broken("image-null", IMAGE, {"d.parquet": parquet({"image": [{"bytes": picture(), "path": "a"}, None], "label": ["x", "y"]})},
           "d.parquet, row 2", "image", ["the image is missing"], ROW),
    Broken("image-of-noise", IMAGE, {"d.parquet": parquet({"image": [{"bytes": b"xx", "path": "b.png"}], "label": ["y"]})},
           "d.parquet, row 1", "image", ["'b.png' is no image", "b'xx'"], "Convert it"),
    Broken("image-a-number", IMAGE, {"d.parquet": parquet({"image": [1, 2], "label": ["x", "y"]})},
           "d.parquet, row 1", "image", ["1", "not the content of a file"], "Give a path"),
    Broken("image-not-there", IMAGE, {"d.jsonl": lines({"image": "a.png", "label": "x"}, {"image": "b.png", "label": "y"}), **A_PNG},
           "d.jsonl, line 2", "image", ["no file 'b.png'"], "Looked in"),
    Broken("image-on-the-net", IMAGE, {"d.csv": b"image,label\na.png,x\nhttps://example.org/b.png,y\n", **A_PNG},
           "d.csv, line 3", "image", ["'https://example.org/b.png'"], "download it first"),
    Broken("image-a-folder", IMAGE, {"d.jsonl": lines({"image": "sub", "label": "x"}), "sub/c.png": picture()},
           "d.jsonl, line 1", "image", ["'sub' cannot be read", "directory"], "Give the path of a file"),
]  # fmt: skip


# --- running them ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A tiny model of each family."""
    heads = {"llama": "AutoModelForCausalLM", "bart": "AutoModelForSeq2SeqLM"}
    folder = tmp_path_factory.mktemp("models")
    usual = "AutoModelForSequenceClassification"
    return {family: save_tiny(folder / family, family, heads.get(family, usual)) for family in set(FAMILIES.values())}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder. Commands are built once: a user's process builds them once, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(app, "get_command", _command)
    return tmp_path


@cache
def _command(application: Any) -> Any:
    return get_command(application)


def write(case: Broken, folder: Path, model: Path) -> None:
    """The case's files, and recipe.yaml."""
    if callable(case.files):
        case.files(folder)
    else:
        for name, content in case.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    data = {"train": case.source, "columns": case.columns, **({"validation": case.validation} if case.validation else {})}
    task = {"name": case.task, **({"chat_template": "chatml"} if case.task == CHAT else {}), **case.options}
    (folder / "recipe.yaml").write_text(json.dumps({"model": str(model), "task": task, "data": data, "method": "full"}))


def check(case: Broken, code: Any, out: str, err: str) -> None:
    """Whether the command ended as it should."""
    everything = out + err
    assert code == 2, everything
    for word in ("Traceback", "traceback", "internal error"):
        assert word not in everything
    first, way_out, *_ = [*err.splitlines(), ""]
    assert first.startswith(f"error: {case.place}"), err
    if case.key:
        assert first.startswith(f"error: {case.place}: {case.key}: "), err
    rest = first.removeprefix(f"error: {case.place}")
    for part in case.says:
        assert part in rest, (part, err)
        rest = rest.partition(part)[2]
    assert way_out.startswith("  "), err
    assert case.hint in way_out, err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_exit_code_2_with_place_value_expectation_and_a_way_out(
    case: Broken, work: Path, models: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write(case, work, models[FAMILIES[case.task]])
    said = []
    for verb in (*case.verbs, case.verbs[-1]):
        with pytest.raises(SystemExit) as ending:
            app.main([verb, "recipe.yaml", *(["--output", "run"] if verb == "train" else [])])
        captured = capsys.readouterr()
        check(case, ending.value.code, captured.out, captured.err)
        said.append(captured.err)
    assert said == said[:1] * 3
    assert not (work / "run").exists()


@pytest.mark.parametrize("names", [[], ["kept"]])
def test_what_was_in_the_folder_stays_there(
    names: list[str], work: Path, models: Mapping[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Even where only encoding finds the defect, after the folder was opened, and an older one moved aside."""
    case = next(case for case in CASES if case.name == "image-cut")
    write(case, work, models[FAMILIES[case.task]])
    (work / "run").mkdir()
    for name in names:
        (work / "run" / name).write_text("x")
    with pytest.raises(SystemExit) as ending:
        app.main(["train", "recipe.yaml", "--output", "run", "--overwrite"])
    captured = capsys.readouterr()
    check(case, ending.value.code, captured.out, captured.err)
    assert [path.name for path in work.glob("run*")] == ["run"]
    assert {path.name for path in (work / "run").iterdir()} - {".lock"} == set(names)


IN_A_PROCESS = {"utf-16-without-a-mark": 0, "parquet-cut": 0, "start-off-by-one": 0, "image-cut": 1}
"""Cases that are run as a user starts them, and which of their verbs."""


@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_the_same_in_a_process_of_its_own(name: str, work: Path, models: Mapping[str, Path]) -> None:
    case = next(case for case in CASES if case.name == name)
    write(case, work, models[FAMILIES[case.task]])
    environment = {**os.environ, "FTKIT_CACHE": str(work / "cache"), "CI": "1"}
    command = [sys.executable, "-m", "ftkit", case.verbs[IN_A_PROCESS[name]], "recipe.yaml"]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    check(case, done.returncode, done.stdout, done.stderr)


# --- whether all is covered --------------------------------------------------------------------------------------------


def reader_of(case: Broken) -> str:
    """The reader that the first source of a case goes through."""
    first = case.source[0] if isinstance(case.source, list) else case.source
    source = first if isinstance(first, dict) else {"path": first}
    if "format" in source:
        return str(source["format"])
    path = Path(source["path"])
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix in (".json", ".txt"):
        return {(".json", QA): "squad", (".txt", LM): "document"}.get((suffix, case.task), FORMAT_OF_SUFFIX[suffix])
    saved = case.files is class_labels or any(str(name).endswith(("state.json", "dataset_dict.json")) for name in _names(case))
    return FORMAT_OF_SUFFIX.get(suffix, "arrow" if saved else "folder")


def _names(case: Broken) -> Sequence[str]:
    return [] if callable(case.files) else list(case.files)


def test_every_task_and_every_reader_has_cases() -> None:
    assert {case.task for case in CASES} == set(TASKS.names()), "a new task needs broken files: add cases to CASES"
    assert {reader_of(case) for case in CASES} >= set(READERS), "a new reader needs broken files: add cases to CASES"
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
