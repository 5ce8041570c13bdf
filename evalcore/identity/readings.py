"""How weights are asked: through which tokenizer, chat template and end tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.adapter import adapter_config
from evalcore.identity.checkpoint import numeric_config
from evalcore.identity.hashing import text_fingerprint
from evalcore.identity.templates import chat_template
from evalcore.identity.tokenizer import (
    TokenizerFacts,
    end_token_ids,
    load_tokenizer,
    tokenizer_facts,
)
from evalcore.identity.tokenizer_files import has_vocabulary, same_files
from evalcore.reading import is_there
from evalcore.types import Checkpoint

_SETTINGS = ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def with_tokenizer(checkpoint: Checkpoint, path: str | Path, facts: TokenizerFacts) -> Checkpoint:
    """A checkpoint asked through the tokenizer in a directory, with what that decides."""
    return replace(
        checkpoint,
        tokenizer_path="" if str(path) == checkpoint.path else str(path),
        tokenizer_fingerprint=facts.fingerprint,
        template_fingerprint=facts.template,
        template_dated=facts.dated,
        think_end=facts.think_end,
        turn_end=facts.turn_end,
        end_tokens=facts.ends,
        tokenizer_note=facts.note,
    )


def reading_of(checkpoint: Checkpoint) -> str:
    """8 hex digits over how weights are asked: tokenizer, chat template, end tokens."""
    return text_fingerprint(
        [
            checkpoint.tokenizer_fingerprint,
            checkpoint.template_fingerprint,
            sorted(checkpoint.end_tokens or ()),
        ]
    )[:8]


def differing(one: Checkpoint, other: Checkpoint) -> list[str]:
    """In which ways two checkpoints are asked differently, in words."""
    found = {
        "tokenizer": one.tokenizer_fingerprint != other.tokenizer_fingerprint,
        "chat template": one.template_fingerprint != other.template_fingerprint,
        "end tokens": set(one.end_tokens or ()) != set(other.end_tokens or ()),
    }
    return [what for what, differs in found.items() if differs]


def asked_as(checkpoint: Checkpoint, other: Checkpoint) -> Checkpoint:
    """A checkpoint asked as another is, under its name with a mark."""
    reading = reading_of(other)
    return replace(
        checkpoint,
        name=f"{checkpoint.name}~{reading}",
        tokenizer_path=other.tokenizer,
        tokenizer_fingerprint=other.tokenizer_fingerprint,
        template_fingerprint=other.template_fingerprint,
        template_dated=other.template_dated,
        think_end=other.think_end,
        turn_end=other.turn_end,
        end_tokens=other.end_tokens,
        tokenizer_note="",
        reading=reading,
    )


def read_through(checkpoint: Checkpoint, path: str | Path) -> Checkpoint:
    """A checkpoint asked through a tokenizer from elsewhere; its own configuration still ends.

    Raises:
        InputError: If there is no tokenizer, or it cannot be loaded.
    """
    facts = tokenizer_facts(path)
    ends = {*facts.ends, *end_token_ids(checkpoint.path, None)}
    return with_tokenizer(checkpoint, path, replace(facts, ends=tuple(sorted(ends))))


def adapter_reading(path: Path, base: Checkpoint) -> tuple[Checkpoint | None, str]:
    """(the base asked through an adapter's own tokenizer, a note); None where that is no other.

    Trainers save the tokenizer they used beside an adapter: with padding tokens that nothing
    writes, or with another chat template or end token, without which the adapter is asked what it
    never learned.

    Raises:
        InputError: If its template or its ends need tokens for which there are no weights.
    """
    if not has_vocabulary(path):
        files = [name for name in _SETTINGS if is_there(path / name)]
        if not files:
            return None, ""
        return None, (
            f"adapter {path} has {', '.join(files)} but no vocabulary: its base's tokenizer is "
            "used; give the right one with --tokenizer PATH"
        )
    if same_files(path, base.tokenizer):
        return None, ""
    own = read_through(base, path)
    ways = differing(base, own)
    if not ways:
        return None, ""
    _require_weights(path, base)
    return replace(own, reading=reading_of(own)), (
        f"adapter {path} brings its own {' and '.join(ways)}: where that "
        "changes what is asked or where text ends, it is asked so, and its base too "
        "(--tokenizer base: never)"
    )


def _require_weights(path: Path, base: Checkpoint) -> None:
    """Refuses tokens without weights that the adapter's template or ends would write."""
    config = adapter_config(path)
    if config.get("modules_to_save") or config.get("trainable_token_indices"):
        return  # brings weights for them
    rows = numeric_config(base.path).get("vocab_size")
    own: Any = load_tokenizer(path)
    known = load_tokenizer(base.tokenizer).get_vocab()
    template = chat_template(own)
    needed = {str(own.eos_token), str(own.bos_token)}
    new = [
        token
        for token, number in own.get_vocab().items()
        if token not in known
        and (not isinstance(rows, int) or number >= rows)
        and (token in needed or token in template)
    ]
    if new:
        raise InputError(
            f"it brings {len(new)} tokens that there are no weights for: "
            f"{', '.join(sorted(new)[:3])}"
        )
