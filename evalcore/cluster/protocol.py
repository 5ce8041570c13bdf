"""What driver and workers of a job pool say to each other, as plain picklable values.

Both backends carry the same bytes: a pickled :class:`Command` to the worker, a pickled
:class:`Answer` back. Exceptions never travel as objects (their constructors differ, and a class may
not exist at the other end); an :class:`ErrorInfo` does, and the driver rebuilds a typed error.
"""

from __future__ import annotations

import enum
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from evalcore import errors
from evalcore.errors import EngineError, EvalcoreError, NodeError, ResultsError, SubjectError

WorkerState = Literal["starting", "ready", "lost", "restarted", "stopped", "parked"]
Outcome = Literal["done", "stopped"]


class Stop(enum.IntEnum):
    """How urgently a run is asked to stop; ``bool`` values may be used for the first two."""

    NO = 0
    SOON = 1  # finish what runs, flush, close
    NOW = 2  # kill the workers


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work.

    Attributes:
        id: Unique within a run.
        payload: Picklable, for ``worker.run``.
        group: What it shares with other jobs (its subject): a failure that is the group's own is
            not looked for again in each of them. Empty: shared with none.
        kin: Where the group's input lies (a folder); groups of one kin that fail alike are taken
            at their word once one of them was tried a second time.
        composite: Whether it is several groups' work, which ``JobSource.narrow`` takes apart.
        cost: How much work it is, in any unit.
    """

    id: str
    payload: Any = None
    group: str = ""
    kin: str = ""
    composite: bool = False
    cost: int = 0


@dataclass(frozen=True, slots=True)
class WorkerReply:
    """What ``worker.run`` returns when its result is not (all) on disk yet.

    Attributes:
        result: Handed to ``on_result`` as it is.
        committed: Ids of jobs, this one or earlier ones of this worker, that became durable during
            the call. A job not named stays *pending*: it is done again if the worker dies before a
            later reply or a flush covers it.
        refused: Ids of jobs whose results turned out to be wrong after they were run, and why:
            nothing of them is or becomes durable, they count as failed.
    """

    result: Any = None
    committed: tuple[str, ...] = ()
    refused: tuple[tuple[str, ErrorInfo], ...] = ()


class Worker(Protocol):
    """What the factory makes, inside the worker process.

    ``run`` returns a :class:`WorkerReply`, or any other value, which says "done and durable".
    An exception of it with a true attribute ``of_group`` is about the job's whole group. A worker
    may have ``prepare(payload)`` too, called once before its first ``run``, with the payload of
    that: what takes long at the start belongs there; and ``ahead(payload)``, which returns at once,
    called before a ``run`` with what will probably come after it. ``flush`` makes everything run so
    far durable before it returns; it raises if it cannot. ``close`` is called once, after a flush,
    before the process ends.
    """

    def run(self, payload: Any) -> Any: ...

    def flush(self) -> Any: ...

    def close(self) -> None: ...


class JobSource(Protocol):
    """Where a run's jobs come from.

    ``next`` gives the next job for a worker, or None when it has none for that worker at the
    moment. The run ends when no job is under way and every worker has been told None; until then
    it is asked again, so a source may still make jobs from results. While it is ``growing`` there
    may be more jobs later, whatever it says now. ``ahead`` gives the payload that a worker would be
    given next, without giving it; None where that is not known. ``narrow`` gives smaller jobs
    that together are the one given, for finding out which part of it fails; none if it cannot be
    divided. ``by_size``: it was too large for a worker's memory.
    """

    @property
    def growing(self) -> bool: ...

    def next(self, worker_index: int) -> Job | None: ...

    def ahead(self, worker_index: int) -> Any: ...

    def narrow(self, job: Job, *, by_size: bool = False) -> list[Job]: ...


class ListSource:
    """Jobs in the order given, to whichever worker asks."""

    growing = False

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = iter(tuple(jobs))

    def next(self, worker_index: int) -> Job | None:
        return next(self._jobs, None)

    def ahead(self, worker_index: int) -> Any:
        return None

    def narrow(self, job: Job, *, by_size: bool = False) -> list[Job]:
        return []


@dataclass(frozen=True, slots=True)
class Lost:
    """A transport's news that a worker process is gone.

    Attributes:
        reason: How it went, as the end of a sentence ("was killed by SIGKILL").
        log_tail: The last lines it wrote to stdout and stderr; empty if not known.
        log_path: The file they are in, if there is one to look at.
        machine: Whether all of its machine is gone.
    """

    reason: str
    log_tail: str = ""
    log_path: str | None = None
    machine: bool = False


class Transport(Protocol):
    """Moves bytes between the driver and numbered workers; knows nothing of jobs or retries.

    ``start`` and ``send`` do not wait. ``explain`` gives a live worker's latest output. After
    ``kill`` no news of that worker's old process is given. ``close`` kills what is left and may be
    called twice. ``waits_for_room``: a started worker may have to wait for a place before it lives.
    """

    waits_for_room: bool

    def start(self, worker_index: int, blob: bytes) -> None: ...

    def send(self, worker_index: int, blob: bytes) -> None: ...

    def poll(self, timeout_s: float) -> list[tuple[int, bytes | Lost]]: ...

    def explain(self, worker_index: int) -> Lost: ...

    def kill(self, worker_index: int) -> None: ...

    def close(self) -> None: ...


Scope = Literal["results", "subject", "node", "memory", "input", "engine"]
"""Whose an error is: the results folder's (nobody can go on), the subject's (no engine could do
it), the machine's, a batch's that was too large, the input's, or the engine's (not to be trusted
now)."""


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An exception, fit to travel.

    Attributes:
        type_name: Name of its class, for people.
        message: ``str`` of it.
        traceback_text: The formatted traceback of the worker.
        evalcore_type: Name of its nearest class in :mod:`evalcore.errors`; None for other errors.
        of_group: Whether it is about everything the job's group has.
    """

    type_name: str
    message: str
    traceback_text: str
    evalcore_type: str | None
    of_group: bool = False

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        known = (c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)
        text = "".join(traceback.format_exception(error))
        of_group = bool(getattr(error, "of_group", False))
        return cls(type(error).__name__, str(error), text, next(known, None), of_group)

    @property
    def scope(self) -> Scope:
        """Whose error it is, as far as its type tells."""
        kind = self._class() if self.evalcore_type else None
        known: dict[type[EvalcoreError], Scope] = {
            ResultsError: "results", SubjectError: "subject", NodeError: "node",
        }  # fmt: skip
        for theirs, scope in known.items():
            if kind is not None and issubclass(kind, theirs):
                return scope
        if kind is None or issubclass(kind, EngineError):
            names = ("MemoryError", "OutOfMemoryError")  # Python's, torch's
            spent = self.type_name in names or "out of memory" in self.message.lower()
            return "memory" if spent else "engine"
        return "input"

    @property
    def worker_usable(self) -> bool:
        """Whether the worker can go on: an error not about the engine."""
        return self.scope != "engine"

    def _class(self) -> type[EvalcoreError]:
        found: type[EvalcoreError] = getattr(errors, self.evalcore_type or "EngineError")
        return found

    def to_error(self, where: str) -> EvalcoreError:
        """The typed error; it has the worker's traceback in ``traceback_text``."""
        message = self.message
        if self.evalcore_type is None:
            first_line = next(iter(message.strip().splitlines()), "")
            message = f"{where}: {self.type_name}: {first_line}".rstrip(": ")
        kind = self._class()
        error = kind.__new__(kind)  # not kind(...): constructors take other arguments
        Exception.__init__(error, message)
        error.traceback_text = self.traceback_text  # type: ignore[attr-defined]
        return error


CommandKind = Literal["warm", "start", "prepare", "run", "flush", "close"]
AnswerKind = Literal["warmed", "ready", "prepared", "ran", "flushed", "closed", "raised", "beat"]


@dataclass(frozen=True, slots=True)
class Command:
    """Driver to worker.

    Attributes:
        body: (factory, config, worker_index) | payload | (function, its arguments) | None.
        ahead: For ``run``: the payload that will probably be next.
    """

    kind: CommandKind
    job_id: str | None = None
    body: Any = None
    ahead: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Worker to driver; ``raised`` answers whichever command was under way, but for ``warm``.

    ``ready`` has a :class:`Hello` as its result. ``beat`` answers no command: it says how far the
    worker's counter of progress is (see :mod:`evalcore.cluster.pulse`).
    """

    kind: AnswerKind
    job_id: str | None = None
    result: Any = None
    committed: tuple[str, ...] = ()
    error: ErrorInfo | None = None
    refused: tuple[tuple[str, ErrorInfo], ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker that stands.

    Attributes:
        node: The machine it is on.
        prepares: Whether it wants to prepare.
        trouble: What it has met already and can work in spite of.
    """

    node: str
    prepares: bool
    trouble: tuple[str, ...] = ()


WorkerEnv = Mapping[str, str | None]
EnvOption = WorkerEnv | Callable[[int], WorkerEnv] | None


def env_for(env: EnvOption, worker_index: int) -> WorkerEnv:
    """The variables of one worker (value None: unset)."""
    if env is None:
        return {}
    return env(worker_index) if callable(env) else env
