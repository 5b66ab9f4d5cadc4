"""Images: checking, decoding, and an image processor's work in two steps, so that each image is decoded and resized only once."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from ftkit.errors import ModelError, Problem
from ftkit.tasks.base import Row, RowError
from ftkit.tasks.parts.labels import shown

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image
    from torch import Tensor

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Pillow knows more, but some of that starts other programs (EPS)."""

_BEGINNINGS = {"BMP": b"BM", "GIF": b"GIF8", "JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n", "WEBP": b"RIFF"}

LEVELS = 256
WIDEST_16_BIT = 65535
TOLERANCE = 1e-6


# --- from bytes to a picture -----------------------------------------------------------------------------------------


def check_image(row: Row, column: str) -> None:
    """Raises RowError if the column does not begin like an image of a size that can be used. Pixels are not decoded."""
    with _explained(row, column):
        _open(row, column)


def image_facts(row: Row, column: str) -> dict[str, Any]:
    """`width`, `height` (pixels, as the file has them) and `mode` (Pillow's name) from the header. Raises RowError."""
    with _explained(row, column):
        image = _open(row, column)
        return {"width": image.width, "height": image.height, "mode": image.mode}


def decode_image(row: Row, column: str, channels: Literal[1, 3]) -> Image:
    """The picture upright, 8 bits a channel: grey (mode L) for 1 channel, RGB for 3.

    Turned as its EXIF orientation says; transparency on white; of an animation the first frame; 16-bit grey divided by 257.
    Raises RowError if the pixels are damaged, cut short or have no known range.
    """
    from PIL import ImageOps

    with _explained(row, column):
        image = _open(row, column)
        image.load()
        image = ImageOps.exif_transpose(image)
        return _in_channels(_in_8_bits(image, column), channels)


def _open(row: Row, column: str) -> Image:
    import PIL.Image

    data = _bytes(row.get(column), column)
    try:
        image = PIL.Image.open(BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        kind = next((kind for kind, start in _BEGINNINGS.items() if data.startswith(start)), "")
        if kind:
            message = f"{_called(row, column)} begins like {kind}, but its header is damaged or says 0 pixels: {shown(data[:24])}"
            raise RowError(column, message, "Replace it, or remove the row") from error
        message = f"{_called(row, column)} is no image: it begins with {shown(data[:16])}"
        raise RowError(column, message, f"Convert it to one of {', '.join(FORMATS)}, or remove the row") from error
    if not image.width or not image.height:
        raise RowError(column, f"{_called(row, column)} has {image.width} x {image.height} pixels", "Remove the row")
    return image


def _called(row: Row, column: str) -> str:
    """What messages call the image: with its path, where it has one."""
    value = row.get(column)
    path = value.get("path") if isinstance(value, Mapping) else None
    return f"the image {shown(path)}" if path else "the image"


def _bytes(value: Any, column: str) -> bytes:
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if content is None:
        raise RowError(column, "the image is missing", "Fill it in, or remove the row")
    if not isinstance(content, bytes):
        hint = "Give a path, the bytes of an image file, or {bytes, path}; or map another column under data.columns"
        raise RowError(column, f"the image is {shown(value)}, which is not the content of a file", hint)
    if not content:
        raise RowError(column, "the image file is empty", "Replace it, or remove the row")
    return content


@contextmanager
def _explained(row: Row, column: str) -> Iterator[None]:
    """Says as a RowError what Pillow finds wrong. Its warning of huge images counts as a refusal."""
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            yield
    except RowError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        message = f"{_called(row, column)} is too large: more than {PIL.Image.MAX_IMAGE_PIXELS or 0:,} pixels, Pillow's limit"
        raise RowError(column, message, "Make it smaller, or remove the row") from error
    # Pillow's decoders raise all of these for damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, TypeError, KeyError, MemoryError) as error:
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        message = f"{_called(row, column)} cannot be decoded: {reason}"
        raise RowError(column, message, "Replace it, or remove the row") from error


def _in_8_bits(image: Image, column: str) -> Image:
    """Grey images of 16 bits (modes I;16 and, from older Pillow, I) as mode L; others as they are. Raises RowError for floats."""
    import numpy as np
    import PIL.Image

    if image.mode not in ("F", "I") and not image.mode.startswith("I;"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > WIDEST_16_BIT:
        message = f"the image has pixels of mode {image.mode} (from {values.min():g} to {values.max():g}) without a known range"
        raise RowError(column, message, "Save it with 8 or 16 bits a channel")
    return PIL.Image.fromarray((values.astype(np.int64) // (LEVELS + 1)).astype(np.uint8))


def _in_channels(image: Image, channels: int) -> Image:
    import PIL.Image

    if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
        upper = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", upper.size, (255, 255, 255, 255)), upper)
    return image.convert("L" if channels == 1 else "RGB")


# --- from a picture to what the model takes --------------------------------------------------------------------------


class ImagePreparation:
    """What a model's image processor does, as a resize (kept between epochs) and a table of what each of the 256 levels becomes.

    Rescaling and normalization look at one number at a time, so that a table filled by the processor itself repeats them exactly.
    processor: a transformers image processor. channels: of the images it will get.
    shape: (C, H, W) of what the model gets. table: float32 (C, 256).
    Raises ModelError if the processor does something else than that, as a trial with random images tells.
    """

    def __init__(self, processor: Any, channels: int) -> None:
        import numpy as np
        import PIL.Image

        self._processor, self.channels = processor, channels
        generator, name = np.random.default_rng(0), type(processor).__name__
        noise = [generator.integers(0, LEVELS, (*size, 3), dtype=np.uint8) for size in ((40, 56), (56, 40))]
        trials = [PIL.Image.fromarray(pixels).convert("L" if channels == 1 else "RGB") for pixels in noise]
        try:
            kept = [self.resize(image) for image in trials]
            self.shape: tuple[int, ...] = kept[0].shape
            self._check_shapes(name, kept)
            self.table = self._levels()
            difference = max(self._difference(*pair) for pair in zip(trials, kept, strict=True))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise _unusable(name, f"fails on an image of {channels} channels: {str(error).strip()[:200]}") from error
        if not difference <= TOLERANCE:
            raise _unusable(name, "does more than resize, crop, rescale and normalize")

    def resize(self, image: Image) -> ndarray:
        """The picture in the size that the model takes, before its numbers are rescaled: uint8 (C, H, W)."""
        import numpy as np

        pixels = self._processor(images=image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
        return np.ascontiguousarray(pixels.numpy())

    def normalize(self, pixels: Tensor) -> Tensor:
        """What the model takes: float32 (B, C, H, W) of uint8 (B, C, H, W)."""
        import torch

        return torch.stack([levels[pixels[:, channel].long()] for channel, levels in enumerate(self.table)], dim=1)

    def _difference(self, image: Image, kept: ndarray) -> float:
        """Between the two steps and what the processor does at once."""
        import torch

        at_once = self._processor(images=image, return_tensors="pt")["pixel_values"][0]
        return float((self.normalize(torch.from_numpy(kept)[None])[0] - at_once).abs().max())

    def _levels(self) -> Tensor:
        import numpy as np

        ramp = np.arange(LEVELS, dtype=np.uint8).reshape(1, 16, 16).repeat(self.channels, axis=0)
        options = {"do_resize": False, "do_center_crop": False, "do_pad": False, "input_data_format": "channels_first"}
        found = self._processor(images=ramp, return_tensors="pt", **options)["pixel_values"][0]
        return found.float().reshape(self.channels, LEVELS)

    def _check_shapes(self, name: str, kept: list[ndarray]) -> None:
        if any(str(pixels.dtype) != "uint8" or pixels.ndim != 3 for pixels in kept):
            raise _unusable(name, "does not give whole numbers before it rescales them")
        if kept[0].shape != kept[1].shape:
            sizes = " and ".join(f"{shape[1]} x {shape[2]}" for shape in (kept[0].shape, kept[1].shape))
            raise _unusable(name, f"gives images of different sizes ({sizes}), which do not fit into one batch")
        if self.shape[0] != self.channels:
            raise _unusable(name, f"makes {self.shape[0]} channels of an image of {self.channels}")


def _unusable(name: str, reason: str) -> ModelError:
    hint = "Correct preprocessor_config.json: `size` with height and width, `image_mean` and `image_std` with a number a channel"
    return ModelError(Problem(message=f"the image processor {name} cannot be used: it {reason}", key="model.name", hint=hint))
