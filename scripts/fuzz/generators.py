"""Hypothesis strategies of the inputs of each target: sound files with something changed, and mere bytes."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic import BaseModel
from targets import SEPARATOR

from ftkit.recipe.schema import RecipeBody
from ftkit.registry import METHODS, TASKS

ODD_NUMBERS = (0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 1e308, 1e-320, 0.5, 10**400)
ODD_TEXTS = (
    "",
    " ",
    "auto",
    "null",
    "~",
    "[",
    "${a}",
    "${model}",
    "$${",
    "../..",
    "/etc/passwd",
    "package:os",
    "hub:a/b",
    "a" * 300,
)
ODD_CHARACTERS = "\0\x1b\x85\u2028\ud800\ufeff\U0010ffff\r\n\t\"'\\,;:{}[]#&*!|>%@`$~="

texts = st.one_of(st.sampled_from(ODD_TEXTS), st.text(max_size=20), st.text(alphabet=ODD_CHARACTERS, max_size=8))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(ODD_NUMBERS),
    st.floats(),
    texts.filter(lambda text: "\ud800" not in text),
)
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)), max_leaves=8
)


@st.composite
def mutated(draw: Any, sound: SearchStrategy[bytes], most: int = 4) -> bytes:
    """Bytes with up to `most` changes: cut, flipped, put in, taken out, doubled."""
    data = bytearray(draw(sound))
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 16))
        change = draw(st.sampled_from(["cut", "flip", "insert", "remove", "double"]))
        if change == "cut":
            del data[place:]
        elif change == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "insert":
            data[place:place] = draw(
                st.one_of(st.binary(max_size=8), st.sampled_from([b"\0" * 4, b"\xff" * 8, b"\n", b'"', b"\r"]))
            )
        elif change == "remove":
            del data[place : place + length]
        else:
            data[place:place] = data[place : place + length]
    return bytes(data)


# --- recipes -----------------------------------------------------------------------------------------------------------


def _keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*path, name)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and len(path) < 3:
                yield from _keys(kind, (*path, name))


@cache
def recipe_keys() -> tuple[tuple[str, ...], ...]:
    """Every key that some recipe may have."""
    found = [key for key in _keys(RecipeBody) if key[0] != "origin"]
    for kind, registry in (("task", TASKS), ("method", METHODS)):
        for name in registry.names():
            found += [(kind, *key) for key in _keys(registry.get(name).Options)]
    return tuple(dict.fromkeys(found))


@st.composite
def recipes(draw: Any) -> bytes:
    """A recipe that is sound but for some keys."""
    task, method = draw(st.sampled_from(sorted(TASKS.names()))), draw(st.sampled_from(sorted(METHODS.names())))
    value: dict[str, Any] = {
        "model": "a/b",
        "task": {"name": task},
        "data": {"train": [{"path": "x.csv"}]},
        "method": {"name": method},
    }
    for key in draw(st.lists(st.sampled_from(recipe_keys()), max_size=4)):
        holder: Any = value
        for part in key[:-1]:
            inner = holder.get(part)
            if not isinstance(inner, dict):
                inner = {"name": inner} if part in ("model", "task", "method") and isinstance(inner, str) else {}
                holder[part] = inner
            holder = inner
        holder[key[-1]] = draw(values)
    return json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", errors="surrogatepass")


TOKENS = [
    *(
        f"{line}\n".encode()
        for line in ("model: a/b", "task: text-classification", "data: {train: x.csv}", "method: lora", "train:")
    ),
    *(f"{line}\n".encode() for line in ("<<: *a", "---", "...", "%YAML 1.2", "|", ">", "phases: [{method: lora}, {method: full}]")),
    *b"  epochs: |- |: |&a |*a|!!python/name:os.system |!x |? |[|]|{|}|, |'|\"|# |  |\t|1|1e999|0x|.nan|~".split(b"|"),
    *(b"\n", b"${train.epochs}", b"expect: {accuracy: '>= 0.5'}\n", b"\xef\xbb\xbf", b"\xc2\x85", b"\xe2\x80\xa8"),
]
"""Pieces of recipes and of YAML, to be put together at random."""

# --- data --------------------------------------------------------------------------------------------------------------

ROW = {
    "text": "w1 w2",
    "label": "calm",
    "text_pair": None,
    "tokens": ["a", "b"],
    "tags": ["O", "B-X"],
    "question": "who",
    "context": "a b",
}
cells = st.one_of(st.sampled_from(["w1 w2", "calm", 1, 2.5, None, True, ["a"], {"a": 1}]), values)
table_rows = st.lists(st.dictionaries(st.one_of(st.sampled_from(list(ROW)), texts), cells, max_size=4), max_size=6)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", errors="surrogatepass")


def _columns(rows: list[dict[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        try:
            columns[name.encode("utf-8", errors="replace").decode()] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
            columns[name.encode("utf-8", errors="replace").decode()] = pa.array([repr(row.get(name)) for row in rows])
    return pa.table(columns)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    try:
        pq.write_table(_columns(rows), sink)
    except (pa.ArrowException, NotImplementedError):
        pq.write_table(pa.table({"text": ["a"], "label": ["b"]}), sink)
    return sink.getvalue()


def _arrow(rows: list[dict[str, Any]]) -> bytes:
    sink, table = io.BytesIO(), _columns(rows)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _csv(rows: list[dict[str, Any]], delimiter: str) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    quoted = [[str(name) for name in names], *([str(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(delimiter.join(f'"{cell}"' if delimiter in cell or '"' in cell else cell for cell in line) for line in quoted)


def _conll(rows: list[dict[str, Any]]) -> bytes:
    lines = [f"{key} {value}" for row in rows for key, value in row.items()]
    return "\n".join(lines).encode("utf-8", errors="surrogatepass")


def _squad(rows: list[dict[str, Any]]) -> bytes:
    answers = [{"text": "a", "answer_start": 0}]
    questions = [{"id": str(number), "question": "who", "answers": answers, **row} for number, row in enumerate(rows)]
    return _json({"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": "a b c", "qas": questions}]}]})


def _encoded(text: str, encoding: str = "utf-8") -> bytes:
    return text.encode(encoding, errors="replace")


# --- adapters, runs, models --------------------------------------------------------------------------------------------

LORA = {
    "peft_type": "LORA", "base_model_name_or_path": "a/b", "r": 2, "lora_alpha": 4, "target_modules": ["query"], "task_type": "SEQ_CLS",
    "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}, "fan_in_fan_out": False, "modules_to_save": None, "use_dora": False,
}  # fmt: skip
BOTTLENECK = {"peft_type": "ADAPTER", "placement": "pfeiffer", "bottleneck": 2, "reduction_factor": None, "activation": "relu",
              "layer_norm": "none", "scaling": 1.0, "dropout": 0.0, "init": "bert"}  # fmt: skip
HUB = {
    "name": "x", "model_name": "/nonexistent", "model_type": "bert", "version": "adapters.1.0.0",
    "config": {"mh_adapter": False, "output_adapter": True, "non_linearity": "relu", "original_ln_before": True, "reduction_factor": 2},
}  # fmt: skip
PLAN = {"model": "a/b", "task": "text-classification", "data": {"train": "x.csv"}, "method": "lora"}
RESULTS = {"status": "completed", "weights": "checkpoints/best-00000001", "parameters": {"trainable": 1, "total": 2}, "splits": {},
           "folder": "/x"}  # fmt: skip
LOCK = {"model_files": {"config.json": "x"}, "training": {"recipe": PLAN, "folder": "/x", "data": {}}}
LEARNED = {"name": "text-classification", "state": {"labels": ["a", "b"]}, "calibration": {}}
MANIFEST = {
    "step": 1,
    "files": {"state.json": {"bytes": 2, "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}},
}
CONFIG = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "architectures": ["BertModel"], "max_position_embeddings": 64,
          "depths": None, "embed_dim": None, "vocab_size": 9, "is_encoder_decoder": False, "text_config": None}  # fmt: skip

TOKENIZER = {"tokenizer_class": "X", "auto_map": None}


@st.composite
def changed(draw: Any, sound: Mapping[str, Any]) -> bytes:
    """A JSON object with some entries changed, or something else."""
    value = dict(sound)
    for _ in range(draw(st.integers(0, 3))):
        holder: Any = value
        name = draw(st.one_of(st.sampled_from(list(sound)), texts))
        if isinstance(value.get(name), dict) and value[name] and draw(st.booleans()):
            holder = value[name] = dict(value[name])
            name = draw(st.sampled_from(list(holder)))
        holder[name] = draw(values)
    found = draw(st.one_of(st.just(value), st.just(value), st.just(value), values))
    return _json(found)


@st.composite
def safetensors(draw: Any) -> bytes:
    """A file of a few tensors whose header may lie."""
    names = [f"base_model.model.bert.encoder.layer.0.attention.self.query.lora_{part}.weight" for part in "AB"]
    shapes = [[2, 16], [16, 2]]
    header: dict[str, Any] = {}
    start = 0
    for name, shape in zip(names, shapes, strict=True):
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + 128]}
        start += 128
    for name in draw(st.lists(st.sampled_from(names), max_size=2)):
        entry = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        options = {"dtype": st.sampled_from(["F16", "I8", "F8_E4M3", "BOOL", 5]), "shape": values, "data_offsets": values}
        header[name] = {**header[name], entry: draw(options[entry])}
    text = _json(header)
    length = draw(st.one_of(st.just(len(text)), st.just(len(text)), st.integers(0, 2**64 - 1)))
    return struct.pack("<Q", length) + text + bytes(start)


@st.composite
def ggufs(draw: Any) -> bytes:
    """A GGUF header."""
    entries = {"general.architecture": (8, "llama"), "llama.embedding_length": (4, 16), "llama.block_count": (4, 2)}
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, draw(st.sampled_from([3, 3, 3, 2, 4, 2**63])))
    for name, (kind, value) in entries.items():
        data += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind)
        data += struct.pack("<Q", len(str(value))) + str(value).encode() if kind == 8 else struct.pack("<I", int(value))
    return data


def joined(*parts: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    """Several files as one input."""
    return st.tuples(*parts).map(SEPARATOR.join)


PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


def strategies() -> dict[str, SearchStrategy[bytes]]:
    """The inputs of each target."""
    sound: dict[str, SearchStrategy[bytes]] = {
        "recipe": st.one_of(recipes(), recipes(), st.lists(st.sampled_from(TOKENS), max_size=30).map(b"".join)),
        "csv": table_rows.map(lambda rows: _encoded(_csv(rows, ","))),
        "tsv": table_rows.map(lambda rows: _encoded(_csv(rows, "\t"), "latin-1")),
        "jsonl": table_rows.map(lambda rows: b"\n".join(map(_json, rows))),
        "gzip": table_rows.map(lambda rows: b"\n".join(map(_json, rows))),
        "json": table_rows.map(_json),
        "squad": table_rows.map(_squad),
        "conll": table_rows.map(_conll),
        "text": st.text(max_size=200).map(_encoded),
        "utf-16": table_rows.map(lambda rows: _encoded(_csv(rows, ","), "utf-16")),
        "parquet": table_rows.map(_parquet),
        "arrow": table_rows.map(_arrow),
        "image": st.just(PIXEL),
        "adapter": joined(st.one_of(changed(LORA), changed(LORA), changed(BOTTLENECK), changed(HUB)), mutated(safetensors(), 2)),
        "run": joined(*(changed(part) for part in (PLAN, RESULTS, LOCK, LEARNED, MANIFEST))),
        "model": joined(changed(CONFIG), changed(TOKENIZER), changed({"weight_map": {"a": "part.safetensors"}})),
        "gguf": ggufs(),
    }
    few = {"adapter", "run", "model", "recipe"}
    return {
        name: st.one_of(mutated(given, 1 if name in few else 4), given, st.binary(max_size=64)) for name, given in sound.items()
    }
