from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    EfficientNetImageProcessorPil,
    MobileViTImageProcessorPil,
    ViTImageProcessorPil,
)

from ftkit.errors import ModelError
from ftkit.tasks.base import RowError
from ftkit.tasks.parts.images import ImagePreparation, check_image, decode_image, image_facts
from tests.tasks.parts.pictures import encoded, noise

PNG = encoded(noise((64, 64)))


def decoded(content: Any, channels: Any = 3) -> np.ndarray:
    return np.asarray(decode_image({"image": content}, "image", channels))


def png_header(width: int, height: int) -> bytes:
    """A grey PNG that claims a size and has no pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# --- checking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [PNG, {"bytes": PNG, "path": "a.png"}, {"bytes": PNG, "path": None}])
def test_ways_to_hold_an_image(value: Any) -> None:
    check_image({"image": value}, "image")
    assert image_facts({"image": value}, "image") == {"width": 64, "height": 64, "mode": "RGB"}
    assert decoded(value).tolist() == np.asarray(noise((64, 64))).tolist()


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_formats(kind: str) -> None:
    content = encoded(noise(mode="P" if kind == "GIF" else "RGB"), kind)
    check_image({"image": content}, "image")
    assert decoded(content).shape == (16, 20, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the image is missing"),
        ({"bytes": None, "path": "a.png"}, "the image is missing"),
        (b"", "the image file is empty"),
        (17, "the image is 17, which is not the content of a file"),
        ("a.png", "the image is 'a.png', which is not the content of a file"),
        (b"%PDF-1.7 and so on", "the image is no image: it begins with b'%PDF-1.7 and so '"),
        ({"bytes": b"hello", "path": "x/a.png"}, "the image 'x/a.png' is no image: it begins with b'hello'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image"),
        (
            png_header(0, 5),
            "the image (has 0 x 5 pixels|begins like PNG, but its header is damaged or says 0 pixels|cannot be decoded)",
        ),
        (png_header(30_000, 30_000), "is too large: more than 89,478,485 pixels, Pillow's limit"),
        (png_header(10_000, 10_000), "is too large: more than 89,478,485 pixels, Pillow's limit"),
    ],
)
def test_what_is_no_image(value: Any, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        check_image({"image": value}, "image")
    assert caught.value.column == "image"
    assert caught.value.hint


@pytest.mark.parametrize("content", [PNG[: len(PNG) // 2], encoded(noise((64, 64)), "JPEG")[:800], png_header(20, 20)])
def test_images_that_end_too_early_pass_the_check_and_fail_to_decode(content: bytes) -> None:
    row = {"image": {"bytes": content, "path": "cut"}}
    check_image(row, "image")
    with pytest.raises(RowError, match="the image 'cut' cannot be decoded: "):
        decode_image(row, "image", 3)


def test_damage_anywhere_ends_in_a_row_error() -> None:
    generator = np.random.default_rng(1)
    for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"):
        content = encoded(noise(mode="P" if kind == "GIF" else "RGB"), kind)
        for _ in range(60):
            damaged = bytearray(content)
            for place in generator.integers(0, len(damaged), 4):
                damaged[place] = generator.integers(0, 256)
            try:
                assert decoded(bytes(damaged)).shape[2] == 3
            except RowError:
                pass


# --- modes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes(mode: str, channels: int) -> None:
    if mode == "I;16":
        picture = PIL.Image.fromarray(np.arange(320, dtype=np.uint16).reshape(16, 20))
    else:
        picture = noise(mode=mode)
    content = encoded(picture, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    assert decoded(content, channels).shape == ((16, 20) if channels == 1 else (16, 20, 3))


def test_transparency_shows_white() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = [200, 0, 0, 255]
    pixels[1, 1] = [0, 0, 0, 128]
    found = decoded(encoded(PIL.Image.fromarray(pixels, "RGBA")))
    assert found.tolist() == [[[200, 0, 0], [255, 255, 255]], [[255, 255, 255], [127, 127, 127]]]
    palette = noise(mode="P")
    first = palette.getpixel((0, 0))
    assert decoded(encoded(palette, transparency=first))[0, 0].tolist() == [255, 255, 255]


def test_16_bit_grey_keeps_its_range() -> None:
    values = np.array([[0, 256, 257], [32896, 65279, 65535]], np.uint16)
    assert decoded(encoded(PIL.Image.fromarray(values)), 1).tolist() == [[0, 0, 1], [128, 254, 255]]


def test_numbers_without_a_known_range_are_refused() -> None:
    for picture in (PIL.Image.fromarray(np.array([[0.5, 2.0]], np.float32)), PIL.Image.fromarray(np.array([[0, 70000]], np.int32))):
        with pytest.raises(RowError, match="without a known range"):
            decode_image({"image": encoded(picture, "TIFF")}, "image", 3)


def test_pictures_are_turned_upright() -> None:
    picture = noise((20, 16))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    found = decoded(encoded(picture, exif=exif))
    assert found.tolist() == np.asarray(picture.rotate(-90, expand=True)).tolist()


def test_the_first_picture_of_an_animation() -> None:
    first, second = noise(mode="L", seed=1), noise(mode="L", seed=2)
    content = encoded(first, "GIF", save_all=True, append_images=[second])
    assert decoded(content, 1).tolist() == np.asarray(first).tolist()


# --- what the model gets -------------------------------------------------------------------------------------------

SQUARE = {"height": 24, "width": 24}
PROCESSORS = [
    (ViTImageProcessorPil(size=SQUARE), 3),
    (ViTImageProcessorPil(size=SQUARE, image_mean=[0.3], image_std=[0.7]), 1),
    (ViTImageProcessorPil(size=SQUARE, do_normalize=False), 1),
    (ViTImageProcessorPil(size=SQUARE, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3), 3),
    (BitImageProcessorPil(size={"shortest_edge": 30}, crop_size=SQUARE), 3),
    (ConvNextImageProcessorPil(size={"shortest_edge": 24}), 3),
    (MobileViTImageProcessorPil(size={"shortest_edge": 30}, crop_size=SQUARE, do_flip_channel_order=True), 3),
]


@pytest.mark.parametrize(("processor", "channels"), PROCESSORS)
@pytest.mark.parametrize("size", [(20, 16), (24, 24), (50, 90)])
def test_the_model_gets_exactly_what_its_processor_makes(processor: Any, channels: Any, size: tuple[int, int]) -> None:
    preparation = ImagePreparation(processor, channels)
    picture = decode_image({"image": encoded(noise(size))}, "image", channels)
    kept = preparation.resize(picture)
    assert (kept.dtype, kept.shape) == (np.uint8, (channels, 24, 24))
    assert preparation.shape == kept.shape
    expected = processor(images=picture, return_tensors="pt")["pixel_values"]
    found = preparation.normalize(torch.from_numpy(kept)[None])
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


class Mirror(ViTImageProcessorPil):
    """Turns left and right whenever it is called."""

    def _preprocess(self, images: Sequence[np.ndarray], *args: Any, **options: Any) -> Any:
        return super()._preprocess([np.ascontiguousarray(image[:, :, ::-1]) for image in images], *args, **options)


class Contrast(ViTImageProcessorPil):
    """Looks at all pixels when it normalizes."""

    def normalize(self, image: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
        return (image - image.mean()) / image.std()


@pytest.mark.parametrize(
    ("processor", "channels", "message"),
    [
        (Contrast(size=SQUARE), 3, "does more than resize, crop, rescale and normalize"),
        (Mirror(size=SQUARE), 3, "does more than resize, crop, rescale and normalize"),
        (EfficientNetImageProcessorPil(size=SQUARE), 3, "does not give whole numbers before it rescales them"),
        (BitImageProcessorPil(size={"shortest_edge": 24}, do_center_crop=False), 3, r"different sizes \(24 x 33 and 33 x 24\)"),
        (ViTImageProcessorPil(size=SQUARE), 1, "fails on an image of 1 channels: mean must have 1 elements"),
        (BitImageProcessorPil(crop_size=SQUARE), 1, "makes 3 channels of an image of 1"),
    ],
)
def test_processors_that_cannot_be_used_are_named(processor: Any, channels: int, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        ImagePreparation(processor, channels)
    assert type(processor).__name__ in str(caught.value)
    assert "preprocessor_config.json" in str(caught.value)
