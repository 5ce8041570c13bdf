"""What was planned is what is read: fingerprints computed again from the bytes that are used."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from evalcore.errors import NodeError
from evalcore.identity.adapter import ADAPTER_CONFIG, adapter_file, adapter_fingerprint
from evalcore.identity.checkpoint import checkpoint_fingerprint
from evalcore.identity.weights import hash_tensors, remembered_digests, weight_files
from evalcore.types import Adapter, Checkpoint


def verify_checkpoint(checkpoint: Checkpoint, digests: Mapping[str, str] | None = None) -> None:
    """Checks that a checkpoint's bytes are those that were planned.

    Args:
        checkpoint: As it was planned.
        digests: Tensor name -> digest of what was read; None: the files are read now.

    Raises:
        NodeError: They are not.
    """
    files = weight_files(Path(checkpoint.path))
    if digests is None:
        digests = {name: digest for file in files for name, digest in hash_tensors(file).items()}
    found = checkpoint_fingerprint(checkpoint.path, digests)
    if found not in (checkpoint.fingerprint, checkpoint.content):
        raise _changed("checkpoint", checkpoint.path, files, digests)


def verify_adapter(adapter: Adapter) -> None:
    """Reads an adapter's file and checks that it is the one that was planned.

    Raises:
        NodeError: It is not.
    """
    file = adapter_file(adapter.path)
    digests = hash_tensors(file)
    found = adapter_fingerprint(adapter.path, digests)
    if found not in (adapter.fingerprint, adapter.content):
        raise _changed("adapter", adapter.path, [file], digests)


@contextmanager
def unchanged(files: Sequence[Path]) -> Iterator[None]:
    """Checks that files are the same at the end as at the beginning.

    Raises:
        NodeError: One was written to or replaced meanwhile.
    """
    before = [_state(file) for file in files]
    yield
    for file, state in zip(files, before, strict=True):
        if _state(file) != state:
            raise NodeError(
                f"{file} changed while it was loaded on {socket.gethostname()}; leave checkpoints "
                f"and adapters alone while they are scored, and run again"
            )


def adapter_files(adapter: Adapter) -> list[Path]:
    """The files of an adapter that decide its numbers."""
    return [Path(adapter.path) / ADAPTER_CONFIG, adapter_file(adapter.path)]


def _state(file: Path) -> tuple[int, int, int]:
    try:
        state = file.stat()
    except OSError as error:
        raise NodeError(f"cannot read {file}: {error.strerror}") from None
    return state.st_size, state.st_mtime_ns, state.st_ino


def _changed(what: str, path: str, files: Sequence[Path], digests: Mapping[str, str]) -> NodeError:
    """Names a file and a tensor, as far as this machine remembers what they were."""
    where = ""
    for file in files:
        known = remembered_digests(file)
        other = sorted(name for name, digest in known.items() if digests.get(name) != digest)
        if other:
            where = f"; {file.name}: {other[0]} and {len(other) - 1} more tensors"
            break
    return NodeError(
        f"{what} {path} holds other bytes on {socket.gethostname()} than were planned{where}; "
        f"was it written to, or is this an old copy? Plan again (run the command again)"
    )
