"""What is wrong with a checkpoint as a base, told from its config.json and the weights' headers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.expected import check_tensors
from evalcore.identity.header import read_header
from evalcore.identity.layout import embeddings_of, head_of, shares_embeddings
from evalcore.identity.lora_names import Layout
from evalcore.identity.rope import check_rope
from evalcore.identity.weights import same_values, weight_files

# Families with as many key heads as query heads: transformers ignores these keys there, vLLM
# believes them and writes beyond its cache (SIGSEGV on CPUs, vLLM 0.32).
_ALL_HEADS = {"gpt_neox", "gpt2", "gptj", "opt", "bloom", "codegen", "gpt_neox_japanese", "biogpt"}
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")


# What torch.compile, DDP, FSDP and PEFT put before every name of a model saved from inside them.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.")
# How classes of transformers without an output head end.
_NO_HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification")

# Biases that a key of config.json decides on, and families in which its absence means none.
_BIASES = (
    (".self_attn.q_proj.bias", "attention_bias",
     {"llama", "mistral", "mixtral", "olmo", "olmo2", "olmo3", "olmoe", "granite", "cohere",
      "qwen3", "qwen3_moe", "smollm3"}),
    (".mlp.up_proj.bias", "mlp_bias", {"llama", "mistral", "granite", "smollm3"}),
)  # fmt: skip


def check_base(path: str, config: Mapping[str, Any], layout: Layout) -> None:
    """Refuses a checkpoint whose configuration contradicts itself or its weights.

    Args:
        path: How to name it.
        config: Its config.json.
        layout: Tensor name -> (dtype, shape) of its weights.

    Raises:
        InputError: Names the key, what it says and what the weights have.
    """
    _check_names(path, config, layout)
    heads = _first(config, ("num_attention_heads", "n_head"))
    for key in _KEY_HEADS:
        own = config.get(key)
        if config.get("model_type") in _ALL_HEADS and own is not None and own != heads:
            raise InputError(
                f"checkpoint {path}: config.json, key {key}: {config['model_type']} has no such "
                f"key, and engines differ in whether they believe it ({own}); remove it"
            )
    check_rope(path, config)
    if quantisation(config, layout) is None:
        odd = next((n for n, (kind, _) in layout.items() if _is_whole(n, kind)), None)
        if odd is not None:
            raise InputError(
                f"checkpoint {path}: {odd} holds whole numbers ({layout[odd][0]}), and config.json "
                f"says nothing of quantisation; libraries would take them for the weights"
            )
    if "text_config" in config or "encoder" in config:
        return  # the numbers below are those of a part
    _check_key_heads(path, config, layout, heads)
    _check_vocabulary(path, config, layout)
    _check_biases(path, config, layout)
    if quantisation(config, layout) is None:
        check_tensors(path, config, layout)


def _check_names(path: str, config: Mapping[str, Any], layout: Layout) -> None:
    """Files that no library can read as a model that scores text."""
    if not layout:
        raise InputError(f"checkpoint {path}: its weights hold no tensors; it was not saved whole")
    before = next((one for one in _WRAPPERS if all(name.startswith(one) for name in layout)), None)
    if before is not None:
        raise InputError(
            f"checkpoint {path}: the names of all its tensors begin with {before!r}, of what "
            f"was around the model when it was saved; libraries find none of them; save the model "
            f"itself"
        )
    empty = next((name for name, (_, shape) in layout.items() if 0 in shape), None)
    if empty is not None:
        raise InputError(
            f"checkpoint {path}: {empty} is empty; it was saved without gathering its parts "
            f"(ZeRO-3, FSDP)"
        )
    if config.get("model_type") is None and "auto_map" not in config:
        raise InputError(
            f"checkpoint {path}: config.json has no model_type, so that no library knows what it is"
        )
    names = [str(name) for name in config.get("architectures") or ()]
    masked = bool(names) and all(name.endswith("ForMaskedLM") for name in names)
    if masked or config.get("is_encoder_decoder") is True:
        kind = "fills in masked words" if masked else "has an encoder and a decoder"
        raise InputError(
            f"checkpoint {path}: {''.join(names[:1]) or config.get('model_type')} {kind}; only "
            f"models that write text from left to right are scored"
        )
    bare = bool(names) and all(name.endswith(_NO_HEADS) for name in names)
    if bare and head_of(layout) is None and not shares_embeddings(config, layout):
        raise InputError(
            f"checkpoint {path}: its weights have no output head ({names[0]}), and by its "
            f"config.json that is not the embeddings; it scores no text"
        )


def _is_whole(name: str, kind: str) -> bool:
    return name.endswith(".weight") and kind[0] in "IU"


def check_tied(path: str | Path, config: Mapping[str, Any], layout: Layout) -> None:
    """Refuses a checkpoint that shares embeddings and head, and yet holds two different ones.

    transformers 5 then uses both (with a warning), vLLM the embeddings for both.

    Args:
        path: Its directory.
        config: Its config.json.
        layout: Its tensors.

    Raises:
        InputError: Names the head.
    """
    head, embeddings = head_of(layout), embeddings_of(layout)
    if "text_config" in config or head is None or embeddings is None:
        return  # of which part the configuration speaks is not certain, or there is one tensor
    if not shares_embeddings(config, layout):
        return
    file = next(file for file in weight_files(Path(path)) if head in read_header(file)[0])
    if not same_values(file, head, path, embeddings):
        raise InputError(
            f"checkpoint {path}: by its config.json embeddings and output head are one, its "
            f"weights hold another {head}, and libraries differ in which they use; set "
            f"tie_word_embeddings to false, or leave {head} out"
        )


def _check_key_heads(
    path: str, config: Mapping[str, Any], layout: Layout, heads: int | None
) -> None:
    keys, size = config.get("num_key_value_heads"), config.get("head_dim")
    if keys is None and config.get("model_type") == "llama":
        keys = heads  # its default
    width = config.get("hidden_size")
    if size is None and heads and isinstance(width, int):
        size = width // heads
    if not (isinstance(keys, int) and isinstance(size, int)):
        return
    for name, (dtype, shape) in layout.items():
        # Quantised weights are packed, experts and other attentions have other names.
        if name.endswith(".self_attn.k_proj.weight") and dtype in ("F32", "BF16", "F16"):
            if shape[0] != keys * size:
                raise InputError(
                    f"checkpoint {path}: config.json says {keys} key heads of {size}, {name} has "
                    f"{shape[0]} rows; one of them is of another model"
                )
            return


def _check_vocabulary(path: str, config: Mapping[str, Any], layout: Layout) -> None:
    dtype, shape = layout.get("model.embed_tokens.weight", ("", ()))
    tokens = config.get("vocab_size")
    if dtype not in ("F32", "BF16", "F16", "F64"):
        return
    if isinstance(tokens, int) and shape[0] != tokens:
        raise InputError(
            f"checkpoint {path}: config.json says vocab_size {tokens:,}, "
            f"model.embed_tokens.weight has {shape[0]:,} rows; one of them is of another model"
        )
    separate = config.get("tie_word_embeddings") is False
    causal = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    if separate and causal and not any("head" in name or "output" in name for name in layout):
        raise InputError(
            f"checkpoint {path}: its weights have no output head, and config.json says that it is "
            f"not the embeddings (tie_word_embeddings false): weights are missing, or set that to "
            f"true"
        )


def _check_biases(path: str, config: Mapping[str, Any], layout: Layout) -> None:
    """vLLM passes over biases for which config.json leaves no room, without a word."""
    if quantisation(config, layout) is not None:
        return  # GPTQ's tools save biases that are zero
    for ending, key, families in _BIASES:
        if config.get("model_type") not in families:
            continue
        # Two of these families have no such key, and no biases.
        says = bool(config.get(key)) and config["model_type"] not in ("mistral", "mixtral")
        name = next((name for name in layout if name.endswith(ending)), None)
        if says != (name is not None):
            has = "weights have none" if name is None else f"weights have {name}"
            raise InputError(
                f"checkpoint {path}: config.json, key {key}: {str(says).lower()}, but the {has}; "
                f"one of them is of another model"
            )


def quantisation(config: Mapping[str, Any], layout: Layout) -> str | None:
    """How a checkpoint's weights are quantised; None if they are not.

    Args:
        config: Its config.json.
        layout: Its tensors.
    """
    text = config.get("text_config")
    for own in (config, text if isinstance(text, dict) else {}):
        found = own.get("quantization_config") or own.get("compression_config")
        if isinstance(found, dict):
            return str(found.get("quant_method") or found.get("format") or "quantised")
    for name, (dtype, _) in layout.items():
        if dtype.startswith("F8") and name.endswith(".weight"):
            return dtype
    return None


def _first(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    return next((config[key] for key in keys if isinstance(config.get(key), int)), None)
