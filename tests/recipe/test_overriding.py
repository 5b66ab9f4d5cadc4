from __future__ import annotations

import pytest

from ftkit.errors import RecipeError
from ftkit.recipe.overriding import apply_overrides, resolve_references
from ftkit.recipe.reading import read_text


def overridden(text: str, *overrides: str) -> object:
    document = read_text(text, "r")
    apply_overrides(document, overrides)
    resolve_references(document)
    return document.value


def test_values_are_yaml_scalars_lists_and_mappings() -> None:
    value = overridden("a: {b: 1}", "a.b=1e-3", "a.c=[1, x]", "d={e: null}", "f=yes", 'g="1"', "h=a=b")
    assert value == {"a": {"b": 1e-3, "c": [1, "x"]}, "d": {"e": None}, "f": "yes", "g": "1", "h": "a=b"}


def test_shorthand_grows_into_a_mapping() -> None:
    assert overridden("method: lora", "method.rank=4") == {"method": {"name": "lora", "rank": 4}}
    assert overridden("data: {train: a.csv}", "data.train.weight=2.0") == {"data": {"train": {"path": "a.csv", "weight": 2.0}}}


def test_list_items_by_number() -> None:
    assert overridden("data: {train: [a.csv, b.csv]}", "data.train.1.path=c.csv") == {
        "data": {"train": ["a.csv", {"path": "c.csv"}]}
    }
    assert overridden("export: [adapter]", "export[0]=merged") == {"export": ["merged"]}


def test_missing_mappings_are_made_and_keys_removed() -> None:
    assert overridden("a: 1", "train.early_stopping.patience=2", "~a") == {"train": {"early_stopping": {"patience": 2}}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train", "not an override"),
        ("=3", "not an override"),
        ("~a=3", "not an override"),
        ("~nothing", "there is no such key to remove"),
        ("a.b.c=1", "is a single value and holds no keys"),
        ("list.7=1", "the list has 2 items"),
        ("a b=1", "not an override"),
        ("x={a: ", "not valid YAML"),
    ],
)
def test_malformed_overrides(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        overridden("a: {b: 1}\nlist: [1, 2]", override)
    assert "command line" in str(caught.value)


def test_all_malformed_overrides_are_reported() -> None:
    with pytest.raises(RecipeError) as caught:
        overridden("a: 1", "train", "~b")
    assert len(caught.value.problems) == 2


def test_references_keep_types_and_fill_text() -> None:
    value = overridden("seed: 3\ndata: {split: {seed: '${seed}'}}\noutput: runs/s${seed}-$${x}")
    assert value == {"seed": 3, "data": {"split": {"seed": 3}}, "output": "runs/s3-${x}"}


def test_reference_sees_overrides() -> None:
    assert overridden("seed: 3\nb: '${seed}'", "seed=5") == {"seed": 5, "b": 5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: ${b}", r"r:1:1: a: \$\{b\} refers to no key"),
        ("a: ${a}", "refers to itself"),
        ("a: ${b}\nb: ${a}", "refers to itself"),
        ("a: x${b}\nb: {c: 1}", "is a mapping and cannot stand inside text"),
        ("a: ${}", "refers to no key"),
    ],
)
def test_bad_references(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        overridden(text)
