"""Processes that ftkit starts of itself: they run the same ftkit, and import nothing from the working folder.

`python -m` and `python -c` put the working folder before everything else, where a stray `pydantic.py` would be taken for the package.
`-P` keeps it out from Python 3.11 on only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).with_name("__init__.py")

# The first entry is empty unless PYTHONSAFEPATH is set; what PYTHONPATH and site-packages name comes as absolute paths.
_START = """
import sys
if sys.path[:1] == [""]:
    del sys.path[0]
from importlib import import_module, util
spec = util.spec_from_file_location("ftkit", sys.argv[1])
sys.modules["ftkit"] = util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["ftkit"])
import_module(sys.argv[2]).main(sys.argv[3:])
"""


def command(module: str, arguments: Sequence[str] = ()) -> list[str]:
    """What to start for `main(arguments)` of a module of ftkit in a new process.

    It imports this ftkit, wherever it lies, and all else from where PYTHONPATH and the environment's own site-packages say.
    """
    return [sys.executable, "-c", _START, str(_PACKAGE), module, *arguments]
