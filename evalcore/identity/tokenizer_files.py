"""The files of a tokenizer: which there are, and what decides what is loaded of them."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity.cache import cached_file_fact
from evalcore.identity.hashing import text_fingerprint
from evalcore.reading import MAX_TABLE_BYTES, file_sum, is_there

VOCABULARY_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "tiktoken.model")
_OF_THE_MODEL = ("config.json", "generation_config.json")
_FILES = (
    "tokenizer.json", *VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", *_OF_THE_MODEL,
)  # fmt: skip


def has_vocabulary(path: str | Path) -> bool:
    """Whether a directory holds a tokenizer (settings and templates alone are none)."""
    return any(is_there(Path(path) / name) for name in ("tokenizer.json", *VOCABULARY_FILES))


def tokenizer_state(directory: Path) -> str:
    """Fingerprint of the bytes of everything that decides what is loaded, library included.

    Raises:
        InputError: There is no tokenizer, or a file cannot be read.
    """
    return text_fingerprint(["tokenizer-state", _versions(), _digests(directory)])


def same_files(path: str | Path, other: str | Path) -> bool:
    """Whether a directory holds the tokenizer of another, byte for byte.

    The configurations of the model may be left out, as trainers do beside an adapter; where they
    are, they have to be the same.

    Raises:
        InputError: As :func:`tokenizer_state`.
    """
    own, theirs = _digests(Path(path)), _digests(Path(other))
    left_out = {name: theirs[name] for name in _OF_THE_MODEL if name in theirs and name not in own}
    return own | left_out == theirs


def _digests(directory: Path) -> dict[str, str]:
    """File of a tokenizer -> sha256 of its bytes."""
    if not has_vocabulary(directory):
        raise InputError(f"{directory} has no tokenizer.json (nor tokenizer.model, vocab.json)")
    files = [directory / name for name in _FILES]
    files += sorted((directory / "additional_chat_templates").glob("*.jinja"))
    return {
        file.relative_to(directory).as_posix(): cached_file_fact(file, "bytes-3", _sha256)
        for file in files
        if is_there(file)
    }


def _sha256(path: Path) -> str:
    return file_sum(path, "tokenizer", MAX_TABLE_BYTES)


@cache
def _versions() -> list[str]:
    return [metadata.version(name) for name in ("transformers", "tokenizers")]
