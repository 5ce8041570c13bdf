"""Streams complete checkpoint-format tensors into a live model.

Never a subset of a fused layer: vLLM's layerwise reload leaves the shards that do not come
uninitialised, which gives finite garbage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalcore.cluster import pulse
from evalcore.engines.vllm import derived
from evalcore.engines.vllm.lora import Merger, open_adapter
from evalcore.engines.vllm.proof import Products
from evalcore.errors import EngineError, ProofError
from evalcore.identity import weight_files, weight_layout


@dataclass
class Loaded:
    """What a load did.

    Attributes:
        products: Probe products of the tensors that went in.
        changed_weights: Numbers an adapter changed (0 without one).
        missing: Parameters of the model that no tensor was loaded into.
    """

    products: Products
    changed_weights: int = 0
    missing: list[str] = field(default_factory=list)


def stream(path: str, device: Any) -> Iterator[tuple[str, Any]]:
    """All tensors of a checkpoint directory, file by file, on ``device``."""
    from safetensors import safe_open

    for file in weight_files(Path(path)):
        with safe_open(str(file), framework="pt", device=str(device)) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                yield name, tensors.get_tensor(name)
                pulse.tick()


def products_of(path: str, dtype: Any, device: Any) -> Products:
    """Probe products of a checkpoint as it is on disk."""
    products = Products(dtype, device)
    for name, tensor in stream(path, device):
        products.add(name, tensor)
    return products


def reload(
    runner: Any, vllm_config: Any, path: str, adapter: str | None, *, remedy: bool
) -> Loaded:
    """Puts a checkpoint, with an adapter merged, into the running model.

    Args:
        runner: vLLM's model runner.
        vllm_config: Its configuration.
        path: Checkpoint directory; same names, shapes and numeric configuration as the one there.
        adapter: PEFT directory, or None.
        remedy: Whether derived state is made anew (False only in the test of the traps).

    Raises:
        IncompatibleError: The adapter cannot be merged; nothing was changed.
        ProofError: Parameters of the model were not loaded.
    """
    from vllm.config import set_current_vllm_config

    model = runner.get_model()
    dtype, device = vllm_config.model_config.dtype, runner.device
    merger = None
    if adapter is not None:
        layout = weight_layout(path)
        merger = Merger(open_adapter(adapter, layout, tied=is_tied(vllm_config)))
    products = Products(dtype, device)

    def tensors() -> Iterator[tuple[str, Any]]:
        for name, tensor in stream(path, device):
            merged = tensor if merger is None else merger(name, tensor, dtype)
            products.add(name, merged)
            yield name, merged

    # Layers that batched adapters may change are wrapped; checkpoints do not know.
    expected = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}
    with set_current_vllm_config(vllm_config):
        if remedy:
            derived.before_reload(model)
        loaded = _reload_and_name(runner, model, tensors())
        if remedy:
            derived.after_reload(model)
    if merger is not None:
        merger.finish()
    missing = sorted(expected - loaded) if loaded is not None else []
    if missing:
        raise ProofError(
            f"{path}: {len(missing)} parameters of the running model got no tensor, "
            f"{missing[0]} first"
        )
    return Loaded(products, merger.changed_weights if merger is not None else 0, missing)


def _reload_and_name(
    runner: Any, model: Any, tensors: Iterator[tuple[str, Any]]
) -> set[str] | None:
    """``reload_weights``, and the names it loaded: vLLM itself only logs what is missing."""
    names: list[set[str] | None] = [None]
    load = model.load_weights

    def load_and_remember(weights: Any) -> set[str] | None:
        names[0] = load(weights)
        return names[0]

    model.load_weights = load_and_remember
    try:
        runner.reload_weights(weights_iterator=tensors)
    except Exception as error:
        # The model is half loaded now, whatever the reason: the engine must not go on.
        raise EngineError(f"reload stopped half way: {error}") from error
    finally:
        del model.load_weights  # the class's own method shows again
    return names[0]


def is_tied(vllm_config: Any) -> bool:
    """Whether input embeddings and output head share one tensor."""
    config = vllm_config.model_config.hf_text_config
    return bool(getattr(config, "tie_word_embeddings", False))
