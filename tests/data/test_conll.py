from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from ftkit.data.readers import conll

from .files import failure, read

TABBED = "Anna\tB-PER\nlives\tO\n\nHi\tO\n"
WIDE = "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\nPeter NNP I-NP B-PER\n"


@pytest.mark.parametrize("name", ["x.conll", "x.iob", "x.iob2", "x.bio", "x.conll.gz"])
def test_sentences_and_their_lines(folder: Path, name: str) -> None:
    (folder / name).write_bytes(gzip.compress(TABBED.encode()) if name.endswith("gz") else TABBED.encode())
    table = read(name, columns={"tokens", "tags"})
    assert list(table) == [{"tokens": ["Anna", "lives"], "tags": ["B-PER", "O"]}, {"tokens": ["Hi"], "tags": ["O"]}]
    assert [table.place(index) for index in range(2)] == [f"{name}, line 1", f"{name}, line 4"]


def test_every_column_has_a_number(folder: Path) -> None:
    (folder / "x.txt").write_text(WIDE)
    table = read("x.txt", format="conll")
    assert table.column_names == ["tokens", "tags", "column_1", "column_2", "column_3", "column_4"]
    first = {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"], "column_1": ["EU", "rejects"], "column_2": ["NNP", "VBZ"]}
    assert table[0] == {**first, "column_3": ["I-NP", "I-VP"], "column_4": ["B-ORG", "O"]}
    assert table.place(1) == "x.txt, line 6"
    assert read("x.txt", {"column_2"}, format="conll").column_names == ["column_2"]


def test_words_alone(folder: Path) -> None:
    (folder / "x.conll").write_text("Anna\nlives\n\n\n\nHi\n#\n")
    table = read("x.conll")
    assert [row["tokens"] for row in table] == [["Anna", "lives"], ["Hi", "#"]]
    assert "tags" not in table.column_names


def test_comments_and_words_that_look_like_them(folder: Path) -> None:
    (folder / "x.conll").write_text(
        "# text = Anna lives\nAnna\tB-PER\n#\tO\n#photo\tO\n\n# sent_id\n#\nHi\tO\n# not a\tword\n\n#\tO\n", encoding="utf-8"
    )
    assert [row["tokens"] for row in read("x.conll")] == [["Anna", "#", "#photo"], ["Hi", "# not a"], ["#"]]
    (folder / "blanks.conll").write_text("# id 1\nAnna B-PER\n# O\n\n# O\n\n# intro\nHi O\n")
    assert [row["tokens"] for row in read("blanks.conll")] == [["Anna", "#"], ["#"], ["Hi"]]


def test_line_ends_and_odd_characters(folder: Path) -> None:
    (folder / "x.conll").write_bytes("Anna  B-PER \r\n\u00a0 O\r\n   \r\na\u2028b O\r\n".encode())
    assert [row["tokens"] for row in read("x.conll")] == [["Anna", "\u00a0"], ["a\u2028b"]]
    (folder / "tabs.conll").write_text("New York\tB-LOC\nis\tO\n", encoding="utf-8")
    assert read("tabs.conll")[0]["tokens"] == ["New York", "is"]


def test_a_delimiter_of_its_own(folder: Path) -> None:
    (folder / "x.conll").write_text("Anna;B-PER\nlives;O\n")
    assert read("x.conll", delimiter=";")[0]["tags"] == ["B-PER", "O"]


def test_broken_lines_are_all_named(folder: Path) -> None:
    (folder / "x.conll").write_text("Anna\tB-PER\nlives\n\tO\nin\t\nLima\tNNP\tB-LOC\n")
    message = failure("x.conll")
    assert "x.conll, line 2: 1 columns ('lives'), but line 1 has 2" in message
    assert "x.conll, line 3: the first column is empty" in message
    assert "x.conll, line 4: the last column is empty ('in ')" in message
    (folder / "y.conll").write_text("Anna\tB-PER\nLima\tNNP\tB-LOC\n")
    assert "y.conll, line 2: 3 columns ('Lima NNP B-LOC'), but line 1 has 2" in failure("y.conll")


def test_nothing_in_it(folder: Path) -> None:
    (folder / "x.conll").write_text("\n# only this\n\n")
    assert "x.conll: holds no rows" in failure("x.conll")


def test_long_files_are_read_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conll, "CHUNK_ROWS", 7)
    (folder / "x.conll").write_text("".join(f"w{number} O\nend O\n\n" for number in range(50)))
    table = read("x.conll")
    assert [row["tokens"][0] for row in table] == [f"w{number}" for number in range(50)]
    assert table.place(49) == "x.conll, line 148"
