"""What the page shows as one text: columns of codes behind a JSON head, gzip, base64.

Layout before gzip: the head's length (4 bytes, little-endian), the head (UTF-8), zeros up to a
multiple of four, the columns. A data set stands in the head as ``{"size", "columns"}``; a column
there says where its codes are (``at``, ``bytes`` each) and what they mean: places in ``of``, or
``(code - 1 + low) / scale`` with 0 for a missing number. 100,000 rows of scores take 3 MB so, as
JSON 20; the page reads columns without making objects of them (``page/data.js``).
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

Row = Mapping[str, Any]

SCALES = (1, 10_000, 1_000_000)
"""The first at which a column's numbers are whole is taken, else the last: six digits are kept."""
_LARGEST = 2**32 - 2


def pack(head: Mapping[str, Any], datasets: Mapping[str, Sequence[Row]]) -> str:
    """The text of what the page shows.

    Args:
        head: Anything JSON knows.
        datasets: Name -> rows; a column's values are numbers and None, or texts, truth values and
            lists of texts.
    """
    body = bytearray()
    tables = {name: _columns(rows, body) for name, rows in datasets.items()}
    text = json_bytes({**head, **tables})
    text += b" " * (-(4 + len(text)) % 4)
    whole = struct.pack("<I", len(text)) + text + bytes(body)
    return base64.b64encode(gzip.compress(whole, 6, mtime=0)).decode("ascii")


def unpack(text: str) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Head and data sets of a packed text, row by row: the slow way, to compare with."""
    whole = gzip.decompress(base64.b64decode(text))
    (size,) = struct.unpack_from("<I", whole)
    head = json.loads(whole[4 : 4 + size])
    found = {}
    for name in [n for n, v in head.items() if isinstance(v, dict) and {"size", "columns"} == {*v}]:
        about = head.pop(name)
        rows: list[dict[str, Any]] = [{} for _ in range(about["size"])]
        for key, column in about["columns"].items():
            start = 4 + size + column["at"]
            form = f"<{about['size']}{ {1: 'B', 2: 'H', 4: 'I'}[column['bytes']] }"
            for row, code in zip(rows, struct.unpack_from(form, whole, start), strict=True):
                if "of" in column:
                    row[key] = column["of"][code]
                else:
                    row[key] = (code - 1 + column["low"]) / column["scale"] if code else None
        found[name] = rows
    return head, found


def json_bytes(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")


def _columns(rows: Sequence[Row], body: bytearray) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        about, codes = _numbers(values) or _coded(values)
        body += b"\0" * (-len(body) % 4)
        columns[name] = {**about, "at": len(body), "bytes": codes.itemsize}
        body += codes.tobytes()
    return {"size": len(rows), "columns": columns}


def _coded(values: Sequence[Any]) -> tuple[dict[str, Any], npt.NDArray[Any]]:
    """Values as places in a list of them."""
    keys = [tuple(v) if isinstance(v, list) else v for v in values]
    known = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return {"of": list(known)}, _smallest(np.array([known[k] for k in keys], np.int64))


def _numbers(values: Sequence[Any]) -> tuple[dict[str, Any], npt.NDArray[Any]] | None:
    """Numbers as codes; None where there are others, or too large ones."""
    if any(
        v is not None and (isinstance(v, bool) or not isinstance(v, int | float)) for v in values
    ):
        return None
    there = np.array([v is not None and isfinite(v) for v in values], bool)
    if not there.any():
        return None
    given = np.array([v if ok else 0 for v, ok in zip(values, there.tolist(), strict=True)])
    whole = (s for s in SCALES if np.abs(given * s - np.rint(given * s)).max() < 1e-4)
    scale = next(whole, SCALES[-1])
    if np.abs(given).max() * scale > _LARGEST:
        return None
    scaled = np.rint(given * scale).astype(np.int64)
    low = int(scaled[there].min())
    codes = np.where(there, scaled - low + 1, 0)
    return None if codes.max() > _LARGEST else ({"low": low, "scale": scale}, _smallest(codes))


def _smallest(codes: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The same as little-endian unsigned numbers of as few bytes as hold the largest."""
    largest = int(codes.max(initial=0))
    kind = "u1" if largest < 2**8 else "<u2" if largest < 2**16 else "<u4"
    return codes.astype(kind)
