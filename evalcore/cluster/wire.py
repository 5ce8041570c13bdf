"""The driver's end of a worker's socket: whole messages, and never a wait for the other end.

The frames are those of ``multiprocessing.connection``, which the worker uses: it may block, for it
has nothing else to do. The driver may not: a worker that is stopped in the middle of a message, or
before it has taken all of a large job, must be found by its deadline as any other.
"""

from __future__ import annotations

import socket
import struct

_SHORT, _LONG = struct.Struct("!i"), struct.Struct("!Q")
_READ_BYTES = 1 << 20
MOST_BYTES = 1 << 32
"""A frame that says it is longer is no frame."""


class Wire:
    """Bytes in and out of one socket.

    Args:
        end: This end of a pair; it is made non-blocking, and closed with :meth:`close`.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._in = bytearray()
        self._out = bytearray()

    def fileno(self) -> int:
        return self._end.fileno()

    @property
    def waits(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._out)

    def send(self, blob: bytes) -> None:
        """Takes a message; what the other end does not take now goes with :meth:`push`.

        Raises:
            OSError: The other end is gone.
        """
        if len(blob) > 0x7FFFFFFF:
            self._out += _SHORT.pack(-1) + _LONG.pack(len(blob))
        else:
            self._out += _SHORT.pack(len(blob))
        self._out += blob
        self.push()

    def push(self) -> None:
        """Sends as much as the other end takes.

        Raises:
            OSError: The other end is gone.
        """
        while self._out:
            try:
                sent = self._end.send(memoryview(self._out)[:_READ_BYTES])
            except BlockingIOError:
                return
            del self._out[:sent]

    def take(self) -> list[bytes]:
        """Whole messages that have come.

        Raises:
            EOFError: The other end is closed, and nothing whole is left.
            OSError: The connection broke, or what came is no message.
        """
        open_ = True
        try:
            while piece := self._end.recv(_READ_BYTES):
                self._in += piece
                if len(piece) < _READ_BYTES:
                    break
            else:
                open_ = False
        except BlockingIOError:
            pass
        except OSError:
            open_ = False
        found = self._frames()
        if not open_ and not found:
            raise EOFError
        return found

    def _frames(self) -> list[bytes]:
        found = []
        while (size := self._size()) is not None:
            head, length = size
            if length > MOST_BYTES:
                raise OSError(f"a message of {length:,} bytes")
            if len(self._in) < head + length:
                break
            found.append(bytes(self._in[head : head + length]))
            del self._in[: head + length]
        return found

    def _size(self) -> tuple[int, int] | None:
        """(bytes of its head, bytes of the message) of what comes next, once that is there."""
        if len(self._in) < _SHORT.size:
            return None
        length = _SHORT.unpack_from(self._in)[0]
        if length >= 0:
            return _SHORT.size, length
        if len(self._in) < _SHORT.size + _LONG.size:
            return None
        return _SHORT.size + _LONG.size, _LONG.unpack_from(self._in, _SHORT.size)[0]

    def close(self) -> None:
        self._end.close()
