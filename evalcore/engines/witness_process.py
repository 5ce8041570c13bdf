"""The witness: transformers' own answers, in a process that has never seen vLLM.

``python -m evalcore.engines.witness_process FD PARENT`` answers one :class:`Question` after another
on a socket, until that is closed or its parent is gone. (vLLM patches classes of transformers, and
models built in its process afterwards are not transformers' own any more.)
"""

from __future__ import annotations

import gc
import getpass
import math
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.cluster.runner import leave_signals_to_driver
from evalcore.config.engine import Dtype
from evalcore.engines.canary import canary_batch
from evalcore.engines.protocol import EngineSpec
from evalcore.errors import EvalcoreError
from evalcore.files import try_lock
from evalcore.identity import numeric_config, weight_layout
from evalcore.machine import available_bytes, peak_bytes
from evalcore.types import FloatArray, ScoreBatch, Subject

NICENESS = 10  # beside an engine that wants all cores it gets about a tenth of one
PARENT_CHECK_S = 2.0
TURN_CHECK_S = 0.1
WAITING_EVERY = 50  # of these
KEPT_BYTES = 1 << 30  # a model up to this size stays for the next question about it
RUNTIME_BYTES = 2 << 30  # libraries, activations, logits
LONG_S = 240.0  # a text may take
FLOP_PER_S = 20e9  # of a thread: an old machine's (140e9 in float32 were seen on one of 2023)
HEADROOM = 1.25  # of the weights: one file's tensors may be there twice while they are cast


@dataclass(frozen=True)
class Question:
    """Scores of a subject are asked for.

    Attributes:
        id: Comes back with the answer.
        subject: Whose.
        dtypes: In which dtypes, one after the other.
        batch: What is scored; a number: the canary batch of a vocabulary of that size.
    """

    id: int
    subject: Subject
    dtypes: tuple[Dtype, ...]
    batch: ScoreBatch | int

    @property
    def longest(self) -> int:
        """Tokens of the longest text; 0 for canaries."""
        if not isinstance(self.batch, ScoreBatch):
            return 0
        contexts = np.diff(self.batch.context_offsets)[self.batch.continuation_context]
        return int((contexts + np.diff(self.batch.continuation_offsets)).max(initial=0))


@dataclass(frozen=True)
class Said:
    """What the witness sends.

    Attributes:
        kind: ``ready`` (it stands), ``waiting`` (for its turn on this machine), ``begun`` (it has
            it), ``answer``.
        id: Of the question.
        values: dtype -> float64 [T], log-probabilities of the batch's continuation tokens.
        reason: Why it cannot answer; empty if it did.
        cpu_s, wall_s: What that took (``ready``: since the process began).
        memory_bytes: Most memory the process has had so far.
    """

    kind: str
    id: int = -1
    values: dict[str, FloatArray] | None = None
    reason: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    memory_bytes: int = 0


def parameters(path: str) -> int:
    """Parameters of a checkpoint."""
    return sum(math.prod(shape) for _, shape in weight_layout(path).values())


def needed_bytes(path: str, tokens: int = 0) -> int:
    """Memory for a forward of a checkpoint in float32, of texts of so many tokens at most."""
    config = numeric_config(path)
    text = config.get("text_config") or config
    heads = next((text[key] for key in ("num_attention_heads", "n_head") if key in text), 32)
    # Eager attention: scores, masked and as weights; logits, and once more as numbers of 4 bytes.
    texts = 4 * tokens * (3 * int(heads) * tokens + 2 * int(text.get("vocab_size") or 0))
    return int(HEADROOM * 4 * parameters(path)) + max(RUNTIME_BYTES, texts)


def too_large(path: str, tokens: int = 0) -> str:
    """Why a checkpoint cannot be loaded here, or not for such texts; empty if it can."""
    needed, there = needed_bytes(path, tokens), available_bytes()
    if there is None or needed <= there:
        return ""
    of = f" with {tokens:,} tokens" if needed > needed_bytes(path) else ""
    return f"it takes {needed / 2**30:.1f} GiB in float32{of}, and {there / 2**30:.1f} GiB are free"


def longest_text(path: str, passes: int, threads: int) -> int:
    """Tokens of a text that two forwards of a checkpoint, in each dtype, take :data:`LONG_S` of."""
    return int(LONG_S * FLOP_PER_S * threads / (2 * 2 * passes * max(parameters(path), 1)))


@contextmanager
def turn(waiting: Callable[[], object]) -> Iterator[None]:
    """One witness of a machine at a time has a model in memory; the others say that they wait."""
    folder = Path(tempfile.gettempdir())
    with open(folder / f"evalcore-witness-{getpass.getuser()}.lock", "a") as lock:
        tries = 0
        while try_lock(lock) is False:
            if tries % WAITING_EVERY == 0:
                waiting()
            tries += 1
            time.sleep(TURN_CHECK_S)
        yield


class Witness:
    """Answers questions; keeps a small model for the next one about it.

    Args:
        spec: Of the engine that is compared.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._remote_code = spec.trust_remote_code
        self._engine: Any = None
        self._dtype: Dtype = "float32"

    def answer(self, question: Question) -> tuple[dict[str, FloatArray], str]:
        """(values, why there are none)."""
        path = question.subject.checkpoint.path
        try:
            if reason := too_large(path, question.longest):
                self._drop()
                return {}, reason
            values = {str(dtype): self._score(question, dtype) for dtype in question.dtypes}
        except EvalcoreError as error:
            self._drop()
            return {}, f"transformers cannot score it: {error}"
        except Exception as error:  # transformers raises whatever a model's code raises
            self._drop()
            lines = str(error).strip().splitlines() or [""]
            return {}, f"transformers cannot score it: {type(error).__name__}: {lines[0]}"
        if needed_bytes(path) > KEPT_BYTES + RUNTIME_BYTES:
            self._drop()
        return values, ""

    def _score(self, question: Question, dtype: Dtype) -> FloatArray:
        from evalcore.engines.hf import HFEngine

        if self._engine is None or self._dtype != dtype:
            self._drop()
            threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
            self._engine = HFEngine(
                EngineSpec(kind="hf", dtype=dtype, device="cpu", threads=threads,
                           trust_remote_code=self._remote_code)
            )  # fmt: skip
            self._dtype = dtype
        self._engine.load(question.subject)
        batch = question.batch
        if not isinstance(batch, ScoreBatch):
            batch = canary_batch(batch)
        values: FloatArray = self._engine.score(batch).token_logprobs
        return values

    def _drop(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        gc.collect()


def serve(connection: Connection, parent: int) -> None:
    """Answers until the connection is closed. Never returns."""
    questions: queue.SimpleQueue[Question] = queue.SimpleQueue()

    def read() -> None:
        try:
            while True:
                while not connection.poll(PARENT_CHECK_S):
                    if os.getppid() != parent:
                        os._exit(1)
                questions.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)

    spec: EngineSpec = connection.recv()
    threading.Thread(target=read, name="evalcore-questions", daemon=True).start()
    import peft  # noqa: F401  what takes longest, before anything is asked

    witness = Witness(spec)
    wall_s = time.monotonic() - _BEGAN
    connection.send(Said("ready", cpu_s=time.process_time(), wall_s=wall_s,
                         memory_bytes=peak_bytes()))  # fmt: skip
    while True:
        question = questions.get()
        with turn(partial(connection.send, Said("waiting", question.id))):
            connection.send(Said("begun", question.id))
            begin, spent = time.monotonic(), time.process_time()
            values, reason = witness.answer(question)
            said = Said(
                "answer",
                question.id,
                values,
                reason,
                time.process_time() - spent,
                time.monotonic() - begin,
                peak_bytes(),
            )
        connection.send(said)


_BEGAN = time.monotonic()

if __name__ == "__main__":
    leave_signals_to_driver()
    os.nice(NICENESS)
    # The class of what is sent must not be that of a module named __main__.
    from evalcore.engines import witness_process

    witness_process.serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
