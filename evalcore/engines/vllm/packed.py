"""Runs packed steps (see packing) on vLLM's model runner, past its scheduler.

The engine must be idle: the steps write into cache blocks of their own choice. Whoever calls this
resets the prefix cache afterwards, even when it fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalcore.cluster import pulse
from evalcore.engines.vllm import compat
from evalcore.engines.vllm.growth import Growth
from evalcore.engines.vllm.objects import Runner
from evalcore.engines.vllm.packing import Limits, Step, Steps
from evalcore.engines.vllm.plans import PLANS
from evalcore.types import FloatArray, ScoreBatch

# Numbers of one slice of logits: 64 MiB in float32 on a CPU; a GPU wants few slices.
_LOGITS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 27}


def obstacle(runner: Runner) -> str | None:
    """Why this engine cannot score packed; None if it can."""
    config = runner.vllm_config
    if config.parallel_config.pipeline_parallel_size != 1:
        return "pipeline parallel"
    if config.parallel_config.tensor_parallel_size != 1:
        return "tensor parallel"
    if not hasattr(runner, "attn_groups") or not hasattr(runner, "kv_cache_config"):
        return "another model runner"
    groups = runner.kv_cache_config.kv_cache_groups
    if len(runner.attn_groups) != 1 or len(groups) != 1:
        return f"{len(groups)} kinds of attention cache"
    spec = groups[0].kv_cache_spec
    if type(spec).__name__ != "FullAttentionSpec" or getattr(spec, "sliding_window", None):
        return f"attention kind {type(spec).__name__}"
    if getattr(spec, "attention_chunk_size", None):
        return "chunked attention"
    if runner.model_config.get_sliding_window() is not None:
        return "sliding window"
    sizes = compat.kernel_block_sizes(runner)
    if sizes and set(np.ravel(sizes).tolist()) != {spec.block_size}:
        return "kernel blocks differ from cache blocks"
    if getattr(runner, "uses_mrope", False):
        return "multi-dimensional positions"
    if any(_block_dimension(runner, cache) is None for cache in _caches(runner)):
        return "an unknown layout of cache blocks"
    return None


def _caches(runner: Runner) -> list[Any]:
    """Each layer's cache as the layer sees it; layers that share one give it once."""
    layers = runner.vllm_config.compilation_config.static_forward_context
    found = {}
    for group in runner.attn_groups[0]:
        for name in group.layer_names:
            cache = layers[name].kv_cache
            cache = cache[0] if isinstance(cache, list) else cache  # before vLLM 0.27 or so
            found[cache.data_ptr()] = cache
    return list(found.values())


def _block_dimension(runner: Runner, cache: Any) -> int | None:
    """Which dimension of a layer's cache counts blocks: [blocks, ...] or [2, blocks, ...]."""
    count = runner.kv_cache_config.num_blocks
    if cache.shape[0] == count:
        return 0
    return 1 if cache.ndim > 1 and cache.shape[0] == 2 and cache.shape[1] == count else None


def _copy_blocks(runner: Runner, copies: npt.NDArray[np.int64]) -> None:
    """Whole blocks, so that the layout within does not matter."""
    if not len(copies):
        return
    source, target = _upload(copies.T.copy(), runner.device)
    for cache in _caches(runner):
        dimension = _block_dimension(runner, cache)
        assert dimension is not None  # see obstacle
        cache.index_copy_(dimension, target, cache.index_select(dimension, source))


def limits(runner: Runner) -> Limits:
    """What one packed step may use on this runner."""
    scheduler = runner.vllm_config.scheduler_config
    return Limits(
        block_size=runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size,
        tokens=scheduler.max_num_batched_tokens,
        seqs=scheduler.max_num_seqs,
        blocks=runner.kv_cache_config.num_blocks - 1,
        length=runner.model_config.max_model_len - 1,  # a sequence's last token is never read
    )


def run(runner: Runner, batch: ScoreBatch, growth: Growth | None = None) -> dict[str, Any]:
    """Scores a batch, and continues its last contexts greedily where ``growth`` is given.

    Returns:
        Arrays as in ScoreResult over the whole batch, ``greedy`` per token; ``leftover``:
        continuations that did not fit (with a generation among them nothing was run); ``growth``.
    """
    import torch

    bounds = limits(runner)
    growing = len(growth.settings) if growth is not None else 0
    plan = PLANS.of(batch, bounds, growing)
    scored = batch.num_continuations - growing
    values: FloatArray = np.full(len(batch.continuation_tokens), np.nan)
    greedy = np.zeros(len(batch.continuation_tokens), dtype=bool)
    count = 0
    answer = {
        "values": values,
        "greedy": greedy,
        "leftover": plan.leftover,
        "computed": plan.computed_tokens,
        "cached": plan.cached_tokens,
        "growth": growth,
    }
    if growing and any(i >= scored for i in plan.leftover):
        return {**answer, "steps": 0}
    passes = Steps(batch, plan, bounds)
    waiting: _Found | None = None

    def read(found: _Found) -> None:
        values[found.slots_out], greedy[found.slots_out], best = found.arrays()
        if growth is not None:
            _grow(batch, scored, growth, passes, found.slots_out, best)

    with torch.inference_mode():
        for step in passes:
            _copy_blocks(runner, step.copies)
            found = _forward(runner, step)
            pulse.tick()
            count += 1
            if growth is not None:  # the next step depends on it
                read(found)
                continue
            # On a GPU the next step is built and queued while this one runs.
            if waiting is not None:
                read(waiting)
            waiting = found
        if waiting is not None:
            read(waiting)
    return {**answer, "steps": count}


def _grow(
    batch: ScoreBatch,
    scored: int,
    growth: Growth,
    passes: Steps,
    slots_out: npt.NDArray[np.int64],
    best: npt.NDArray[np.int64],
) -> None:
    """Hands the arg maxes of a pass to the generations they continue."""
    offsets = batch.continuation_offsets
    mine = np.flatnonzero(slots_out >= offsets[scored])
    numbers = np.searchsorted(offsets, slots_out[mine], side="right") - 1 - scored
    for number, token in zip(numbers.tolist(), best[mine].tolist(), strict=True):
        if growth.add(number, token):
            passes.end(number)
        else:
            passes.grow(number, len(growth.ids[number]) - 1, token)


@dataclass(frozen=True)
class _Found:
    """A step's predictions, perhaps still being computed.

    Attributes:
        slots_out, targets: As of the step.
        values: float32 tensor [P], log-probabilities of the targets.
        best: int64 tensor [P], most probable tokens.
    """

    slots_out: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    values: Any
    best: Any

    def arrays(self) -> tuple[FloatArray, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """(log-probability float64, is arg max bool, arg max int64) [P]; waits for them."""
        best = self.best.cpu().numpy()
        return self.values.cpu().numpy().astype(np.float64), best == self.targets, best


def _upload(array: npt.NDArray[Any], device: Any) -> Any:
    """An array as a tensor on the device; on a GPU without waiting for what runs there."""
    import torch

    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _forward(runner: Runner, step: Step) -> _Found:
    """Runs a step; on a GPU it is queued."""
    device, model = runner.device, runner.get_model()
    positions, slots = _upload(step.positions, device), _upload(step.slots, device)
    metadata = _metadata(runner, step, positions, slots)
    per_layer, slot_mapping = {}, {}
    for group in runner.attn_groups[0]:
        built = group.get_metadata_builder().build(0, metadata)
        for layer in group.layer_names:
            per_layer[layer] = built
            slot_mapping[layer] = slots
    # The runner's own input ids: int32 everywhere but in code that indexes with them on GPUs.
    ids = _upload(step.token_ids, device)
    tokens = len(step.token_ids)
    with compat.forward_context(per_layer, runner.vllm_config, tokens, slot_mapping):
        hidden = model(input_ids=ids, positions=positions)
    if isinstance(hidden, tuple):
        hidden = hidden[0]
    return _predict(model, hidden, step)


def _predict(model: Any, hidden: Any, step: Step) -> _Found:
    """Only the needed rows go through the output head, each once."""
    import torch

    device = hidden.device
    rows, which = np.unique(step.rows, return_inverse=True)
    wanted = hidden[_upload(rows, device)]
    targets, owner = _upload(step.targets, device), _upload(which.astype(np.int64), device)
    order = np.argsort(which, kind="stable")
    sorted_owner, order_there = which[order], _upload(order, device)
    values = torch.empty(len(step.targets), dtype=torch.float32, device=device)
    best = torch.empty(len(step.targets), dtype=torch.int64, device=device)
    start, at_once = 0, 256
    while start < len(rows):
        logits = model.compute_logits(wanted[start : start + at_once]).float()
        stop = start + len(logits)
        first, last = np.searchsorted(sorted_owner, [start, stop])
        mine = order_there[first:last]
        local, target = owner[mine] - start, targets[mine]
        values[mine] = logits[local, target] - logits.logsumexp(-1)[local]
        best[mine] = logits.argmax(-1)[local]
        start, at_once = stop, max(1, _LOGITS_AT_ONCE[device.type] // logits.shape[1])
    return _Found(step.slots_out, step.targets, values, best)


def _metadata(runner: Runner, step: Step, positions: Any, slots: Any) -> Any:
    """vLLM's description of a batch."""
    import torch

    device = runner.device
    starts = np.zeros(len(step.query_lens) + 1, dtype=np.int32)
    np.cumsum(step.query_lens, out=starts[1:])
    seq_lens = torch.from_numpy(step.seq_lens)
    everything = {
        "query_start_loc": _upload(starts, device),
        "query_start_loc_cpu": torch.from_numpy(starts),
        "seq_lens": _upload(step.seq_lens, device),
        "num_reqs": len(step.query_lens),
        "num_actual_tokens": len(step.token_ids),
        "max_query_len": int(step.query_lens.max()),
        "max_seq_len": int(step.seq_lens.max()),
        "block_table_tensor": _upload(step.block_table, device),
        "slot_mapping": slots,
        "causal": True,
        "positions": positions,
        "is_prefilling": torch.ones(len(step.query_lens), dtype=torch.bool, device=device),
        "seq_lens_cpu_upper_bound": seq_lens,
        # Older versions:
        "seq_lens_cpu": seq_lens,
        "_seq_lens_cpu": seq_lens,
        "num_computed_tokens_cpu": torch.from_numpy(step.seq_lens - step.query_lens),
        "_num_computed_tokens_cpu": torch.from_numpy(step.seq_lens - step.query_lens),
    }
    return compat.attention_metadata(everything)
