"""Shapes of vLLM's objects, as far as evalcore uses them.

An attribute that is not declared here is found by the type checker; :mod:`names` says where each of
them comes from, and a test that it says so of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol


class ModelConfig(Protocol):
    """vLLM's configuration of a model."""

    max_model_len: int
    dtype: Any
    hf_text_config: Any

    def get_vocab_size(self) -> int: ...

    def get_sliding_window(self) -> int | None: ...


class Config(Protocol):
    """vLLM's configuration of an engine; ``compilation_config.static_forward_context``: layers."""

    model_config: ModelConfig
    cache_config: Any
    parallel_config: Any
    scheduler_config: Any
    compilation_config: Any


class AttentionGroup(Protocol):
    """Layers that share their attention's metadata."""

    backend: Any
    layer_names: list[str]

    def get_metadata_builder(self) -> Any: ...


class Runner(Protocol):
    """vLLM's model runner, inside its worker (the V1 runner, of GPUs or of CPUs)."""

    vllm_config: Config
    model_config: ModelConfig
    device: Any
    kv_cache_config: Any
    attn_groups: list[list[AttentionGroup]]
    lora_manager: Any

    def get_model(self) -> Any: ...

    def reload_weights(self, weights_iterator: Iterator[tuple[str, Any]]) -> None: ...


class LLMEngine(Protocol):
    """What ``vllm.LLM`` drives."""

    vllm_config: Config
    model_config: ModelConfig
    output_processor: Any
    engine_core: Any
    step: Any

    def has_unfinished_requests(self) -> bool: ...

    def abort_request(self, request_ids: list[str], internal: bool) -> None: ...

    def add_lora(self, lora_request: Any) -> bool: ...


class LLM(Protocol):
    """``vllm.LLM``, as far as it is used."""

    llm_engine: LLMEngine

    def generate(
        self, prompts: Any, sampling_params: Any, *, use_tqdm: bool, lora_request: Any
    ) -> list[Any]: ...

    def collective_rpc(self, method: str, *, args: tuple[Any, ...]) -> list[Any]: ...

    def reset_prefix_cache(self) -> bool: ...


class LoraManager(Protocol):
    """Slots of the adapters beside the weights."""

    lora_index_to_id: list[int | None]
    modules: Mapping[str, Any]

    def activate_adapter(self, number: int) -> Any: ...


class Linear(Protocol):
    """A parallel linear layer; queries, keys and values of attention have the later ones, too."""

    input_size: int
    output_size: int
    output_partition_sizes: Sequence[int]
    tp_rank: int
    params_dtype: Any
    quant_method: Any
    num_kv_head_replicas: int
    total_num_heads: int
    total_num_kv_heads: int
    head_size: int
    v_head_size: int
    num_heads: int
    num_kv_heads: int


class Vocabulary(Protocol):
    """Embeddings or an output head, a part of whose rows each rank holds."""

    shard_indices: Any  # org_vocab_start_index, org_vocab_end_index
    num_added_embeddings: int


class Experts(Protocol):
    """A layer of fused experts; ``moe_config``: ``FusedMoEConfig``."""

    layer_name: str
    ckpt_gate_proj_name: str
    ckpt_up_proj_name: str
    ckpt_down_proj_name: str
    moe_config: Any
    local_num_experts: int
    global_num_experts: int
    activation: Any
    params_dtype: Any
    quant_method: Any

    def _map_global_expert_id_to_local_expert_id(self, expert_id: int) -> int: ...
