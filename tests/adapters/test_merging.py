from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ftkit
from ftkit import api
from ftkit.adapters.merging import MergeRequest, _head_index
from ftkit.adapters.portable import factors, of_predictor
from ftkit.errors import FtkitError
from tests.adapters.conftest import Train

TEXTS = ["w1 w2 w30", "w11 w31", "w21 w22 w35 w1"]


def updates(run: Path) -> dict[str, torch.Tensor]:
    return {layer: b @ a for layer, (b, a) in factors(of_predictor(ftkit.load(run))).items()}


def heads(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in of_predictor(ftkit.load(run)).tensors.items() if ".lora_" not in name}


@pytest.fixture(scope="module")
def merged(first: Path, second: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("merged") / "both"
    return folder, api.merge_adapters([first, second], folder, weights=[0.7, 0.3])


def test_cat_is_the_weighted_sum_exactly(merged: tuple[Path, dict[str, Any]], first: Path, second: Path) -> None:
    one, two, both = updates(first), updates(second), updates(merged[0])
    assert both.keys() == one.keys()
    for layer in both:
        torch.testing.assert_close(both[layer], 0.7 * one[layer] + 0.3 * two[layer], atol=1e-6, rtol=1e-5)
    own = heads(merged[0])
    assert any("classifier" in name for name in own)
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, 0.7 * heads(first)[name] + 0.3 * heads(second)[name])


def test_the_result_is_a_run_like_any_other(merged: tuple[Path, dict[str, Any]], first: Path, tmp_path: Path) -> None:
    folder, results = merged
    assert results["status"] == "completed"
    assert results["method"] == "lora"
    assert len(list(ftkit.load(folder).predict(TEXTS))) == 3
    for split in ("validation", "test"):
        assert ftkit.load(folder).evaluate(split)["metrics"] == results["splits"][split]["metrics"]
        assert results["derived"]["before"][str(first)][split] == ftkit.load(first).evaluate(split)["metrics"]
    for form in ("adapter", "merged"):
        facts = ftkit.export(folder, form, to=tmp_path / form)
        assert facts["max_abs_difference"] <= facts["tolerance"]
    assert "ftkit adapters merge" in (folder / "README.md").read_text(encoding="utf-8")
    assert not list(folder.parent.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("combination", "more"),
    [
        ("linear", {}),
        ("svd", {"rank": 3}),
        ("ties", {"density": 0.5}),
        ("dare_linear", {"density": 0.5}),
        ("dare_ties_svd", {"density": 0.5, "rank": 6}),
        ("magnitude_prune", {"density": 0.9}),
    ],
)
def test_other_combinations(combination: str, more: dict[str, Any], first: Path, second: Path, tmp_path: Path) -> None:
    results = api.merge_adapters([first, second], tmp_path / "out", combination=combination, evaluate=["none"], **more)
    assert results["derived"]["before"][str(first)] == {}
    assert "metrics" not in results["splits"]["test"]
    method = ftkit.load(tmp_path / "out").plan.recipe.method.options
    assert method.rank == more.get("rank", 4)
    if combination == "svd":
        for layer, update in updates(tmp_path / "out").items():
            whole = 0.5 * updates(first)[layer] + 0.5 * updates(second)[layer]
            values = torch.linalg.svdvals(whole)
            assert float((whole - update).norm()) == pytest.approx(float(values[3:].norm()), abs=1e-5)


def test_dare_draws_the_same_each_time(first: Path, second: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        api.merge_adapters([first, second], tmp_path / name, combination="dare_linear", density=0.5, evaluate=["none"])
    assert api.diff_adapters(tmp_path / "a", tmp_path / "b")["equal"]


def test_a_head_may_be_taken_from_one(first: Path, second: Path, tmp_path: Path) -> None:
    for choice, name in (("2", "number"), (str(second), "folder")):
        api.merge_adapters([first, second], tmp_path / name, head=choice, evaluate=["none"])
        for key, tensor in heads(tmp_path / name).items():
            torch.testing.assert_close(tensor, heads(second)[key])


def test_scales_ranks_and_places_may_differ(first: Path, train: Train, tmp_path: Path) -> None:
    other = train("rslora", method="{name: lora, rank: 2, rslora: true, targets: [key, ffn_in]}")
    pissa = train("pissa", method="{name: lora, rank: 4, init: pissa}")
    api.merge_adapters([first, other, pissa], tmp_path / "out", weights=[1, -2, 0.5], evaluate=["none"])
    both, parts = updates(tmp_path / "out"), [updates(run) for run in (first, other, pissa)]
    for layer, update in both.items():
        zero = torch.zeros_like(update)
        expected = sum(w * part.get(layer, zero) for w, part in zip((1, -2, 0.5), parts, strict=True))
        torch.testing.assert_close(update, expected, atol=1e-5, rtol=1e-4)


def test_ia3_averages_its_factors(train: Train, tmp_path: Path) -> None:
    runs = [train(f"ia3-{seed}", f"seed={seed}", method="ia3") for seed in (0, 1)]
    api.merge_adapters(runs, tmp_path / "out", weights=[0.25, 0.75], evaluate=["none"])
    one, two, both = (of_predictor(ftkit.load(run)).tensors for run in (*runs, tmp_path / "out"))
    for name in both:
        torch.testing.assert_close(both[name], 0.25 * one[name] + 0.75 * two[name])
    with pytest.raises(FtkitError, match="must sum to 1, not to 2") as caught:
        api.merge_adapters(runs, tmp_path / "no", weights=[1, 1])
    assert (caught.value.problems[0].place, bool(caught.value.problems[0].hint)) == ("--weights", True)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"weights": [1.0]}, "1 weights for 2 adapters"),
    ({"weights": [0.0, 0.0]}, "all weights are zero"),
    ({"weights": [1.0, -1.0]}, "whose sum is zero"),
    ({"weights": [1e308, 1e308]}, "result has values that are not finite numbers"),
    ({"combination": "ties", "density": 1e-9}, "1e-09 keeps not a single value"),
    ({"evaluate": ["none", "test"]}, "'none' and 'test' exclude each other"),
    ({"combination": "mean"}, "'mean' is no way to combine lora adapters"),
    ({"combination": "ties"}, "ties needs a share of values to keep"),
    ({"combination": "ties", "density": 1.0}, "between 0 and 1; not 1"),
    ({"density": 0.5}, "cat drops no values"),
    ({"rank": 3}, "the rank of cat follows"),
    ({"head": "3"}, "'3' names none of the runs"),
    ({"evaluate": ["dev"]}, "the run has no 'dev' split"),
    ({"combination": "svd", "rank": 99}, "rank is 99, but in a model of width 16"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_a_user_does_wrong(arguments: dict[str, Any], message: str, first: Path, second: Path, tmp_path: Path) -> None:
    with pytest.raises(FtkitError, match=message) as caught:
        api.merge_adapters([first, second], tmp_path / "out", **arguments)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_runs_that_do_not_go_together(
    first: Path, second: Path, tuned: Path, relabeled: Path, on_other_base: Path, train: Train, tmp_path: Path
) -> None:
    def refused(*runs: Path) -> str:
        with pytest.raises(FtkitError) as caught:
            api.merge_adapters(runs, tmp_path / "out")
        assert caught.value.exit_code == 2
        return str(caught.value)

    assert "label set is another" in refused(first, relabeled)
    assert "odd" in refused(first, relabeled)
    assert "another base than" in refused(first, on_other_base)
    assert "other files: model.safetensors" in refused(first, on_other_base)
    assert "adapters of full do not combine" in refused(first, tuned)
    assert "was trained with ia3, the first run with lora" in refused(first, train("ia3-0", "seed=0", method="ia3"))
    assert "with `dora`" in refused(first, train("dora", "train.max_steps=1", method="{name: lora, dora: true}"))
    with pytest.raises(FtkitError, match="with `dora`") as caught:
        api.merge_adapters([first, train("dora")], tmp_path / "out")
    assert (caught.value.problems[0].place, bool(caught.value.problems[0].hint)) == ("run 2", True)
    with pytest.raises(FtkitError, match=r"lies inside .*second, which is read"):
        api.merge_adapters([first, second], second / "merged")
    assert not (second / "merged").exists()
    assert "two runs or more" in refused(first)
    assert "neither a run folder nor an adapter" in refused(first, tmp_path)
    assert "there is no such folder" in refused(first, tmp_path / "nowhere")
    assert "one rank, these have 4, 2" in _linear_refusal(first, train, tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").touch()
    assert "already holds files" in refused(first, second)


def _linear_refusal(first: Path, train: Train, tmp_path: Path) -> str:
    other = train("rslora", method="{name: lora, rank: 2, rslora: true, targets: [key, ffn_in]}")
    with pytest.raises(FtkitError) as caught:
        api.merge_adapters([first, other], tmp_path / "out", combination="linear", evaluate=["none"])
    return str(caught.value)


def test_a_run_is_named_by_any_path_to_it(first: Path, second: Path, tmp_path: Path) -> None:
    request = MergeRequest(
        runs=[first, second], output=tmp_path / "out", head=f"{second.parent}/../{second.parent.name}/{second.name}/"
    )
    assert _head_index(request) == 1
