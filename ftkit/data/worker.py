"""An encoding process, started by `ftkit.data.pool`, which it talks to over its pipes.

It is a fresh process and no fork: a fork of a process with threads (those of the tokenizer, of torch) can hang for ever.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from ftkit.data.encoding import encode_chunk
from ftkit.data.messages import receive, send
from ftkit.data.pool import place_mark
from ftkit.data.table import Table
from ftkit.errors import FtkitError
from ftkit.models.processor import processor_key
from ftkit.models.quiet import quiet_libraries
from ftkit.registry import TASKS, load_plugin
from ftkit.tasks.base import Task
from ftkit.tasks.parts.sources import with_sources


def main(arguments: Sequence[str] = ()) -> None:
    """Answers until nobody asks any more. arguments: none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        _serve(sys.stdin.buffer, answers)
    except BrokenPipeError:
        # Whoever started this process has ended.
        os._exit(1)


def _serve(questions: BinaryIO, answers: BinaryIO) -> None:
    if (beginning := receive(questions)) is None:
        return
    job = beginning[0]
    try:
        task, processor = _prepared(job)
    except Exception as error:
        send(answers, {"refused": f"{type(error).__name__}: {error}"})
        return
    send(answers, {"refused": ""})
    while (question := receive(questions)) is not None:
        head, batches = question
        send(answers, *_answer(task, processor, Table.unpacked(head["rows"], batches), head["start"], training=job["training"]))


def _prepared(job: dict[str, Any]) -> tuple[Task, Any]:
    """The task and the processor that were asked for. Raises an error if they cannot be had in this process."""
    quiet_libraries()
    for path in job["plugins"]:
        load_plugin(Path(path))
    cls = with_sources(TASKS.get(job["task"]), job["source_column"])
    task = cls(cls.Options.model_validate_json(job["options"]))
    task.restore(job["state"])
    if task.options.model_dump_json() != job["options"] or json.loads(json.dumps(task.state())) != job["state"]:
        raise ValueError(f"the task {task.name} does not come back from its options and state")
    return task, None if job["processor"] is None else _loaded(job["processor"])


def _loaded(wanted: dict[str, str]) -> Any:
    """The processor that was saved, by its own class: to find that out, AutoTokenizer would import torch."""
    cls = getattr(importlib.import_module(wanted["module"]), wanted["class"])
    processor = cls.from_pretrained(wanted["folder"], local_files_only=True)
    if processor_key(processor) != wanted["key"]:
        raise ValueError(f"{cls.__name__} does not come back from its files")
    return processor


def _answer(task: Task, processor: Any, table: Table, start: int, *, training: bool) -> tuple[dict[str, Any], list[pa.RecordBatch]]:
    """The features of rows, or what went wrong with them."""
    try:
        rows = list(table)
        batch = encode_chunk(task, rows, processor, start=start, training=training, place=place_mark)
        return {}, [] if batch is None else [batch]
    except FtkitError as error:
        return {"error": type(error).__name__, "problems": [problem.to_json() for problem in error.problems]}, []
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error), "traceback": traceback.format_exc()}, []
