"""What vLLM cannot run on a kind of device, told from config.json before an engine is started."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evalcore.config.engine import Device
from evalcore.engines.agreement import architecture_of
from evalcore.engines.vllm import compat
from evalcore.engines.vllm.contract import architectures, model_source, read_installed
from evalcore.engines.vllm.keys import believed, transformers_source, unread, vllm_source
from evalcore.identity import safetensors_names, shares_embeddings, weight_layout, weight_names
from evalcore.identity.bases import quantisation
from evalcore.identity.layout import head_of
from evalcore.identity.rope import rope_kind, rope_parts
from evalcore.reading import is_there, read_json
from evalcore.shown import one_line

# vLLM 0.32 (v1/attention/backends/cpu_attn.py).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# State-space layers: their scan has no kernel for CPUs in vLLM 0.32.
_STATE_SPACE = {
    "mamba", "mamba2", "falcon_mamba", "falcon_h1", "jamba", "bamba", "zamba", "zamba2",
    "nemotron_h", "plamo2",
}  # fmt: skip


# Families that vLLM 0.32 was seen not to score on CPUs as transformers does.
_NOT_ON_CPUS = {
    # With two layers: 0.003 nats off in float32.
    "apertus": "vLLM keeps numbers of Apertus' activation in bfloat16, whatever the dtype",
    "phimoe": "vLLM's choice of experts for Phi-3.5-MoE ends in an error on CPUs",
}
_CHOOSES = "e_score_correction_bias"
# How vLLM's models take the embeddings as their head.
_TIES = re.compile(
    r"tie_w|lm_head = self\.\w*(model|transformer|decoder)?\.?\w*(emb|wte)"
    r"|self\.logits_processor\(\s*self\.\w+\.embed_tokens"
)


LONGEST = 2048
"""Tokens of a prompt and its answer, unless ``--max-length`` says otherwise."""


def unsupported(
    path: str, config: Mapping[str, Any], device: Device, longest: int = LONGEST
) -> str | None:
    """Why vLLM cannot run a checkpoint, on one line; None if nothing speaks against it.

    Args:
        path: Its directory.
        config: Its config.json.
        device: Where it would run.
        longest: Tokens that a prompt and its answer may have.
    """
    return _closed(_unsupported, path, config, device, longest)


def _closed(rule: Callable[..., str | None], *given: Any) -> str | None:
    """What a rule says; where it cannot read a value, nothing has said that it is right."""
    try:
        return rule(*given)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        return (
            f"config.json has a value of another kind than vLLM's code of the family reads "
            f"({type(error).__name__}: {one_line(str(error))[:100]})"
        )


def _unsupported(path: str, config: Mapping[str, Any], device: Device, longest: int) -> str | None:
    wanted = set(weight_names(Path(path)))
    stray = sorted(safetensors_names(Path(path)) - wanted)
    if stray and not (Path(path) / "model.safetensors.index.json").is_file():
        # With an index vLLM reads the files it names, without one every file.
        return (
            f"vLLM would read {', '.join(stray[:3])} beside {', '.join(sorted(wanted)[:2])}; move "
            f"it to another folder"
        )
    text = text_part(config)
    reach = _reach(text, longest)
    found = (
        believed(text)
        or unread(text)
        or _head(path, config)
        or _window(text, reach)
        or _rope(text, reach)
        or _tempered(path, text, reach)
    )
    if found is not None or device != "cpu":
        return found
    coded = _unknown_codes(config)
    if coded is not None:
        return (
            f"vLLM's builds for CPUs have no kernels that were seen to score weights quantised as "
            f"{coded}; --engine hf scores what transformers can load"
        )
    kind = text.get("model_type")
    if kind in _STATE_SPACE:
        return f"vLLM has no state-space kernel for CPUs ({kind})"
    if kind in ("lfm2", "lfm2_moe"):
        # LFM2 with two layers, one of them a convolution: 0.5 nats off.
        return f"vLLM's short convolutions do not give transformers' scores on CPUs ({kind})"
    if text.get("kv_lora_rank"):
        # DeepSeek-V2 with two layers: 1.2 nats off; its own ways of scoring differ by 1.
        return "vLLM's latent attention (MLA) does not give transformers' scores on CPUs"
    if kind in _NOT_ON_CPUS:
        return _NOT_ON_CPUS[kind]
    if (bias := _unrouted(path, config)) is not None:
        return f"vLLM's choice of experts on CPUs does not read {bias}, transformers goes by it"
    size = _head_size(text)
    if size is not None and size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        return f"heads of {size} numbers are not among those vLLM runs on CPUs ({sizes})"
    return None


def refused(
    path: str, config: Mapping[str, Any], device: Device, longest: int = LONGEST
) -> str | None:
    """:func:`unsupported`, or that the vLLM installed here has no code for it."""
    reason = unsupported(path, config, device, longest)
    return reason or (_closed(unknown, config) if read_installed() else None)


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a configuration says of the part that scores text; of most models, all of it."""
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return config
    return {"architectures": config.get("architectures"), **text}


def _head(path: str, config: Mapping[str, Any]) -> str | None:
    """A head that vLLM's code of a family never takes from the embeddings, or always does.

    OLMoE of vLLM 0.32 with ``tie_word_embeddings``: its head stays what it was made with. LFM2
    without: the embeddings are its head.
    """
    layout = weight_layout(path)
    saved, shared = head_of(layout) is not None, shares_embeddings(config, layout)
    if saved == shared:
        return None  # saved, though it is the embeddings; or not there: told elsewhere
    for name in map(str, config.get("architectures") or ()):
        source = model_source(name)
        ties = _TIES.search(source)
        if saved and ties and "tie_word_embeddings" not in source:
            return f"its head is not its embeddings, which vLLM's {name} always takes instead of it"
        if not saved and "ParallelLMHead(" in source and not ties:
            return (
                f"config.json, key tie_word_embeddings: vLLM's {name} has a head of its own, which "
                f"these files do not hold"
            )
    return None


def _unrouted(path: str, config: Mapping[str, Any]) -> str | None:
    """A tensor by which experts are chosen, where vLLM has no kernel for it on CPUs.

    Its router there (fused_moe/router/cpu_router.py, 0.32) goes by this bias where experts are in
    groups; of Ernie 4.5's it makes nothing: 0.5 to 0.8 nats off.
    """
    bias = next((name for name in weight_layout(path) if name.endswith(_CHOOSES)), None)
    for name in map(str, config.get("architectures") or ()):
        source = vllm_source(name)
        if bias is not None and _CHOOSES in source and "use_grouped_topk" not in source:
            return bias
    return None


# Of rotary positions vLLM 0.32 (rotary_embedding/) goes by keys that transformers does not know.
_ROPE_BELIEVED = {
    "dynamic": ("alpha", "max_trained_positions"),
    "default": ("use_fope",),
    "longrope": ("short_mscale", "long_mscale"),
}
# Of GPT-OSS vLLM 0.32 (models/gpt_oss.py) takes yarn of these keys, whatever else is said.
_GPT_OSS = ("factor", "beta_fast", "beta_slow")
_GPT_OSS_UNREAD = ("attention_factor", "mscale", "mscale_all_dim")
_SCALED_QUERIES = "llama_4_scaling_beta"  # of Ministral 3
# Families whose sliding layers look one token further back in vLLM 0.32 (models/commandr.py,
# models/cohere2_moe.py: as they were trained) than in transformers.
_ONE_FURTHER = ("cohere2", "cohere2_moe")
# Families of which vLLM 0.32 (models/qwen2.py, qwen3.py, qwen2_moe.py) gives all layers the window,
# or none: the first two then do not start, the third has none.
_ONE_KIND = ("qwen2", "qwen3", "qwen2_moe")


def _reach(config: Mapping[str, Any], longest: int) -> int:
    """Tokens of the longest text an engine would take."""
    own = config.get("max_position_embeddings")
    return min(longest, own) if isinstance(own, int) and own > 0 else longest


def _window(config: Mapping[str, Any], reach: int) -> str | None:
    """How vLLM attends otherwise in texts that are longer than a window."""
    kind, window, types = (
        str(config.get("model_type")),
        config.get("sliding_window"),
        _types(config),
    )
    if not isinstance(window, int) or "sliding_attention" not in types or window >= reach:
        return None
    if kind in _ONE_FURTHER:
        return (
            f"config.json, key sliding_window: vLLM's {kind} looks back one token more than "
            f"transformers', so that texts longer than {window} tokens have other scores"
        )
    if kind in _ONE_KIND and len(set(types)) > 1:
        return (
            f"config.json, key sliding_window: some layers have it and others not, which vLLM's "
            f"{kind} does not follow"
        )
    if kind == "gpt_oss" and any(
        (own == "sliding_attention") != (i % 2 == 0) for i, own in enumerate(types)
    ):
        return "config.json, key layer_types: vLLM's gpt_oss has every other layer slide, from 0 on"
    return None


def _types(config: Mapping[str, Any]) -> list[str]:
    """What each layer attends to, as transformers 5.19 reads it; one for all where that is so."""
    kind, count = config.get("model_type"), config.get("num_hidden_layers")
    if kind in _ONE_KIND and not config.get("use_sliding_window"):
        return ["full_attention"]
    if isinstance(types := config.get("layer_types"), list):
        return [str(own) for own in types]
    if kind not in _ONE_KIND or not isinstance(count, int):
        return ["sliding_attention", "full_attention"] if kind in _ONE_FURTHER else []
    first = config.get("max_window_layers", 28)
    if not isinstance(first, int):
        return []
    if kind == "qwen2_moe":
        slides = [i % 2 == 0 and i < first for i in range(count)]
    else:
        slides = [i >= first for i in range(count)]
    return ["sliding_attention" if own else "full_attention" for own in slides]


def _rope(config: Mapping[str, Any], reach: int) -> str | None:
    """How vLLM would read rotary positions otherwise than transformers."""
    for key, rope in rope_parts(config):
        kind = {"su": "longrope"}.get(rope_kind(rope), rope_kind(rope))
        odd = next((name for name in _ROPE_BELIEVED.get(kind, ()) if rope.get(name)), None)
        if odd is not None:
            return (
                f"config.json, key {key}.{odd}: vLLM goes by it, transformers does not; remove it"
            )
        first = config.get("original_max_position_embeddings")
        first = first or rope.get("original_max_position_embeddings")
        if rope.get(_SCALED_QUERIES) and isinstance(first, int) and first < reach:
            return (
                f"config.json, key {key}.{_SCALED_QUERIES}: vLLM does not read it, transformers "
                f"scales by it from token {first} on"
            )
        if config.get("model_type") == "gpt_oss" and (why := _gpt_oss(key, kind, rope)):
            return why
        if kind == "yarn" and isinstance(first, int) and first * rope.get("factor", 1) < reach:
            end = int(first * rope["factor"])
            return (
                f"config.json, key {key}: vLLM's table of positions ends at {end} (factor times "
                f"original_max_position_embeddings), texts may have {reach} tokens; --max-length "
                f"{end} takes shorter ones alone"
            )
        if kind != "longrope":
            continue
        odd = next((name for name in ("attention_factor", "factor") if rope.get(name)), None)
        longest = config.get("max_position_embeddings")
        if not (isinstance(first, int) and isinstance(longest, int)):
            continue
        if odd is not None and not (odd == "factor" and rope[odd] == longest / first):
            return f"config.json, key {key}.{odd}: vLLM does not read it, transformers goes by it"
        if first <= reach:  # vLLM is given room for one token more
            return (
                f"config.json, key {key}: vLLM takes long_factor for every text once some may be "
                f"longer than {first} tokens, transformers for those alone; --max-length "
                f"{first - 1} takes shorter texts alone"
            )
    return None


def _gpt_oss(key: str, kind: str, rope: Mapping[str, Any]) -> str | None:
    """How vLLM's GPT-OSS would read rotary positions otherwise."""
    if kind != "yarn":
        return f"config.json, key {key}: vLLM's gpt_oss takes yarn, whatever its type ({kind})"
    if (lacking := next((name for name in _GPT_OSS if rope.get(name) is None), None)) is not None:
        return (
            f"config.json, key {key}: vLLM's gpt_oss needs {lacking}, which is not there; "
            f"transformers takes a usual value"
        )
    if (odd := next((name for name in _GPT_OSS_UNREAD if rope.get(name)), None)) is not None:
        return (
            f"config.json, key {key}.{odd}: vLLM's gpt_oss does not read it, transformers goes by "
            f"it"
        )
    return None


def _tempered(path: str, config: Mapping[str, Any], reach: int) -> str | None:
    """Llama 4, whose queries transformers scales in long texts where config.json says so.

    vLLM 0.32 (models/llama4.py) does it where generation_config.json says so, or else where texts
    may be longer than 32,768 tokens.
    """
    first = config.get("floor_scale", 8192)
    if config.get("model_type") != "llama4_text" or not isinstance(first, int) or reach <= first:
        return None
    key = "attn_temperature_tuning"
    file = Path(path) / "generation_config.json"
    own = read_json(file, "checkpoint") if is_there(file) else {}
    told = own.get(key, reach + 1 > 32_768)  # it is given room for one token more
    if bool(told) == bool(config.get(key, True)):
        return None
    return (
        f"config.json, key {key}: vLLM's Llama 4 does not go by it, transformers does from token "
        f"{first} on; --max-length {first} takes shorter texts alone"
    )


def _unknown_codes(config: Mapping[str, Any]) -> str | None:
    """How weights are quantised, where vLLM 0.32 was not seen to score that on CPUs.

    Seen: AWQ and GPTQ of 4 bits; of compressed-tensors whole numbers, 4 bits packed or 8 bits with
    inputs of 8 bits. It has no kernels there for fp8, nor for 8 bits that are not packed.
    """
    kind = quantisation(config, {})
    own = config.get("quantization_config")
    if kind is None or not isinstance(own, dict):
        return kind
    if kind in ("awq", "gptq"):
        return None if own.get("bits", own.get("w_bit")) == 4 else f"{kind} of other than 4 bits"
    groups = own.get("config_groups")
    if kind != "compressed-tensors" or not isinstance(groups, dict):
        return kind
    for group in groups.values():
        weights, inputs = (group.get(part) or {} for part in ("weights", "input_activations"))
        form = (own.get("format"), weights.get("num_bits"), inputs.get("num_bits"))
        whole = {part.get("type", "int") for part in (weights, inputs)} == {"int"}
        if not whole or form not in (("pack-quantized", 4, None), ("int-quantized", 8, 8)):
            return f"compressed-tensors, {form[0]} of {form[1]} bits"
    return None


def unknown(config: Mapping[str, Any]) -> str | None:
    """Why the installed vLLM has no code for an architecture; None if it has, or may have.

    Read in the sources of vLLM and transformers: nothing is imported. Through transformers' own
    code vLLM runs what takes its attention.
    """
    # Where a configuration names none, vLLM takes transformers' for its model type, too.
    names = [str(name) for name in config.get("architectures") or (architecture_of(config),)]
    if set(names) & architectures():
        images = isinstance(config.get("vision_config"), Mapping)
        if images and importlib.util.find_spec("torchvision") is None:
            return (
                f"vLLM's code of {names[0]}, which takes images as well, needs torchvision, and "
                f"that is not installed"
            )
        return None
    kind = str(config.get("model_type"))
    source = transformers_source(kind)
    if f"class {names[0]}(" in source and "_supports_attention_backend = True" in source:
        return None
    return f"vllm {compat.vllm_version()} has no code for {names[0]}"


def _head_size(config: Mapping[str, Any]) -> int | None:
    """Numbers of an attention head; None where the family counts otherwise (MLA, parts)."""
    if "text_config" in config or config.get("kv_lora_rank"):
        return None
    if isinstance(config.get("head_dim"), int):
        return int(config["head_dim"])
    width = next((config[k] for k in ("hidden_size", "n_embd") if k in config), None)
    heads = next((config[k] for k in ("num_attention_heads", "n_head") if k in config), None)
    if not (isinstance(width, int) and isinstance(heads, int) and heads):
        return None
    return width // heads
