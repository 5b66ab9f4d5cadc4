#!/usr/bin/env python3
"""Draws the images of recipes/image-classification/data/shapes.parquet: three shapes, 28 x 28 grey PNGs.

    scripts/make_shapes.py FILE

Each shape has a somewhat random place, size, turn, brightness and line width; some are filled. The same versions of Pillow and
Parquet write the same file.
"""

from __future__ import annotations

import io
import math
import random
import sys
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SIZE, SCALE, EACH, SEED = 28, 4, 250, 20


def polygon(corners: int) -> list[float]:
    """Angles of the corners of a regular polygon that stands on a side."""
    return [2 * math.pi * (index + 0.5) / corners + math.pi / 2 for index in range(corners)]


OUTLINES = {"circle": polygon(48), "square": polygon(4), "triangle": polygon(3)}


def draw(angles: list[float], generator: random.Random) -> bytes:
    """One PNG. Drawn four times as large and shrunk, for smooth edges."""
    radius = generator.uniform(8, 12)
    center = [SIZE / 2 + generator.uniform(-2, 2) for _ in range(2)]
    turn = generator.uniform(-0.3, 0.3)
    corners = [
        (SCALE * (center[0] + radius * math.cos(angle + turn)), SCALE * (center[1] + radius * math.sin(angle + turn)))
        for angle in angles
    ]
    image = Image.new("L", (SIZE * SCALE, SIZE * SCALE))
    shade = generator.randint(120, 255)
    canvas = ImageDraw.Draw(image)
    if generator.random() < 0.5:
        canvas.polygon(corners, fill=shade)
    else:
        canvas.line([*corners, *corners[:2]], fill=shade, width=SCALE * generator.choice([1, 2]), joint="curve")
    content = io.BytesIO()
    image.resize((SIZE, SIZE), Image.Resampling.BOX).quantize(16).save(content, "PNG", optimize=True)
    return content.getvalue()


def rows(generator: random.Random) -> Iterator[dict[str, object]]:
    for number in range(EACH):
        for name, angles in OUTLINES.items():
            yield {"image": {"bytes": draw(angles, generator), "path": f"{name}-{number:03}.png"}, "label": name}


if __name__ == "__main__":
    content = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist(list(rows(random.Random(SEED))), schema=pa.schema([("image", content), ("label", pa.string())]))
    pq.write_table(table, sys.argv[1], compression="zstd")
