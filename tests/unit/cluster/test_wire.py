"""The driver never waits for the other end of a worker's socket."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.strikes import alive, descendants
from evalcore.cluster.local import GUARD_TIMEOUT_S, LocalTransport
from evalcore.cluster.protocol import Answer, Command
from evalcore.cluster.wire import Wire
from tests.toys.cluster import job


def pair() -> tuple[Wire, Connection]:
    ours, theirs = socket.socketpair()
    return Wire(ours), Connection(theirs.detach())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 300_000), max_size=6))
def test_messages_arrive_whole_and_in_order(sizes: list[int]) -> None:
    blobs = [bytes([i]) * size for i, size in enumerate(sizes)]
    wire, other = pair()

    def echo() -> None:
        for _ in blobs:
            other.send_bytes(other.recv_bytes())
        other.close()

    thread = threading.Thread(target=echo)
    thread.start()
    for blob in blobs:
        wire.send(blob)
    found: list[bytes] = []
    with contextlib.suppress(EOFError):
        while True:
            wire.push()
            found += wire.take()
    thread.join()
    assert found == blobs
    wire.close()


def test_half_a_message_is_not_waited_for() -> None:
    wire, other = pair()
    os.write(other.fileno(), b"\0\0\0\x05ab")
    assert wire.take() == []
    os.write(other.fileno(), b"cde\0\0")
    assert wire.take() == [b"abcde"]
    other.close()
    with pytest.raises(EOFError):
        wire.take()


def test_who_takes_nothing_holds_nobody_up() -> None:
    wire, other = pair()
    began = time.monotonic()
    wire.send(b"x" * 8_000_000)
    assert wire.waits
    assert time.monotonic() - began < 5
    other.close()
    with pytest.raises(OSError):
        wire.push()


def test_what_is_no_message_is_said() -> None:
    wire, other = pair()
    os.write(other.fileno(), b"\xff" * 12)
    with pytest.raises(OSError, match="a message of"):
        wire.take()
    other.close()


def test_a_worker_that_is_stopped_neither_holds_up_nor_stays(tmp_path: Path) -> None:
    """Before it has taken all of a large job, and with its guard when it is to go."""
    others = set(descendants(os.getpid()))  # of tests before this one
    transport = LocalTransport()
    body = ("tests.toys.cluster:make_worker", pickle.dumps({"out": str(tmp_path)}), 0)
    transport.start(0, pickle.dumps(Command("start", body=body)))
    assert answered(transport).kind == "ready"
    everybody = [pid for pid in descendants(os.getpid()) if pid not in others]
    assert len(everybody) == 2
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    large = job("a", more="x" * 8_000_000)
    began = time.monotonic()
    transport.send(0, pickle.dumps(Command("run", "a", large.payload)))
    transport.poll(0.0)
    assert time.monotonic() - began < 10
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    assert answered(transport).job_id == "a"
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    transport.kill(0)
    assert time.monotonic() - began < GUARD_TIMEOUT_S / 2
    assert not any(alive(pid) for pid in everybody)


def answered(transport: LocalTransport) -> Answer:
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        for _, news in transport.poll(0.1):
            assert isinstance(news, bytes), news
            answer: Answer = pickle.loads(news)
            if answer.kind != "beat":
                return answer
    raise AssertionError("no answer")
