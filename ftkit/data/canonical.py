"""Values as bytes to hash: equal values give equal bytes."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical(value: Any) -> bytes:
    """The value as JSON with sorted keys, for hashing. Equal values give equal bytes."""
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def without_bytes(value: Any) -> Any:
    """The value with digests in place of bytes; `canonical` gives the same for both."""
    if isinstance(value, dict):
        return {name: without_bytes(inner) for name, inner in value.items()}
    return _plain(value) if isinstance(value, bytes) else value


def _plain(value: Any) -> Any:
    return {"sha256": hashlib.sha256(value).hexdigest()} if isinstance(value, bytes) else repr(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=_plain)
