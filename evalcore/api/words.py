"""Messages for a caller from Python: options have the names of arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from evalcore.errors import EvalcoreError, missing_extra

_COMMAND = re.compile(r"(`[^`]*`)")  # what is to be typed into a shell stays as it is
_WORD = re.compile(r"(?<![\w-])(--[a-z][a-z0-9-]*|-[a-z])(?![\w-])")


@contextmanager
def called_from_python() -> Iterator[None]:
    """What is raised names arguments, not options; a missing module is said in one line."""
    try:
        yield
    except EvalcoreError as error:
        error.args = (in_python(str(error)),)
        raise
    except ModuleNotFoundError as error:
        known = missing_extra(error)
        if known is None:
            raise
        raise known from None


def in_python(text: str) -> str:
    """A message with the options it names as arguments of ``evalcore.score``."""
    names = _arguments()
    parts = _COMMAND.split(text)
    parts[::2] = [_WORD.sub(lambda word: names.get(word[0], word[0]), p) for p in parts[::2]]
    return "".join(parts)


@cache
def _arguments() -> Mapping[str, str]:
    """Spelling of an option on the command line -> the argument."""
    from evalcore.config import all_options

    names = {"-t": "tasks", "--tasks": "tasks", "-p": "prompts", "--prompts": "prompts",
             "--labels": "labels"}  # fmt: skip
    for name, (_, _, about) in all_options().items():
        names |= dict.fromkeys(about.words, f"{name}=False" if about.takes_away else name)
    return names
