"""Processes that the tests of the engines share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agreement.engine_processes import Child, import_peft, import_vllm, stop_engines


def _pair() -> Iterator[tuple[Child, Child]]:
    pair = Child(import_peft), Child(import_vllm)
    yield pair
    for child in pair:
        child.close()


@pytest.fixture(scope="session")
def two_processes() -> Iterator[tuple[Child, Child]]:
    """The oracle's process and the engine's: importing takes longer than most tests."""
    yield from _pair()


@pytest.fixture(scope="module")
def own_pair() -> Iterator[tuple[Child, Child]]:
    """The same, of a module's own: what it does to them nobody else should meet."""
    yield from _pair()


@pytest.fixture(scope="module")
def children(two_processes: tuple[Child, Child]) -> Iterator[tuple[Child, Child]]:
    """The oracle's process and the engine's; each module starts without an engine."""
    yield two_processes
    two_processes[1].call(stop_engines)
