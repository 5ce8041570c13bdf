"""The faults of test_mutations by name, and what becomes of one; runs in the engine's process."""

from __future__ import annotations

from typing import Any

import numpy as np

from evalcore.engines.protocol import EngineSpec, LoadReport
from evalcore.errors import EvalcoreError
from evalcore.types import ScoreBatch, Subject
from tests.agreement import mutations as m
from tests.agreement.engine_processes import running
from tests.agreement.mutations import Fault, Scene

_Q0, _DOWN = "layers.0.self_attn.q_proj.weight", "layers.1.mlp.down_proj.weight"

FAULTS: dict[str, Fault] = {
    # what vLLM's loader gets
    "a layer kept": Fault("ProofError", m.kept("layers.1."), quick=True),
    "layers exchanged": Fault("ProofError", m.exchanged("layers.0.", "layers.1.")),
    "a shard of a fused layer skipped": Fault("ProofError", m.skipped("0.self_attn.k_proj")),
    "a whole layer skipped": Fault("ProofError", m.skipped("layers.2.")),
    "keys and values exchanged": Fault("ProofError", m.exchanged("k_proj", "v_proj"), quick=True),
    "gate and up exchanged": Fault("ProofError", m.exchanged("gate_proj", "up_proj")),
    "rows of one matrix exchanged": Fault(
        "ProofError", m.tensor(_Q0, m.at([1, 2], lambda v: v.flip(0)))
    ),
    "columns of one matrix exchanged": Fault(
        "ProofError", m.tensor(_DOWN, m.at((slice(None), [4, 5]), lambda v: v.flip(1)))
    ),
    "one row's sign": Fault("ProofError", m.tensor(_DOWN, m.at(7, lambda v: -v))),
    "one number of one matrix": Fault(
        "ProofError", m.tensor(_DOWN, m.at((7, 9), lambda v: v + 0.1))
    ),
    "a matrix one part in a thousand too large": Fault(
        "ProofError", m.tensor(_Q0, lambda v: v * 1.001)
    ),
    "a matrix rounded to bfloat16": Fault("ProofError", m.tensor(_Q0, m.rounded)),
    "last bit of a number": Fault("", m.tensor(_Q0, m.at(3, m.last_bit))),
    "a norm spoiled": Fault(
        "ProofError", m.tensor("1.input_layernorm", m.at(5, lambda v: v * 1.0001)), quick=True
    ),
    "last bit of a norm": Fault("ProofError", m.tensor("model.norm", m.last_bit)),
    "norms exchanged": Fault(
        "ProofError", m.exchanged("input_layernorm", "post_attention_layernorm")
    ),
    "embeddings kept": Fault("ProofError", m.kept("embed_tokens")),
    "embeddings off by a row": Fault(
        "ProofError", m.tensor("embed_tokens", lambda v: v.roll(1, 0))
    ),
    "last bits of one embedding": Fault(
        "ProofError", m.tensor("embed_tokens", m.at(3, m.last_bit))
    ),
    "head kept": Fault("ProofError", m.kept("lm_head")),
    "head and embeddings exchanged": Fault(
        "ProofError", m.exchanged("lm_head", "model.embed_tokens")
    ),
    "last row of a padded head": Fault(
        "ProofError", m.tensor("lm_head", m.at(-1, lambda v: v * 0)), model="llama-padded"
    ),
    "last row of padded embeddings": Fault(
        "ProofError", m.tensor("embed_tokens", m.at(-1, lambda v: v * 0)), model="llama-padded"
    ),
    "tensors in another order": Fault("", m.streamed(m.reordered)),
    # what the model holds after the load
    "stale head (tied)": Fault("ProofError", m.heads_left, model="llama-tied"),
    "tied embeddings kept": Fault("ProofError", m.kept("embed_tokens"), model="llama-tied"),
    "rotary table spoiled": Fault("ProofError", m.afterwards(m.rotary), lasting=True),
    "a norm cleared": Fault("ProofError", m.afterwards(m.nothing_in("model.norm"))),
    "a bias dropped": Fault(
        "ProofError", m.afterwards(m.nothing_in("1.self_attn.qkv_proj.bias")), model="qwen-tied"
    ),
    "biases exchanged": Fault(
        "ProofError", m.exchanged("k_proj.bias", "v_proj.bias"), model="qwen-tied"
    ),
    "experts exchanged": Fault(
        "ProofError", m.exchanged("0.mlp.experts.1.", "0.mlp.experts.2."), model="olmoe-untied"
    ),
    "an expert's matrices exchanged": Fault(
        "ProofError", m.exchanged("experts.3.gate_proj", "experts.3.up_proj"), model="olmoe-untied"
    ),
    "an expert kept": Fault("ProofError", m.kept("1.mlp.experts.3."), model="olmoe-untied"),
    "experts not repacked": Fault("ProofError", m.experts_not_repacked, model="olmoe-untied"),
    "a router kept": Fault("ProofError", m.kept("1.mlp.gate."), model="olmoe-untied"),
    "a square Conv1D not turned": Fault(
        "ProofError", m.tensor("0.attn.c_proj.weight", lambda v: v.T.contiguous()), model="gpt2"
    ),
    # merges
    "scaled twice": Fault(
        "ProofError", m.merge(lambda w, t: 2 * t - w), target="tuned 1", quick=True
    ),
    "delta dropped": Fault("ProofError", m.merge(lambda w, t: w), target="tuned 1"),
    "delta's sign": Fault("ProofError", m.merge(lambda w, t: 2 * w - t), target="tuned 1"),
    "delta cast early": Fault(
        "ProofError", m.merge(lambda w, t: w + m.rounded(t - w)), target="tuned 1"
    ),
    "delta of one row dropped": Fault(
        "ProofError", m.merge(lambda w, t: m.at(3, lambda v: w[3])(t)), target="tuned 1"
    ),
    "another adapter": Fault("ProofError", m.another_adapter, target="tuned 1"),
    "DoRA's magnitude skipped": Fault(
        "ProofError", m.without_part("lora_magnitude_vector"), target="dora 1"
    ),
    # files and ranks
    "other bytes of a checkpoint": Fault(
        "NodeError", m.file_changed("model.safetensors"), quick=True
    ),
    "other bytes of an adapter": Fault(
        "NodeError", m.file_changed("adapter_model.safetensors", adapter=True), target="tuned 1"
    ),
    "a checkpoint written while it is read": Fault(
        "NodeError", m.file_changed("model.safetensors", during=True)
    ),
    "an adapter written while it is read": Fault(
        "NodeError",
        m.file_changed("adapter_model.safetensors", adapter=True, during=True),
        target="tuned 1",
    ),
    "a configuration written while it is read": Fault(
        "NodeError", m.file_changed("config.json", during=True)
    ),
    "a rank that is silent": Fault("EngineError", m.answers(lambda all: all[:-1]), quick=True),
    "caches not emptied": Fault("", m.cache_kept),
}
_SLOT: dict[str, Any] = {"target": "tuned 1"}
SLOT_FAULTS: dict[str, Fault] = {
    "slot stale": Fault("ProofError", m.slot(m.stale), **_SLOT),
    "slot's scaling twice": Fault(
        "ProofError", m.slot(m.every_layer(lambda a, b, i: b[i].mul_(2))), **_SLOT
    ),
    "slot of one layer empty": Fault(
        "ProofError", m.slot(m.one_layer(lambda a, b, i: b[i].zero_())), **_SLOT
    ),
    "one number of a slot": Fault(
        "ProofError", m.slot(m.one_layer(lambda a, b, i: a[i, 0, 2, 5].add_(1e-6))), **_SLOT
    ),
    "rows of a slot beyond its rank": Fault(
        "ProofError", m.slot(m.one_layer(lambda a, b, i: a[i, 0, 7].fill_(1))), **_SLOT
    ),
}


# -- what happens ----------------------------------------------------------------------------------


def attempt(
    spec: EngineSpec, what: str, subjects: dict[str, Subject], batch: ScoreBatch
) -> tuple[str, str, Any, Any]:
    """(class of the error, its message, scores with the fault, scores of the next honest load)."""
    engine: Any = running(spec)
    fault = {**FAULTS, **SLOT_FAULTS}[what]
    before, target = subjects["base 2"], subjects[fault.target]
    engine.load(subjects["base 1"])  # its canaries are known
    engine.load(before)
    scene = Scene(engine, before, target)
    name = message = ""
    scores = None
    try:
        with fault.context(scene):
            details: dict[str, str] = {}
            if spec.adapters == "batched":
                engine._bring(Subject(target.checkpoint), engine._shape, details)
                engine._attach(target, details)
                engine._compare(target, True, details)
            else:
                engine._swap(target, details)
                engine._compare(target, False, details)
        engine._in_place, engine._report = target, engine_report(target)
        scores = engine.score(batch).token_logprobs
    except EvalcoreError as error:
        name, message = type(error).__name__, str(error)
    engine._in_place = engine._weights = None
    if fault.lasting:
        engine._stop()
    try:
        engine.load(target)
    except EvalcoreError as error:
        return name, f"the next load is refused: {error}", scores, np.inf
    return name, message, scores, engine.score(batch).token_logprobs


def engine_report(target: Subject) -> Any:
    """A report for a subject that was put in place by hand."""
    return LoadReport("swap", 0.0, 0.0, True, {}, proven_share=1.0)
