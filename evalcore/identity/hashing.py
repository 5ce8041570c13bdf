"""Canonical hashing: the same content gives the same 32 hex digits on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

DIGEST_BYTES = 16
DOCUMENT_ID_VERSION = 1


def canonical_json(obj: Any) -> str:
    """JSON text with sorted keys, no spaces, UTF-8 kept; tuples are lists, keys are text."""
    return json.dumps(
        _plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=True
    )


def _plain(obj: Any) -> Any:
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (set, frozenset)):
        return sorted(_plain(value) for value in obj)
    if isinstance(obj, (str, bool, int, float)) or obj is None:
        return obj
    if hasattr(obj, "tolist"):  # numpy scalars and arrays
        return _plain(obj.tolist())
    if isinstance(obj, Sequence) and not isinstance(obj, (bytes, bytearray)):
        return [_plain(value) for value in obj]
    if isinstance(obj, (bytes, bytearray)):
        return {"bytes": bytes(obj).hex()}
    return str(obj)  # dates, decimals: their text is their content


def text_fingerprint(obj: Any) -> str:
    """32 hex digits over the canonical JSON of ``obj``."""
    # surrogatepass: rows read from hostile files may hold lone surrogates.
    data = canonical_json(obj).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def document_id(
    fields: Mapping[str, Any],
    choices: Sequence[str],
    gold: int,
    references: Sequence[str],
    ordinal: int = 0,
) -> str:
    """Content identity of a document (32 hex digits).

    Args:
        fields: Values templates may use.
        choices: Choice texts.
        gold: Index of the right choice, -1 for none.
        references: Reference texts.
        ordinal: 0 for the first of exact copies, 1 for the second, ...
    """
    return text_fingerprint(
        ["document", DOCUMENT_ID_VERSION, fields, list(choices), gold, list(references), ordinal]
    )
