"""Regular expressions of recipes end, one way or the other."""

from __future__ import annotations

import time

import pytest

from ftkit.errors import RecipeError
from ftkit.patterns import check_pattern, matching

NAMES = ["encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense"]


def test_a_search_finds_a_part_and_a_full_match_needs_the_whole_name() -> None:
    assert matching("query", NAMES, whole=False, key="k") == NAMES[:1]
    assert matching("query", NAMES, whole=True, key="k") == []
    assert matching(r".*\.dense", NAMES, whole=True, key="k") == NAMES[1:]


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?P<a>x)(?P<a", "a{2,1}"])
def test_what_is_no_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="is not a regular expression"):
        check_pattern(pattern)


def test_an_expression_that_would_run_for_ever_ends_in_one_message() -> None:
    started = time.monotonic()
    with pytest.raises(RecipeError, match="did not finish") as caught:
        matching(r"(a|aa)+b", ["a" * 60 + "!"], whole=True, key="method.targets")
    assert time.monotonic() - started < 30
    assert caught.value.problems[0].key == "method.targets"
