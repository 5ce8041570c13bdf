"""Families whose files hold weights in another order than vLLM: proven and scored as by hf."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.engines.protocol import EngineSpec
from evalcore.types import ScoreBatch, Subject
from tests.agreement.engine_models import (
    VOCAB,
    random_batch,
    save_adapter,
    save_tokenizer,
    subject,
)
from tests.agreement.engine_processes import (
    Child,
    assert_agrees,
    import_peft,
    import_vllm,
    oracle,
    visit,
)

pytestmark = pytest.mark.proof
SPEC = EngineSpec(device="cpu", threads=2, max_length=256)
TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "gpt2-bare": ("c_attn",),
    "bloom": ("query_key_value", "dense"),
    "falcon": ("query_key_value",),
    "falcon-groups": ("query_key_value", "dense_h_to_4h"),
    "gptj": ("q_proj", "fc_in"),
}


@pytest.fixture(scope="module")
def children() -> Iterator[tuple[Child, Child]]:
    """The oracle's process and the engine's."""
    pair = Child(import_peft), Child(import_vllm)
    yield pair
    for child in pair:
        child.close()


def config_of(family: str) -> Any:
    import transformers as t

    common = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1}
    small = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512}
    falcon = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 128,
        "bias": False,
        "alibi": False,
    }
    if family.startswith("gpt2"):
        return t.GPT2Config(**common, **small)
    if family == "gptj":
        return t.GPTJConfig(**common, **small, rotary_dim=16)
    if family == "bloom":
        return t.BloomConfig(**common, hidden_size=64, n_layer=2, n_head=2)
    groups = {"new_decoder_architecture": True, "num_kv_heads": 2}
    own = groups if family == "falcon-groups" else {"multi_query": True, "parallel_attn": True}
    return t.FalconConfig(**common, **falcon, **own)


def make(folder: str, family: str, batch: ScoreBatch) -> tuple[dict[str, Subject], dict[str, Any]]:
    """Two checkpoints, each with an adapter, and what the oracle says of them."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    subjects = {}
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config_of(family)).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.08)
        base = Path(folder) / f"step-{seed}"
        model.save_pretrained(base)
        if family == "gpt2-bare":  # as OpenAI's own file on the Hub names its tensors
            file = base / "model.safetensors"
            bare = {k.removeprefix("transformer."): v for k, v in load_file(file).items()}
            save_file(bare, file, metadata={"format": "pt"})
        save_tokenizer(base)
        tuned = save_adapter(Path(folder) / f"tuned-{seed}", base, seed, targets=TARGETS[family])
        subjects |= {f"base {seed}": subject(base), f"tuned {seed}": subject(base, tuned)}
    answers = oracle([(who, batch, None) for who in subjects.values()])
    return subjects, dict(zip(subjects, answers, strict=True))


@pytest.mark.parametrize("family", TARGETS)
def test_families(children: tuple[Child, Child], tmp_path: Path, family: str) -> None:
    batch = random_batch(3, 12, max_context=60)
    subjects, expected = children[0].call(make, str(tmp_path), family, batch)
    order = ["base 1", "base 2", "tuned 1", "base 1", "tuned 2"]
    visits = children[1].call(visit, SPEC, [subjects[n] for n in order], batch, None, True)
    for name, (report, scores, _) in zip(order, visits, strict=True):
        assert report.proven_share == 1.0, report.details
        if family != "bloom":
            assert_agrees(scores, expected[name], batch)
        # vLLM computes BLOOM with the exact GELU, transformers with its approximation by tanh.
        gap = np.abs(scores.token_logprobs - expected[name][0].token_logprobs)
        assert gap.max() < 1e-3
    kinds = [report.kind for report, *_ in visits]
    assert kinds.count("start") == 1, "one engine serves them all"
