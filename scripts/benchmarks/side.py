"""One measurement in a process of its own: `python side.py REQUEST.json RESULT.json`; `sides/measure.py` says which kinds there are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sides.measure import KINDS

from ftkit.errors import FtkitError
from ftkit.models.quiet import quiet_libraries


def main(request_file: str, result_file: str) -> None:
    """Carries out the request in one JSON file and writes the result to another."""
    quiet_libraries()
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    try:
        result = KINDS[request["side"]](request)
    except FtkitError as error:
        sys.exit(str(error))
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
