"""Models to measure: random weights of any Hugging Face config, random adapters on any of them.

Speed does not depend on the values of weights, so none need to be fetched.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalcore.errors import InputError, UnknownNameError
from evalcore.identity import adapter_fingerprint, checkpoint_fingerprint, weight_layout
from evalcore.types import Adapter, Checkpoint, Subject

_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}
_OLMO = {"model_type": "olmo", "architectures": ["OlmoForCausalLM"]}
BUILTIN_CONFIGS: dict[str, dict[str, Any]] = {
    # The sizes of published models; the first is the pocket study's own, in short.
    "pocket": {
        **_LLAMA, "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
    "smollm2-135m": {
        **_LLAMA, "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "olmo-1b": {
        **_OLMO, "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
        "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
    "olmo-7b": {
        **_OLMO, "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 2048, "tie_word_embeddings": False,
    },
    "llama-1b": {
        **_LLAMA, "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "llama-8b": {
        **_LLAMA, "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    },
}  # fmt: skip
_SHARD_BYTES = 2 << 30
_NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe", "norm")


def read_config(name: str) -> dict[str, Any]:
    """A model's config by built-in name, or from a ``config.json`` or a folder with one.

    Raises:
        InputError: It is neither, or not a config.
    """
    if name in BUILTIN_CONFIGS:
        return dict(BUILTIN_CONFIGS[name])
    path = Path(name).expanduser()
    if not path.exists():
        hint = "or give the path of a config.json"
        raise UnknownNameError("model config", name, BUILTIN_CONFIGS, hint)
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--config {path}: not a readable config.json ({error})") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"--config {path}: expected a Hugging Face config with a model_type")
    return config


def random_checkpoint(folder: Path, config: dict[str, Any], dtype: str, seed: int = 0) -> Path:
    """Writes a checkpoint with random weights, a shard at a time; one that is there is kept.

    Matrices are normal with deviation 1 / sqrt(width), so that logits spread at any size; norms are
    one.

    Args:
        folder: Where to; ``config.json`` is written last and marks it as whole.
        config: Hugging Face config.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        seed: Equal seeds give equal weights (on one kind of device: a GPU makes them where there is
            one, a large model takes minutes on a CPU).

    Raises:
        InputError: transformers does not know the config.
    """
    import torch
    from safetensors.torch import save_file

    wanted = {**config, "torch_dtype": dtype}
    if (folder / "config.json").is_file():
        there = json.loads((folder / "config.json").read_text("utf-8"))
        if there == wanted:
            return folder
        raise InputError(f"{folder} holds another model than asked for; give another --out")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, generator = getattr(torch, dtype), torch.Generator(device).manual_seed(seed)
    deviation = float(config.get("hidden_size") or 2500) ** -0.5
    where: dict[str, str] = {}
    for number, names in enumerate(_shards(_layout(config), torch.finfo(kind).bits // 8)):
        tensors = {
            name: (
                torch.empty(shape, dtype=kind, device=device)
                .normal_(0, deviation, generator=generator)
                .cpu()
                if len(shape) > 1
                else torch.ones(shape, dtype=kind)
            )
            for name, shape in names
        }
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    if device == "cuda":
        torch.cuda.empty_cache()  # all of it is for the engine
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(wanted, indent=1))
    return folder


def _layout(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a checkpoint, from a model without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    try:
        built = AutoConfig.for_model(config["model_type"], **settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(built)
    except (ValueError, KeyError, TypeError) as error:
        line = str(error).strip().splitlines()[0]
        raise InputError(f"transformers cannot build {config['model_type']!r}: {line}") from None
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if not getattr(built, "tie_word_embeddings", False):
        tied = set()
    return {n: tuple(t.shape) for n, t in model.state_dict().items() if n not in tied}


def _shards(
    layout: dict[str, tuple[int, ...]], item_bytes: int
) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    shard: list[tuple[str, tuple[int, ...]]] = []
    size = 0
    for name, shape in layout.items():
        count = item_bytes
        for side in shape:
            count *= side
        if shard and size + count > _SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append((name, shape))
        size += count
    if shard:
        yield shard


def random_adapter(folder: Path, checkpoint: Path, rank: int, seed: int) -> Path:
    """Writes a LoRA adapter with random weights for every linear layer of a checkpoint's blocks."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors, modules = {}, set()
    for name, (_, shape) in sorted(weight_layout(checkpoint).items()):
        module = name.removesuffix(".weight")
        if len(shape) != 2 or any(part in name.lower() for part in _NOT_ADAPTED):
            continue
        out, inner = shape
        down = torch.empty(rank, inner).normal_(0, inner**-0.5, generator=generator)
        up = torch.empty(out, rank).normal_(0, 0.02, generator=generator)
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
        modules.add(module.rsplit(".", 1)[-1])
    if not tensors:
        raise InputError(f"{checkpoint}: no linear layer found that an adapter could be put on")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(checkpoint),
        "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted(modules), "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1))
    return folder


def subjects_of(checkpoint: Path, adapters: Sequence[Path], rank: int) -> list[Subject]:
    """The checkpoint alone, then with each adapter, fingerprinted: engines check what they read."""
    fingerprint = checkpoint_fingerprint(checkpoint)
    # One tokenizer for all, or an engine would start anew for each: nothing here becomes text.
    base = Checkpoint(checkpoint.name, str(checkpoint), fingerprint, "0" * 32)
    return [
        Subject(base),
        *(Subject(base, Adapter(a.name, str(a), adapter_fingerprint(a), rank)) for a in adapters),
    ]


def vocabulary_of(config: Mapping[str, Any]) -> int:
    """Rows of the output head, from the config.

    Raises:
        InputError: The config does not say.
    """
    size = config.get("vocab_size")
    if not isinstance(size, int):
        raise InputError(f"a config of {config.get('model_type')} should say vocab_size, a number")
    return size
