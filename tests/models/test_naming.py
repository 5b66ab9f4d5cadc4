from __future__ import annotations

from ftkit.models.naming import find_suffixes, known_prefix, matches, unwrapped_names


def test_suffixes_are_as_short_as_exactness_allows() -> None:
    names = ["h.0.attn.proj", "h.0.mlp.proj", "h.1.attn.proj", "h.1.mlp.proj", "head.proj"]
    assert find_suffixes(names, names) == ["proj"]
    assert find_suffixes(["h.0.mlp.proj", "h.1.mlp.proj"], names) == ["mlp.proj"]
    assert find_suffixes(["h.1.mlp.proj"], names) == ["1.mlp.proj"]


def test_expression_where_three_segments_do_not_do() -> None:
    names = [f"m.layer.{index}.a.b.c.{part}" for index in range(12) for part in ("q", "v")]
    wanted = [name for name in names if name.split(".")[2] in ("1", "10", "11")]
    target = find_suffixes(wanted, names)
    assert isinstance(target, str)
    assert [name for name in names if matches(target, name)] == wanted


def test_expression_of_several_stacks_with_other_indices() -> None:
    names = [f"{stack}.layer.{index}.a.b.c.q" for stack in ("enc", "dec") for index in range(4)]
    wanted = ["enc.layer.3.a.b.c.q", "dec.layer.0.a.b.c.q", "dec.layer.2.a.b.c.q"]
    target = find_suffixes(wanted, names)
    assert sorted(name for name in names if matches(target, name)) == sorted(wanted)


def test_names_without_their_wrapping() -> None:
    assert "bert.q.weight" in list(unwrapped_names("base_model.model.bert.q.base_layer.weight"))
    assert "head.weight" in list(unwrapped_names("base_model.model.head.modules_to_save.default.weight"))
    assert "model.q.weight" in list(unwrapped_names("module.base_model.model.model.q.weight"))
    assert known_prefix("a.b.lora_A.default.weight", {"a", "a.b"}) == "a.b"
    assert known_prefix("x.y", {"a"}) == ""
