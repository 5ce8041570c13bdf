"""The configuration of a run: one tree of frozen parts, whose fields have one name each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from evalcore.config.cluster import ClusterConfig
from evalcore.config.engine import EngineConfig
from evalcore.config.grid import GridConfig
from evalcore.config.option import Option, options_of
from evalcore.config.run import RunConfig
from evalcore.config.subjects import SubjectsConfig
from evalcore.errors import UnknownNameError

PARTS: Mapping[str, type] = {
    "subjects": SubjectsConfig,
    "grid": GridConfig,
    "engine": EngineConfig,
    "cluster": ClusterConfig,
    "run": RunConfig,
}


@dataclass(frozen=True)
class ScoreConfig:
    """Everything :func:`evalcore.app.score` is told.

    The command line goes before a study file, a study file before the defaults that stand at the
    fields. "Not given" is not the same as ``auto``: a word given goes before a file that says
    another, also where it is the default.
    """

    subjects: SubjectsConfig = field(default_factory=SubjectsConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def of(cls, **given: Any) -> ScoreConfig:
        """The tree in which these fields, by their names (:func:`all_options`), are given.

        Raises:
            InputError: A name or a value is none there is.
        """
        return cls().changed(**given)

    def changed(self, **given: Any) -> ScoreConfig:
        """This tree with other values of some fields, by their names.

        Raises:
            InputError: A name or a value is none there is.
        """
        new: dict[str, dict[str, Any]] = {}
        for name, value in given.items():
            if name not in all_options():
                raise UnknownNameError("argument", name, all_options())
            part, own, _ = all_options()[name]
            new.setdefault(part, {})[own] = value
        parts = {part: replace(getattr(self, part), **values) for part, values in new.items()}
        return replace(self, **parts)

    def record(self) -> dict[str, Any]:
        """What is not at its default, by name; plain values for a run's record (JSON)."""
        found = {}
        for name, (part, own, about) in all_options().items():
            value = getattr(getattr(self, part), own)
            if value != about.default:
                found[name] = _plain(value)
        return found


@cache
def all_options() -> Mapping[str, tuple[str, str, Option]]:
    """Name -> (part of the tree, field of the part, what is known of it)."""
    found: dict[str, tuple[str, str, Option]] = {}
    for part, kind in PARTS.items():
        for own, about in options_of(kind).items():
            assert about.name not in found, about.name
            found[about.name] = (part, own, about)
    return found


def option_named(name: str) -> Option:
    """What is known of a field, by its name."""
    return all_options()[name][2]


def study_keys() -> Mapping[str, Option]:
    """Key of a study file's ``evaluation`` block -> the field it gives."""
    return {about.study: about for _, _, about in all_options().values() if about.study}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
