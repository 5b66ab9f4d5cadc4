"""Secrets kept out of what ftkit writes and says: credentials in URLs, tokens of known forms, secrets of the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

HIDDEN = "***"

_USER_INFO = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{1,30}:/{1,2})[^\s/?#\"'<>]{1,500}@(?=[^\s/?#@])")
_PARAMETER = re.compile(
    r"(?P<name>[?&;](?:[A-Za-z0-9_.-]{0,40}[_.-])?"
    r"(?:token|key|apikey|secret|password|passwd|pwd|auth|credential|credentials|signature|sig)=)[^\s&;#\"'<>]+",
    re.IGNORECASE,
)
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{1,30}:/{1,2}[^\s\"'<>]+")
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{24,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{18,}"
    r"|pypi-[A-Za-z0-9_-]{40,}|xox[abprs]-[A-Za-z0-9-]{20,}|sk-[A-Za-z0-9_-]{32,})(?![A-Za-z0-9])"
)
"""Forms that nothing but a token has: Hugging Face, AWS, GitHub, GitLab, PyPI, Slack, OpenAI and Anthropic."""

_SECRET_NAMES = re.compile(r"(?:^|_)(?:TOKEN|API_?KEY|ACCESS_KEY|KEY|SECRET|PASSWORD|PASSWD|PAT|CREDENTIALS?)$", re.IGNORECASE)
SHORTEST = 12
"""Characters of a variable's value that is taken for a secret. Shorter ones, and plain words, stand in too many texts."""


def redacted(text: str) -> str:
    """The text with `***` in place of every secret in it: credentials in URLs, tokens, values of this process's environment."""
    found = without_credentials(text)
    if len(found) < SHORTEST:
        return found
    for value in _values(os.environ):
        found = found.replace(value, HIDDEN)
    return found


def without_credentials(text: str) -> str:
    """The text with `***` in place of user and password of URLs, of parameters of URLs that are secrets, and of tokens of known forms."""
    if ":/" in text:  # pathlib makes one slash of two
        text = _USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text)
        text = _URL.sub(lambda match: _PARAMETER.sub(rf"\g<name>{HIDDEN}", match[0]), text)
    return _TOKENS.sub(HIDDEN, text)


def _values(environment: Mapping[str, str]) -> Iterator[str]:
    """Values of variables that are secrets by their name and look like one, the longest first."""
    named = {value.strip() for name, value in environment.items() if _SECRET_NAMES.search(name)}
    yield from sorted(filter(_looks_secret, named), key=len, reverse=True)


def _looks_secret(value: str) -> bool:
    """Random characters; not a path, a number, or words."""
    digits = any(character.isdecimal() for character in value)
    cases = value != value.lower() and value != value.upper()
    words = any(character.isspace() for character in value) or not (digits or cases) or value.isdecimal()
    return len(value) >= SHORTEST and not words and not os.path.exists(value)
