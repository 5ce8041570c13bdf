"""Operations of a run against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evalcore.app.flops import ModelShape, attended, mfu, peak_flops, run_flops

TINY = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 12,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10,
}  # fmt: skip


def test_weights_of_a_llama_by_hand() -> None:
    shape = ModelShape.of(TINY)
    assert shape is not None
    # q 8x8, k 8x4, v 8x4, o 8x8, and three 8x12, twice.
    assert shape.body_weights == 2 * (64 + 32 + 32 + 64 + 3 * 96)
    assert (shape.attention_width, shape.vocabulary) == (8, 10)


def test_a_head_width_of_its_own_and_no_grouping() -> None:
    shape = ModelShape.of({**TINY, "head_dim": 4, "num_key_value_heads": None})
    assert shape is not None
    assert shape.attention_width == 16
    assert shape.body_weights == 2 * (4 * 8 * 16 + 3 * 96)


def test_gpt_neox_has_two_matrices_in_its_feed_forward() -> None:
    config = {**TINY, "model_type": "gpt_neox", "num_key_value_heads": None}
    shape = ModelShape.of(config)
    assert shape is not None
    assert shape.body_weights == 2 * (4 * 64 + 2 * 96)


def test_llama_8b_has_the_published_size() -> None:
    from evalcore.benchmark.models import read_config

    shape = ModelShape.of(read_config("llama-8b"))
    assert shape is not None
    embeddings = 2 * shape.hidden * shape.vocabulary
    assert shape.body_weights + embeddings == pytest.approx(8.03e9, rel=2e-3)


@pytest.mark.parametrize(
    "change",
    [{"model_type": "mixtral"}, {"num_experts": 8}, {"hidden_size": None}, {"model_type": None}],
)
def test_what_is_not_known_is_none(change: dict) -> None:
    assert ModelShape.of({**TINY, **change}) is None
    assert run_flops({**TINY, **change}, computed_tokens=1, head_rows=1, mean_context=1) is None


def test_operations_by_hand() -> None:
    shape = ModelShape.of(TINY)
    assert shape is not None
    # 960 weights x 2 x 5 tokens; 8 x 10 x 2 x 3 rows; 2 layers x 8 wide x 4 x 15 positions.
    assert shape.flops(computed=5, rows=3, attended=15) == 2 * 960 * 5 + 480 + 960
    assert run_flops(TINY, computed_tokens=5, head_rows=3, mean_context=3.0) == 9600 + 480 + 960


def test_positions_attended_to_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 20)
    shared = rng.integers(0, lengths)
    slow = sum(sum(range(s + 1, n + 1)) for n, s in zip(lengths, shared, strict=True))
    assert attended(lengths, shared) == slow
    assert attended(np.array([3])) == 1 + 2 + 3


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "float16", 756.0),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A100-SXM4-40GB", "float32", 19.5),
        ("NVIDIA L40S", "bfloat16", 362.1),
        ("NVIDIA L4", "bfloat16", 121.0),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
    ],
)
def test_peaks_of_devices(name: str, dtype: str, tflops: float) -> None:
    assert peak_flops(name, dtype) == pytest.approx(tflops * 1e12)


def test_an_unknown_device_has_no_peak_unless_told() -> None:
    assert peak_flops("AMD EPYC", "float32") is None
    assert peak_flops("NVIDIA A10G", "float32") is None  # not an A10
    assert peak_flops("AMD EPYC", "float32", 1.5) == 1.5e12


def test_mfu() -> None:
    assert mfu(2e12, 4.0, 1e12) == 0.5
    assert mfu(None, 4.0, 1e12) is None
    assert mfu(2e12, 4.0, None) is None
    assert mfu(2e12, 0.0, 1e12) is None
