"""The engine's side of the witness: a process that is started beside it, asked, and looked at."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from multiprocessing.connection import Connection

from evalcore.cluster.local import worker_path
from evalcore.config.engine import Dtype
from evalcore.engines.protocol import EngineSpec
from evalcore.engines.witness_process import Question, Said, needed_bytes, parameters
from evalcore.errors import EvalcoreError
from evalcore.types import ScoreBatch, Subject

START_S = 600.0
"""Longest that it may take to start."""
ANSWER_S = 300.0
BYTES_PER_S = 20e6
LEAST_FLOP_PER_S = 1e9
"""Longest for an answer, from its turn on: 300 s, the weights at 20 MB/s, the operations of real
texts at 1 GFLOP/s."""
SILENT_S = 300.0
"""Longest that one with a question may say nothing of waiting for its turn."""
TURN_S = 3600.0
"""Longest that it may wait: whoever has the turn has a limit, unless it was suspended."""


def _needed_s(question: Question) -> float:
    """Longest that reading the weights and computing the texts of a question may take."""
    path = question.subject.checkpoint.path
    tokens = 0
    if isinstance(question.batch, ScoreBatch):
        tokens = question.longest * question.batch.num_continuations
    operations = 2 * parameters(path) * tokens
    return needed_bytes(path) / BYTES_PER_S + operations / LEAST_FLOP_PER_S


class WitnessProcess:
    """A running witness. Not for several threads.

    Args:
        spec: Of the engine that is compared.
    """

    def __init__(self, spec: EngineSpec) -> None:
        ours, theirs = socket.socketpair()
        self.threads = (spec.threads if spec.device == "cuda" else 1) or 1
        own = {
            "PYTHONPATH": worker_path(),
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",  # the GPU is the engine's
        }
        command = [sys.executable, "-P", "-m", "evalcore.engines.witness_process"]
        try:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(os.getpid())],
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        finally:
            theirs.close()
        self._connection = Connection(ours.detach())
        self._spec = spec
        with contextlib.suppress(OSError):
            self._connection.send(spec)
        self._asked: deque[Question] = deque()
        self._since = self._turn_since = time.monotonic()
        self._state = "starting"
        self._ids = 0
        self._needed_s = 0.0
        self.start_s = 0.0
        self.memory_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether a question is not answered yet."""
        return bool(self._asked)

    def ask(self, subject: Subject, batch: ScoreBatch | int) -> int:
        """Asks for a subject's scores; gives the question's number.

        Args:
            subject: Whose.
            batch: What is scored; a number: the canary batch of a vocabulary of that size.
        """
        self._ids += 1
        dtypes: tuple[Dtype, ...] = ("float32",)
        if self._spec.dtype != "float32":
            dtypes = ("float32", self._spec.dtype)
        question = Question(self._ids, subject, dtypes, batch)
        if not self._asked:
            self._turn_since = time.monotonic()
            self._since = self._turn_since if self._state == "ready" else self._since
        self._asked.append(question)
        with contextlib.suppress(OSError):  # gone: the next poll says so
            self._connection.send(question)
        return question.id

    def poll(self, wait_s: float = 0.0) -> list[Said]:
        """Answers that have come; of one that is gone or overdue, why there are none.

        Args:
            wait_s: Longest to wait for the first one.
        """
        answers: list[Said] = []
        try:
            while self._connection.poll(wait_s):
                self._take(self._connection.recv(), answers)
                wait_s = 0.0
        except (EOFError, OSError):
            self._give_up(f"the witness ended ({self._how_it_ended()})", answers)
        if (late := self._overdue()) is not None:
            self._give_up(f"the witness {late}", answers)
        return answers

    def _take(self, said: Said, answers: list[Said]) -> None:
        self._since = time.monotonic()
        self.memory_bytes = max(self.memory_bytes, said.memory_bytes)
        if said.kind == "waiting":
            return
        if said.kind == "begun":
            self._state = "at work"
            with contextlib.suppress(EvalcoreError):  # what is wrong is for the witness to say
                self._needed_s = _needed_s(self._asked[0])
            return
        self._state, self._turn_since = "ready", self._since
        if said.kind == "ready":
            self.start_s = said.cpu_s
        else:
            self._asked.popleft()
            answers.append(said)

    def _overdue(self) -> str | None:
        """What it did not do within its limit, if that has passed."""
        now = time.monotonic()
        limit_s = None
        if self._state == "starting":
            limit_s = START_S
        elif self._state == "at work":
            passes = len(self._asked[0].dtypes)
            limit_s = passes * (ANSWER_S + self._needed_s)
        elif self._asked:  # it waits for its turn, and says so
            limit_s = SILENT_S
            if now - self._turn_since > TURN_S:
                return f"had no turn on this machine in {TURN_S:,.0f} s"
        late = limit_s is not None and now - self._since > limit_s
        return f"did not answer in {limit_s:,.0f} s" if late else None

    def _give_up(self, reason: str, answers: list[Said]) -> None:
        self.close()
        answers += [Said("answer", question.id, reason=reason) for question in self._asked]
        self._asked.clear()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "its connection broke"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit status {code}; its last words are in the worker's log"

    @property
    def gone(self) -> bool:
        """Whether it cannot be asked any more."""
        return self._state == "gone"

    def close(self) -> None:
        """Ends it."""
        self._state = "gone"
        with contextlib.suppress(OSError):
            self._connection.close()
        self._process.kill()
        self._process.wait()
