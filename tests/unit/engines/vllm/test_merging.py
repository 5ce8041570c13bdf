"""The check of merges: no honest one is refused, in any dtype, and faults are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evalcore.engines.vllm.lora import Merger, open_adapter
from evalcore.engines.vllm.merging import MergeCheck
from evalcore.errors import ProofError
from evalcore.identity import weight_layout
from tests.agreement.engine_models import ALL_LINEAR, save_adapter, save_model

torch = pytest.importorskip("torch")

KINDS = ("llama-tied", "llama-untied", "olmo-tied", "olmoe-untied")
SCALES = (1e-5, 1e-3, 3e-2, 0.5)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "high rank": {"r": 64},
    "dora": {"use_dora": True},
    "embeddings": {"targets": ("q_proj", "embed_tokens")},
    "saved": {"modules_to_save": ["lm_head", "norm"]},
    "rows": {"trainable_token_indices": [5, 9, 77]},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: save_model(folder / kind, kind, 1, layers=1) for kind in KINDS}


def opened(base: Path, adapter: Path) -> Any:
    return open_adapter(str(adapter), weight_layout(base), tied=base.name.endswith("-tied"))


def merge(base: Path, adapter: Any, check: MergeCheck, dtype: Any, fault: Any = None) -> None:
    """Merges as a load does; ``fault`` spoils float32 sums: (tensor, sum) -> sum."""
    from safetensors.torch import load_file

    merger = Merger(adapter)
    for name, tensor in load_file(base / "model.safetensors").items():
        tensor = tensor.to(torch.bfloat16) if dtype == torch.bfloat16 else tensor
        total = merger.sum(name, tensor)
        if fault is not None and name in adapter.touched:
            total = fault(tensor.float(), total)
        check(name, tensor, total, merger.cast(name, tensor, total, dtype))


def adapters(base: Path, folder: Path, scale: float) -> Iterator[Path]:
    """Adapters of several kinds whose matrices have a size; tied ones change no embeddings."""
    for number, (what, options) in enumerate(OPTIONS.items()):
        tied = base.name.endswith("-tied")
        if what == "high rank" and base.name.startswith("olmoe"):
            continue
        if tied and what in ("embeddings", "saved"):
            continue
        attention = ("q_proj", "o_proj")
        default = attention if base.name.startswith("olmoe") else ALL_LINEAR
        options = {"targets": default, **options}
        yield save_adapter(folder / f"{what}-{scale}", base, number, scale=scale, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_honest_merges_of_all_sizes_pass(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    merges = 0
    for scale in SCALES:
        for folder in adapters(bases[kind], tmp_path, scale):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                adapter = opened(bases[kind], folder)
                check = MergeCheck(adapter)
                merge(bases[kind], adapter, check, dtype)
                check.finish(f"{folder.name} in {dtype}")
                merges += 1
    assert merges >= 4 * 3 * 4


def _row(weight: Any, total: Any) -> Any:
    total = total.clone()
    total[3] = weight[3]
    return total


FAULTS = {
    "scaled twice": (lambda w, t: 2 * t - w, 1e-5),
    "delta dropped": (lambda w, t: w, 1e-5),
    "scaled by 1.01": (lambda w, t: w + 1.01 * (t - w), 1e-3),
    "delta cast early": (lambda w, t: w + (t - w).to(torch.bfloat16).float(), 1e-2),
    "one row left out": (_row, 1e-3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen_from_the_size_where_they_matter(
    bases: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    spoil, smallest = FAULTS[fault]
    base = bases["llama-untied"]
    for scale in (smallest, 0.3):
        folder = save_adapter(tmp_path / f"{scale}", base, 3, scale=scale)
        adapter = opened(base, folder)
        check = MergeCheck(adapter)
        merge(base, adapter, check, torch.bfloat16, spoil)
        with pytest.raises(ProofError, match="not what its matrices say"):
            check.finish("x")


@pytest.mark.parametrize("what", ["dora", "saved", "rows"])
def test_the_base_left_as_it_was_is_seen(bases: dict[str, Path], tmp_path: Path, what: str) -> None:
    base = bases["llama-untied"]
    adapter = opened(base, save_adapter(tmp_path / "a", base, 3, **OPTIONS[what]))
    check = MergeCheck(adapter)
    if what == "dora":  # the low-rank change alone

        def fault(weight: Any, total: Any) -> Any:
            return total * (weight.norm(dim=1) / total.norm(dim=1))[:, None]
    else:

        def fault(weight: Any, total: Any) -> Any:
            return weight

    merge(base, adapter, check, torch.float32, fault)
    with pytest.raises(ProofError):
        check.finish("x")


def test_another_adapters_merge_is_seen(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama-tied"]
    one, other = (
        opened(base, save_adapter(tmp_path / f"{seed}", base, seed, scale=1e-5)) for seed in (1, 2)
    )
    check = MergeCheck(one)
    merge(base, other, check, torch.bfloat16)
    with pytest.raises(ProofError):
        check.finish("x")
