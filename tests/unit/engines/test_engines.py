"""Parts of the engines that need no engine: ends of generations, canaries, choice of an engine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from evalcore.engines import create_engine
from evalcore.engines.canary import CanaryBook, canary_batch
from evalcore.engines.protocol import EngineSpec, numeric_variables, numerics_class
from evalcore.engines.text import finish
from evalcore.engines.vllm.environment import engine_arguments, openmp_settings
from evalcore.errors import InputError, ProofError, SubjectError
from evalcore.identity import end_token_ids
from evalcore.types import Adapter, Checkpoint, GenerationSettings, Subject


class Letters:
    """A tokenizer of one character per id; 0 is the end token."""

    eos_token_id = 0

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(i) for i in ids if i)


def ids(text: str) -> list[int]:
    return [ord(c) if c != "$" else 0 for c in text]


@pytest.mark.parametrize(
    ("tokens", "stops", "text", "count", "reason"),
    [
        ("yes\nno", ("\n",), "yes", 4, "stop"),
        ("yes$no", ("\n",), "yes", 4, "stop"),
        ("yes$n\n", ("\n",), "yes", 4, "stop"),  # the end token comes first
        ("y\ns$", ("\n",), "y", 2, "stop"),  # the stop string comes first
        ("abcdefgh", (), "abcdef", 6, "length"),
        ("ab##cd", ("##", "b"), "a", 2, "stop"),
        ("ab##cd", ("##",), "ab", 4, "stop"),
        ("abcdef##", ("##",), "abcdef", 6, "length"),  # beyond max_tokens
        ("$", ("\n",), "", 1, "stop"),
        ("", ("\n",), "", 0, "length"),
    ],
)
def test_finish(tokens: str, stops: tuple[str, ...], text: str, count: int, reason: str) -> None:
    ending = finish(ids(tokens), Letters(), (0,), GenerationSettings(6, stops))
    assert (ending.text, ending.token_count, ending.finish_reason) == (text, count, reason)


def test_end_tokens_come_from_all_places(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    assert end_token_ids(tmp_path, Letters()) == (0, 7, 9)
    assert end_token_ids(tmp_path / "none", None) == ()


BASE = Subject(Checkpoint("b", "/b", "b", "t"))
TUNED = Subject(BASE.checkpoint, Adapter("a", "/a", "a", 8))
UNTRAINED = Subject(BASE.checkpoint, Adapter("z", "/z", "z", 8, untrained=True))


def test_canaries_tell_subjects_apart() -> None:
    book = CanaryBook("float32")
    one, two = np.array([-1.0, -2.0]), np.array([-1.0, -2.5])
    book.check(BASE, one)
    book.check(TUNED, two)
    book.check(BASE, one + 1e-7)
    book.check(UNTRAINED, one + 1e-7)
    with pytest.raises(ProofError, match="last visit"):
        book.check(BASE, two)


def test_canaries_catch_an_adapter_that_was_not_applied() -> None:
    book = CanaryBook("float32")
    book.check(BASE, np.array([-1.0]))
    with pytest.raises(ProofError, match="not applied"):
        book.check(TUNED, np.array([-1.0]))


def test_canaries_catch_broken_weights() -> None:
    with pytest.raises(SubjectError, match="finite"):
        CanaryBook("float32").check(BASE, np.array([np.nan]))


def test_canary_batch_is_fixed_and_within_the_vocabulary() -> None:
    first, again = canary_batch(400), canary_batch(400)
    assert (first.context_tokens == again.context_tokens).all()
    assert canary_batch(5).context_tokens.max() < 5


def test_unknown_engine_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="expected auto, vllm or hf"):
        create_engine(EngineSpec(kind="tgi"))  # type: ignore[arg-type]


def test_numerics_class_leaves_speed_out() -> None:
    one = numerics_class(EngineSpec(device="cpu", strategy="plain", max_num_seqs=8))
    assert one == numerics_class(EngineSpec(device="cpu", threads=3))
    assert one != numerics_class(EngineSpec(device="cpu", dtype="bfloat16"))


def test_openmp_threads_sleep_only_where_others_need_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evalcore.engines.vllm.environment.cores", lambda: 4)
    sleeping = {"OMP_WAIT_POLICY": "PASSIVE"}
    assert openmp_settings(4, 0) == {"OMP_NUM_THREADS": "4"}
    assert openmp_settings(4, 1) == {"OMP_NUM_THREADS": "4", **sleeping}
    assert openmp_settings(2, 2) == {"OMP_NUM_THREADS": "2"}
    assert openmp_settings(1, 9) == {"OMP_NUM_THREADS": "1"}
    assert openmp_settings(0, 0) == {}
    assert openmp_settings(0, 1) == sleeping


def test_cuda_graphs_are_left_out_where_nothing_is_generated(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "config.json").write_text("{}")
    save_file({"a": np.zeros(3, dtype=np.float32)}, tmp_path / "model.safetensors")
    for device, graphs, wanted in (
        ("cuda", False, {"cudagraph_mode": "NONE"}),
        ("cuda", True, None),
        ("cpu", False, None),
    ):
        spec = EngineSpec(device="cpu", cuda_graphs=graphs)
        found = engine_arguments(spec, str(tmp_path), device, 128)  # type: ignore[arg-type]
        assert found.get("compilation_config") == wanted


def test_log_probabilities_are_not_biased() -> None:
    """Tells when torch's own log_softmax would do, too."""
    import torch

    from evalcore.engines.hf import log_probabilities

    logits = 6 * torch.randn(64, 49152, generator=torch.Generator().manual_seed(1))
    exact = logits.double().log_softmax(-1)
    assert abs(float((log_probabilities(logits) - exact)[:, 0].mean())) < 4e-7
    if abs(float((logits.log_softmax(-1) - exact)[:, 0].mean())) < 4e-7:
        pytest.skip("torch's log_softmax is as good here: log_probabilities can go if everywhere")


@pytest.mark.slow  # vllm's import takes seconds
def test_float32_products_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tells when oneDNN's own sums would do, too."""
    import torch

    ops = pytest.importorskip("vllm._custom_ops")
    from evalcore.engines.vllm import linear

    if not getattr(ops, "_supports_onednn", False):
        pytest.skip("vLLM multiplies without oneDNN here")
    whole = ops.create_onednn_mm, ops.onednn_mm
    for name, value in zip(("create_onednn_mm", "onednn_mm"), whole, strict=True):
        monkeypatch.setattr(ops, name, value)  # undone at the end
    monkeypatch.delattr(ops, "evalcore_whole", raising=False)
    linear.sum_in_parts()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(576, 1536, generator=generator) * 1536**-0.5
    x, bias = torch.randn(64, 1536, generator=generator), torch.randn(576, generator=generator)
    exact = x.double() @ weight.double().T + bias
    errors = []
    for create, multiply in ((ops.create_onednn_mm, ops.onednn_mm), whole):
        found = multiply(create(weight.t(), 32), x, bias)
        assert found.shape == exact.shape
        errors.append(float((found - exact).square().mean().sqrt()))
    assert errors[0] < 3.3e-7
    if errors[1] < 3.3e-7:
        pytest.skip("oneDNN's own sums are as good here: linear.py can go if everywhere")


def test_variables_that_may_move_numbers_are_recorded_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in os.environ if n.startswith(("VLLM_", "CUBLAS_"))]:
        monkeypatch.delenv(name)
    kept = {"CUBLAS_WORKSPACE_CONFIG": ":8", "VLLM_KV_CACHE_LAYOUT": "HND"}
    left = (
        "VLLM_API_KEY", "VLLM_HOST_IP", "VLLM_CACHE_ROOT", "VLLM_LOGGING_LEVEL", "VLLM_DP_RANK",
        "VLLM_DIST_IDENT", "VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME", "VLLM_CPU_KVCACHE_SPACE",
    )  # fmt: skip
    for name, value in {**kept, **dict.fromkeys(left, "x")}.items():
        monkeypatch.setenv(name, value)
    assert numeric_variables.__wrapped__() == kept
    before = numeric_variables()
    monkeypatch.setenv("VLLM_SSM_CONV_STATE_LAYOUT", "set by vllm")
    assert numeric_variables() == before
