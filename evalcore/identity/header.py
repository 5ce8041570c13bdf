"""The header of a safetensors file: every rule of the format checked before a byte is believed.

The rules are those of the format's own reader (https://github.com/huggingface/safetensors), which
engines use: a file refused here is refused there, but here with the tensor's name and before an
engine is started.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from evalcore.errors import InputError
from evalcore.identity.away import away_at
from evalcore.identity.cache import FileMemo
from evalcore.reading import POINTER, parse_json, pointer, regular_size

MAX_HEADER_BYTES = 100_000_000
_MAX_AXES = 64
_LARGEST = 2**63
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
"""Bits of one element, by the format's names of types."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: ``data[start:stop]`` counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> tuple[dict[str, TensorInfo], int]:
    """Reads a safetensors header: (tensor name -> info, byte position of the data).

    Raises:
        InputError: If the file is not a complete safetensors file; names the file and the tensor.
    """
    away = away_at(path.parent)
    if away is not None and path.name in away.headers:
        tensors, start = away.headers[path.name]
        return dict(tensors), start
    return _HEADERS.of(path)


def _read_header(path: Path) -> tuple[dict[str, TensorInfo], int]:
    size = regular_size(path, "weights")
    try:
        with open(path, "rb") as file:
            begin = file.read(len(POINTER))
            if begin == POINTER:
                raise pointer(path)
            file.seek(8)
            length = int.from_bytes(begin[:8], "little")
            if size < 8 or length > size - 8:
                raise _broken(path, "its header is longer than the file")
            if length > MAX_HEADER_BYTES:
                raise _broken(path, f"its header of {length:,} bytes is too large")
            data = file.read(length)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return parse_header(data, size, path)


def parse_header(data: bytes, size: int, path: Path) -> tuple[dict[str, TensorInfo], int]:
    """What :func:`read_header` gives, from a header that was read already.

    Args:
        data: The header, without the eight bytes that say how long it is.
        size: Bytes of the whole file.
        path: Names it in messages.

    Raises:
        InputError: If that is not the header of a whole safetensors file of this size.
    """
    length = len(data)
    header = parse_json(data, f"header of {path}")
    if not isinstance(header, dict):
        raise _broken(path, "its header is no JSON object")
    if data.count(b'"data_offsets"') > len(header):
        _check_names(data, path)
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    ):
        raise _broken(path, "__metadata__ should be an object of texts")
    tensors = {name: _info(path, name, item) for name, item in header.items()}
    _check_layout(path, tensors, size - 8 - length)
    return tensors, 8 + length


_HEADERS = FileMemo(_read_header, lambda found: (dict(found[0]), found[1]))


def _check_names(data: bytes, path: Path) -> None:
    """Says which name stands twice: parsers keep one of the two, and not all the same one."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise _broken(path, f"{name!r} is given twice")
            found[name] = value
        return found

    json.loads(data, object_pairs_hook=unique)


def _info(path: Path, name: str, item: Any) -> TensorInfo:
    if not isinstance(item, dict):
        raise _broken(path, f"tensor {name!r} should be described by an object")
    dtype, shape, offsets = (item.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken(path, f"tensor {name!r}: dtype {_short(dtype)} is unknown")
    if not _counts(shape) or len(shape) > _MAX_AXES:
        raise _broken(path, f"tensor {name!r}: shape {_short(shape)} is no list of sizes")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(path, f"tensor {name!r}: data_offsets {_short(offsets)} are no [start, stop]")
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise _broken(
            path,
            f"tensor {name!r}: {dtype} {_short(shape)} needs {_number(bits / 8)} bytes, its "
            f"data_offsets span {offsets[1] - offsets[0]:,}",
        )
    return TensorInfo(dtype, tuple(shape), *offsets)


def _check_layout(path: Path, tensors: dict[str, TensorInfo], size: int) -> None:
    """Tensors lie one after the other: nothing overlaps, nothing is left over."""
    end = 0
    for name, info in sorted(tensors.items(), key=lambda one: (one[1].start, one[1].stop)):
        if info.start != end:
            what = "overlaps another" if info.start < end else "leaves a gap before it"
            raise _broken(path, f"tensor {name!r} {what} (it starts at byte {info.start:,})")
        end = info.stop
    if end > size:
        raise InputError(
            f"{path} is cut short: it has {size:,} bytes of tensors, its header promises {end:,}; "
            f"copy or save it again"
        )
    if end < size:
        raise _broken(path, f"{size - end:,} bytes at its end belong to no tensor")


def _counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number < _LARGEST for number in value
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value < _LARGEST else "too many"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _broken(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is not a whole safetensors file: {reason}; save it again")
