"""Adapters applied beside the weights, many in one run (co-batched), and what cannot be."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from evalcore.config.engine import Device
from evalcore.engines.vllm import compat
from evalcore.engines.vllm.contract import takes_adapters
from evalcore.engines.vllm.objects import LLM
from evalcore.errors import EvalcoreError
from evalcore.identity import (
    LoraAdapter,
    adapter_config,
    numeric_config,
    read_header,
    read_lora,
    shares_embeddings,
)
from evalcore.identity.adapter import adapter_file
from evalcore.types import Adapter

# Ranks vLLM has slots for.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Tensors of experts: one each, stacked (Granite, JetMoE).
_EXPERTS = re.compile(r"\.experts\.|\.block_sparse_moe\.|\.moe\.(input|output)_linear")
# Unique for the process: worker slots and caches are keyed by it.
_ids = itertools.count(1)


def slot_rank(rank: int) -> int:
    """The smallest rank vLLM has slots for that holds ``rank``."""
    return next((r for r in RANKS if r >= rank), RANKS[-1])


def linear_modules(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """Last names of the linear layers of a checkpoint, its output head left out.

    vLLM (0.32) crashes or drops the delta where an adapted head meets prompt log-probabilities, so
    the head must not be wrapped at all.
    """
    return sorted(
        {
            name.split(".")[-2]
            for name, (_, shape) in layout.items()
            if name.endswith(".weight") and len(shape) == 2 and not _is_head(name)
        }
    )


def _is_head(name: str) -> bool:
    return any(part in name for part in ("embed", "lm_head", ".wte.", ".wpe."))


def without_slots(
    layout: Mapping[str, tuple[str, tuple[int, ...]]], config: Mapping[str, Any], device: Device
) -> str | None:
    """Why vLLM (0.32) cannot start with slots for adapters on a checkpoint; None if it can.

    Args:
        layout: Tensor name -> (dtype, shape) of the checkpoint.
        config: Its config.json.
        device: Where it runs.
    """
    for name in map(str, config.get("architectures") or ()):
        if takes_adapters(name) is False:
            return f"vLLM's {name} has no slots for adapters"
    if any(name.endswith(".attn.c_attn.weight") for name in layout):
        return "vLLM has no slots for adapters in GPT-2's family"
    if device == "cpu" and any(_EXPERTS.search(name) for name in layout):
        return "vLLM has no slots for adapters in mixtures of experts on CPUs"
    return None


def reason_to_merge(
    adapter: Adapter,
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
    most_rank: int,
    device: Device = "cpu",
    *,
    base: str | None = None,
    ask_vllm: bool = True,
) -> str | None:
    """Why vLLM cannot apply an adapter beside the weights exactly; None if it can.

    Args:
        adapter: The adapter.
        layout: Tensor name -> (dtype, shape) of its checkpoint.
        most_rank: Of the engine's slots.
        device: Where the engine runs.
        base: Directory of the checkpoint, to see whether saved tensors are its own.
        ask_vllm: Whether to import vLLM where its version decides (rank and alpha patterns).
    """
    config = adapter_config(adapter.path)
    own = {} if base is None else numeric_config(base)
    tied = base is not None and shares_embeddings(own, layout)
    opened = read_lora(adapter.path, layout, tied=tied, base=base)
    opened.require_applicable()
    closed = without_slots(layout, own, device)
    if closed is not None:
        return closed
    if opened.replacements:
        return f"it replaces {sorted(opened.replacements)[0]}"
    head = sorted(filter(_is_head, opened.deltas))
    if head:
        return f"it changes {head[0]}"
    if opened.biases or opened.rows:
        return f"it changes {sorted({*opened.biases, *opened.rows})[0]}"
    if any("lora_magnitude_vector" in delta.parts for delta in opened.deltas.values()):
        return "DoRA"
    if opened.transposed:
        return "weights stored [in, out]"
    if any(delta.expert is not None for delta in opened.deltas.values()):
        return "experts adapted as one parameter"
    odd = next(_own_names(opened), None)
    if odd is not None:
        return f"{odd} is not named as vLLM expects"
    patterns = config.get("rank_pattern") or config.get("alpha_pattern")
    if patterns and ask_vllm and not compat.knows_patterns():
        return "rank or alpha patterns"
    tensors = read_header(adapter_file(adapter.path))[0]
    ranks = [tensors[delta.parts["lora_A"]].shape[0] for delta in opened.deltas.values()]
    if max([*ranks, int(config.get("r") or 0)]) > most_rank:
        return f"rank {max(ranks, default=0)}"
    return None


def _own_names(opened: LoraAdapter) -> Iterator[str]:
    """Tensors vLLM would not find: it goes by PEFT's names and applies nothing else, silently."""
    for target, delta in opened.deltas.items():
        module = target.removesuffix(".weight")
        theirs = {module} if module.startswith("model.") else {module, f"model.{module}"}
        for part, name in delta.parts.items():
            own = name.removeprefix("base_model.model.").removesuffix(f".{part}.weight")
            if name.startswith("base_model.model.") and own in theirs:
                continue
            yield name


class AdapterSlots:
    """Adapters a running engine has loaded beside the weights now in place.

    Attributes:
        proven: Fingerprints of those whose canaries were compared since they were loaded.
    """

    def __init__(self, llm: LLM) -> None:
        self.proven: set[str] = set()
        self._llm = llm
        self._requests: dict[str, Any] = {}

    def attach(self, adapter: Adapter) -> Any:
        """vLLM's request object of an adapter, loaded now if it is not yet.

        Named by content, numbered anew each time: nothing cached for another can be taken for it.

        Raises:
            ValueError: vLLM refuses the adapter.
        """
        if adapter.fingerprint not in self._requests:
            request = compat.lora_request(adapter.fingerprint, next(_ids), adapter.path)
            try:
                if not self._llm.llm_engine.add_lora(request):
                    raise ValueError("vllm did not load it")
            except EvalcoreError:
                raise
            except Exception as error:
                raise ValueError(str(error)) from error
            self._requests[adapter.fingerprint] = request
        return self._requests[adapter.fingerprint]

    def holds(self, adapter: Adapter) -> bool:
        """Whether an adapter is loaded, and proven to be what its file says."""
        return adapter.fingerprint in self._requests

    def drop(self, adapter: Adapter) -> None:
        """Forgets an adapter, so that it is loaded and proven anew."""
        self._requests.pop(adapter.fingerprint, None)

    def forget(self) -> None:
        """After a reload of weights, which drops all adapters."""
        self._requests.clear()
        self.proven.clear()
