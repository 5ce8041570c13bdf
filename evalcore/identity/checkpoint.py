"""Identity of checkpoints: what decides scores, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.away import away_at, files_state
from evalcore.identity.hashing import text_fingerprint
from evalcore.identity.model_schema import check_model_config
from evalcore.identity.weights import tensor_digests, weight_files
from evalcore.reading import read_json

# config.json keys that change no score: where it came from, which library wrote it, how it runs,
# defaults of generation (always given explicitly), and ids that the tokenizer decides.
_NOT_NUMERIC = {
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype",
    "use_cache", "_attn_implementation", "attn_implementation", "_attn_implementation_autoset",
    "output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "torchscript",
    "gradient_checkpointing", "pad_token_id", "bos_token_id", "eos_token_id",
    "task_specific_params",
    "finetuning_task", "id2label", "label2id", "problem_type", "tokenizer_class", "prefix",
    "max_new_tokens", "temperature", "top_p", "top_k", "do_sample", "unsloth_version",
}  # fmt: skip


def numeric_config(path: str | Path) -> dict[str, Any]:
    """The part of ``config.json`` that decides scores (rope, eps, heads, tying, ...).

    Raises:
        InputError: If there is no readable config.json.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise InputError(f"base missing on disk: {directory} is not a directory")
    file = directory / "config.json"
    config = read_json(file, "checkpoint")
    check_model_config(config, file)
    return {key: value for key, value in sorted(config.items()) if key not in _NOT_NUMERIC}


def checkpoint_fingerprint(path: str | Path, digests: Mapping[str, str] | None = None) -> str:
    """32 hex digits over tensors (names, dtypes, shapes, bytes) and numeric configuration.

    How tensors are spread over files, file names and metadata do not count. Bytes are read once
    per file and remembered (see :mod:`evalcore.identity.cache`). Of weights on the hub that nobody
    has read it is over their files' sha256 (see :mod:`evalcore.identity.away`).

    Args:
        path: Checkpoint directory.
        digests: Of its tensors, by whoever has just read them; None: from the files.

    Raises:
        InputError: If the directory is missing, has no safetensors or a broken file.
    """
    config = numeric_config(path)
    away = away_at(path)
    if digests is None and away is not None and away.digests is None:
        return away.fingerprint(files_state(config, away.files.values()))[0]
    digests = weight_digests(path) if digests is None else digests
    return text_fingerprint(["checkpoint", 1, config, digests])


def weight_digests(path: str | Path) -> dict[str, str]:
    """Tensor names of a checkpoint -> digest over name, dtype, shape and bytes, sharded or not.

    Raises:
        InputError: If weights are missing or broken, or two files differ in a tensor.
    """
    away = away_at(path)
    if away is not None and away.digests is not None:
        return dict(away.digests)
    digests: dict[str, str] = {}
    for file in weight_files(Path(path)):
        for name, digest in tensor_digests(file, whole=True).items():
            if digests.setdefault(name, digest) != digest:
                raise InputError(
                    f"checkpoint {path}: {file.name} and another of its files hold different "
                    f"tensors {name}; one of them is of another save, remove it"
                )
    return digests


# Keys that only training reads, or that name a class.
_UNUSED = ("architectures", "initializer_range", "pretraining_tp")
# Whether layers have biases is in the weights; false is what an absent key means.
_FALSE = ("attention_bias", "mlp_bias", "use_sliding_window")
_PLAIN_ROPE = ("rope_type", "default")


def same_model(one: str | Path, other: str | Path) -> bool:
    """Whether two directories hold one model, saved by different versions of a library.

    transformers 5 writes a configuration it reads again with every default, and the base of rotary
    positions elsewhere; tensors have to be the same to the byte.
    """
    first, second = numeric_config(one), numeric_config(other)
    unread = [away for path in (one, other) if (away := away_at(path)) and not away.digests]
    if unread:  # their bytes are not compared: one model only where their files are the same
        return False
    return _as_built(first) == _as_built(second) and weight_digests(one) == weight_digests(other)


def _as_built(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is built of: defaults and what only training reads left out."""
    made = {
        key: value
        for key, value in config.items()
        if value is not None
        and key not in _UNUSED
        and not key.endswith(("dropout", "_pdrop"))
        and not (key in _FALSE and value is False)
    }
    scaling, theta = made.pop("rope_scaling", {}), made.pop("rope_theta", None)
    rope = {**scaling, **made.pop("rope_parameters", {})}
    rope |= {"rope_type": rope.pop("type")} if "type" in rope and "rope_type" not in rope else {}
    rope |= {} if theta is None else {"rope_theta": theta}
    made["rope"] = {key: value for key, value in rope.items() if (key, value) != _PLAIN_ROPE}
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and heads:
        if made.get("head_dim") == width // heads:
            del made["head_dim"]
        if made.get("num_key_value_heads") == heads:
            del made["num_key_value_heads"]
    return made
