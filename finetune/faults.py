"""Names of everything a study can be refused for before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from evalcore.errors import DataError, DefinitionError, EvalcoreError
from evalcore.shown import one_line


class StudyFault(StrEnum):
    """Mistakes of a study file; the value is the stable code that ends each message in brackets."""

    BROKEN_YAML = "broken-yaml"
    KEY_TWICE = "key-twice"
    NOT_A_MAPPING = "not-a-mapping"
    UNKNOWN_KEY = "unknown-key"
    MISSING_KEY = "missing-key"
    WRONG_VALUE = "wrong-value"
    LORA_KEY_WITH_FULL = "lora-key-with-full"
    SELECT_WITHOUT_HELD_OUT = "select-without-held-out"
    NAME_TWICE = "name-twice"
    UNKNOWN_TUNING = "unknown-tuning"
    BAD_GRID = "bad-grid"
    UNKNOWN_TASK = "unknown-task"
    UNKNOWN_VARIANT = "unknown-variant"
    UNFIT_VARIANT = "unfit-variant"
    NO_TRAIN_SPLIT = "no-train-split"
    UNKNOWN_CHECKPOINT = "unknown-checkpoint"


class DataFault(StrEnum):
    """What the checks of the training rows find."""

    MISSING_DATA = "missing-data"
    TOO_FEW_ROWS = "too-few-rows"
    UNUSABLE_ROWS = "unusable-rows"
    ONE_ANSWER = "one-answer"
    SAME_PROMPT = "same-prompt"
    CONTRADICTORY_ROWS = "contradictory-rows"
    EMPTY_COMPLETION = "empty-completion"
    TRUNCATED_COMPLETION = "truncated-completion"
    NOTHING_FITS = "nothing-fits"
    SHOTS_TRAINED = "shots-trained"
    EVALUATION_ROWS = "evaluation-rows"
    LEFT_OUT_TOO_LONG = "left-out-too-long"
    PROMPTS_CUT = "prompts-cut"
    REFUSED_BY_TEMPLATE = "refused-by-template"
    MERGED_BORDER = "merged-border"
    STOP_IN_COMPLETION = "stop-in-completion"
    BEYOND_MAX_TOKENS = "beyond-max-tokens"


class _Lines(EvalcoreError):
    """An error of several lines, each of which is one."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(map(one_line, self.lines))


class StudyError(_Lines, DefinitionError):
    """A study file is not what it should be; one line per mistake, each with its code."""

    def __init__(self, file: object, mistakes: Sequence[tuple[StudyFault, str]]) -> None:
        self.codes = tuple(code for code, _ in mistakes)
        self.lines = tuple(f"{file}{_at(text)} [{code}]" for code, text in mistakes)
        super().__init__("\n".join(self.lines))


def _at(text: str) -> str:
    return text if text.startswith(":") else f": {text}"


@dataclass(frozen=True, slots=True)
class DataFinding:
    """What a check of training rows found.

    Attributes:
        code: Which check.
        tuning: The tuning whose rows they are.
        message: One line for a person.
        fatal: Whether training may not begin.
        count: Rows it is about.
    """

    code: DataFault
    tuning: str
    message: str
    fatal: bool
    count: int = 0

    @property
    def line(self) -> str:
        return f"tuning {self.tuning}: {self.message} [{self.code}]"


class TuningDataError(_Lines, DataError):
    """Rows of a tuning are unfit to be learned; one line per finding, each with its code."""

    def __init__(self, findings: Sequence[DataFinding]) -> None:
        self.codes = tuple(finding.code for finding in findings)
        self.lines = tuple(finding.line for finding in findings)
        super().__init__("\n".join(self.lines))
