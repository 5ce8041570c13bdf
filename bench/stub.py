"""`evalcore` with an engine that costs nothing: ``python -m bench.stub score ... --engine hf``.

The stub stands in the place of ``hf``; command line, plan, pool, scoring worker and store are the
real ones, with local child processes and with Ray. Its numbers are hashes of the subject's
fingerprints and of the tokens asked for, so that a row has the same ones whoever scores it, and
other ones if anything of what is asked differs. For tests and benches of what is around an engine.

Environment:
    STUB_CONTEXT_S: Seconds a context takes (default 0.01), so that there is a middle to strike.
    STUB_HOLD: ``N:PATH``: before context N the engine makes PATH.held, and waits for PATH.
    STUB_DIES: ``worker:N`` or ``driver:N``: the process is killed at the N-th thing it does to a
        file from then on that a crash may leave half done (open, fsync, rename); once.
    STUB_MARK: A file that is made when that has happened.
    STUB_WARM: A file into which a worker's process writes when it has imported what it needs
        (seconds of the clock), while it waits for what it is for.
    STUB_CLOCK: Any value: each time the time of day is asked for, it is an hour earlier.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.cluster import JobPool, pulse
from evalcore.engines import registry
from evalcore.engines.protocol import (
    EngineSpec,
    LoadKind,
    LoadReport,
    OneByOne,
    made_by,
    numerics_class,
)
from evalcore.identity import NumericsClass
from evalcore.identity.verify import verify_adapter, verify_checkpoint
from evalcore.scoring import ScoringWorker, WorkerConfig
from evalcore.types import GenerateBatch, GenerateResult, ScoreBatch, ScoreResult, Subject


class StubEngine(OneByOne):
    """Log-probabilities and texts out of a hash; counts tokens as engine hf does."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._subject: Subject | None = None
        self._report = LoadReport("none", 0.0, 0.0, True)
        self._wait_s = float(os.environ.get("STUB_CONTEXT_S", "0.01"))
        hold_at, _, hold = os.environ.get("STUB_HOLD", "").partition(":")
        self._left, self._hold = int(hold_at or 0), hold

    @property
    def numerics(self) -> NumericsClass:
        return numerics_class(self._spec, "cpu")

    def load(self, subject: Subject) -> LoadReport:
        kind: LoadKind = "start" if self._subject is None else "swap"
        kind = "none" if self._subject == subject else kind
        if kind != "none":  # what was planned is what would be read
            verify_checkpoint(subject.checkpoint)
            if subject.adapter is not None:
                verify_adapter(subject.adapter)
        way = "" if subject.adapter is None else "unmerged"
        self._subject = subject
        self._report = LoadReport(kind, 0.0, 0.0, True, proven_share=1.0, adapter=way)
        return self._report

    def score(self, batch: ScoreBatch) -> ScoreResult:
        computed = np.zeros(batch.num_contexts, np.int64)
        values = []
        for i, owner in enumerate(batch.continuation_context):
            state, tokens = self._after(batch.context(int(owner))), batch.continuation(i)
            computed[owner] += len(batch.context(int(owner))) + len(tokens) - 1
            for token in tokens:
                state.update(int(token).to_bytes(4, "little"))
                values.append(-5.0 * _share(state))
        for _ in range(batch.num_contexts):
            self._work()
        return ScoreResult(
            np.asarray(values, np.float64),
            np.zeros(batch.num_continuations, bool),
            computed,
            np.zeros_like(computed),
        )

    def generate(self, batch: GenerateBatch) -> GenerateResult:
        texts = []
        for i in range(batch.num_contexts):
            state, letters = self._after(batch.context(i)), ""
            while len(letters) < batch.settings.max_tokens and not letters.endswith("z"):
                state.update(b"+")
                letters += "abcdefghijklmnopqrstuvwxyz"[int(26 * _share(state))]
            texts.append(letters)
            self._work()
        computed = np.diff(batch.context_offsets).astype(np.int64)
        return GenerateResult(
            texts,
            [len(text) for text in texts],
            ["stop" if text.endswith("z") else "length" for text in texts],
            computed,
            np.zeros_like(computed),
        )

    def forget(self) -> None: ...

    def made_by(self) -> dict[str, Any]:
        return made_by(self._spec, "cpu", self._report)

    def stats(self) -> dict[str, float]:
        return {}

    def close(self) -> None: ...

    def _after(self, context: Sequence[int] | np.ndarray) -> Any:
        """A hash of the subject and a context."""
        assert self._subject is not None
        adapter = self._subject.adapter
        whose = [self._subject.checkpoint.fingerprint, adapter.fingerprint if adapter else ""]
        state = hashlib.blake2b("/".join(whose).encode(), digest_size=8)
        state.update(np.asarray(context, np.int32).tobytes())
        return state

    def _work(self) -> None:
        self._left -= 1
        if self._hold and self._left == 0:
            Path(f"{self._hold}.held").touch()
            while not Path(self._hold).exists():
                time.sleep(0.01)
                pulse.tick()
        time.sleep(self._wait_s)
        pulse.tick()


def _share(state: Any) -> float:
    """A number in [0, 1) out of a hash."""
    return int.from_bytes(state.digest(), "little") / 2.0**64


def die_at(count: int, mark: Path) -> None:
    """Kills this process right before or after something it does to a file, once."""
    left = count

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal left
            writes = real is not builtins_open or any(c in _mode(args, more) for c in "wxa+")
            if not writes or mark.exists():
                return real(*args, **more)
            left -= 1
            if left == 0 and count % 2:  # odd: before it is done
                _die(mark)
            found = real(*args, **more)
            if left == 0:
                _die(mark)
            return found

        return call

    builtins_open = builtins.open
    builtins.open = counted(builtins_open)
    for name in ("fsync", "replace", "rename", "unlink", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def _mode(args: tuple[Any, ...], more: dict[str, Any]) -> str:
    return str(more.get("mode", args[1] if len(args) > 1 else "r"))


def _die(mark: Path) -> None:
    os.close(os.open(mark, os.O_CREAT | os.O_WRONLY))
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def make(config: WorkerConfig, index: int) -> ScoringWorker:
    """The scoring worker on a stub engine; for the pool."""
    import evalcore.scoring.worker as worker

    worker.create_engine = StubEngine  # type: ignore[attr-defined]
    made = ScoringWorker(config, index)
    _as_asked("worker")
    return made


def warm_up(spec: EngineSpec, busy: int | None = None) -> None:
    """Nothing is to be imported beside this module; with engine vllm, what it would import."""
    if spec.kind == "vllm":
        registry.warm_up(spec, busy)
    if told := os.environ.get("STUB_WARM"):
        Path(told).write_text(repr(time.time()))


def turn_clock_back() -> None:
    """Time of day runs backwards in this process, an hour at a time."""
    now_ns = time.time_ns()

    def earlier() -> int:
        nonlocal now_ns
        now_ns -= 3_600_000_000_000
        return now_ns

    time.time_ns = earlier
    time.time = lambda: earlier() / 1e9


def _as_asked(who: str) -> None:
    if os.environ.get("STUB_CLOCK"):
        turn_clock_back()
    asked, _, count = os.environ.get("STUB_DIES", "").partition(":")
    if asked == who:
        die_at(int(count), Path(os.environ["STUB_MARK"]))


class StubPool(JobPool):
    """The pool, whose workers :func:`make` makes."""

    def __init__(self, factory: str, *args: Any, **more: Any) -> None:
        super().__init__("bench.stub:make", *args, **more)

    def warm(self, function: str, *given: Any) -> None:
        super().warm("bench.stub:warm_up", *given)


def main() -> None:
    """The command line with stub engines."""
    import evalcore.scoring.run as run
    from evalcore.cli import main as command

    run.JobPool = StubPool  # type: ignore[attr-defined,misc]
    _as_asked("driver")
    command()


if __name__ == "__main__":
    main()
