"""Typed errors: each is one line for a person (what, where, what was expected, what to do).

The command line prints ``str(error)`` and exits with ``error.exit_status``; a traceback is shown
only with ``--debug``. Library users catch :class:`EvalcoreError`.
"""

from __future__ import annotations

from collections.abc import Iterable

from evalcore.shown import listed, one_line

EXIT_CELLS_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_RESULTS = 74  # EX_IOERR: the results folder cannot be written; make room, run again
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal or a time limit, run again to go on


class EvalcoreError(Exception):
    """Base of every error evalcore raises on purpose.

    As text it is one line that may be shown as it is: names and paths from outside may hold line
    ends and what a terminal would obey.
    """

    exit_status = EXIT_BAD_INPUT

    def __str__(self) -> str:
        return one_line(super().__str__())


class InputError(EvalcoreError):
    """Something the user gave is wrong: a path, a name, a value, a file's contents."""


class DefinitionError(InputError):
    """A YAML or template file (task, prompt, study) is not what its schema says."""


class UnknownNameError(InputError):
    """A name that is not defined; the message lists the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        import difflib  # only where something is wrong: `evalcore --help` does without

        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        choice = f"nearest: {', '.join(near)}" if near else f"there are {listed(known, 6)}"
        choice = choice if known else "none are defined"
        super().__init__(f"unknown {kind} {name!r}; {choice}" + (f"; {hint}" if hint else ""))


class BaseUnresolvedError(InputError):
    """It is not certain which checkpoint an adapter was trained on."""


class IncompatibleError(InputError):
    """Two things do not fit: adapter and base, results and schema, numerics classes."""


class DataError(InputError):
    """A data set is missing or its rows are not what the task says."""


class SubjectError(EvalcoreError):
    """A checkpoint or adapter that no engine could score as it is (weights not finite ...).

    The subject is at fault: the worker and other subjects go on, its other units are dropped.
    """

    exit_status = EXIT_CELLS_FAILED


class WitnessError(SubjectError):
    """An engine's scores of a subject are not those of transformers, or could not be compared."""


class NodeError(EvalcoreError):
    """This machine cannot do what another may: a path it does not see, other bytes than planned.

    The worker is not to be trusted with this input again; the input is tried elsewhere.
    """

    exit_status = EXIT_CELLS_FAILED


class ResultsError(InputError):
    """The results folder cannot be written or read: nobody's unit is at fault, the run ends."""

    exit_status = EXIT_RESULTS


class EngineError(EvalcoreError):
    """An engine could not be started or gave an answer that failed a check."""

    exit_status = EXIT_CELLS_FAILED


class ProofError(EngineError):
    """The proof that weights in place are the wanted ones did not hold."""


class WorkerLostError(EngineError):
    """A worker process died or missed its deadline more often than allowed."""


class TrainingError(EvalcoreError):
    """Tuning went wrong (loss not finite, diverging, out of memory); nothing was written.

    The code of what happened stands in brackets at the end of the line.
    """

    exit_status = EXIT_CELLS_FAILED

    def __init__(self, message: str, code: str) -> None:
        super().__init__(f"{message} [{code}]")


class StoppedError(EvalcoreError):
    """The run was asked to stop; everything finished is committed."""

    exit_status = EXIT_STOPPED


_EXTRA_MODULES = {
    "accelerate", "datasets", "huggingface_hub", "peft", "ray", "safetensors", "tokenizers",
    "torch", "transformers", "vllm",
}  # fmt: skip


def missing_extra(error: ModuleNotFoundError) -> InputError | None:
    """What to say of a module that a base installation, which reads and reports, lacks.

    None where the module is not one of those.
    """
    if (error.name or "").split(".")[0] not in _EXTRA_MODULES:
        return None
    return InputError(
        f"this needs the module {error.name}, which is not installed: pip install 'evalcore[cpu]' "
        f"(or [gpu]; [run] for engine hf and tuning alone)"
    )
