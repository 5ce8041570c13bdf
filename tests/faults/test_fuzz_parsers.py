"""Fuzzing of every parser: no traceback, no hang, no more than a gigabyte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evalcore.store import ResultStore
from tests.faults.fuzz_parsers import FUZZERS, MAX_RESIDENT_BYTES
from tests.toys.stored import make_cell, make_row

QUICK_S = 1.0
LONG_S = float(os.environ.get("EVALCORE_FUZZ_SECONDS", "60"))
SEED = os.environ.get("EVALCORE_FUZZ_SEED", "0")
# Damage there is told as a warning: what is whole is read.
MARKED = ("cells", "segments")
# These have a fuzzer beside their own tests.
ELSEWHERE = ("task", "prompt")


@pytest.fixture
def good(tmp_path: Path, make_checkpoint, make_adapter) -> Path:  # type: ignore[no-untyped-def]
    """A folder with a model, an adapter of it, and results."""
    folder = tmp_path / "good"
    make_checkpoint(folder / "model")
    make_adapter(folder / "adapter", folder / "model")
    store = ResultStore(folder / "results")
    store.write_cells([make_cell(name) for name in ("a", "b")])
    with store.open_writer("worker") as writer:
        for name in ("a", "b"):
            writer.add([make_row(name, f"{number:032x}") for number in range(40)])
    return folder


def run(good: Path, seconds: float, seed: str, *names: str) -> dict[str, tuple[int, int]]:
    script = Path(__file__).with_name("fuzz_parsers.py")
    done = subprocess.run(
        [sys.executable, str(script), str(good), str(seconds), seed, *names],
        capture_output=True,
        text=True,
        timeout=60 + 120 * len(names) + 2 * seconds * len(names),
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "EVALCORE_CACHE": str(good.parent / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    assert [name for name, *_ in found] == list(names)
    for name, cases, refused, resident in found:
        assert resident <= MAX_RESIDENT_BYTES, (name, resident)
        assert cases >= 10, name
        assert refused > 0 or name in MARKED, name
    return {name: (cases, refused) for name, cases, refused, _ in found}


@pytest.mark.slow
def test_every_parser_for_a_second(good: Path) -> None:
    run(good, QUICK_S, SEED, *(name for name in FUZZERS if name not in ELSEWHERE))


@pytest.mark.proof
@pytest.mark.parametrize("name", FUZZERS)
def test_a_parser_for_a_minute(good: Path, name: str) -> None:
    print(run(good, LONG_S, SEED, name))
