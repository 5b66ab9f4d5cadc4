"""AdapterHub's names and settings, both ways. The folders are built by hand after the library's documentation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import ftkit
from ftkit import api
from ftkit.errors import FtkitError
from ftkit.tuners.registration import register_tuners
from tests.adapters.conftest import Train
from tests.tiny import save_tiny

WIDTH, SIZE = 16, 4
SEQ_BN = {
    "mh_adapter": False, "output_adapter": True, "reduction_factor": 4, "non_linearity": "relu", "original_ln_before": True,
    "original_ln_after": True, "ln_before": False, "ln_after": False, "init_weights": "bert", "is_parallel": False, "scaling": 1.0,
    "use_gating": False, "residual_before_ln": True, "adapter_residual_before_ln": False, "inv_adapter": None,
    "inv_adapter_reduction_factor": None, "cross_adapter": False, "leave_out": [], "dropout": 0.0, "phm_layer": False, "phm_dim": 4,
    "factorized_phm_W": True, "shared_W_phm": False, "shared_phm_rule": True, "factorized_phm_rule": False, "phm_c_init": "normal",
    "phm_init_range": 0.0001, "learn_phm": True, "hypercomplex_nonlinearity": "glorot-uniform", "phm_rank": 1, "phm_bias": True,
    "stochastic_depth": 0.0, "init_weights_seed": None,
}  # fmt: skip
"""What the library writes for `seq_bn`."""

DOUBLE = {**SEQ_BN, "mh_adapter": True, "original_ln_before": False, "non_linearity": "swish"}
PARALLEL = {**SEQ_BN, "is_parallel": True, "original_ln_before": False, "scaling": 4.0, "init_weights": "mam_adapter"}


def inner(norm: bool = False) -> dict[str, torch.Tensor]:
    number = 1 if norm else 0
    tensors = {
        f"adapter_down.{number}.weight": torch.randn(SIZE, WIDTH),
        f"adapter_down.{number}.bias": torch.randn(SIZE),
        "adapter_up.weight": torch.randn(WIDTH, SIZE),
        "adapter_up.bias": torch.randn(WIDTH),
    }
    if norm:
        for kind in ("weight", "bias"):
            tensors[f"adapter_norm_before.{kind}"] = torch.rand(WIDTH)
            tensors[f"adapter_down.0.{kind}"] = tensors[f"adapter_norm_before.{kind}"].clone()
    return tensors


def hub_folder(folder: Path, base: Path, config: dict[str, Any], places: list[str], norm: bool = False, **more: Any) -> Path:
    """A folder of the library with an adapter called `task` at these places."""
    torch.manual_seed(0)
    folder.mkdir()
    save_file(
        {f"{place}.adapters.task.{name}": tensor for place in places for name, tensor in inner(norm).items()},
        folder / "adapter.safetensors",
    )
    described = {
        "config": config,
        "hidden_size": WIDTH,
        "model_class": "BertAdapterModel",
        "model_name": str(base),
        "model_type": "bert",
        "name": "task",
        "version": "adapters.1.0.0",
        **more,
    }
    (folder / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


OUTPUTS = [f"bert.encoder.layer.{index}.output" for index in range(2)]
ATTENTIONS = [f"bert.encoder.layer.{index}.attention.output" for index in range(2)]


@pytest.fixture(scope="module")
def base(workshop: Path) -> Path:
    return workshop / "bert"


def reference(model: Any, tensors: dict[str, torch.Tensor], config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """The model's last hidden states with the adapters, after the formulas of the library's Adapter and ParallelAdapter."""
    activation = {"relu": torch.relu, "swish": torch.nn.functional.silu}[config["non_linearity"]]

    def adapter(place: str, x: torch.Tensor) -> torch.Tensor:
        own = {name.partition(".adapters.task.")[2]: t for name, t in tensors.items() if name.startswith(f"{place}.adapters")}
        if config["ln_before"]:
            x = torch.nn.functional.layer_norm(x, (WIDTH,), own["adapter_down.0.weight"], own["adapter_down.0.bias"])
        number = 1 if config["ln_before"] else 0
        down = activation(x @ own[f"adapter_down.{number}.weight"].T + own[f"adapter_down.{number}.bias"])
        return (down @ own["adapter_up.weight"].T + own["adapter_up.bias"]) * config["scaling"]

    def sublayer(module: Any, place: str, h: torch.Tensor, r: torch.Tensor, here: bool) -> torch.Tensor:
        h = module.dense(h)
        if not here:
            return module.LayerNorm(h + r)
        if config["is_parallel"]:
            return module.LayerNorm(h + r + adapter(place, r))
        inside = module.LayerNorm(h + r) if config["original_ln_before"] else h
        return module.LayerNorm(h + adapter(place, inside) + r)

    x = model.bert.embeddings(ids)
    for number, layer in enumerate(model.bert.encoder.layer):
        attended = layer.attention.self(x)[0]
        prefix = f"bert.encoder.layer.{number}"
        x = sublayer(layer.attention.output, f"{prefix}.attention.output", attended, x, config["mh_adapter"])
        x = sublayer(layer.output, f"{prefix}.output", layer.intermediate(x), x, f"{prefix}.output" in str(list(tensors)))
    return x


CASES = {
    "seq_bn": (SEQ_BN, OUTPUTS, False, "pfeiffer"),
    "double_seq_bn": (DOUBLE, [*ATTENTIONS, *OUTPUTS], False, "houlsby"),
    "par_bn": (PARALLEL, OUTPUTS, False, "parallel"),
    "ln_before": ({**SEQ_BN, "ln_before": True}, OUTPUTS, True, "pfeiffer"),
    "leave_out": ({**SEQ_BN, "leave_out": [0]}, OUTPUTS[1:], False, "pfeiffer"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_of_the_library_computes_the_same_and_comes_back(case: str, base: Path, tmp_path: Path) -> None:
    config, places, norm, placement = CASES[case]
    source = hub_folder(tmp_path / "hub", base, config, places, norm)
    found = api.convert_adapter(source, "ftkit", tmp_path / "own")
    assert (found["settings"]["placement"], found["settings"]["bottleneck"]) == (placement, SIZE)
    assert found["settings"].get("blocks") == ([1] if case == "leave_out" else None)
    tensors = load_file(source / "adapter.safetensors")
    register_tuners()
    model = AutoModelForSequenceClassification.from_pretrained(base).eval()
    ids = torch.tensor([[2, 9, 12, 30, 3], [2, 20, 21, 22, 3]])
    with torch.no_grad():
        expected = reference(model, tensors, config, ids)
        wrapped = PeftModel.from_pretrained(model, tmp_path / "own").eval()
        own = wrapped.base_model.model.bert(ids).last_hidden_state
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
    back = api.convert_adapter(tmp_path / "own", "adapterhub", tmp_path / "back", name="task")
    returned = load_file(tmp_path / "back" / "adapter.safetensors")
    assert returned.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(returned[name], tensor, atol=0, rtol=0)
    for key in (
        "mh_adapter",
        "output_adapter",
        "original_ln_before",
        "is_parallel",
        "scaling",
        "non_linearity",
        "ln_before",
        "leave_out",
    ):
        assert back["settings"][key] == config[key], key
    assert int(WIDTH // back["settings"]["reduction_factor"]) == SIZE


def test_a_run_goes_to_the_library_and_back(train: Train, base: Path, tmp_path: Path) -> None:
    run = train("houlsby", method="{name: adapter, placement: houlsby, bottleneck: 5, scaling: learned}", export="[adapter]")
    found = api.convert_adapter(run, "adapterhub", tmp_path / "hub")
    assert found["name"] == "houlsby"
    assert found["left_out"]
    assert found["settings"]["scaling"] == "learned"
    keys = load_file(tmp_path / "hub" / "adapter.safetensors")
    assert "bert.encoder.layer.0.attention.output.adapters.houlsby.adapter_down.0.weight" in keys
    assert "bert.encoder.layer.1.output.adapters.houlsby.scaling" in keys
    api.convert_adapter(tmp_path / "hub", "ftkit", tmp_path / "own", base=str(base))
    own = load_file(tmp_path / "own" / "adapter_model.safetensors")
    first = load_file(run / "export" / "adapter" / "adapter_model.safetensors")
    assert own.keys() == {name for name in first if "bottleneck_parts" in name}
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, first[name], atol=0, rtol=0)


def test_names_without_a_model_around_and_old_activations(base: Path, tmp_path: Path) -> None:
    places = [place.removeprefix("bert.") for place in OUTPUTS]
    source = hub_folder(tmp_path / "hub", base, {**SEQ_BN, "non_linearity": "gelu"}, places)
    described = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    del described["version"]
    (source / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")
    assert api.convert_adapter(source, "ftkit", tmp_path / "own")["settings"]["activation"] == "gelu_new"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_gating": True}, "use_gating: True"),
    ({"phm_layer": True}, "phm_layer: True"),
    ({"inv_adapter": "nice"}, "inv_adapter: 'nice'"),
    ({"original_ln_after": False}, "original_ln_after: False"),
    ({"original_ln_before": False}, "original_ln_before: False without mh_adapter"),
    ({"mh_adapter": True}, "original_ln_before: True with mh_adapter"),
    ({"residual_before_ln": "post_add"}, "residual_before_ln: 'post_add'"),
    ({"scaling": "channel"}, "scaling: 'channel'"),
    ({"non_linearity": "leakyrelu"}, "non_linearity: 'leakyrelu'"),
    ({"ln_after": True, "adapter_residual_before_ln": True}, "adapter_residual_before_ln: True"),
    ({"architecture": "lora"}, "architecture: 'lora'"),
    ({"something_new": 3}, "something_new: 3"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_expressed_is_named(changes: dict[str, Any], message: str, base: Path, tmp_path: Path) -> None:
    source = hub_folder(tmp_path / "hub", base, {**SEQ_BN, **changes}, OUTPUTS)
    with pytest.raises(FtkitError) as caught:
        api.convert_adapter(source, "ftkit", tmp_path / "own")
    assert f"ftkit cannot express {message}" in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "own").exists()


def test_what_a_user_does_wrong(base: Path, train: Train, first: Path, workshop: Path, tmp_path: Path) -> None:
    source = hub_folder(tmp_path / "hub", base, SEQ_BN, OUTPUTS)

    def refused(path: Path, to: str = "ftkit", **more: Any) -> str:
        with pytest.raises(FtkitError) as caught:
            api.convert_adapter(path, to, tmp_path / "out", **more)
        assert caught.value.exit_code == 2
        return str(caught.value)

    assert "unknown format 'peft'" in refused(source, "peft")
    assert "ftkit gives adapters no names" in refused(source, name="x")
    assert "lora is no bottleneck adapter" in refused(first, "adapterhub")
    assert "'a.b' cannot be part of a tensor's name" in refused(first, "adapterhub", name="a.b")
    assert "is no adapter folder" in refused(workshop)
    assert "made for bert, this model is gpt2" in refused(source, base=str(save_tiny(tmp_path / "gpt2", "gpt2")))
    assert "is not on this machine" in refused(hub_folder(tmp_path / "far", Path("bert-base-uncased"), SEQ_BN, OUTPUTS))
    wider = save_tiny(tmp_path / "wide", "bert", hidden_size=32)
    assert "does not fit this base" in refused(source, base=str(wider))
    strange = hub_folder(tmp_path / "strange", base, SEQ_BN, [*OUTPUTS, "bert.encoder.layer.0.attention.output"])
    assert "has no place in this base" in refused(strange)
    norms = train("norms", "train.max_steps=1", method="{name: adapter, norms: true}")
    assert "trained norms of the model" in refused(norms, "adapterhub", name="norms")
    (source / "adapter.safetensors").rename(source / "pytorch_adapter.bin")
    assert "is a pickle, which runs code when it is read" in refused(source)
    assert "use_safetensors=True" in refused(source)
    with pytest.raises(FtkitError, match="already holds files"):
        api.convert_adapter(source, "ftkit", source)


def test_a_converted_adapter_can_be_fused(base: Path, train: Train, tmp_path: Path) -> None:
    members = [train(f"member{seed}", f"seed={seed}", "train.max_steps=2", method="adapter", export="[adapter]") for seed in (0, 1)]
    source = hub_folder(tmp_path / "hub", base, SEQ_BN, OUTPUTS)
    api.convert_adapter(source, "ftkit", tmp_path / "converted")
    recipe = members[0] / "recipe.yaml"
    result = api.fuse_adapters(
        [*members, tmp_path / "converted"], recipe, ["train.max_steps=2", "export=[]"], output=tmp_path / "fused"
    )
    assert result.results["method"] == "adapter-fusion"
    assert len(list(ftkit.load(tmp_path / "fused").predict(["w1 w2"]))) == 1


def test_fusions_that_cannot_be(train: Train, first: Path, tmp_path: Path) -> None:
    member = train("member0", "seed=0", "train.max_steps=2", method="adapter", export="[adapter]")
    recipe = member / "recipe.yaml"
    with pytest.raises(FtkitError, match="needs two adapters or more, not 1"):
        api.fuse_adapters([member], recipe)
    with pytest.raises(FtkitError, match=r"this run has exported no adapter. Export it first: ftkit export .*first"):
        api.fuse_adapters([member, first], recipe)
    with pytest.raises(FtkitError, match="there is no such folder"):
        api.fuse_adapters([member, tmp_path / "nowhere"], recipe)


def test_a_damaged_adapter_does_not_go_to_the_library(train: Train, tmp_path: Path) -> None:
    member = train("member0", "seed=0", "train.max_steps=2", method="adapter", export="[adapter]")
    whole = load_file(member / "export" / "adapter" / "adapter_model.safetensors")
    first = next(name for name in whole if name.endswith("down.weight"))
    cases: list[tuple[str, dict[str, torch.Tensor], dict[str, Any], str]] = [
        (
            "missing",
            {name: tensor for name, tensor in whole.items() if name != first},
            {},
            "does not fit this base or its own settings",
        ),
        ("more", {**whole, "base_model.model.strange": torch.ones(2)}, {}, "the first of 1 names: base_model.model.strange"),
        ("cut", {**whole, first: whole[first][:-1].contiguous()}, {}, "does not fit this base or its own settings"),
        ("nan", {**whole, first: whole[first] * float("nan")}, {}, "not finite"),
        ("activation", whole, {"activation": "swish"}, "`activation` is 'swish', expected one of relu"),
    ]
    for name, tensors, settings, message in cases:
        folder = shutil.copytree(member / "export" / "adapter", tmp_path / name)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}), encoding="utf-8")
        with pytest.raises(FtkitError, match=message) as caught:
            api.convert_adapter(folder, "adapterhub", tmp_path / "out")
        assert caught.value.exit_code == 2
        assert not (tmp_path / "out").exists()


def test_a_conversion_that_breaks_off_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hub_folder(tmp_path / "hub", base, SEQ_BN, OUTPUTS)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ftkit.adapters.converting.write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.convert_adapter(source, "ftkit", tmp_path / "own")
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
    with pytest.raises(FtkitError, match=r"lies inside .*hub, which is read"):
        api.convert_adapter(source, "ftkit", source / "own")


def test_members_belong_to_the_base(train: Train, workshop: Path, on_other_base: Path) -> None:
    members = [train(f"member{seed}", f"seed={seed}", "train.max_steps=2", method="adapter", export="[adapter]") for seed in (0, 1)]
    other = [f"model={workshop / 'other-bert'}", "train.max_steps=1"]
    with pytest.raises(FtkitError, match=r"trained on another base than .*other-bert: other files: model.safetensors") as caught:
        api.fuse_adapters(members, members[0] / "recipe.yaml", other, output=workshop / "runs" / "no")
    assert (caught.value.exit_code, len(caught.value.problems)) == (2, 2)
    assert not (workshop / "runs" / "no").exists()
    with pytest.raises(FtkitError, match=r"--overwrite would move away what the recipe needs: .*member1"):
        api.fuse_adapters(members, members[0] / "recipe.yaml", output=members[1], overwrite=True)
    for change in ("method=lora", "method={name: adapter-fusion}", "method.adapters=[a, b]", "~method"):
        with pytest.raises(FtkitError, match="a fusion decides this by itself"):
            api.fuse_adapters(members, members[0] / "recipe.yaml", [change], output=workshop / "runs" / "no")
