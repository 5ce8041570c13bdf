"""Names of adapter tensors, as the common trainers write them, and the weights they mean.

PEFT matches names by exact prefix and applies nothing else, with a warning at most (peft #2368,
Automodel #1755); both engines read them through this one normalisation instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from evalcore.errors import IncompatibleError

LORA_PARTS = (
    "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector",
)  # fmt: skip
TOKEN_ROWS = "trainable_tokens_delta"
# What torch.compile, FSDP and activation checkpointing put anywhere into a name.
_INSIDE = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What PEFT, DDP and models (also multimodal ones around their language model) put before a layer.
_BEFORE = {
    "base_model", "module", "model", "language_model", "text_model", "transformer", "gpt_neox",
    "decoder", "backbone", "llm",
}  # fmt: skip


# Mixtral's files call a block otherwise than the library's model does.
_MIXTRAL = (".mlp.", ".block_sparse_moe.")


@dataclass(frozen=True, slots=True)
class AdapterName:
    """The name of one tensor of an adapter, taken apart.

    Attributes:
        module: The module it belongs to, wrappers of trainers left out.
        part: ``lora_A`` ..., ``trainable_tokens_delta``, ``saved`` for a tensor that takes the
            place of the checkpoint's own, or ``original`` for a copy of the base's that PEFT keeps
            beside a saved module and never uses.
        leaf: ``weight`` or ``bias``, or what the module calls its parameter.
    """

    module: str
    part: str
    leaf: str

    @property
    def core(self) -> str:
        return core(self.module)


@lru_cache(maxsize=65536)  # adapters of one base have the same names
def parse_name(name: str) -> AdapterName:
    """Takes a tensor's name apart: wrappers, the adapter's name (``default``) and PEFT's layers.

    ``base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight`` is ``lora_A`` of
    ``model.layers.0.mlp.up_proj``.
    """
    words = [word for word in name.split(".") if word not in _INSIDE]
    while len(words) > 1 and words[0] in ("base_model", "module"):
        # "base_model.model" is PEFT's, before the model's own names (which may begin with "model").
        drop = 2 if words[0] == "base_model" and words[1] == "model" else 1
        words = words[drop:]
    for at, word in enumerate(words):
        if word in LORA_PARTS:
            leaf = "bias" if words[-1] == "bias" else "weight"
            return AdapterName(".".join(words[:at]), word, leaf)
        if word == TOKEN_ROWS:
            module = [w for w in words[:at] if w != "token_adapter"]
            return AdapterName(".".join(module), TOKEN_ROWS, "weight")
        if word == "modules_to_save" and len(words) > at + 1:
            # modules_to_save.ADAPTER.weight, or without the adapter's name.
            inner = words[at + 2 :] if len(words) > at + 2 else words[at + 1 :]
            module = [*words[:at], *inner[:-1]]
            return AdapterName(".".join(module), "saved", inner[-1])
    if words[-2:-1] == ["original_module"]:
        return AdapterName(".".join(words[:-2]), "original", words[-1])
    words = [word for word in words if word != "base_layer"]
    return AdapterName(".".join(words[:-1]), "saved", words[-1])


@lru_cache(maxsize=65536)
def core(module: str) -> str:
    """A module's name from its layer list on: ``model.layers.0.x`` and ``layers.0.x`` are one."""
    words = module.split(".")
    while len(words) > 1 and words[0] in _BEFORE:
        words = words[1:]
    return ".".join(words)


def by_core(names: Iterable[str]) -> dict[str, list[str]]:
    """Core of a module's or tensor's name -> the names that have it."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(core(name), []).append(name)
    return found


def one_of(name: str, known: Mapping[str, list[str]]) -> str | None:
    """The name of a checkpoint (or model) that an adapter's name means; None if there is none.

    Args:
        name: As :func:`parse_name` gives it.
        known: :func:`by_core` of the names there are.

    Raises:
        IncompatibleError: It could be any of several.
    """
    own = core(name)
    found = known.get(own) or known.get(own.replace(*_MIXTRAL)) or []
    if len(found) > 1:
        same = [other for other in found if other == name]
        if not same:
            raise IncompatibleError(f"{name} could be any of {', '.join(sorted(found)[:3])}")
        found = same
    return found[0] if found else None


def pattern_value(patterns: Mapping[str, object] | None, names: Iterable[str]) -> object | None:
    """The value of the first pattern that matches a module, as PEFT matches ``rank_pattern``.

    Args:
        patterns: Regular expression -> value.
        names: The module as the adapter, the checkpoint and the model name it.
    """
    return next(iter(pattern_values(patterns, names)), None)


def pattern_values(patterns: Mapping[str, object] | None, names: Iterable[str]) -> list[object]:
    """The values of all patterns that match a module, in their order."""
    names = tuple(names)
    return [
        value
        for key, value in (patterns or {}).items()
        if any(re.match(rf"(.*\.)?({key})$", name) for name in names)
    ]
