"""JUnit XML of a run: a test case for the run itself, and one for each gate. The form that Jenkins, GitLab and others read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from xml.etree import ElementTree

from ftkit.cli.output import clean
from ftkit.cli.summary import gate_name, gate_text

NON_CHARACTERS = {code: f"\\U{code:08x}" for plane in range(1, 17) for code in (plane * 0x10000 + 0xFFFE, plane * 0x10000 + 0xFFFF)}
"""Code points above the first plane that some XML readers refuse."""


def junit_xml(
    name: str,
    results: Mapping[str, Any] | None,
    problems: Sequence[str] = (),
    waiting: Sequence[str] = (),
    *,
    seconds: float = 0.0,
) -> str:
    """The document.

    name: of the recipe. results: content of results.json, None if the run failed. problems: then, why. waiting: then, names of gates
    that nothing was measured for. seconds: that it took, where the results do not say.
    """
    given = results or {}
    seconds = (given.get("seconds") or {}).get("this_process") or seconds
    gates = given.get("gates") or ()
    failed, count = sum(not gate["passed"] for gate in gates), 1 + len(gates) + len(waiting)
    totals: dict[str, Any] = {
        "tests": count,
        "failures": failed,
        "errors": int(bool(problems)),
        "skipped": len(waiting),
        "time": f"{seconds:.3f}",
    }
    root = _element(None, "testsuites", **totals)
    suite = _element(root, "testsuite", name=f"ftkit {name}", timestamp=given.get("started") or _now(), **totals)
    run = _case(suite, name, "run", seconds)
    if problems:
        _element(run, "error", "\n".join(problems), message=problems[0], type="error")
    elif given.get("folder"):
        _element(run, "system-out", str(given["folder"]))
    for gate in gates:
        case = _case(suite, name, f"expect.{gate_name(gate)} {gate['expected']}")
        if gate["passed"]:
            _element(case, "system-out", gate_text(gate))
        else:
            _element(case, "failure", gate_text(gate), message=gate_text(gate), type="gate")
    for gate_key in waiting:
        _element(_case(suite, name, f"expect.{gate_key}"), "skipped", message="the run did not get there")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _now() -> str:
    """Of a report on measurements without a time of their own; readers refuse an empty one."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _case(suite: ElementTree.Element, recipe: str, name: str, seconds: float = 0.0) -> ElementTree.Element:
    return _element(suite, "testcase", classname=f"ftkit.{recipe}", name=name, time=f"{seconds:.3f}")


def _element(parent: ElementTree.Element | None, tag: str, text: str = "", **attributes: object) -> ElementTree.Element:
    """An element in which every character is one that XML 1.0 allows."""
    safe = {key: _safe(value) for key, value in attributes.items()}
    element = ElementTree.Element(tag, safe) if parent is None else ElementTree.SubElement(parent, tag, safe)
    element.text = _safe(text) or None
    return element


def _safe(text: object) -> str:
    return clean(text).translate(NON_CHARACTERS)
