"""Batch evaluation of checkpoint and adapter grids.

    import evalcore as ec

    results = ec.score("runs/", tasks="mnli_matched", prompts="paper", output="results")
    results.scores()

docs/python.md shows it all; docs/architecture.md has the map of the house. Nothing but this module
is loaded before a name is used.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as type checkers know it; typing takes longer to import than all the rest
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any
else:
    ModuleType = type(sys)  # without loading types

__version__ = "0.2.0"

if TYPE_CHECKING:
    from evalcore.api import (
        EvalcoreWarning,
        Frame,
        Results,
        finetune,
        open,
        prompts,
        run,
        score,
        tasks,
    )
    from evalcore.errors import EvalcoreError

__all__ = [
    "EvalcoreError",
    "EvalcoreWarning",
    "Frame",
    "Results",
    "__version__",
    "finetune",
    "open",
    "prompts",
    "run",
    "score",
    "tasks",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "EvalcoreError":
        return import_module("evalcore.errors").EvalcoreError
    if name == "tasks":  # a package of that name exists: see _Front
        return import_module("evalcore.tasks")
    if name in __all__:
        return getattr(import_module("evalcore.api"), name)
    raise AttributeError(f"module 'evalcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Tasks(ModuleType):
    """The package ``evalcore.tasks``, which can also be called: ``evalcore.tasks()``."""

    def __call__(self, *args: Any, **more: Any) -> Any:
        from importlib import import_module

        return import_module("evalcore.api").tasks(*args, **more)


class _Front(ModuleType):
    """This package. Importing a subpackage sets it as an attribute, over a function's name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "tasks" and isinstance(value, ModuleType):
            value.__class__ = _Tasks
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Front
