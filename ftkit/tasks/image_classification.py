"""Image classification: one label, any number of labels, or a number for an image.

{"image": "photos/cat.jpg", "label": "cat"}                         a path, from the data file or the working folder
{"image": {"bytes": ..., "path": "cat.jpg"}, "label": "cat"}        as Parquet files of `datasets` and class folders give it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ftkit.errors import ModelError, Problem
from ftkit.methods.base import Default
from ftkit.recipe.schema import Auto, Strict
from ftkit.tasks.base import Batch, Column, Features, Head, Prediction, Row
from ftkit.tasks.parts.augmentation import Augmentation, augment, chosen
from ftkit.tasks.parts.images import ImagePreparation, check_image, decode_image, image_facts
from ftkit.tasks.parts.label_results import LabelOptions, LabelTask
from ftkit.tasks.parts.profiles import CERTAIN, Profile, Recognized, guess_columns, named_columns
from ftkit.tasks.parts.texts import spread

if TYPE_CHECKING:
    from torch import nn

    from ftkit.models.facts import ModelFacts


class Options(LabelOptions):
    """Options of image classification."""

    channels: Literal[1, 3] | Auto = Field(
        "auto", description="1: images in grey; 3: in color. auto: what the model takes (`num_channels` of its config), else 3."
    )
    augment: Literal["none", "light", "randaugment"] | Augmentation = Field(
        "none",
        description="Random changes of training images. light: crops of 80 to 100 % of the area and mirror images; "
        "randaugment: these, then RandAugment (n 2, m 9; extra `vision`).",
    )


class ImageClassification(LabelTask):
    """Image classification and regression.

    Images are turned upright (EXIF), put on white where transparent, made grey or RGB as the model takes them, and resized by the
    model's own image processor. What it gives is kept as whole numbers, so that an image is decoded once in a run; rescaling and
    normalization follow for each batch, after the augmentation. Without augmentation the model gets the processor's exact numbers.
    Labels, metrics and predictions are those of text classification. The length of an example is 1, an image.
    """

    name = "image-classification"
    summary = "A label, several labels or a number for an image."
    model_kinds = frozenset({"vision"})
    pipeline_tag = "image-classification"
    length_unit = "images"
    Options = Options

    @classmethod
    def recognize(cls, data: Mapping[str, Profile]) -> Recognized | None:
        """Images, or paths of image files."""
        images = [name for name, column in data.items() if column.kind == "image"]
        if not images:
            return None
        task = cls(cls.Options())
        named = named_columns(task.columns(), data).get("image")
        image = named if named in images else images[0]
        return Recognized(strength=CERTAIN, reason=image, columns=guess_columns(task, data, {"image": image})[0])

    def __init__(self, options: Strict) -> None:
        super().__init__(options)
        self._augmentation = chosen(self.options.augment)
        self._preparation: ImagePreparation | None = None
        self._prepared_for: Any = None
        self._input_type: Any = None

    # --- what it needs -------------------------------------------------------------------------------------------

    def columns(self) -> Mapping[str, Column]:
        """Image and label."""
        names = ("image", "img", "images", "picture", "photo", "file_name", "filename", "path")
        return {
            "image": Column(summary="The image, or the path of its file.", names=names, file=True),
            "label": self._label_column(),
        }

    def check_options(self) -> str:
        """Options that contradict each other, unknown metrics, and augmentation whose library is not installed."""
        return "; ".join(filter(None, [super().check_options(), *self._augmentation.problems()]))

    def defaults(self, facts: ModelFacts) -> Mapping[str, Default]:
        """`task.channels` and `task.metrics`."""
        stated = facts.channels in (1, 3)
        source = f"{facts.model_type} takes {facts.channels}" if stated else "images in color, where the config does not say"
        return {
            "task.channels": Default(value=facts.channels if stated else 3, source=source),
            "task.metrics": self._metric_default(),
        }

    def refusal(self, facts: ModelFacts) -> str:
        """Channels that the model does not take."""
        wanted, taken = self.options.channels, facts.channels
        if taken is None or (wanted == "auto" and taken in (1, 3)) or wanted == taken:
            return ""
        return f"the model takes images of {taken} channels, the task gives {'1 or 3' if wanted == 'auto' else wanted}"

    def check_row(self, row: Row) -> None:
        """Raises RowError for what does not begin like an image, and labels that do not fit `problem_type` or `labels`."""
        check_image(row, "image")
        self._check_label(row)

    def _describe_inputs(self, rows: Iterable[Row]) -> dict[str, Any]:
        found = [image_facts(row, "image") for row in rows]
        return {
            "rows": len(found),
            "width": spread([item["width"] for item in found]),
            "height": spread([item["height"] for item in found]),
            "modes": dict(Counter(item["mode"] for item in found).most_common()),
        }

    # --- tensors -------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """An image classification head with one output a label, or one for a number. PEFT knows no such kind of task."""
        return self._head("AutoModelForImageClassification", None)

    def _prepare(self, processor: Any) -> ImagePreparation:
        if self._preparation is None or self._prepared_for is not processor:
            if self.options.channels == "auto":
                raise ValueError("channels is still `auto`: fill it from defaults()")
            self._preparation, self._prepared_for = ImagePreparation(processor, self.options.channels), processor
        return self._preparation

    def encode(self, rows: Sequence[Row], processor: Any, *, training: bool = False) -> list[Features]:
        """`pixels`: uint8 (C, H, W), resized, not yet normalized; `width`, `height`, `mode` of the file; `label` (where the row has
        one); `length` (1, an image).

        Raises RowError for images that cannot be decoded and labels that were not learned, ModelError if the processor cannot be used.
        """
        preparation = self._prepare(processor)
        return [self._encode_row(row, preparation) for row in rows]

    def _encode_row(self, row: Row, preparation: ImagePreparation) -> Features:
        self.check_learned(row)
        pixels = preparation.resize(decode_image(row, "image", self.options.channels))
        return {"pixels": pixels, **image_facts(row, "image"), **self._label_features(row), "length": 1}

    def bind(self, model: nn.Module, processor: Any) -> None:
        """Raises ModelError if the model does not take images as its image processor makes them, tried with a black one."""
        import torch

        shape = self._prepare(processor).shape
        # Patches are cut by a convolution, the first weight of four dimensions. Not all models turn their input into its type.
        self._input_type = next((weight.dtype for weight in model.parameters() if weight.dim() == 4), torch.float32)
        low = any(weight.dtype != torch.float32 for weight in model.parameters())
        try:
            # Frozen weights in bfloat16 under a head in float32 only work together under autocast.
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
                self.forward(model, {"pixel_values": torch.zeros(1, *shape)})
        except (ValueError, RuntimeError) as error:
            size = " x ".join(map(str, shape))
            reason = str(error).strip().split("\n")[0][:200]
            message = (
                f"the model does not take images of {size} (channels, height, width), which its image processor makes: {reason}"
            )
            hint = "Set `size` in preprocessor_config.json to the `image_size` of config.json"
            raise ModelError(Problem(message=message, key="model.name", hint=hint)) from error

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The model's own outputs, for pixel values in the type of its frozen weights."""
        values = batch["pixel_values"]
        return model(pixel_values=values if self._input_type is None else values.to(self._input_type))

    def collate(self, features: Sequence[Features], processor: Any, *, training: bool = False) -> Batch:
        """`pixel_values`: float32 (B, C, H, W); `labels`, where all have one: int64 (B,), float32 (B, labels), or float32 (B,) for
        numbers; `example`: int64 (B,)."""
        import torch

        pixels = torch.stack([torch.as_tensor(item["pixels"]) for item in features])
        if training:
            pixels = augment(pixels, self._augmentation)
        return {"pixel_values": self._prepare(processor).normalize(pixels), **self._label_tensors(features)}

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """What the forward pass takes."""
        return ("pixel_values",)

    # --- results -------------------------------------------------------------------------------------------------

    def present(self, prediction: Prediction, row: Row) -> dict[str, Any]:
        """`image` (its path, where known); `label` and its `score`, or `labels`, with all `probabilities`; or `value`."""
        image = row.get("image")
        path = image.get("path") if isinstance(image, Mapping) else None
        return {**({"image": path} if path else {}), **super().present(prediction, row)}

    def inspect(self, features: Features, processor: Any) -> list[tuple[str, str]]:
        """Notes without a token: the file's image, what the model gets of it, and the label."""
        import torch

        values = self._prepare(processor).normalize(torch.as_tensor(features["pixels"])[None])[0]
        size = " x ".join(map(str, values.shape))
        notes = [
            f"image: {features['width']} x {features['height']} pixels, mode {features['mode']}",
            f"pixel_values: {size} (channels, height, width)",
            f"mean of each channel: {_listed(values.mean(dim=(1, 2)))}, deviation: {_listed(values.std(dim=(1, 2)))}",
        ]
        return [*(("", note) for note in notes), *self._shown_label(features)]


def _listed(values: Any) -> str:
    return ", ".join(f"{value:.3f}" for value in values.tolist())
