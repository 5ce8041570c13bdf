"""Code of others ends in time, memory bounded, whatever thread runs it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from evalcore.deadline import Ended, bounded, run_bounded
from evalcore.identity import load_tokenizer
from evalcore.prompting import chat
from evalcore.prompting.faults import PromptError, PromptFault
from evalcore.types import Variant


def endless() -> None:
    while True:
        try:
            time.sleep(0.001)
        except Exception:  # what runs may catch what it can
            continue


def test_a_block_that_does_not_end_is_ended() -> None:
    for _ in range(3):
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match=r"did not end within 0\.1 s"), bounded(0.1, 1000):
            endless()
        assert time.monotonic() - begin < 20
    with bounded(30, 1000):
        pass
    time.sleep(0.2)  # nothing arrives late


def test_in_other_threads_too() -> None:
    said: list[str] = []

    def run() -> None:
        try:
            with bounded(0.1, 1000):
                endless()
        except TimeoutError as error:
            said.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(said) == 4


def test_a_block_that_grows_is_ended() -> None:
    def grow() -> None:
        grown: list[bytes] = []
        while True:
            grown.append(b"x" * 1_000_000)

    with pytest.raises(TimeoutError), bounded(60, 50):
        grow()


def test_other_errors_pass() -> None:
    for _ in range(200):
        with pytest.raises(KeyError), bounded(5, 1000):
            raise KeyError


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for a in range(99999) %}{% set n.x = n.x ~ n.x %}"
        "{% endfor %}",
    ],
)
def test_a_chat_template_without_end_is_one_line(
    template: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "MAX_TEMPLATE_S", 1.0)
    tokenizer: Any = load_tokenizer(tiny_checkpoint)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    variant = Variant("v", "g", "{{ q }}", chat=True)
    with pytest.raises(PromptError, match="the chat template refuses it: did not end") as caught:
        chat.chat_text(variant, [], "question", tokenizer)
    assert caught.value.fault == PromptFault.CHAT_REFUSED
    assert "\n" not in str(caught.value)


def test_a_child_ends_with_the_call() -> None:
    assert run_bounded("print(sys.argv[1:]); sys.exit(5)", ["a b"], 60, 1000) == Ended(
        5, "['a b']\n"
    )
    slow = run_bounded("import time; time.sleep(99)", [], 0.3, 1000)
    assert (slow.status, slow.why) == (-9, "it took longer")
    large = run_bounded("a = b'x' * 400_000_000; import time; time.sleep(99)", [], 60, 200)
    assert (large.status, large.why) == (-9, "it took more memory")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 2))"
    busy = run_bounded(f"{limit}\nwhile True: pass", [], 60, 1000)
    assert busy.why == "it was ended by SIGXCPU"
    assert "evalcore" in run_bounded("import evalcore; print(evalcore.__name__)", [], 60, 1000).said
