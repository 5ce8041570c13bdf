"""Every name of vLLM's inside that evalcore relies on, as data: where it is, how it is called.

``compat`` probes them in a running engine, ``contract`` reads them in vLLM's source. What vLLM
documents for everybody (``LLM``, ``SamplingParams``) is among them: it changes, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Capability = Literal["engine", "packed", "cap", "proof", "reload", "batched", "sums"]

CAPABILITIES: dict[Capability, str] = {
    "engine": "without it vLLM cannot be used (--engine hf)",
    "packed": "without it strategies cached and plain score",
    "cap": "without it strategies packed and plain score",
    "proof": "without it each subject gets an engine of its own, started on its files",
    "reload": "without it each subject gets an engine of its own, started on its files",
    "batched": "without it adapters are merged",
    "sums": "without it products of float32 on CPUs round twice as coarsely",
}
"""What evalcore does with vLLM's inside, and what becomes of a run without it."""

VERIFIED = ("0.32",)
"""Versions (beginnings of them) whose scores were held to transformers'."""


@dataclass(frozen=True)
class Name:
    """One name.

    Attributes:
        module: Module under ``vllm``; ``""`` is vllm itself.
        name: Function, class, constant, or ``Class.member``: an attribute counts wherever the
            class or one it is made from (in vLLM) declares or sets it.
        capability: What needs it.
        call: How it is called, comma-separated: ``_`` for a value given by its place, ``name=`` for
            one given by name. None: it is not called.
        optional: The call leaves out what a version does not know.
        returns: How the annotation of its result begins, where evalcore takes the result apart.
    """

    module: str
    name: str
    capability: Capability
    call: str | None = None
    optional: bool = False
    returns: str = ""


def _some(
    module: str, capability: Capability, names: str, call: str | None = None, returns: str = ""
) -> tuple[Name, ...]:
    return tuple(Name(module, name, capability, call, returns=returns) for name in names.split())


def _members(module: str, capability: Capability, owner: str, names: str) -> tuple[Name, ...]:
    return _some(module, capability, " ".join(f"{owner}.{name}" for name in names.split()))


SAMPLING = (
    "max_tokens temperature prompt_logprobs logprob_token_ids flat_logprobs detokenize ignore_eos "
    "skip_reading_prefix_cache extra_args skip_clone stop_token_ids stop "
    "include_stop_str_in_output skip_special_tokens"
)
ARGUMENTS = (
    "model dtype max_model_len max_num_batched_tokens max_num_seqs seed trust_remote_code "
    "skip_tokenizer_init generation_config enable_prefix_caching worker_extension_cls "
    "tensor_parallel_size disable_log_stats hf_overrides kv_cache_memory_bytes enforce_eager "
    "block_size compilation_config enable_lora max_loras max_cpu_loras max_lora_rank "
    "lora_target_modules distributed_executor_backend"
)
VARIABLES = (
    "VLLM_ENABLE_V1_MULTIPROCESSING VLLM_LOGGING_LEVEL VLLM_CONFIGURE_LOGGING VLLM_NO_USAGE_STATS "
    "VLLM_DO_NOT_TRACK VLLM_ALLOW_LONG_MAX_MODEL_LEN VLLM_CPU_OMP_THREADS_BIND "
    "VLLM_CPU_KVCACHE_SPACE VLLM_USE_V2_MODEL_RUNNER"
)
METADATA = (
    "query_start_loc query_start_loc_cpu seq_lens num_reqs num_actual_tokens max_query_len "
    "max_seq_len block_table_tensor slot_mapping causal positions is_prefilling "
    "seq_lens_cpu_upper_bound"
)

REGISTRY = "model_executor.models.registry"
ARCHITECTURES = (
    "_TEXT_GENERATION_MODELS _MULTIMODAL_MODELS _TRANSFORMERS_SUPPORTED_MODELS "
    "_TRANSFORMERS_BACKEND_MODELS"
)
"""Tables of its registry whose keys are the architectures it loads for scoring."""

_LINEAR = "model_executor.layers.linear"
_VOCABULARY = "model_executor.layers.vocab_parallel_embedding"
_EXPERTS = "model_executor.layers.fused_moe"
_RUNNER = "v1.worker.gpu_model_runner"

_ENGINE = (
    *_some("", "engine", "LLM SamplingParams"),
    Name("entrypoints.llm", "LLM.generate", "engine", "_, _, use_tqdm=, lora_request="),
    Name("entrypoints.llm", "LLM.collective_rpc", "engine", "_, args="),
    Name("entrypoints.llm", "LLM.reset_prefix_cache", "engine", ""),
    *_members("entrypoints.llm", "engine", "LLM", "llm_engine"),
    *_members("sampling_params", "engine", "SamplingParams", SAMPLING),
    *_members("engine.arg_utils", "engine", "EngineArgs", ARGUMENTS),
    *_some("envs", "engine", VARIABLES),
    Name("v1.engine.llm_engine", "LLMEngine.has_unfinished_requests", "engine", ""),
    Name("v1.engine.llm_engine", "LLMEngine.step", "engine", ""),
    Name("v1.engine.llm_engine", "LLMEngine.abort_request", "engine", "_, internal="),
    *_members(
        "v1.engine.llm_engine", "engine", "LLMEngine",
        "vllm_config model_config output_processor engine_core",
    ),
    *_members("v1.engine.output_processor", "engine", "OutputProcessor", "request_states"),
    Name("v1.engine.core_client", "InprocClient.shutdown", "engine", ""),
    *_members("outputs", "engine", "RequestOutput", "outputs prompt_logprobs num_cached_tokens"),
    *_members("outputs", "engine", "CompletionOutput", "token_ids logprobs finish_reason"),
    *_members("logprobs", "engine", "FlatLogprobs", "token_ids logprobs ranks"),
    *_members("v1.worker.worker_base", "engine", "WorkerBase", "model_runner vllm_config"),
    Name(_RUNNER, "GPUModelRunner.get_model", "engine", ""),
    *_members(_RUNNER, "engine", "GPUModelRunner", "vllm_config model_config device"),
    *_members(
        "config.vllm", "engine", "VllmConfig",
        "model_config cache_config parallel_config scheduler_config compilation_config",
    ),
    *_members(
        "config.model", "engine", "ModelConfig", "max_model_len dtype hf_text_config get_vocab_size"
    ),
    *_members("config.cache", "engine", "CacheConfig", "block_size"),
    *_members(
        "config.parallel", "engine", "ParallelConfig",
        "world_size tensor_parallel_size pipeline_parallel_size",
    ),
    Name("distributed.parallel_state", "cleanup_dist_env_and_memory", "engine", ""),
    *_some(REGISTRY, "engine", ARCHITECTURES),
    Name("model_executor.models.bloom", "get_act_fn", "engine"),
    Name("model_executor.layers.activation", "get_act_fn", "engine", "_"),
)  # fmt: skip

_PACKED = (
    *_members(
        _RUNNER, "packed", "GPUModelRunner",
        "attn_groups kv_cache_config _kernel_block_sizes uses_mrope",
    ),
    *_members("v1.worker.utils", "packed", "AttentionGroup", "backend layer_names"),
    Name("v1.worker.utils", "AttentionGroup.get_metadata_builder", "packed", ""),
    Name("v1.attention.backend", "AttentionMetadataBuilder.build", "packed", "_, _"),
    Name(
        "v1.attention.backend", "CommonAttentionMetadata", "packed",
        ", ".join(f"{name}=" for name in METADATA.split()), optional=True,
    ),
    *_members("v1.kv_cache_interface", "packed", "KVCacheConfig", "num_blocks kv_cache_groups"),
    *_members("v1.kv_cache_interface", "packed", "KVCacheGroupSpec", "kv_cache_spec"),
    *_members(
        "v1.kv_cache_interface", "packed", "FullAttentionSpec",
        "block_size sliding_window attention_chunk_size",
    ),
    *_members("config.compilation", "packed", "CompilationConfig", "static_forward_context"),
    *_members(
        "config.scheduler", "packed", "SchedulerConfig", "max_num_batched_tokens max_num_seqs"
    ),
    Name("config.model", "ModelConfig.get_sliding_window", "packed", ""),
    Name("forward_context", "set_forward_context", "packed", "_, _, num_tokens=, slot_mapping="),
    Name(
        "model_executor.models.interfaces_base", "VllmModelForTextGeneration.compute_logits",
        "packed", "_",
    ),
)  # fmt: skip

_CAP = (
    *_members("v1.engine.core_client", "cap", "InprocClient", "engine_core"),
    *_members("v1.engine.core", "cap", "EngineCore", "scheduler"),
    *_members("v1.core.sched.scheduler", "cap", "Scheduler", "kv_cache_manager"),
    *_members("v1.core.kv_cache_manager", "cap", "KVCacheManager", "coordinator"),
    Name(
        "v1.core.kv_cache_manager", "KVCacheManager.get_computed_blocks", "cap", "_",
        returns="tuple[KVCacheBlocks, int",
    ),
    Name("v1.core.kv_cache_manager", "KVCacheManager.create_kv_cache_blocks", "cap", "_"),
    Name(
        "v1.core.kv_cache_coordinator", "KVCacheCoordinator.find_longest_cache_hit", "cap", "_, _",
        returns="tuple[tuple[list[KVCacheBlock], ...], int",
    ),
    *_members("v1.request", "cap", "Request", "sampling_params block_hashes"),
)  # fmt: skip

_PROOF = (
    *_some(_LINEAR, "proof", "LinearBase QKVParallelLinear UnquantizedLinearMethod"),
    *_members(
        _LINEAR, "proof", "LinearBase", "input_size output_size params_dtype quant_method tp_rank"
    ),
    *_members(_LINEAR, "proof", "ColumnParallelLinear", "output_partition_sizes"),
    *_members(_LINEAR, "proof", "RowParallelLinear", "input_size_per_partition"),
    *_members(
        _LINEAR, "proof", "QKVParallelLinear",
        "num_kv_head_replicas total_num_heads total_num_kv_heads head_size v_head_size num_heads "
        "num_kv_heads",
    ),
    Name(_LINEAR, "UnquantizedLinearMethod.apply", "proof", "_, _, _"),
    *_some(
        _VOCABULARY, "proof", "VocabParallelEmbedding ParallelLMHead UnquantizedEmbeddingMethod"
    ),
    *_members(_VOCABULARY, "proof", "VocabParallelEmbedding", "shard_indices num_added_embeddings"),
    *_members(
        _VOCABULARY, "proof", "VocabParallelEmbeddingShardIndices",
        "org_vocab_start_index org_vocab_end_index",
    ),
    Name(_VOCABULARY, "UnquantizedEmbeddingMethod.apply", "proof", "_, _, _"),
    Name("model_executor.model_loader.reload.layerwise", "get_layerwise_info", "proof", "_"),
    *_members(
        "model_executor.model_loader.reload.types", "proof", "LayerReloadingInfo",
        "restore_metadata",
    ),
    *_members("model_executor.models.utils", "proof", "WeightsMapper", "_map_name_with_shard"),
    *_members(
        f"{_EXPERTS}.routed_experts", "proof", "RoutedExperts",
        "layer_name ckpt_gate_proj_name ckpt_up_proj_name ckpt_down_proj_name moe_config "
        "local_num_experts global_num_experts activation params_dtype quant_method "
        "_map_global_expert_id_to_local_expert_id",
    ),
    *_members(
        f"{_EXPERTS}.config", "proof", "FusedMoEConfig",
        "hidden_dim num_experts num_logical_experts intermediate_size_per_partition "
        "intermediate_size_per_partition_unpadded tp_rank tp_size has_bias",
    ),
    Name(
        f"{_EXPERTS}.unquantized_fused_moe_method", "UnquantizedFusedMoEMethod.apply", "proof",
        "layer=, x=, topk_weights=, topk_ids=, shared_experts=, shared_experts_input=",
    ),
    *_members(
        f"{_EXPERTS}.unquantized_fused_moe_method", "proof", "UnquantizedFusedMoEMethod",
        "unquantized_backend is_monolithic",
    ),
)  # fmt: skip

_RELOAD = (
    Name(_RUNNER, "GPUModelRunner.reload_weights", "reload", "weights_iterator="),
    Name("config", "set_current_vllm_config", "reload"),
    Name("config.vllm", "set_current_vllm_config", "reload", "_"),
    Name(
        _VOCABULARY, "UnquantizedEmbeddingMethod.process_weights_after_loading", "reload", "_"
    ),
    *_members(
        f"{_EXPERTS}.fused_moe_method_base", "reload", "FusedMoEMethodBase", "moe_kernel"
    ),
)  # fmt: skip

_BATCHED = (
    Name("lora.request", "LoRARequest", "batched", "_, _, _"),
    *_members("lora.request", "batched", "LoRARequest", "lora_int_id"),
    *_members("lora.peft_helper", "batched", "PEFTHelper", "get_rank_and_scaling"),
    Name("v1.engine.llm_engine", "LLMEngine.add_lora", "batched", "_"),
    *_members(
        "v1.worker.lora_model_runner_mixin", "batched", "LoRAModelRunnerMixin", "lora_manager"
    ),
    *_members("lora.worker_manager", "batched", "WorkerLoRAManager", "_adapter_manager"),
    *_members("lora.model_manager", "batched", "LoRAModelManager", "lora_index_to_id modules"),
    Name("lora.model_manager", "LoRAModelManager.activate_adapter", "batched", "_"),
    *_members("lora.layers.base_linear", "batched", "BaseLinearLayerWithLoRA", "base_layer"),
    *_members(
        "lora.layers.base_linear", "batched", "BaseLinearLayerWithLoRA",
        "lora_a_stacked lora_b_stacked",
    ),
)  # fmt: skip

_SUMS = (
    *_some("_custom_ops", "sums", "_supports_onednn"),
    Name("_custom_ops", "create_onednn_mm", "sums", "_"),
    Name("_custom_ops", "onednn_mm", "sums", "_, _, _"),
)

NAMES: tuple[Name, ...] = (*_ENGINE, *_PACKED, *_CAP, *_PROOF, *_RELOAD, *_BATCHED, *_SUMS)
