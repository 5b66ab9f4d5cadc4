from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ftkit.tasks.parts import augmentation
from ftkit.tasks.parts.augmentation import PRESETS, Augmentation, RandAugment, augment, chosen


def pictures(count: int = 6, channels: int = 3, height: int = 12, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def changed(changes: Augmentation, pixels: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    found = augment(pixels, changes)
    assert (found.shape, found.dtype) == (pixels.shape, torch.uint8)
    return found


EACH = [
    Augmentation(crop_scale=[0.3, 0.9]),
    Augmentation(random_crop=3),
    Augmentation(horizontal_flip=0.5),
    PRESETS["light"],
]


@pytest.mark.parametrize("changes", EACH)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_is_changed_on_its_own_as_the_seed_says(changes: Augmentation, channels: int) -> None:
    pixels = pictures(1, channels).repeat(12, 1, 1, 1)
    before = pixels.clone()
    first = changed(changes, pixels)
    assert torch.equal(pixels, before)
    assert torch.equal(first, changed(changes, pixels))
    assert not torch.equal(first, changed(changes, pixels, seed=1))
    assert any(not torch.equal(image, first[0]) for image in first)


def test_no_change_and_what_the_options_stand_for() -> None:
    assert torch.equal(changed(chosen("none"), pictures()), pictures())
    assert chosen("light") == Augmentation(crop_scale=[0.8, 1.0], horizontal_flip=0.5)
    assert chosen("randaugment").randaugment == RandAugment(n=2, m=9)
    assert chosen(EACH[1]) is EACH[1]


def test_a_flip_mirrors_left_and_right_exactly() -> None:
    assert torch.equal(changed(Augmentation(horizontal_flip=1.0), pictures()), pictures().flip(-1))
    found = changed(Augmentation(horizontal_flip=0.25), pictures(1).repeat(400, 1, 1, 1))
    share = sum(torch.equal(image, pictures(1)[0].flip(-1)) for image in found) / 400
    assert 0.15 < share < 0.35


def test_a_shift_moves_all_pixels_alike_and_fills_in_black() -> None:
    pixels = torch.zeros(300, 1, 12, 16, dtype=torch.uint8)
    pixels[:, :, 6, 8] = 255
    found = changed(Augmentation(random_crop=2), pixels)
    places = {tuple(image[0].nonzero()[0].tolist()) for image in found}
    assert places == {(row, column) for row in range(4, 9) for column in range(6, 11)}
    assert int(found.sum()) == 300 * 255
    white = changed(Augmentation(random_crop=2), torch.full((50, 3, 12, 16), 255, dtype=torch.uint8))
    assert set(white.unique().tolist()) == {0, 255}


def test_a_crop_is_a_part_of_the_image_of_the_asked_size() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).repeat(200, 1, 64, 1) * 4
    found = changed(Augmentation(crop_scale=[0.25, 0.25]), ramp).float()
    assert bool((found.diff(dim=-1) >= 0).all())
    shares = (found[:, 0, 0, -1] - found[:, 0, 0, 0]) / 4 / 64
    assert 0.25**0.5 * (3 / 4) ** 0.5 - 0.05 < float(shares.min())
    assert float(shares.max()) < 0.25**0.5 * (4 / 3) ** 0.5 + 0.05
    assert float(found[:, 0, 0, 0].min()) < 20
    assert float(found[:, 0, 0, -1].max()) > 230
    tiny = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    assert changed(Augmentation(crop_scale=[0.01, 1.0]), tiny).shape == tiny.shape


@pytest.mark.parametrize(
    "options",
    [
        {"crop_scale": [0.5]},
        {"crop_scale": [0.0, 1.0]},
        {"crop_scale": [0.5, 1.5]},
        {"horizontal_flip": 1.5},
        {"random_crop": -1},
        {"randaugment": {"m": 30}},
        {"randaugment": {"n": 0}},
        {"mixup": 0.2},
    ],
)
def test_values_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Augmentation(**options)


def test_a_crop_from_large_to_small_is_refused() -> None:
    assert "write the smaller share first" in Augmentation(crop_scale=[0.9, 0.5]).problems()[0]
    assert Augmentation(crop_scale=[0.5, 0.5]).problems() == []


# --- RandAugment: what is handed to kornia and back ------------------------------------------------------------------


def test_without_kornia_randaugment_is_refused_and_the_rest_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    assert PRESETS["randaugment"].problems() == ["augment: randaugment needs the package kornia: pip install 'ftkit[vision]'"]
    assert PRESETS["light"].problems() == []


class Brighter:
    """Takes the place of kornia's RandAugment: adds a random amount, beyond the range at times."""

    made: list[tuple[int, int]] = []

    def __init__(self, n: int, m: int) -> None:
        self.made.append((n, m))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        assert (image.shape[:2], image.dtype) == ((1, 3), torch.float32)
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
        return image + torch.rand(())


@pytest.fixture
def kornia(monkeypatch: pytest.MonkeyPatch) -> type[Brighter]:
    for name in ("kornia", "kornia.augmentation", "kornia.augmentation.auto"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["kornia.augmentation.auto"].RandAugment = Brighter  # type: ignore[attr-defined]
    monkeypatch.setattr(Brighter, "made", [])
    augmentation._kornia_randaugment.cache_clear()
    yield Brighter
    augmentation._kornia_randaugment.cache_clear()


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_gets_each_image_in_color_and_gives_whole_numbers(kornia: type[Brighter], channels: int) -> None:
    changes = Augmentation(randaugment=RandAugment(n=3, m=5))
    assert changes.problems() == []
    pixels = pictures(4, channels)
    found = changed(changes, pixels)
    assert kornia.made == [(3, 5)]
    torch.manual_seed(0)
    expected = torch.stack([(image / 255 + torch.rand(())).clamp(max=1) * 255 for image in pixels]).round().to(torch.uint8)
    assert (found.int() - expected.int()).abs().max() <= 1
