"""Adapters as people have them: scored as PEFT scores them, or refused with the reason.

The small fixed part runs here; ``make proofs-matrix`` (``bench/matrix.py``) runs every case on
every base and way, and every architecture.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.matrix import NAMES, judge
from evalcore.identity import Applied
from tests.agreement.engine_processes import Child, import_peft, import_vllm
from tests.agreement.wild_making import case_of
from tests.agreement.wild_visits import visit_cases

TOLERANCE = 2e-5  # the promise is 1e-4
# What stands for each kind of fault that was once scored without a word.
SAMPLE: dict[Applied, tuple[str, ...]] = {
    "unmerged": (
        "key_noprefix", "key_vl_patterns", "layer_lost", "resized_tied", "tied_saved_both",
        "pissa_fast", "kasa", "tokens_more",
    ),
    "merged": (
        "fan_true_linear", "key_compiled", "tokens_tied", "gpt2_fan_false", "target_regex_lost",
        "all_linear_lost", "tokens_beyond", "tied_saved_unchanged", "init_unknown",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def children() -> Iterator[dict[str, Child]]:
    """A process for PEFT and one for vLLM."""
    pair = {"unmerged": Child(import_peft), "merged": Child(import_vllm)}
    yield pair
    for child in pair.values():
        child.close()


@pytest.mark.slow
def test_sample(children: dict[str, Child], tmp_path: Path) -> None:
    names = sorted({name for own in SAMPLE.values() for name in own})
    subprocess.run(
        [sys.executable, "-m", "tests.agreement.wild_making", str(tmp_path), *names],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
    )
    for way, own in SAMPLE.items():
        found = children[way].call(visit_cases, tmp_path, way, own)
        assert set(found) == set(own)
        for name, one in found.items():
            cell = f"adapter/{name}@{case_of(name).base}/{NAMES[way]}"
            assert judge(cell, one) == "", f"{cell}: {one}"
            assert one.error is None or one.error < TOLERANCE
