"""Files whose bytes are checked before a parser sees them: Arrow tables and JSON records.

A checked Arrow file is an ordinary Arrow IPC file. Its checksums stand between the end-of-stream
mark and the footer, where no Arrow reader looks: readers find the footer from the file's end and
the batches from the footer. They cover every byte of the file, batch by batch, so that a damaged
batch costs its own rows only.

    ARROW1 schema | dictionaries, batch 0 | batch 1 | ... | end mark | CHECKSUMS | footer

A checked JSON file ends in a member ``checksum`` over all bytes before it.

Files are read, never memory-mapped: one that is cut off under a map kills its readers.

Both carry ``.checked`` in their name. A name cannot flip a bit unnoticed, so a damaged file never
passes for one of the time before there were checksums.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.ipc as ipc

from evalcore.files import write_atomically

MARK = ".checked"
ARROW_SUFFIX = f"{MARK}.arrow"
JSON_SUFFIX = f"{MARK}.json"
ROWS_PER_BATCH = 65_536

_MAGIC = b"ARROW1"
_HEAD = b"evalcsum"
_TAIL = b"muscvale"
_RANGE = struct.Struct("<QII")  # bytes, their CRC-32, rows
_END = struct.Struct("<II8s")  # CRC-32 of the sums, their length, _TAIL
_FOOTER_END = struct.Struct("<i6s")
_READ_AT_ONCE = 1 << 16
_NAME_KEY = b"evalcore.name"
_SUM_KEY = b',\n "checksum": "'
_SUM_END = b'"\n}\n'
_SUM_DIGITS = 32


class DamagedFile(Exception):
    """Bytes are not those that were written; the reason is the message."""


def is_checked(path: Path) -> bool:
    """Whether the file was written with checksums, by its name."""
    return MARK in path.suffixes


def require_regular(path: Path) -> None:
    """A pipe would be waited for without end, and a link to nothing would count as just removed.

    Raises:
        DamagedFile: It is no regular file, and leads to none.
        FileNotFoundError: There is nothing of that name.
        OSError: It cannot be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP or os.path.islink(path):
            raise DamagedFile("a link that leads nowhere") from None
        raise
    if not stat.S_ISREG(mode):
        raise DamagedFile("no regular file")


@dataclass(frozen=True)
class Part:
    """A stretch of a checked Arrow file: one batch, or the end mark behind them.

    The first one also holds what all need: the schema and the dictionaries.
    """

    start: int
    num_bytes: int
    crc: int
    rows: int


@dataclass(frozen=True)
class CheckedArrow:
    """The end of a checked Arrow file: checked, but for the rows.

    Attributes:
        footer: Arrow footer with its length and magic, checked.
        parts: Stretches of all bytes before the checksums, in order.
    """

    footer: bytes
    parts: tuple[Part, ...]

    @cached_property
    def metadata(self) -> Mapping[bytes, bytes]:
        """Footer metadata; no other byte of the file is needed for it."""
        start = _MAGIC + b"\0\0"
        # Where the batches are does not matter until one is read.
        return ipc.open_file(pa.BufferReader(start + self.footer)).metadata or {}

    @property
    def num_batches(self) -> int:
        return len(self.parts) - 1

    def damaged(self, data: bytes | memoryview) -> list[int]:
        """Numbers of the parts whose bytes in ``data``, the whole file, are not as written."""
        view = memoryview(data)
        return [
            number
            for number, part in enumerate(self.parts)
            if zlib.crc32(view[part.start : part.start + part.num_bytes]) != part.crc
        ]


class _SummedSink:
    """Counts and sums what Arrow writes; keeps the footer back until the checksums are out."""

    closed = False

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self._crc = self._size = 0
        self._held: list[bytes] | None = None
        self.parts: list[tuple[int, int, int]] = []

    def write(self, data: Any) -> int:
        data = bytes(data)
        if self._held is not None:
            self._held.append(data)
        else:
            self._take(data)
        return len(data)

    def _take(self, data: bytes) -> None:
        self._sink.write(data)
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)

    def end_part(self, rows: int) -> None:
        self.parts.append((self._size, self._crc, rows))
        self._crc = self._size = 0

    def hold(self) -> None:
        self._held = []

    def finish(self) -> None:
        """Writes the end mark, the checksums, and then the footer that was held back."""
        held = b"".join(self._held or ())
        length, _ = _FOOTER_END.unpack(held[-_FOOTER_END.size :])
        cut = len(held) - _FOOTER_END.size - length
        self._take(held[:cut])
        self.end_part(0)
        sums = b"".join(_RANGE.pack(*part) for part in self.parts)
        sums += struct.pack("<II", zlib.crc32(held[cut:]), len(held) - cut)
        # All pieces are multiples of eight bytes: the footer stays aligned.
        self._sink.write(_HEAD + sums + _END.pack(zlib.crc32(sums), len(sums), _TAIL))
        self._sink.write(held[cut:])

    def flush(self) -> None: ...

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def write_table(
    path: Path,
    table: pa.Table,
    *,
    metadata: Mapping[bytes, bytes] | None = None,
    rows_per_batch: int = ROWS_PER_BATCH,
) -> None:
    """Writes a table (zstd) as a checked Arrow file, whole or not at all.

    Args:
        path: Final name; it must end in :data:`ARROW_SUFFIX`.
        table: Dictionaries must be the same in all chunks.
        metadata: Goes into the footer.
        rows_per_batch: Rows that are lost together when a byte is.

    Raises:
        OSError: The file cannot be written.
    """
    batches = table.to_batches(max_chunksize=rows_per_batch)
    write_batches(path, table.schema, batches, metadata=metadata)


def write_batches(
    path: Path,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    *,
    metadata: Mapping[bytes, bytes] | None = None,
    compression: str | None = "zstd",
) -> None:
    """Like :func:`write_table` for batches that come one by one.

    ``compression=None`` makes a file that is quick to read.
    """
    assert is_checked(path), path

    def write(sink: IO[bytes]) -> None:
        summed = _SummedSink(sink)
        options = ipc.IpcWriteOptions(compression=compression)
        kept = dict(metadata) if metadata else None
        writer = ipc.new_file(summed, schema, options=options, metadata=kept)
        try:
            for batch in batches:
                writer.write_batch(batch)
                summed.end_part(batch.num_rows)
            summed.hold()
        finally:
            writer.close()
        summed.finish()

    write_atomically(path, write)


def read_end(path: Path) -> CheckedArrow:
    """Reads and checks the end of a checked Arrow file, and nothing else of it.

    Raises:
        DamagedFile: The end is not what was written.
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
    """
    require_regular(path)
    with open(path, "rb") as source:
        size = source.seek(0, 2)
        source.seek(max(0, size - _READ_AT_ONCE))
        end = source.read()
        for _ in range(2):  # how long the footer is, is known first; then how long the sums are
            needed = _end_bytes(end)
            if needed > len(end):
                source.seek(max(0, size - needed))
                end = source.read()
    return _parse_end(end, size)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """All rows of a checked Arrow file.

    Raises:
        DamagedFile: Some byte is not what was written.
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
    """
    table = _read_whole(path)[0]
    return table if columns is None else table.select(columns)


def read_named_table(path: Path) -> tuple[pa.Table, bool]:
    """:func:`read_table` and :func:`check_name` of a file, which is read once."""
    table, end = _read_whole(path)
    return table, _is_named(path, end)


def _read_whole(path: Path) -> tuple[pa.Table, CheckedArrow]:
    require_regular(path)
    data = path.read_bytes()
    end = parse_whole(data)
    damaged = end.damaged(data)
    if damaged:
        raise DamagedFile(f"{len(damaged)} of its {len(end.parts)} parts fail their checksum")
    return ipc.open_file(pa.BufferReader(data)).read_all(), end


class CheckedBatches:
    """A checked Arrow file of which single batches are checked and unpacked; its bytes are kept.

    Args:
        path: The file; what goes wrong is raised as by :func:`read_end`.
    """

    def __init__(self, path: Path) -> None:
        require_regular(path)
        self._data = path.read_bytes()
        self._end = parse_whole(self._data)
        self._sound: set[int] = set()
        self._reader: Any = None

    def read(self, number: int) -> pa.RecordBatch:
        """One batch.

        Raises:
            DamagedFile: Its bytes, or those that all batches need, are not what was written.
        """
        view = memoryview(self._data)
        for needed in sorted({0, number} - self._sound):
            part = self._end.parts[needed]
            if zlib.crc32(view[part.start : part.start + part.num_bytes]) != part.crc:
                raise DamagedFile(f"batch {needed} fails its checksum")
            self._sound.add(needed)
        if self._reader is None:
            self._reader = ipc.open_file(pa.BufferReader(self._data))
        return self._reader.get_batch(number)


def parse_whole(data: bytes | memoryview) -> CheckedArrow:
    """:func:`read_end` of a file that is in memory."""
    return _parse_end(data, len(data))


def _end_bytes(end: bytes | memoryview) -> int:
    """Bytes from the start of the checksums to the end of the file, as far as ``end`` tells."""
    footer = _footer_bytes(end)
    if footer + _END.size > len(end):
        return footer + _END.size + _READ_AT_ONCE
    _, length, _ = _END.unpack_from(end, len(end) - footer - _END.size)
    return footer + _END.size + int(length) + len(_HEAD)


def _footer_bytes(end: bytes | memoryview) -> int:
    if len(end) < _FOOTER_END.size:
        raise DamagedFile("it is cut short")
    length, magic = _FOOTER_END.unpack(end[-_FOOTER_END.size :])
    if magic != _MAGIC or length <= 0:
        raise DamagedFile("it is cut short or its end is damaged")
    return int(length) + _FOOTER_END.size


def _parse_end(end: bytes | memoryview, size: int) -> CheckedArrow:
    needed = _end_bytes(end)
    footer_bytes = _footer_bytes(end)
    if needed > len(end):
        raise DamagedFile("its end is damaged")
    block = end[len(end) - needed : len(end) - footer_bytes]
    footer = bytes(end[len(end) - footer_bytes :])
    sums = block[len(_HEAD) : -_END.size]
    crc, _, tail = _END.unpack(block[-_END.size :])
    if block[: len(_HEAD)] != _HEAD or tail != _TAIL or zlib.crc32(sums) != crc:
        raise DamagedFile("its checksums are damaged")
    footer_crc, footer_size = struct.unpack("<II", sums[-8:])
    if footer_size != footer_bytes or zlib.crc32(footer) != footer_crc:
        raise DamagedFile("its footer fails its checksum")
    parts, start = [], 0
    for num_bytes, part_crc, rows in _RANGE.iter_unpack(sums[:-8]):
        parts.append(Part(start, num_bytes, part_crc, rows))
        start += num_bytes
    if start + needed != size:
        raise DamagedFile("bytes are missing or too many")
    return CheckedArrow(footer, tuple(parts))


def name_metadata(path: Path) -> dict[bytes, bytes]:
    """Footer metadata that states under which name a file was written, for :func:`check_name`."""
    return {_NAME_KEY: _plain_name(path).encode()}


def check_name(path: Path) -> bool:
    """Whether a file states its name (files of earlier versions do not).

    Raises as :func:`read_end`; a DamagedFile also where it was written under another name.
    """
    return _is_named(path, read_end(path))


def _is_named(path: Path, end: CheckedArrow) -> bool:
    stated = end.metadata.get(_NAME_KEY)
    if stated is not None and stated != _plain_name(path).encode():
        name = stated.decode(errors="replace")
        raise DamagedFile(f"it was written as {name} and lies under another file's name")
    return stated is not None


def _plain_name(path: Path) -> str:
    return path.name.split(".")[0]


# JSON ---------------------------------------------------------------------------------------------


def json_bytes(record: Mapping[str, Any], *, indent: int | None = 1) -> bytes:
    """A JSON object as text, with a member ``checksum`` over the bytes before it."""
    assert record, "an empty record says nothing"
    body = json.dumps(record, indent=indent, default=str).encode()
    body = body.removesuffix(b"}").removesuffix(b"\n")
    return body + _SUM_KEY + _digest(body) + _SUM_END


def write_json(path: Path, record: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Writes a JSON object with its checksum, whole or not at all.

    Args:
        path: Final name.
        record: The object.
        indent: None where nobody reads it: much quicker.

    Raises:
        OSError: The file cannot be written.
    """
    data = json_bytes(record, indent=indent)
    write_atomically(path, lambda sink: sink.write(data))


def read_json(path: Path, *, required: bool | None = None) -> dict[str, Any]:
    """Reads a JSON object, checked where it has a checksum; that member is left out.

    Args:
        path: The file.
        required: Whether a checksum must be there; None asks the file's name.

    Raises:
        DamagedFile: Not the bytes that were written, or not a JSON object.
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
    """
    require_regular(path)
    data = path.read_bytes()
    cut = len(data) - len(_SUM_END) - _SUM_DIGITS
    key_at = cut - len(_SUM_KEY)
    has_sum = key_at > 0 and data[key_at:cut] == _SUM_KEY and data.endswith(_SUM_END)
    if has_sum and data[cut : cut + _SUM_DIGITS] != _digest(data[:key_at]):
        raise DamagedFile("it fails its checksum")
    if not has_sum and (is_checked(path) if required is None else required):
        raise DamagedFile("its checksum is damaged or missing")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"not JSON ({str(error)[:100]})") from None
    if not isinstance(record, dict):
        raise DamagedFile("not a JSON object")
    if has_sum:
        del record["checksum"]
    return record


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_SUM_DIGITS // 2).hexdigest().encode()
