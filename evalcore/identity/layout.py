"""What names and shapes of a checkpoint's tensors say: its head, embeddings, turned weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalcore.identity.lora_names import Layout

# Weights these modules have in GPT-2's family are stored [in, out] (transformers' Conv1D).
_CONV1D = ("c_attn", "c_fc", "c_proj", "q_attn")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = ("lm_head", "embed_out")
"""What models call the module of their output head."""
# Families whose embeddings and head are one where config.json does not say (transformers 5.19).
_TIED_BY_DEFAULT = {
    "gpt2", "gpt_bigcode", "gpt_neo", "opt", "bloom", "falcon", "mpt", "gemma", "gemma2", "gemma3",
    "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified",
    "gemma4_unified_text", "vaultgemma", "recurrent_gemma", "cohere", "cohere2", "cohere2_moe",
    "starcoder2", "smollm3", "lfm2", "lfm2_moe", "ernie4_5", "ernie4_5_moe", "granite_swa",
    "minicpm3", "xglm", "biogpt", "ctrl", "jetmoe", "gpt_neox_japanese", "mamba", "falcon_mamba",
    "zamba", "zamba2", "youtu", "zaya",
}  # fmt: skip


def stored_transposed(target: str, layout: Layout) -> bool:
    """Whether a weight is a Conv1D's, stored [in, out].

    PEFT goes by the module's type and corrects ``fan_in_fan_out`` with a warning, so what the
    configuration says does not count. Of GPT-2's family c_attn tells which of the two the file has:
    it is [d, 3 d] as Conv1D. Starcoder2, whose c_fc and c_proj are linear layers, has none.
    """
    words = target.split(".")
    if len(words) < 2 or words[-2] not in _CONV1D:
        return False
    for name, (_, shape) in layout.items():
        if name.endswith(".c_attn.weight") and len(shape) == 2 and shape[0] != shape[1]:
            return shape[0] < shape[1]
    return False


def shares_embeddings(config: Mapping[str, Any], layout: Layout) -> bool:
    """Whether a checkpoint's output head is its input embeddings.

    Args:
        config: Its config.json; families that tie by default may not say so there.
        layout: Its tensors.
    """
    text = config.get("text_config")
    parts = (config, text if isinstance(text, dict) else {})
    for own in parts:
        if isinstance(own.get("tie_word_embeddings"), bool):
            return bool(own["tie_word_embeddings"])
    if any(own.get("model_type") in _TIED_BY_DEFAULT for own in parts):
        return True
    return head_of(layout) is None


def head_of(layout: Layout) -> str | None:
    """The tensor of a checkpoint's output head, if it has one of its own."""
    wanted = tuple(f"{head}.weight" for head in HEADS)
    return next((name for name in layout if f".{name}".endswith(wanted)), None)


def embeddings_of(layout: Layout) -> str | None:
    """The tensor of a checkpoint's input embeddings; None where it is not certain."""
    found = [name for name in layout if name.endswith(_EMBEDDINGS)]
    return found[0] if len(found) == 1 else None


def is_vocabulary(target: str) -> bool:
    """Whether a tensor has a row for each token."""
    return any(word in target for word in ("embed", "lm_head", ".wte.", "wte.weight"))
