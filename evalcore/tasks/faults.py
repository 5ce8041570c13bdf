"""Everything a task file, or the data it names, can be refused for: one stable code for each.

The message of an error is for people and may change; ``error.fault`` is for programs and does not.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from evalcore.errors import DataError, DefinitionError


class FileFault(StrEnum):
    """What can be wrong with any YAML file read here, whatever it describes."""

    UNREADABLE = "unreadable"
    NOT_UTF8 = "not_utf8"
    BROKEN_YAML = "broken_yaml"
    YAML_TAG = "yaml_tag"  # !!python/object and every other tag that builds objects
    KEY_TWICE = "key_twice"
    NOT_A_MAPPING = "not_a_mapping"
    UNKNOWN_KEY = "unknown_key"
    MISSING_KEY = "missing_key"
    WRONG_TYPE = "wrong_type"
    WRONG_VALUE = "wrong_value"


class TaskFault(StrEnum):
    """What can be wrong with a task's keys taken together."""

    SOURCE_KIND = "source_kind"  # not exactly one of generator, path, hub
    GENERATOR_DATASET = "generator_dataset"
    HUB_FILES = "hub_files"
    SPLIT_NAME = "split_name"
    SCORED_SPLIT_REUSED = "scored_split_reused"
    TUNING_WITHOUT_TRAIN = "tuning_without_train"
    FIELD_NAME = "field_name"
    FIELD_KIND = "field_kind"  # not exactly one of column, text, messages
    CHOICES_KIND = "choices_kind"  # not exactly one of labels, column, columns
    CHOICES_SAME = "choices_same"
    LABELS_NOT_TEXT = "labels_not_text"
    GOLD_READING = "gold_reading"  # more than one of map, among, above
    GOLD_OUT_OF_RANGE = "gold_out_of_range"
    REFERENCE_KIND = "reference_kind"
    EMPTY_STOP = "empty_stop"
    PARTS_MISSING = "parts_missing"
    PARTS_UNWANTED = "parts_unwanted"
    PRIMARY_NOT_A_METRIC = "primary_not_a_metric"
    METRIC_TWICE = "metric_twice"
    DEFINED_TWICE = "defined_twice"
    NOTHING_SELECTED = "nothing_selected"
    NO_SUCH_FOLDER = "no_such_folder"
    NO_SUCH_ROLE = "no_such_role"  # the task has no split for it
    TUNING_ONLY = "tuning_only"


class DataFault(StrEnum):
    """What can be wrong with the rows."""

    NO_DATA_ROOT = "no_data_root"
    NOT_FETCHED = "not_fetched"
    NO_SUCH_SPLIT = "no_such_split"
    BROKEN_FILE = "broken_file"
    AMBIGUOUS_FILES = "ambiguous_files"  # a split stands in the folder twice
    INCOMPLETE_FILES = "incomplete_files"  # a shard is missing
    MISSING_COLUMN = "missing_column"
    GOLD_KIND = "gold_kind"
    GOLD_NAMES = "gold_names"  # label ids named otherwise than by the task or another file
    NOT_TEXT = "not_text"  # a mapping, a list in a list, bytes where a text is expected
    NO_USABLE_ROW = "no_usable_row"


class TaskError(DefinitionError):
    """A YAML file is not what its schema says.

    Attributes:
        fault: Which kind of fault.
    """

    def __init__(self, fault: FileFault | TaskFault, message: str) -> None:
        self.fault = fault
        super().__init__(" ".join(message.split()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fault, str(self))


class TaskDataError(DataError):
    """The rows of a task are missing or not what its definition says.

    Attributes:
        fault: Which kind of fault.
    """

    def __init__(self, fault: DataFault, message: str) -> None:
        self.fault = fault
        super().__init__(" ".join(message.split()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fault, str(self))
