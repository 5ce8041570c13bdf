"""A Ray actor out of reach: whether it or its machine died is asked before anybody is blamed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from evalcore.cluster import ray_pool
from evalcore.cluster.protocol import Lost
from evalcore.cluster.ray_pool import RayTransport


class RayError(Exception):
    pass


class Unavailable(RayError):
    pass


class Actor:
    """Answers what is in ``answers``, one after the other, whatever it is asked."""

    def __init__(self, answers: list[Any]) -> None:
        self.__ray_ready__ = self.handle = SimpleNamespace(remote=lambda *_: (id(self), object()))
        self.answers = answers


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> RayTransport:
    monkeypatch.setattr(ray_pool, "PROBE_S", 0)
    made = RayTransport(1, {}, None, {})

    def get(_: object) -> Any:
        answer = made._actors[0].answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    made._ray = SimpleNamespace(
        wait=lambda waiting, num_returns, timeout: (list(waiting), []),
        get=get,
        kill=lambda *_, **__: None,
        exceptions=SimpleNamespace(RayError=RayError, ActorUnavailableError=Unavailable),
    )
    made._mailbox = SimpleNamespace(take=SimpleNamespace(remote=lambda: None))
    made._asked_at = 1e18
    return made


def ask(transport: RayTransport, *answers: Any) -> Any:
    transport._actors[0] = Actor([*answers])
    transport.send(0, b"")
    while not (news := transport.poll(0)):
        pass
    ((index, found),) = news
    assert index == 0
    assert not transport._answers
    assert not transport._unreached
    return found


def test_whose_fault_it_is_is_asked_until_ray_knows(transport: RayTransport) -> None:
    gone = Unavailable("Socket closed"), Unavailable("Socket closed"), RayError("its node has died")
    lost = ask(transport, *gone)
    assert isinstance(lost, Lost)
    assert lost.machine
    alone = ask(transport, Unavailable("Socket closed"), RayError("killed by signal 9"))
    assert isinstance(alone, Lost)
    assert not alone.machine
    assert ask(transport, b"answer") == b"answer"


def test_one_that_lives_has_lost_what_it_was_asked(transport: RayTransport) -> None:
    lost = ask(transport, Unavailable("Socket closed"), True)
    assert isinstance(lost, Lost)
    assert "Socket closed" in lost.reason


def test_it_is_not_asked_for_ever(transport: RayTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "VERDICT_S", -1)
    assert isinstance(ask(transport, Unavailable("Socket closed")), Lost)
