"""What can be wrong with a prompt: one stable code for each kind of fault."""

from __future__ import annotations

from enum import StrEnum

from evalcore.errors import DataError, DefinitionError
from evalcore.tasks import FileFault


class PromptFault(StrEnum):
    """What can be wrong with a prompt file's place, templates, or fit. The values are stable."""

    # the file (its keys: evalcore.tasks.FileFault)
    WRONG_GROUP = "wrong_group"
    DEFINED_TWICE = "defined_twice"
    # its templates
    SYNTAX = "syntax"
    OTHER_TEMPLATE = "other_template"  # include, import, extends, block
    STATEMENT = "statement"  # set, macro, call and other statements that are not offered
    UNKNOWN_FILTER = "unknown_filter"
    UNKNOWN_CALL = "unknown_call"
    UNSAFE_ATTRIBUTE = "unsafe_attribute"
    UNDEFINED_VARIABLE = "undefined_variable"
    NOT_TEXT = "not_text"  # a list or mapping where text is written
    RUNTIME = "runtime"
    TOO_LARGE = "too_large"
    TOO_MANY_STEPS = "too_many_steps"
    EMPTY_TARGET = "empty_target"
    # the file and a task
    OTHER_GROUP = "other_group"
    NO_FIELD = "no_field"  # the template shows nothing of a document
    SAME_PROMPT = "same_prompt"  # documents that differ are asked alike
    NO_LABELS = "no_labels"
    NO_CHOICES = "no_choices"
    TOO_MANY_CHOICES = "too_many_choices"
    UNKNOWN_LABEL = "unknown_label"
    LABEL_WITHOUT_WORDS = "label_without_words"
    SAME_WORDS = "same_words"
    # the file and a chat template
    CHAT_REFUSED = "chat_refused"
    SYSTEM_REFUSED = "system_refused"
    SYSTEM_DROPPED = "system_dropped"


class MergedBorderError(DataError):
    """A prompt and its answer share a token, so that ids spell neither."""


class PromptError(DefinitionError):
    """A prompt file, or its use for a task, is wrong.

    Attributes:
        fault: Which kind of fault, for programs; the message is for people and may change.
    """

    def __init__(self, fault: FileFault | PromptFault, message: str) -> None:
        self.fault = fault
        super().__init__(" ".join(message.split()))

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.fault, str(self))
