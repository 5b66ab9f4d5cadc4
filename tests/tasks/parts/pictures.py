"""Pictures made in memory, as rows hold them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image


def noise(size: tuple[int, int] = (20, 16), mode: str = "RGB", seed: int = 0) -> PIL.Image.Image:
    """A picture of random pixels. size: width, height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def encoded(picture: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The content of its file."""
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()
