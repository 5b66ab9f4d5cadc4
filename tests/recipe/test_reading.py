from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.errors import RecipeError
from ftkit.recipe.reading import MAX_BYTES, dotted, read_file, read_text, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("3.", 3.0),
        ("0x1f", 31),
        ("0o17", 15),
        ("017", 17),
        ("-3", -3),
        ("yes", "yes"),
        ("on", "on"),
        ("No", "No"),
        ("true", True),
        ("~", None),
        ("", None),
        ("2026-01-02", "2026-01-02"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("9" * 5000, "9" * 5000),
        ("0x" + "f" * 5000, "0x" + "f" * 5000),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_quoted_scalars_stay_text() -> None:
    assert read_text("a: '1'\nb: \"true\"\n", "r").value == {"a": "1", "b": "true"}


def test_places_of_keys_and_items() -> None:
    document = read_text("a:\n  b: [1, 2]\nc: x\n", "r.yaml")
    assert document.place(("a", "b")) == "r.yaml:2:3"
    assert document.place(("a", "b", 1)) == "r.yaml:2:10"
    assert document.place(("a", "unknown")) == "r.yaml:1:1"


def test_duplicate_keys_are_refused_with_both_places() -> None:
    with pytest.raises(RecipeError, match=r"r:3:3: a\.b: the key 'b' stands twice\. The first is at r:2:3"):
        read_text("a:\n  b: 1\n  b: 2\n", "r")


@pytest.mark.parametrize(
    "text",
    ["a: !!python/object:os.system x", "a: !!python/name:os.system ''", "a: !Tag x", "a: !!binary aGk=", "!!set {a, b}"],
)
def test_tags_are_refused_with_their_place(text: str) -> None:
    with pytest.raises(RecipeError, match=r"r:1:\d+: .*tag .* is not allowed|r:1:\d+: .*not valid YAML"):
        read_text(text, "r")


def test_alias_bomb_is_refused_quickly() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [" + ", ".join([f"*{chr(97 + i)}"] * 9) + "]\n" for i in range(9)
    )
    with pytest.raises(RecipeError, match="more than 20,000 values"):
        read_text(bomb, "r")


def test_self_reference_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"more than 32 levels|20,000 values"):
        read_text("a: &a [*a]", "r")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"levels|nested too deeply"):
        read_text("[" * 5000 + "]" * 5000, "r")


def test_syntax_error_names_line_and_column() -> None:
    with pytest.raises(RecipeError, match=r"r:2:4: not valid YAML"):
        read_text("a: 1\nb: : 2\n", "r")


def test_several_documents_are_refused() -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        read_text("a: 1\n---\nb: 2\n", "r")


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"missing.yaml: cannot be read .*ftkit recipes list"):
        read_file(tmp_path / "missing.yaml")
    with pytest.raises(RecipeError, match="is a folder"):
        read_file(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"latin.yaml:2: byte 0xe9 is not UTF-8"):
        read_file(latin)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="larger than"):
        read_file(large)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(RecipeError):
        read_text(text, "r")


def test_dotted() -> None:
    assert dotted(("data", "train", 0, "path")) == "data.train[0].path"
