"""Messages between ftkit and its encoding processes: JSON and record batches over a pipe. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa

LENGTH_BYTES = 8


def send(stream: BinaryIO, head: dict[str, Any], batches: Sequence[pa.RecordBatch] = ()) -> None:
    """Writes one message. Raises BrokenPipeError where nobody reads any more."""
    bodies = [_serialized(batch) for batch in batches]
    text = json.dumps({**head, "\0sizes": [len(body) for body in bodies]}).encode()
    stream.write(len(text).to_bytes(LENGTH_BYTES, "big") + text)
    for body in bodies:
        stream.write(body)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], list[pa.RecordBatch]] | None:
    """Reads one message, waiting for it; None where the other side has ended, also in the middle of one."""
    if (start := _read(stream, LENGTH_BYTES)) is None or (text := _read(stream, int.from_bytes(start, "big"))) is None:
        return None
    head = json.loads(text)
    batches = []
    for size in head.pop("\0sizes"):
        if (body := _read(stream, size)) is None:
            return None
        batches.append(pa.ipc.open_stream(pa.py_buffer(body)).read_next_batch())
    return head, batches


def _serialized(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _read(stream: BinaryIO, size: int) -> bytes | None:
    data = stream.read(size)
    return data if len(data) == size else None
