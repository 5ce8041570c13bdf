"""Safetensors files read without a tensor library: files, shapes, bytes, digests."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, TypeGuard

import numpy as np

from evalcore.errors import InputError
from evalcore.identity.away import away_at, bring
from evalcore.identity.cache import (
    cached_file_fact,
    hub_name,
    known_file_fact,
    last_file_fact,
)
from evalcore.identity.hashing import DIGEST_BYTES
from evalcore.identity.header import TensorInfo, read_header
from evalcore.reading import MAX_TABLE_BYTES, is_there, read_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"-(\d{1,6})-of-(\d{1,6})\.safetensors$")
_DIGESTS = "tensor-digests-1"
_SHA256 = "sha256-1"
_PIECE_BYTES = 4 << 20
_SMALL_BYTES = 8 << 20
"""Threads cost more than they save on smaller files (an adapter's)."""


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint directory, in reading order.

    Raises:
        InputError: If the directory, its weights or a shard is missing.
    """
    if path.is_dir():
        bring(path)
    return [path / name for name in weight_names(path)]


def safetensors_names(path: Path) -> set[str]:
    """Names of the safetensors files in a directory, those that are away among them."""
    away = away_at(path)
    return {file.name for file in path.glob("*.safetensors")} | (away.names if away else set())


def weight_names(path: Path, there: Collection[str] | None = None) -> list[str]:
    """Names of the files that :func:`weight_files` gives; none of them is fetched.

    Args:
        path: Checkpoint directory.
        there: Names of its safetensors files; None: those in it, and those that are away.

    Raises:
        InputError: If the directory, its weights or a shard is missing.
    """
    if not path.is_dir():
        raise InputError(f"base missing on disk: {path} is not a directory")
    coming = there if there is not None else away.names if (away := away_at(path)) else ()

    def named(name: str) -> bool:
        return name in coming or is_there(path / name)

    index = path / _INDEX
    if is_there(index):
        weight_map = read_json(index, "checkpoint", MAX_TABLE_BYTES).get("weight_map")
        names = sorted({*weight_map.values()} if _is_index(weight_map) else ())
        if not names:
            raise InputError(
                f"{index} is broken: key weight_map should map tensor names to files beside it"
            )
        if named(_SINGLE) and _SINGLE not in names:
            # transformers reads the first, vLLM the second.
            raise InputError(
                f"{path} holds two sets of weights, {_SINGLE} and the {len(names)} files of "
                f"{_INDEX}; remove one of them"
            )
    elif named(_SINGLE):
        names = [_SINGLE]
    else:
        every = safetensors_names(path) if there is None else there
        names = sorted(name for name in every if not name.startswith("adapter"))
        _require_every_shard(path, names)
    missing = [name for name in names if not named(name)]
    if missing:
        raise InputError(f"{path}: weight file {missing[0]} named by {_INDEX} is missing")
    if not names:
        if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
            raise InputError(
                f"{path} holds .bin weights only; evalcore reads safetensors: "
                f"evalcore convert {path} -o FOLDER"
            )
        raise InputError(f"{path} holds no *.safetensors weights")
    return names


def _require_every_shard(path: Path, names: Sequence[str]) -> None:
    """Without an index only names of shards (``...-00001-of-00003``) tell how many there are."""
    numbered = [found for name in names if (found := _SHARD.search(name))]
    counts = {int(found[2]) for found in numbered}
    if counts and (
        len(counts) > 1 or {int(f[1]) for f in numbered} != {*range(1, max(counts) + 1)}
    ):
        raise InputError(
            f"{path}: {len(numbered)} of {max(counts)} shards are there "
            f"({numbered[0].string} ...) and no {_INDEX}; copy the others"
        )


def _is_index(weight_map: object) -> TypeGuard[dict[str, str]]:
    """Whether it maps to plain file names: a path could lead anywhere."""
    return isinstance(weight_map, dict) and all(
        isinstance(name, str) and name not in ("", "..") and Path(name).name == name
        for name in weight_map.values()
    )


def weight_layout(path: str | Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor names of a checkpoint -> (dtype, shape), from headers only, sharded or not.

    Args:
        path: Checkpoint directory, or one safetensors file.

    Raises:
        InputError: If weights are missing or broken.
    """
    path = Path(path)
    away = away_at(path)
    if away is not None:
        return dict(away.layout)
    files = [path] if path.is_file() else weight_files(path)
    return {
        name: (info.dtype, info.shape)
        for file in files
        for name, info in read_header(file)[0].items()
    }


def tensor_digests(path: Path, *, whole: bool = False) -> dict[str, str]:
    """Tensor names of one file -> digest over name, dtype, shape and bytes (cached).

    Args:
        path: A safetensors file.
        whole: Whether a file that has to be read is hashed as a whole too (:func:`file_sha256`).
    """
    sums: list[str] = []

    def compute(real: Path) -> dict[str, str]:
        return hash_tensors(real, sums if whole and hub_name(real) is None else None)

    digests: dict[str, str] = cached_file_fact(
        path, _DIGESTS, compute, lambda: {_SHA256: sums[0]} if sums else {}
    )
    return digests


def file_sha256(path: Path) -> str | None:
    """sha256 of a file, if it was taken when it was read or is its name in the hub's cache."""
    name = hub_name(path.resolve())
    return name if name is not None else known_file_fact(path, _SHA256)


def remembered_digests(path: Path) -> dict[str, str]:
    """What :func:`tensor_digests` last gave for a path, whatever lies there now; {} if nothing."""
    digests: dict[str, str] = last_file_fact(path, _DIGESTS) or {}
    return digests


def tensor_digest(name: str, info: TensorInfo, data: Any) -> str:
    """32 hex digits over a tensor's name, dtype, shape and bytes (any buffer)."""
    return _of_tensor(name, info, [data])


def _of_tensor(name: str, info: TensorInfo, pieces: Iterable[Any]) -> str:
    head = f"{name}\0{info.dtype}\0{','.join(map(str, info.shape))}\0"
    hasher = hashlib.blake2b(head.encode(), digest_size=DIGEST_BYTES)
    for piece in pieces:
        hasher.update(piece)  # releases the GIL: threads hash side by side
    return hasher.hexdigest()


def _pieces(file: IO[bytes], start: int, stop: int, path: Path) -> Iterator[bytes]:
    """Bytes [start, stop) of an open file, by reading: of a map, what is cut off kills the reader.

    Raises:
        InputError: If the file ends before.
    """
    while start < stop:
        piece = os.pread(file.fileno(), min(_PIECE_BYTES, stop - start), start)
        if not piece:
            raise InputError(f"{path} was cut short while it was read; write it again, whole")
        yield piece
        start += len(piece)


def hash_tensors(path: Path, sums: list[str] | None = None) -> dict[str, str]:
    """As :func:`tensor_digests`, from the bytes that are there now.

    Args:
        path: A safetensors file.
        sums: Given the sha256 of all of the same bytes, where it is a list.

    Raises:
        InputError: If the file is not a complete safetensors file.
    """
    tensors, data_start = read_header(path)
    if not tensors:
        return {}
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size

        def digest(name: str) -> str:
            info = tensors[name]
            start, stop = data_start + info.start, data_start + info.stop
            return _of_tensor(name, info, _pieces(file, start, stop, path))

        def whole() -> str:
            hasher = hashlib.sha256()
            for piece in _pieces(file, 0, size, path):
                hasher.update(piece)
            return hasher.hexdigest()

        names = sorted(tensors, key=lambda name: tensors[name].start)
        if size < _SMALL_BYTES:
            found = {name: digest(name) for name in names}
            if sums is not None:
                sums.append(whole())
            return found
        with ThreadPoolExecutor(max_workers=4) as pool:
            file_sum = pool.submit(whole) if sums is not None else None
            found = dict(zip(names, pool.map(digest, names), strict=True))
            if sums is not None and file_sum is not None:
                sums.append(file_sum.result())
            return found


def tensor_bits(path: Path) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Gives (name, shape, nonzero mask bool [elements]) of each tensor of a file.

    The mask comes from the raw bits, the sign left out, so that it needs no bfloat16 type and
    counts -0.0 as zero.
    """
    masks = {"BF16": 0x7FFF, "F16": 0x7FFF, "F32": 0x7FFFFFFF, "F64": 0x7FFFFFFFFFFFFFFF}
    words = {"BF16": "<u2", "F16": "<u2", "F32": "<u4", "F64": "<u8"}
    tensors, data_start = read_header(path)
    with open(path, "rb") as file:
        for name, info in tensors.items():
            file.seek(data_start + info.start)
            raw = file.read(info.stop - info.start)
            if info.dtype in words:
                bits = np.frombuffer(raw, words[info.dtype])
                yield name, info.shape, np.asarray((bits & masks[info.dtype]) != 0)
            else:  # rare types: an element is nonzero if any of its bytes is
                count = int(np.prod(info.shape, dtype=np.int64))
                parts = np.frombuffer(raw, "u1").reshape(count, -1)
                yield name, info.shape, np.asarray(parts.any(axis=1))


def nonfinite_tensor(path: Path) -> tuple[str, str] | None:
    """(name, "NaN" or "infinity") of the first tensor of a file with such a number, or None.

    From the raw bits: all ones in the exponent. Types without such numbers count as finite.
    """
    tensors, data_start = read_header(path)
    with open(path, "rb") as file:
        for name, info in tensors.items():
            if info.dtype not in _EXPONENTS:
                continue
            odd = _nonfinite(file, info.dtype, data_start + info.start, data_start + info.stop)
            if len(odd):
                word, exponent = _EXPONENTS[info.dtype]
                magnitudes = odd & ~np.dtype(word).type(1 << (8 * odd.itemsize - 1))
                return name, "NaN" if bool((magnitudes > exponent).any()) else "infinity"
    return None


def is_finite(path: Path) -> bool:
    """Whether :func:`nonfinite_tensor` finds none; a small file of one type is looked at at once.

    That its tensors lie one after the other is checked with its header.
    """
    tensors, data_start = read_header(path)
    types, size = {info.dtype for info in tensors.values()}, path.stat().st_size
    if len(types) != 1 or size >= _SMALL_BYTES or not types <= _EXPONENTS.keys():
        return nonfinite_tensor(path) is None
    with open(path, "rb") as file:
        return not len(_nonfinite(file, types.pop(), data_start, size))


_EXPONENTS = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000)}
"""Type -> (word of its bits, those of its exponent)."""


def _nonfinite(file: IO[bytes], dtype: str, start: int, stop: int) -> np.ndarray:
    """Bits of the numbers in bytes [start, stop) of a file that are NaN or infinite."""
    word, exponent = _EXPONENTS[dtype]
    file.seek(start)
    bits = np.frombuffer(file.read(stop - start), word)
    return np.asarray(bits[(bits & exponent) == exponent])


_FLOATS: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}  # fmt: skip
_CHUNK = 1 << 22  # numbers read at once


def same_bytes(path: Path, one: str, other: str) -> bool:
    """Whether two tensors of a file have the same type, shape and bytes."""
    bring(path.parent)
    tensors, data_start = read_header(path)
    a, b = tensors[one], tensors[other]
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    with open(path, "rb") as file:
        file.seek(data_start + a.start)
        first = file.read(a.stop - a.start)
        file.seek(data_start + b.start)
        return first == file.read(b.stop - b.start)


def same_values(file: Path, name: str, checkpoint: str | Path, other: str) -> bool:
    """Whether a tensor of a file has the numbers of one of a checkpoint, in whatever type.

    Args:
        file: A safetensors file.
        name: Of the tensor in it.
        checkpoint: Directory of the other tensor.
        other: Its name.
    """
    bring(file.parent)
    for shard in weight_files(Path(checkpoint)):
        if other in read_header(shard)[0]:
            return all(
                one is not None and two is not None and np.array_equal(one, two)
                for one, two in zip_longest(_numbers(file, name), _numbers(shard, other))
            )
    return False


def _numbers(file: Path, name: str) -> Iterator[np.ndarray | None]:
    """Shape, then numbers of a tensor as float64, a few million at a time; None: of a rare type."""
    tensors, data_start = read_header(file)
    info = tensors[name]
    kind = _FLOATS.get(info.dtype)
    yield None if kind is None else np.array(info.shape)
    if kind is None:
        return
    with open(file, "rb") as opened:
        opened.seek(data_start + info.start)
        left = info.stop - info.start
        while left:
            raw = np.frombuffer(opened.read(min(left, _CHUNK * kind.itemsize)), kind)
            left -= raw.nbytes
            if info.dtype == "BF16":
                raw = (raw.astype("<u4") << 16).view("<f4")
            yield raw.astype(np.float64)
