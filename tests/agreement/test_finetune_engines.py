"""Every kind of model the tuning stage makes, in one vLLM engine, against transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.engines.protocol import EngineSpec
from evalcore.identity import open_checkpoint, resolve_subjects
from finetune.jobs import MixPart, TuneJob
from finetune.method import MethodSpec
from tests.agreement.engine_models import edge_batch, save_adapter, save_model
from tests.agreement.engine_processes import Child, oracle, visit

pytestmark = pytest.mark.slow

SPEC = EngineSpec(kind="vllm", dtype="float32", device="cpu", threads=2, max_length=512)
TOLERANCE = 1e-4
LORA = {"rank": 8, "learning_rate": 1e-2}
KINDS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "rslora": {**LORA, "rslora": True},
    "dora": {**LORA, "dora": True},
    "targets": {**LORA, "targets": ["q_proj", "down_proj"], "rank": 3},
    "orthogonal": {**LORA, "init": "orthogonal"},
    "full": {"kind": "full", "learning_rate": 1e-3},
}


def train_all(folder: str, base: str) -> None:
    """Trains one model of every kind (in the oracle's process)."""
    from finetune.results import TuneConfig
    from finetune.train import TuneWorker

    worker = TuneWorker(TuneConfig(threads=1, device="cpu"))
    checkpoint = open_checkpoint(base)
    for name, method in KINDS.items():
        worker.run(
            TuneJob(
                checkpoint=checkpoint,
                tuning=name,
                tasks=(MixPart("pocket_nli", 16),),
                variants=("default",),
                data_seed=0,
                seed=0,
                control=None,
                method=MethodSpec.model_validate({"steps": 6, "batch_size": 4, **method}),
                held_out=(),
                directory=str(Path(folder) / name),
            )
        )


def test_vllm_loads_what_is_trained(tmp_path: Path, children: tuple[Child, Child]) -> None:
    oracle_child, engine_child = children
    base = oracle_child.call(save_model, tmp_path / "base", "llama-untied", 1)
    tuned = tmp_path / "tuned"
    oracle_child.call(train_all, str(tuned), str(base))
    # Ranks by pattern: PEFT's own, from elsewhere.
    patterns = {
        "rank_pattern": {"q_proj": 5, "layers.1.self_attn.v_proj": 2},
        "alpha_pattern": {"v_proj": 7},
    }
    oracle_child.call(_save_patterned, tuned / "patterned", base, patterns)
    subjects = {s.label: s for s in resolve_subjects([tuned]).subjects}
    assert len(subjects) == 1 + len(KINDS) + 1
    names = [*subjects, next(iter(subjects))]  # the base again at the end
    batch = edge_batch(3)
    expected = oracle_child.call(oracle, [(s, batch, None) for s in subjects.values()])
    by_name = dict(zip(subjects, expected, strict=True))
    visits = engine_child.call(visit, SPEC, [subjects[n] for n in names], batch, None, True)
    scores = {}
    for name, (report, result, _) in zip(names, visits, strict=True):
        assert report.proven, name
        gap = np.abs(result.token_logprobs - by_name[name][0].token_logprobs).max()
        assert gap < TOLERANCE, f"{name}: {gap}"
        scores[name] = result.token_logprobs
    # The agreement means something: every kind moved the scores away from the base's.
    untuned = scores[names[0]]
    for name in names[1:-1]:
        assert np.abs(scores[name] - untuned).max() > 1e-2, name


def _save_patterned(folder: Path, base: Path, patterns: dict[str, Any]) -> Path:
    return save_adapter(folder, base, 21, targets=("q_proj", "v_proj"), **patterns)
