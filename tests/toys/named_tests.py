"""Tests that a page of the documentation names, as ``tests/.../test_x.py::test_y``."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def named_tests(page: str) -> list[tuple[str, str]]:
    """(file, function) of every test that ``docs/PAGE`` names."""
    return _NAMED.findall((ROOT / "docs" / page).read_text())


def missing_tests(page: str) -> list[str]:
    """Those of them that do not exist."""
    return [f"{file}::{name}" for file, name in named_tests(page) if name not in _functions(file)]


def rows_without_tests(page: str) -> list[str]:
    """Lines of tables of a page that name no test; heads and rules left out."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    rows = [line for i, line in enumerate(lines) if line.startswith("|") and _is_row(lines, i)]
    return [row for row in rows if not _NAMED.search(row)]


def _is_row(lines: list[str], i: int) -> bool:
    rule = set("|-: ")
    is_head = i + 1 < len(lines) and set(lines[i + 1]) <= rule and lines[i + 1].startswith("|")
    return not is_head and not set(lines[i]) <= rule


@cache
def _functions(file: str) -> frozenset[str]:
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(path.read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef))
