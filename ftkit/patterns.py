"""Regular expressions that come out of recipes: they compile, and they end.

Written for the `regex` library, which knows all that `re` does and can stop a search that would take for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

from ftkit.errors import Problem, RecipeError

SECONDS_PER_NAME = 1.0


def check_pattern(pattern: str) -> str:
    """The pattern itself. Raises ValueError if it is no regular expression."""
    import regex

    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


def matching(pattern: str, names: Iterable[str], *, whole: bool, key: str) -> list[str]:
    """The names that the pattern matches: from end to end if `whole`, else anywhere.

    Raises RecipeError, which names the recipe's `key`, if one name keeps the pattern busy for longer than a second.
    """
    import regex

    compiled = regex.compile(pattern)
    match = compiled.fullmatch if whole else compiled.search
    found = []
    for name in names:
        try:
            if match(name, timeout=SECONDS_PER_NAME):
                found.append(name)
        except (TimeoutError, MemoryError):
            message = f"the regular expression {pattern!r} did not finish on {name!r} within {SECONDS_PER_NAME:g} s"
            hint = "Leave out repetitions inside repetitions, such as `(a+)+`"
            raise RecipeError(Problem(message=message, key=key, hint=hint)) from None
    return found


def last_group(pattern: str, text: str, *, key: str) -> str | None:
    """What the pattern's one group matched in the last of its matches in a text, None if there is none.

    Raises RecipeError, which names the recipe's `key`, if the text keeps the pattern busy for longer than a second.
    """
    import regex

    found: str | None = None
    try:
        for match in regex.compile(pattern).finditer(text, timeout=SECONDS_PER_NAME):
            found = match[1] if match[1] is not None else found
    except TimeoutError:
        message = (
            f"the regular expression {pattern!r} did not finish on a text of {len(text)} characters within {SECONDS_PER_NAME:g} s"
        )
        hint = "Leave out repetitions inside repetitions, such as `(a+)+`"
        raise RecipeError(Problem(message=message, key=key, hint=hint)) from None
    return found
