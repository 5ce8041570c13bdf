"""Keys of ``config.json`` that one of transformers and vLLM goes by and the other does not read.

Told from the sources of both, in which nothing is imported: a checkpoint for which they would
compute different things is refused before an engine starts. What is said here was seen to change
scores in silence (OLMoE's ``clip_qkv``, StableLM's parallel layers ...).
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from evalcore.engines.vllm.contract import installed, model_classes, model_source
from evalcore.identity.rope import rope_kind, rope_parts

# Keys of config.json that vLLM 0.32 goes by in families whose code in transformers does not know
# them (engine/arg_utils.py, models/llama.py, transformers_utils/config.py) -> values that change
# nothing.
_BELIEVED: dict[str, tuple[Any, ...]] = {
    "sliding_window": (None, 0), "logit_scale": (None, 1), "attn_logit_softcapping": (None, 0),
    "final_logit_softcapping": (None, 0), "dual_chunk_attention_config": (None,),
    "partial_rotary_factor": (None, 1), "rotary_pct": (None, 1), "rotary_emb_fraction": (None, 1),
}  # fmt: skip
_PARTIAL = ("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction")
_SCALED = ("llama", "mistral", "phi3")  # families whose classes in vLLM are Llama's
# Keys that vLLM 0.32 goes by (models/lfm2.py), which published files have and transformers writes
# no more.
_NEEDED = {"lfm2": ("block_dim", "conv_dim")}
# Keys that change what a layer computes; others (dropout, first values, losses) do not.
_COUNTS = re.compile(
    r"act$|activation|bias$|clip|norm_topk|residual$|layernorm$|qk_norm|softcap|swiglu"
    r"|bidirectional|scale_attn|multiplier|scal(e|ing|ing_factor)$"
)
# Of Gemma 3 transformers keeps attn_logit_softcapping and does not go by it.
_HARMLESS = re.compile(
    r"^(time_step|rescale_|summary_|use_mamba|attn_logit_softcapping)|jitter|projector"
)
_SILU = "Only silu is supported"
_READ = re.compile(r"config\.([a-z_0-9]+)|getattr\(\s*(?:self\.)?config,\s*\"([a-z_0-9]+)\"")


def believed(config: Mapping[str, Any]) -> str | None:
    """A key that vLLM goes by and transformers does not: left over, or not there.

    Args:
        config: A checkpoint's config.json.
    """
    kind = str(config.get("model_type"))
    length = config.get("max_position_embeddings") or config.get("n_positions")
    for key in _NEEDED.get(kind, ()):
        if config.get(key) is None:
            return f"config.json has no key {key}, which vLLM's {kind} goes by"
    for key, harmless in _BELIEVED.items():
        value = config.get(key)
        if value in harmless or not _reads(config, key):
            continue
        if key == "sliding_window" and isinstance(length, int) and _at_least(value, length):
            continue  # no text is longer
        if _is_unknown(kind, key):
            return (
                f"config.json, key {key}: vLLM goes by it ({_short(value)}), transformers' {kind} "
                f"has no such key; remove it"
            )
    return None


def _is_unknown(kind: str, key: str) -> bool:
    """Whether transformers' code of a type of models, which it has, does not read a key."""
    source = transformers_source(kind)
    if key in _PARTIAL and source:  # it may be renamed as the configuration is read
        source += transformers_source(kind, "configuration")
    return bool(source) and key not in source


def _reads(config: Mapping[str, Any], key: str) -> bool:
    """Whether vLLM's code of an architecture goes by a key."""
    if key == "sliding_window" or (key == "logit_scale" and config.get("model_type") in _SCALED):
        return True
    if key in _PARTIAL and any(rope_kind(rope) != "default" for _, rope in rope_parts(config)):
        return False  # transformers' code of the other kinds goes by it, too
    for name in map(str, config.get("architectures") or ()):
        if key in _PARTIAL and "rope_parameters" in vllm_source(name):
            return True
        module = model_classes().get(name, ("", ""))[0]
        # Through transformers' own code vLLM believes these two of every family.
        if f'"{key}"' in model_source(name) or (module == "transformers" and "logit" in key):
            return True
    return False


def _at_least(value: Any, length: int) -> bool:
    return isinstance(value, int) and value >= length


def unread(config: Mapping[str, Any]) -> str | None:
    """A key that transformers goes by, of another value than usual, and vLLM does not read.

    Args:
        config: A checkpoint's config.json.
    """
    kind = str(config.get("model_type"))
    if config.get("model_type") == "falcon" and config.get("alibi"):
        return (
            "config.json, key alibi: transformers' falcon rounds these numbers to bfloat16, vLLM "
            "does not: the longer the text, the more their scores differ"
        )
    if config.get("is_causal") is False:
        return "config.json, key is_causal: false: vLLM has no such model that scores text"
    usual, needed = _usual(kind), _keys(kind)
    for name in map(str, config.get("architectures") or ()):
        source = vllm_source(name)
        if not source:
            continue
        act = config.get("hidden_act")
        if act not in (None, "silu") and usual.get("hidden_act") == "silu" and _SILU in source:
            return f"config.json, key hidden_act: vLLM's {name} has silu alone, not {_short(act)}"
        for key in sorted(needed & set(usual) & set(config)):
            if key not in source and config[key] != usual[key]:
                return (
                    f"config.json, key {key}: transformers' {kind} goes by it "
                    f"({_short(config[key])}), vLLM's {name} does not read it"
                )
    return None


@functools.cache
def vllm_source(architecture: str) -> str:
    """vLLM's own code of an architecture with that of the families it takes classes from.

    ``""`` where it is not found, or is transformers' own.
    """
    root, own = installed(), model_source(architecture)
    if root is None or not own or model_classes()[architecture][0] == "transformers":
        return ""
    folder = root / "model_executor" / "models"
    others = [
        str(node.module).rpartition(".")[2]
        for node in ast.walk(ast.parse(own))
        if isinstance(node, ast.ImportFrom)
        and (node.level == 1 or str(node.module).startswith("vllm.model_executor.models."))
        and any(alias.name[:1].isupper() for alias in node.names)
    ]
    others = sorted(set(others) - {"utils", "interfaces", "interfaces_base"})
    files = [folder / f"{name}.py" for name in others]
    return "\n".join([own, *(file.read_text("utf-8") for file in files if file.is_file())])


def transformers_source(kind: str, what: str = "modeling") -> str:
    """transformers' code of a type of models; ``""`` where it has none.

    Args:
        kind: As ``model_type`` names it; the text part of a family (``gemma3_text``) is its
            family's.
        what: ``modeling`` or ``configuration``.
    """
    plain = kind.replace("-", "_")
    for name in (plain, re.sub(r"_?text$", "", plain)):
        if not name.isidentifier():
            continue
        try:
            home = Path(str(metadata.distribution("transformers").locate_file("transformers")))
            return (home / "models" / name / f"{what}_{name}.py").read_text("utf-8", "replace")
        except (metadata.PackageNotFoundError, OSError):
            continue
    return ""


@functools.cache
def _keys(kind: str) -> frozenset[str]:
    """Keys that count and that transformers' code of a type of models goes by."""
    found = {one or other for one, other in _READ.findall(transformers_source(kind))}
    return frozenset(key for key in found if _COUNTS.search(key) and not _HARMLESS.search(key))


@functools.cache
def _usual(kind: str) -> dict[str, Any]:
    """What transformers takes where a configuration of this type does not say a key."""
    found: dict[str, Any] = {}
    source = transformers_source(kind, "configuration")
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and ("model_type", kind) in list(_values(node)):
            found |= dict(_values(node))
    return found


def _values(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """(name, value) of what a class sets to plain values."""
    for own in node.body:
        if isinstance(own, ast.AnnAssign):
            target: ast.expr | None = own.target
        else:
            target = own.targets[0] if isinstance(own, ast.Assign) else None
        value = own.value if isinstance(own, ast.Assign | ast.AnnAssign) else None
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            yield target.id, value.value


def _short(value: Any) -> str:
    plain = isinstance(value, int | float | str) and len(str(value)) < 40
    return repr(value) if plain else "not empty"
