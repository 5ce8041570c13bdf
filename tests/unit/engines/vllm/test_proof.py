"""Traces and their limits, on tensors; every rank's word; places of a rank's part."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from evalcore.engines.vllm.places import Atlas, Dropped
from evalcore.engines.vllm.proof import Traces, Verdict
from evalcore.engines.vllm.traces import TOLERANCE, excess, is_finite, probe, row_sums
from evalcore.engines.vllm.worker import call, call_all
from evalcore.errors import EngineError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_row_sums_see_one_bit_and_the_row_it_is_in(dtype: str) -> None:
    weight = torch.randn(50, 33).to(getattr(torch, dtype))
    changed = weight.clone()
    bits = changed.view(torch.int32 if dtype == "float32" else torch.int16)
    bits[17, 4] ^= 1
    assert torch.nonzero(row_sums(weight) != row_sums(changed)).tolist() == [[17]]
    swapped = weight[:, torch.randperm(33)]
    assert (row_sums(weight) != row_sums(swapped)).any()
    assert torch.equal(row_sums(weight)[10:20], row_sums(weight[10:20])), "a rank's rows"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_is_no_error_and_an_early_adapter_is_one(dtype: str) -> None:
    kind = getattr(torch, dtype)
    torch.manual_seed(1)
    weight = (torch.randn(256, 512) * 0.02).to(kind).float()
    x = probe(512, kind, "cpu").float()
    wanted = x @ weight.T
    assert excess(wanted.to(kind), wanted, kind) <= TOLERANCE[dtype]
    delta = torch.randn(256, 512)
    delta *= 1.4e-3 * weight.norm() / delta.norm()  # what one step of a LoRA changes
    assert excess((x @ (weight + delta).T).to(kind), wanted, kind) > TOLERANCE[dtype]
    assert excess(wanted.to(kind) * float("nan"), wanted, kind) == float("inf")


def test_numbers_that_are_none_are_seen() -> None:
    big = torch.full((4,), 3e38)
    assert is_finite(big), "the sum overflows, the numbers do not"
    big[2] = float("nan")
    assert not is_finite(big)


class Ranks:
    """Answers of several workers, as vLLM gives them."""

    def __init__(self, *answers: Any, size: int = 0) -> None:
        self._answers = [pickle.dumps(answer) for answer in answers]
        parallel = SimpleNamespace(world_size=size or len(answers))
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel))

    def collective_rpc(self, name: str, args: Any) -> list[bytes]:
        return self._answers


def test_every_rank_is_heard() -> None:
    ranks: Any = Ranks
    assert call_all(ranks((None, 1), (None, 2)), "x") == [1, 2]
    with pytest.raises(EngineError, match=r"half way \(rank 1\)"):
        call(ranks((None, 1), (EngineError("half way"), None)), "x")
    with pytest.raises(EngineError, match="1 of 2 ranks"):
        call(ranks((None, 1), size=2), "x")


def test_verdicts_hold_for_all_ranks() -> None:
    good = Verdict(proven={"a", "b"}, share=1.0)
    bad = Verdict(proven={"a"}, wrong={"b": 0.5}, share=0.4)
    both = Verdict.of_ranks([good, bad])
    assert both.proven == {"a"}
    assert both.share == 0.4
    assert list(both.wrong) == ["b (rank 1)"]


def test_a_bias_that_vllm_passes_over_is_wrong() -> None:
    """Gemma's with attention_bias: 0.6 nats off, all parameters proven."""

    class Nowhere:
        def as_held(self, name: str, tensor: Any) -> Any:
            return tensor

        def find(self, name: str, shape: tuple[int, ...]) -> list[Any]:
            raise Dropped("QKVParallelLinear has no bias")

    traces = object.__new__(Traces)
    traces._atlas, traces.verdict, traces._lost = Nowhere(), Verdict(), 0  # type: ignore[assignment]
    traces.add("layers.0.q_proj.bias", torch.zeros(4))
    assert not traces.verdict.wrong
    traces.add("layers.0.q_proj.bias", torch.tensor([0.0, 0.1]))
    assert set(traces.verdict.wrong) == {"layers.0.q_proj.bias"}


def test_experts_matrices_are_not_taken_for_a_dense_layers() -> None:
    """GLM-4's code fuses gate and up projections of dense layers; experts have their own way."""

    class Model:
        packed_modules_mapping: ClassVar = {"gate_up_proj": ["gate_proj", "up_proj"]}

        def named_modules(self) -> list[tuple[str, Any]]:
            own = SimpleNamespace(w13_weight=None, layer_name="layers.1.mlp.experts")
            return [("layers.1.mlp.experts", own)]

    atlas = Atlas(Model(), {}, tied=False)
    experts = "layers.1.mlp.experts.0.up_proj.weight"
    assert atlas._map(experts) == (experts, None)
    fused = "layers.0.mlp.gate_up_proj.weight"
    assert atlas._map("layers.0.mlp.up_proj.weight") == (fused, 1)
    shared = "layers.1.mlp.shared_experts.gate_proj.weight"
    assert atlas._map(shared) == ("layers.1.mlp.shared_experts.gate_up_proj.weight", 0)
