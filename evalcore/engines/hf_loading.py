"""Builds the oracle's model: every tensor of checkpoint and adapter in its place, or an error.

transformers initialises missing weights anew and PEFT drops tensors it cannot place, both with a
log line only; here either is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalcore.errors import IncompatibleError
from evalcore.identity import LoraAdapter, numeric_config, read_lora, shares_embeddings
from evalcore.identity.adapter import ADAPTER_CONFIG, adapter_file
from evalcore.identity.adapter_names import AdapterName, by_core, one_of, parse_name, pattern_value
from evalcore.identity.weights import weight_layout
from evalcore.types import Adapter, Subject

# Buffers that old versions of transformers saved and that are computed from the configuration.
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|\.(attn|attention)\.(bias|masked_bias))$")


def build(subject: Subject, dtype: str, *, trust_remote_code: bool = False) -> Any:
    """The model of a subject, adapter unmerged on top, on the CPU.

    Args:
        subject: Checkpoint and adapter.
        dtype: Of the checkpoint's weights; adapters stay in float32.
        trust_remote_code: Whether the checkpoint may bring code.

    Raises:
        IncompatibleError: transformers or PEFT refuse the files, or leave part of them out.
    """
    model = build_base(subject.checkpoint.path, dtype, trust_remote_code=trust_remote_code)
    if subject.adapter is not None:
        model = add_adapter(model, subject.checkpoint.path, subject.adapter)
    return model


def build_base(path: str, dtype: str, *, trust_remote_code: bool = False) -> Any:
    """A checkpoint, complete, with eager attention and no settings of generation of its own.

    Raises:
        IncompatibleError: It cannot be loaded, lacks tensors or has some too many.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import GenerationConfig

    if (Path(path) / ADAPTER_CONFIG).exists():
        # transformers would apply it to weights that may hold it already (peft #1381).
        raise IncompatibleError(f"checkpoint {path} holds an adapter too; move it elsewhere")
    try:
        model, info = _loader(path).from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            # Others drop what they have no room for: SDPA forgets Gemma-2's soft cap.
            attn_implementation="eager",
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # told below, by their names
            output_loading_info=True,
        )
    except (
        OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError, AttributeError,
        ZeroDivisionError, StrictDataclassError,
    ) as error:  # fmt: skip
        raise IncompatibleError(f"checkpoint {path} cannot be loaded: {line(error)}") from error
    _check_loaded(path, info)
    # "generate" fills what a configuration leaves open from the model's own: penalties, bans.
    model.generation_config = GenerationConfig()
    return model


def _loader(path: str) -> Any:
    """transformers' class for a checkpoint: of text, or of a model that takes images as well.

    Qwen2.5-VL, LLaVA, Mistral 3 and others are in the second list alone; asked about text they
    score it as their language part does.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto

    kind = numeric_config(path).get("model_type")
    alone = kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    images = kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return AutoModelForImageTextToText if alone and images else AutoModelForCausalLM


def _check_loaded(path: str, info: Mapping[str, Any]) -> None:
    extra = sorted(name for name in info["unexpected_keys"] if not _COMPUTED.search(name))
    for what, names in (
        ("lacks {} tensors its config.json promises", sorted(info["missing_keys"])),
        ("has {} tensors its architecture has no place for", extra),
        ("has {} tensors of another shape than config.json says",
         sorted(str(item[0]) for item in info["mismatched_keys"])),
    ):  # fmt: skip
        if names:
            raise IncompatibleError(f"checkpoint {path} {what.format(len(names))}: {_some(names)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def add_adapter(model: Any, base: str, adapter: Adapter) -> Any:
    """Puts an adapter on a model by PEFT, its tensors named as this model names its modules.

    Raises:
        IncompatibleError: PEFT refuses it, or a tensor of it has no place, or a place no tensor.
    """
    from peft import PeftConfig, PeftModelForCausalLM, set_peft_model_state_dict
    from safetensors.torch import load_file

    path = adapter.path
    layout = weight_layout(base)
    known = read_lora(path, layout, tied=shares_embeddings(numeric_config(base), layout), base=base)
    _resize(model, known, path)
    try:
        file = load_file(str(adapter_file(path)))
        state, config = under_our_names(model, file, PeftConfig.from_pretrained(path))
        config.inference_mode = True
        model = PeftModelForCausalLM(model, config)
        result = set_peft_model_state_dict(model, state)
    except KeyError as error:
        raise IncompatibleError(
            f"adapter {path} does not fit {base}: it lacks the tensor {error.args[0]}"
        ) from error
    except (OSError, ValueError, RuntimeError, TypeError, ImportError, IndexError) as error:
        raise IncompatibleError(f"adapter {path} does not fit {base}: {line(error)}") from error
    if result.unexpected_keys:
        raise IncompatibleError(
            f"adapter {path} does not fit {base}: {len(result.unexpected_keys)} of its tensors "
            f"have no place in the model: {_some(sorted(result.unexpected_keys))}"
        )
    missing = [k for k in result.missing_keys if "lora_" in k or ".modules_to_save." in k]
    if missing:
        raise IncompatibleError(
            f"adapter {path}: {adapter_file(path).name} lacks {len(missing)} tensors its "
            f"configuration promises: {_some(sorted(missing))}"
        )
    return model


def _resize(model: Any, known: LoraAdapter, path: str) -> None:
    """Gives the model as many rows of embeddings as the adapter brings along."""
    if not known.resized:
        return
    sizes = set(known.resized.values())
    heads = {name for name in known.resized if name.endswith(("lm_head.weight", "out.weight"))}
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    if len(sizes) > 1 or not (tied or (heads and set(known.resized) - heads)):
        raise IncompatibleError(
            f"adapter {path} brings {sorted(sizes)[-1]} rows for {', '.join(sorted(known.resized))}"
            f"; embeddings and output head have to have the same"
        )
    model.resize_token_embeddings(sizes.pop(), mean_resizing=False)


def under_our_names(model: Any, file: Mapping[str, Any], config: Any) -> tuple[Any, Any]:
    """(an adapter's tensors under PEFT's names, its configuration for the modules here)."""
    state, moved = _renamed(model, file)
    if moved:
        _follow(config, moved)
    return state, config


def _renamed(
    model: Any, file: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, tuple[str, AdapterName]]]:
    """An adapter's tensors under PEFT's names; (module here, name there) of those that moved."""
    here = by_core(name for name, _ in model.named_modules() if name)
    state: dict[str, Any] = {}
    moved: dict[str, tuple[str, AdapterName]] = {}
    other = False
    for name, tensor in file.items():
        parsed = parse_name(name)
        if parsed.part == "original":
            continue
        module = one_of(parsed.module, here) or parsed.module
        other |= module != parsed.module
        if parsed.part == "saved":
            inner = ".base_layer" if ".base_layer." in name else ""
            new = f"{module}{inner}.{parsed.leaf}"
        elif parsed.part in ("lora_A", "lora_B"):
            new = f"{module}.{parsed.part}.{parsed.leaf}"
            moved[module] = (module, parsed)
        elif "lora" in parsed.part:
            new = f"{module}.{parsed.part}"
            moved[module] = (module, parsed)
        else:
            new = f"{module}.token_adapter.{parsed.part}"
        state[f"base_model.model.{new}"] = tensor
    return state, moved if other else {}


def _follow(config: Any, moved: Mapping[str, tuple[str, AdapterName]]) -> None:
    """Makes patterns of a configuration, written for other names, mean the modules here."""
    ranks, alphas = {}, {}
    for module, (_, parsed) in moved.items():
        names = (parsed.module, module)
        rank = pattern_value(config.rank_pattern, names)
        alpha = pattern_value(config.alpha_pattern, names)
        if rank is not None:
            ranks[re.escape(module)] = rank
        if alpha is not None:
            alphas[re.escape(module)] = alpha
    config.rank_pattern, config.alpha_pattern = ranks, alphas
    config.target_modules = set(moved)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None


def line(error: BaseException) -> str:
    """What an exception of another library says, on one line, in so far as it helps."""
    if isinstance(error, KeyError) and " " not in str(error):  # it says nothing but the key
        return f"nothing there is called {error}"
    lines = [part.strip() for part in str(error).strip().splitlines() if part.strip()]
    if not lines:
        return type(error).__name__
    # PyTorch's "Error(s) in loading state_dict for X:" says what it is about on the next line.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
