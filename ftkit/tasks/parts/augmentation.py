"""Random changes of training images. Every draw is from torch's global generator, which the training loop seeds for each step."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ftkit.recipe.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor

Share = Annotated[float, Field(gt=0, le=1)]

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Width over height of a crop, relative to the image (Szegedy et al. 2015, section 6)."""


class RandAugment(Strict):
    """Cubuk et al. 2020 (arXiv 1909.13719): `n` operations drawn for each image, all of strength `m`."""

    n: int = Field(2, ge=1, le=15, description="Operations for each image.")
    m: int = Field(9, ge=1, le=29, description="Strength, 1 to 29.")


class Augmentation(Strict):
    """Which random changes each training image goes through, in this order."""

    crop_scale: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Cut out a part with a share of the area between these two, `[0.8, 1.0]`, and resize it."
    )
    random_crop: int = Field(
        0, ge=0, le=1024, description="Add so many black pixels on each side and cut out the old size: a shift."
    )
    horizontal_flip: float = Field(0.0, ge=0, le=1, description="Probability of a mirror image.")
    randaugment: RandAugment | None = Field(None, description="RandAugment with its `n` and `m`. Needs the extra `vision`.")

    def problems(self) -> list[str]:
        """Values that contradict each other, and a library that is not installed."""
        found = []
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            found.append(f"augment: crop_scale {self.crop_scale} goes from large to small; write the smaller share first")
        if self.randaugment is not None and find_spec("kornia") is None:
            found.append("augment: randaugment needs the package kornia: pip install 'ftkit[vision]'")
        return found


PRESETS = {
    "none": Augmentation(),
    "light": Augmentation(crop_scale=[0.8, 1.0], horizontal_flip=0.5),
    "randaugment": Augmentation(crop_scale=[0.8, 1.0], horizontal_flip=0.5, randaugment=RandAugment()),
}


def chosen(option: Literal["none", "light", "randaugment"] | Augmentation) -> Augmentation:
    """The changes that a preset, or the mapping itself, stands for."""
    return PRESETS[option] if isinstance(option, str) else option


def augment(pixels: Tensor, changes: Augmentation) -> Tensor:
    """Each image changed on its own: uint8 (B, C, H, W) to the same type and shape."""
    import torch

    return torch.stack([_augment_one(image, changes) for image in pixels])


def _augment_one(image: Tensor, changes: Augmentation) -> Tensor:
    import torch

    if changes.crop_scale is not None:
        image = _resized_crop(image, *changes.crop_scale)
    if changes.random_crop:
        image = _shift(image, changes.random_crop)
    if changes.horizontal_flip and float(torch.rand(())) < changes.horizontal_flip:
        image = image.flip(-1)
    return image if changes.randaugment is None else _randaugment(image, changes.randaugment)


def _resized_crop(image: Tensor, smallest: float, largest: float) -> Tensor:
    """A random part, resized to the whole. image: uint8 (C, H, W)."""
    import torch
    from torch.nn import functional

    _, height, width = image.shape
    share = smallest + (largest - smallest) * float(torch.rand(()))
    low, high = map(math.log, ASPECT_RATIOS)
    ratio = math.exp(low + (high - low) * float(torch.rand(())))
    rows = min(height, max(1, round(height * math.sqrt(share / ratio))))
    columns = min(width, max(1, round(width * math.sqrt(share * ratio))))
    top, left = _whole(height - rows + 1), _whole(width - columns + 1)
    part = image[None, :, top : top + rows, left : left + columns].float()
    resized = functional.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def _shift(image: Tensor, padding: int) -> Tensor:
    """He et al. 2016, section 4.2. image: uint8 (C, H, W)."""
    from torch.nn import functional

    _, height, width = image.shape
    top, left = _whole(2 * padding + 1), _whole(2 * padding + 1)
    return functional.pad(image, (padding,) * 4)[:, top : top + height, left : left + width]


def _randaugment(image: Tensor, options: RandAugment) -> Tensor:
    """image: uint8 (C, H, W). Some operations need three channels; a grey image gets three that are alike."""
    import torch

    colored = image.expand(3, -1, -1) if image.shape[0] == 1 else image
    changed = _kornia_randaugment(options.n, options.m)(colored[None].float() / 255)[0]
    return (changed[: image.shape[0]] * 255).round().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=8)
def _kornia_randaugment(n: int, m: int) -> Any:
    from kornia.augmentation.auto import RandAugment as KorniaRandAugment

    return KorniaRandAugment(n=n, m=m)


def _whole(count: int) -> int:
    """A number from 0 to count - 1."""
    import torch

    return int(torch.randint(count, ()))
