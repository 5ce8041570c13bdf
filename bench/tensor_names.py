"""Which tensors a checkpoint of each architecture has, asked of transformers.

``python -m bench.tensor_names`` writes ``evalcore/identity/tensor_names.json``. A tiny model of
each family is saved: files name some tensors otherwise than the code does (experts one by one).
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

FAMILIES = (
    "gemma", "gemma2", "gemma3_text", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo",
    "olmo2", "olmo3", "olmoe", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3",
)  # fmt: skip
SIZES = {
    "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2,
    "shared_expert_intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 64, "num_local_experts": 3, "num_experts": 3,
    "num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FILE = Path(__file__).resolve().parents[1] / "evalcore" / "identity" / "tensor_names.json"


def names_of(family: str, **changes: Any) -> set[str]:
    """Names in the file of a tiny model, layers and experts written as ``*``."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    known = AutoConfig.for_model(family).to_dict()
    sizes = {key: value for key, value in SIZES.items() if key in known}
    config = AutoConfig.for_model(family, **{**sizes, **changes})
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        with safe_open(str(Path(folder) / "model.safetensors"), framework="np") as file:
            return {re.sub(r"\.\d+\.", ".*.", name) for name in file.keys()}  # noqa: SIM118


def described(family: str) -> dict[str, Any]:
    """What the page says of a family.

    ``names``: of every checkpoint; ``head``: of one whose head is its own; ``biases``: which
    there may be where the configuration says so; ``tied``: whether head and embeddings are one
    where it says nothing.
    """
    from transformers import AutoConfig

    plain = names_of(family, tie_word_embeddings=False)
    head = plain - names_of(family, tie_word_embeddings=True)
    known = AutoConfig.for_model(family)
    flags = [key for key in ("attention_bias", "mlp_bias", "use_bias") if key in known.to_dict()]
    biased = names_of(family, tie_word_embeddings=False, **dict.fromkeys(flags, True))
    bare = names_of(family, tie_word_embeddings=False, **dict.fromkeys(flags, False))
    return {
        "names": sorted(bare - head),
        "head": sorted(head),
        "biases": sorted(biased - bare),
        "tied": bool(known.tie_word_embeddings),
    }


def main() -> None:
    families = sys.argv[1:] or FAMILIES
    found = json.loads(FILE.read_text("utf-8")) if sys.argv[1:] else {}
    found |= {family: described(family) for family in families}
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
