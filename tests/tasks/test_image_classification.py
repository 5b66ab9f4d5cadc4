from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, BitImageProcessorPil, ViTImageProcessorPil

import ftkit
from ftkit.api import inspect
from ftkit.errors import DataError, ModelError, RecipeError
from ftkit.models.facts import ModelFacts, facts_of_config
from ftkit.models.load import load_model
from ftkit.models.processor import load_processor
from ftkit.recipe.schema import ModelSpec
from ftkit.registry import TASKS
from ftkit.tasks.base import Features, Row, RowError
from ftkit.tasks.image_classification import ImageClassification, Options
from tests.tasks.parts.pictures import encoded, noise
from tests.tiny import save_tiny

NAMES = ["cat", "cow", "dog"]
ROWS = [{"image": {"bytes": encoded(noise(seed=seed)), "path": f"{seed}.png"}, "label": NAMES[seed % 3]} for seed in range(7)]
SEVERAL = [{**row, "label": label} for row, label in zip(ROWS, (["cat", "dog"], [], ["cow"]), strict=False)]
NUMBERS = [{**row, "label": label} for row, label in zip(ROWS, (1.5, "-2", 3), strict=False)]
EXAMPLES = {"single_label": ROWS, "multi_label": SEVERAL, "regression": NUMBERS}

_BLOCKS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "vit": {**_BLOCKS, "image_size": 16, "patch_size": 4},
    "dinov2": {**_BLOCKS, "image_size": 16, "patch_size": 4},
    "swin": {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
}


def processor_for(channels: int = 3) -> Any:
    return ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.4] * channels, image_std=[0.6] * channels)


def make(rows: list[Any] | None = None, **options: Any) -> ImageClassification:
    task = ImageClassification(Options(**{"channels": 3, **options}))
    for row in rows or ():
        task.check_row(row)
    if rows:
        task.learn(rows)
    return task


def numbered(features: list[Features]) -> list[Features]:
    return [{**item, "example": number} for number, item in enumerate(features)]


def model_for(family: str, task: ImageClassification, channels: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    head = task.head()
    config = AutoConfig.for_model(family, **CONFIGS[family], num_channels=channels, **head.config)
    torch.manual_seed(0)
    return getattr(transformers, head.auto_class).from_config(config, dtype=dtype).eval()


def facts(channels: int | None) -> ModelFacts:
    return ModelFacts(
        kind="vision",
        model_type="vit",
        hidden_size=16,
        block_count=2,
        max_positions=None,
        vocab_size=None,
        path=None,
        channels=channels,
    )


# --- options, columns, rows ------------------------------------------------------------------------------------------


def test_it_is_found_by_name() -> None:
    assert TASKS.get("image-classification") is ImageClassification


def test_columns() -> None:
    columns = make().columns()
    assert [(name, column.required, column.target, column.file) for name, column in columns.items()] == [
        ("image", True, False, True),
        ("label", True, True, False),
    ]


def test_channels_come_from_the_model() -> None:
    for channels, expected in ((1, 1), (3, 3), (None, 3)):
        assert make(channels="auto").defaults(facts(channels))["task.channels"].value == expected
    assert make(channels="auto").refusal(facts(1)) == ""
    assert make(channels=1).refusal(facts(None)) == ""
    assert make(channels=3).refusal(facts(1)) == "the model takes images of 1 channels, the task gives 3"
    assert "images of 4 channels" in make(channels="auto").refusal(facts(4))
    with pytest.raises(ValueError, match="channels is still `auto`"):
        make(ROWS, channels="auto").encode(ROWS, processor_for())


@pytest.mark.parametrize("family", CONFIGS)
def test_families_are_known_as_vision_models_of_so_many_channels(family: str) -> None:
    config = AutoConfig.for_model(family, **CONFIGS[family], num_channels=1).to_dict()
    found = facts_of_config(config, None)
    assert (found.kind, found.channels) == ("vision", 1)


def test_options_that_contradict_each_other() -> None:
    message = make(labels=["a"], metrics=["acuracy"], augment={"crop_scale": [0.9, 0.5]}).check_options()
    assert "labels: there must be at least two" in message
    assert "did you mean 'accuracy'?" in message
    assert "crop_scale [0.9, 0.5] goes from large to small" in message
    assert make(augment="light").check_options() == ""


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ({"image": None, "label": "cat"}, "image", "the image is missing"),
        ({"image": b"not a picture", "label": "cat"}, "image", "is no image"),
        ({"image": ROWS[0]["image"], "label": None}, "label", "the label is missing"),
        ({"image": ROWS[0]["image"], "label": 0.5}, "label", "label 0.5 is a number with a point"),
    ],
)
def test_rows_that_do_not_fit(row: Row, column: str, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        make().check_row(row)
    assert caught.value.column == column


def test_unseen_labels_are_refused_and_rows_to_predict_have_none() -> None:
    task = make(ROWS)
    with pytest.raises(RowError, match="label 'horse' does not occur in the training rows"):
        task.check_learned({**ROWS[0], "label": "horse"})
    row = {"image": ROWS[0]["image"]}
    task.check_row(row)
    assert "label" not in task.encode([row], processor_for())[0]


@pytest.mark.parametrize("problem", EXAMPLES)
def test_state_survives_json(problem: str) -> None:
    learned, restored = make(EXAMPLES[problem], problem_type=problem), make(problem_type=problem)
    restored.restore(json.loads(json.dumps(learned.state())))
    assert restored.head() == learned.head()


def test_descriptions() -> None:
    small = {"image": encoded(noise((9, 5), mode="L")), "label": "cat"}
    found = make(ROWS).describe([ROWS[1], small])
    assert found["rows"] == 2
    assert found["width"] == {"min": 9, "median": 14.5, "mean": 14.5, "max": 20}
    assert found["height"]["max"] == 16
    assert found["modes"] == {"RGB": 1, "L": 1}
    assert found["labels"] == {"cat": 1, "cow": 1, "dog": 0}


# --- features and batches --------------------------------------------------------------------------------------------


def test_features_are_small_whole_numbers() -> None:
    task = make(ROWS)
    features = task.encode(ROWS, processor_for())
    assert {(item["pixels"].dtype.name, item["pixels"].shape, item["length"]) for item in features} == {("uint8", (3, 16, 16), 1)}
    assert [item["label"] for item in features] == [0, 1, 2, 0, 1, 2, 0]
    assert {key: features[0][key] for key in ("width", "height", "mode")} == {"width": 20, "height": 16, "mode": "RGB"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_a_batch_is_what_the_processor_gives_for_the_pictures(mode: str, channels: int) -> None:
    rows = [{"image": encoded(noise(mode=mode, seed=seed)), "label": "ab"[seed % 2]} for seed in range(3)]
    task, processor = make(rows, channels=channels), processor_for(channels)
    batch = task.collate(numbered(task.encode(rows, processor)), processor)
    white = PIL.Image.new("RGBA", (20, 16), "white")
    pictures = [
        PIL.Image.alpha_composite(white, noise(mode=mode, seed=seed).convert("RGBA")).convert("L" if channels == 1 else "RGB")
        if mode == "RGBA"
        else noise(mode=mode, seed=seed).convert("L" if channels == 1 else "RGB")
        for seed in range(3)
    ]
    assert torch.equal(batch["pixel_values"], processor(images=pictures, return_tensors="pt")["pixel_values"])
    assert (batch["labels"].tolist(), batch["example"].tolist()) == ([0, 1, 0], [0, 1, 2])


def test_training_batches_without_augmentation_are_the_same() -> None:
    task, processor = make(ROWS), processor_for()
    features = numbered(task.encode(ROWS, processor, training=True))
    plain, training = (task.collate(features, processor, training=training)["pixel_values"] for training in (False, True))
    assert torch.equal(plain, training)


def test_augmentation_only_in_training_as_the_seed_says() -> None:
    task, processor = make(ROWS, augment="light"), processor_for()
    features = numbered(task.encode(ROWS, processor))

    def batch(seed: int, training: bool = True) -> torch.Tensor:
        torch.manual_seed(seed)
        return task.collate(features, processor, training=training)["pixel_values"]

    assert torch.equal(batch(0), batch(0))
    assert not torch.equal(batch(0), batch(1))
    assert torch.equal(batch(0, training=False), batch(1, training=False))
    assert torch.equal(batch(0, training=False), make(ROWS).collate(features, processor)["pixel_values"])


def test_inspection_says_what_the_model_gets() -> None:
    task, processor = make(ROWS), processor_for()
    features = task.encode(ROWS[:1], processor)[0]
    notes = [note for text, note in task.inspect(features, processor) if not text]
    values = processor(images=noise(), return_tensors="pt")["pixel_values"][0]
    means = ", ".join(f"{value:.3f}" for value in values.mean(dim=(1, 2)).tolist())
    assert notes[:2] == ["image: 20 x 16 pixels, mode RGB", "pixel_values: 3 x 16 x 16 (channels, height, width)"]
    assert f"mean of each channel: {means}, deviation: " in notes[2]
    assert notes[3] == "label: cat"


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("family", CONFIGS)
def test_families_train_a_step(family: str, channels: int) -> None:
    task, processor = make(ROWS, channels=channels, augment="light"), processor_for(channels)
    model = model_for(family, task, channels)
    task.bind(model, processor)
    batch = task.collate(numbered(task.encode(ROWS, processor)), processor, training=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        loss = task.loss(task.forward(model, batch), batch) / task.target_count(batch)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("problem", EXAMPLES)
def test_the_loss_is_that_of_transformers(problem: str) -> None:
    task, processor = make(EXAMPLES[problem], problem_type=problem), processor_for()
    model = model_for("vit", task)
    batch = task.collate(numbered(task.encode(EXAMPLES[problem], processor)), processor)
    outputs = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
    assert (task.loss(outputs, batch) / task.target_count(batch)).item() == pytest.approx(outputs.loss.item(), rel=1e-6)


@pytest.mark.parametrize("family", CONFIGS)
def test_frozen_weights_in_half_precision(family: str) -> None:
    task, processor = make(ROWS), processor_for()
    model = model_for(family, task, dtype=torch.bfloat16)
    model.classifier.float()
    task.bind(model, processor)
    batch = task.collate(numbered(task.encode(ROWS, processor)), processor)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert bool(task.loss(task.forward(model, batch), batch).isfinite())


def test_a_model_that_does_not_fit_its_processor_is_refused_before_training() -> None:
    task = make(ROWS)
    with pytest.raises(ModelError, match=r"does not take images of 3 x 24 x 24 .*image_size"):
        task.bind(model_for("vit", task), ViTImageProcessorPil(size={"height": 24, "width": 24}))
    with pytest.raises(ModelError, match="does not take images of 3 x 16 x 16"):
        task.bind(model_for("vit", task, channels=1), processor_for())
    grey = make(ROWS, channels=1)
    with pytest.raises(ModelError, match="makes 3 channels of an image of 1"):
        grey.bind(model_for("vit", grey, channels=1), BitImageProcessorPil(crop_size={"height": 16, "width": 16}))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_predictions_do_not_depend_on_the_batch(size: int) -> None:
    task, processor = make(ROWS), processor_for()
    model = model_for("vit", task)
    features = numbered(task.encode(ROWS, processor))

    def predict(items: list[Features]) -> list[Any]:
        batch = task.collate(items, processor)
        with torch.no_grad():
            return task.predictions(task.forward(model, batch), batch)

    found = [item for start in range(0, 7, size) for item in predict(features[start : start + size])]
    whole = predict(features)
    assert [item["example"] for item in found] == list(range(7))
    assert np.stack([item["probabilities"] for item in found]) == pytest.approx(
        np.stack([item["probabilities"] for item in whole]), abs=1e-6
    )


def test_predictions_for_people_name_the_file() -> None:
    prediction = {"example": 0, "probabilities": np.array([0.25, 0.5, 0.25], np.float32)}
    expected = {"label": "cow", "score": 0.5, "probabilities": {"cat": 0.25, "cow": 0.5, "dog": 0.25}}
    assert make(ROWS).present(prediction, ROWS[3]) == {"image": "3.png", **expected}
    assert make(ROWS).present(prediction, {"image": ROWS[3]["image"]["bytes"]}) == expected
    assert make(ROWS).present(prediction, {"image": {"bytes": b"", "path": None}}) == expected


# --- whole runs ------------------------------------------------------------------------------------------------------

SHADES = {"bright": 220, "dark": 30}


@pytest.fixture(scope="module")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "vit", "vit")


@pytest.fixture
def recipe(tmp_path: Path, tiny_vit: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A recipe for pictures that are bright or dark; the training rows name files, the others lie in class folders and Parquet."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)

    def picture(label: str) -> bytes:
        shade = SHADES[label] + generator.integers(-25, 25, (9, 11))
        return encoded(PIL.Image.fromarray(shade.astype(np.uint8)))

    labels = [list(SHADES)[number % 2] for number in range(24)]
    (tmp_path / "data" / "files").mkdir(parents=True)
    with (tmp_path / "data" / "train.jsonl").open("w", encoding="utf-8") as stream:
        for number, label in enumerate(labels):
            (tmp_path / "data" / "files" / f"{number}.png").write_bytes(picture(label))
            stream.write(json.dumps({"image": f"files/{number}.png", "label": label}) + "\n")
    for label in SHADES:
        (tmp_path / "validation" / label).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "validation" / label / f"{number}.png").write_bytes(picture(label))
    content = pa.array([{"bytes": picture(label), "path": "x.png"} for label in labels[:6]])
    pq.write_table(pa.table({"image": content, "label": labels[:6]}), tmp_path / "test.parquet")

    def write(**keys: str) -> Path:
        values = {
            "model": str(tiny_vit),
            "task": "{name: image-classification, augment: light}",
            "data": "{train: data/train.jsonl, validation: validation, test: test.parquet}",
            "method": "{name: lora, rank: 4}",
            "train": "{epochs: 10, batch_size: 8, learning_rate: 2e-2}",
            **keys,
        }
        (tmp_path / "recipe.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()), encoding="utf-8")
        return tmp_path / "recipe.yaml"

    return write


def test_a_run_learns_exports_and_predicts_folders_files_and_paths(recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe(export="[adapter, merged]")
    result = ftkit.train(ftkit.load_recipe(path))
    assert result.results["splits"]["test"]["metrics"]["accuracy"] == 1.0
    assert set(result.results["exports"]) == {"adapter", "merged"}
    predictor = ftkit.load(result.folder)
    shutil.copytree(tmp_path / "data" / "files", tmp_path / "unsorted")
    inputs = ["unsorted", "unsorted/*.png", "data/train.jsonl"]
    found = [list(predictor.predict(predictor.read(source), batch_size=5)) for source in inputs]
    assert [item["image"] for item in found[0]] == sorted(f"{number}.png" for number in range(24))
    assert all(item["label"] == list(SHADES)[int(item["image"].split(".")[0]) % 2] for item in found[0])
    assert [item["label"] for item in found[1]] == [item["label"] for item in found[0]]
    assert [item["image"] for item in found[2]] == [f"files/{number}.png" for number in range(24)]
    assert [item["label"] for item in found[2]] == [list(SHADES)[number % 2] for number in range(24)]
    assert predictor.evaluate(data="data/train.jsonl")["metrics"]["accuracy"] == 1.0
    cut = tmp_path / "unsorted" / "7.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"input, row 22: image: the image '7.png' cannot be decoded"):
        list(predictor.predict(predictor.read("unsorted"), batch_size=5))


def test_random_weights_of_a_folder_with_a_config(recipe: Callable[..., Path], tiny_vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_vit, tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    path = recipe(model="{name: empty, weights: random}", method="full", train="{epochs: 8, batch_size: 8, learning_rate: 1e-2}")
    assert ftkit.train(ftkit.load_recipe(path)).results["splits"]["test"]["metrics"]["accuracy"] == 1.0


def test_images_that_only_decoding_finds_damaged_are_all_named(recipe: Callable[..., Path], tmp_path: Path) -> None:
    for number in (3, 5):
        file = tmp_path / "data" / "files" / f"{number}.png"
        file.write_bytes(file.read_bytes()[:-40])
    loaded = ftkit.load_recipe(recipe())
    ftkit.validate(loaded)
    for use in (ftkit.train, ftkit.plan):
        with pytest.raises(DataError) as caught:
            use(loaded)
        assert [problem.place for problem in caught.value.problems] == ["data/train.jsonl, line 4", "data/train.jsonl, line 6"]
        assert all("cannot be decoded" in problem.message for problem in caught.value.problems)
    with pytest.raises(DataError, match=r"train.jsonl, line 4: image: the image 'files/3.png' cannot be decoded"):
        inspect(loaded, rows=5)


def test_files_that_are_not_there_and_files_that_are_no_images(recipe: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "data" / "files" / "2.png").unlink()
    with pytest.raises(DataError, match=r"data/train.jsonl, line 3: image: there is no file 'files/2.png'"):
        ftkit.validate(ftkit.load_recipe(recipe()))
    (tmp_path / "data" / "files" / "2.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"data/train.jsonl, line 3: image: the image 'files/2.png' is no image"):
        ftkit.validate(ftkit.load_recipe(recipe()))


def test_a_text_model_is_refused(recipe: Callable[..., Path], tiny_folder: Path) -> None:
    with pytest.raises(RecipeError, match="vision"):
        ftkit.validate(ftkit.load_recipe(recipe(model=str(tiny_folder))))


def test_the_head_is_new_and_sized_by_the_labels(tiny_vit: Path) -> None:
    task, spec = make(ROWS, channels=1), ModelSpec(name=str(tiny_vit))
    loaded = load_model(spec, task.head(), seed=0)
    assert loaded.model.config.id2label == {0: "cat", 1: "cow", 2: "dog"}
    task.bind(loaded.model, load_processor(spec, facts(1)))
