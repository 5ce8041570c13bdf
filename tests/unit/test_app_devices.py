"""Which GPU a scoring worker sees."""

from __future__ import annotations

import pytest

from evalcore.app.devices import visible_gpus
from evalcore.app.score import worker_env
from evalcore.engines.protocol import EngineSpec


@pytest.mark.parametrize(
    ("parallel", "worker", "expected"), [(1, 0, "0"), (1, 3, "3"), (2, 1, "2,3"), (1, 4, "0")]
)
def test_each_local_worker_has_its_own_gpus(parallel: int, worker: int, expected: str) -> None:
    spec = EngineSpec(tensor_parallel=parallel, threads=2)
    env = worker_env(spec, ("0", "1", "2", "3"), worker)
    assert env["CUDA_VISIBLE_DEVICES"] == expected
    assert env["OMP_NUM_THREADS"] == "2"


def test_without_gpus_nothing_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CUDA_VISIBLE_DEVICES" not in worker_env(EngineSpec(), (), 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert visible_gpus() == []
