"""Tokenizers from outside: what is not plainly ordinary is tried in a process of its own first.

A tokenizer.json can ask for more than any machine has: steps that each double the text, a prefix of
50 MB, a regular expression that never ends, millions of entries. The libraries that read it are
long calls that nothing in this process can end. So the parts of the file are looked at, which is
cheap; where they are not such as published tokenizers have, loading it and encoding some texts is
done once by a child that is ended when it takes too much. What passed is remembered by the content
of its files, so that this costs nothing later.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evalcore.deadline import Ended, run_bounded
from evalcore.errors import EvalcoreError, InputError
from evalcore.identity.cache import cached_fact
from evalcore.reading import MAX_TABLE_BYTES, is_there, parse_json, read_bytes
from evalcore.shown import one_line

CHILD = (
    "from evalcore.identity.tokenizer import load_untried; from evalcore.identity.trial import "
    "main; main(load_untried)"
)
"""What the child runs, with the folder as its argument."""
TRIAL_CPU_S = 30
"""Seconds of a core; the largest published tokenizers take about ten."""
TRIAL_WALL_S = 300.0
TRIAL_MB = 4000
TOKENS_PER_BYTE = 64
SPARE_TOKENS = 4096
"""Tokens that any text may have beside those of its bytes (templates put some around it)."""

_VERSION = 1
_PLAIN_BYTES = 48_000_000
_PLAIN_BESIDE = 4_000_000  # of each other file
_PLAIN_ENTRIES = 600_000
_PLAIN_ADDED = 20_000
_PLAIN_STEPS_TEXT = 64_000  # characters of all steps, normalizers' tables left out
_PLAIN_GROWTH = 10_000
_PLAIN_PREFIX = 64
_MOST_GROWTH = 1_000_000
_MOST_WRITTEN = 4096
_WRITTEN = ("content", "prepend")
_PLAIN_REGEX = 2_000
_UNBOUNDED_IN_A_ROW = 5
_REPEATED = re.compile(r"[*+]|\{\d*,\}")
_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_REFUSED = 3

_refused: dict[str, str] = {}


def require_end(directory: Path, state: str) -> None:
    """Refuses a tokenizer whose loading or use does not end in reasonable time and memory.

    Args:
        directory: Of its files.
        state: Fingerprint of their content and of the libraries that read them.

    Raises:
        InputError: It does not, or it cannot be loaded.
    """
    if state in _refused:
        raise InputError(_refused[state])

    def tried() -> bool:
        if not is_plain(directory):
            _try(directory, state)
        return True

    cached_fact(f"tokenizer-ends-{_VERSION}", state, tried)


def _try(directory: Path, state: str) -> None:
    done = run_bounded(CHILD, [str(directory)], TRIAL_WALL_S, TRIAL_MB)
    if done == Ended(0, ""):
        return
    if done.status == _REFUSED:
        message = done.said
    else:
        # A busy machine alone does not get here: what counts is the time of a core.
        message = (
            f"tokenizer in {directory}: loading it and encoding short texts does not end within "
            f"{TRIAL_CPU_S} s of a core and {TRIAL_MB:,} MB ({done.why}); published tokenizers "
            "take seconds: its tokenizer.json makes texts grow, or is too large"
        )
        _refused[state] = message
    raise InputError(message)


def main(load: Callable[[str], Any]) -> None:
    """Loads the tokenizer of a folder, encodes texts, and says in its status how that ended."""
    resource.setrlimit(resource.RLIMIT_CPU, (TRIAL_CPU_S, TRIAL_CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        check_use(load(sys.argv[1]), sys.argv[1])
    except EvalcoreError as error:
        sys.stdout.write(str(error))
        sys.stdout.flush()
        sys.exit(_REFUSED)


def check_use(tokenizer: Any, path: str) -> None:
    """Encodes texts in which steps that make texts grow show.

    Raises:
        InputError: One becomes more tokens than any text should.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    data = parse_json(backend.to_str().encode(), path) if backend is not None else {}
    patterns = [step["pattern"] for step in _steps(data) if isinstance(step.get("pattern"), dict)]
    shown = [str(pattern["String"]) for pattern in patterns if "String" in pattern]
    every = "".join(map(chr, range(32, 127)))
    long = [sign * 5_000 for sign in ("a", " ", "1", "é", "中", "a b", "\n", "_")]
    for text in ["", *shown, every, *long]:
        count = len(tokenizer(text)["input_ids"])
        most = TOKENS_PER_BYTE * len(text.encode("utf-8", "replace")) + SPARE_TOKENS
        if count > most:
            raise InputError(
                f"tokenizer in {path} makes {count:,} tokens of the text "
                f"{one_line(repr(text[:20]))} of {len(text):,} characters; expected at most "
                f"{most:,}: its tokenizer.json makes texts grow"
            )


def is_plain(directory: Path) -> bool:
    """Whether a tokenizer is such as published ones are, as far as its files tell.

    Raises:
        InputError: If tokenizer.json cannot be read, or asks for more than any text needs.
    """
    sizes = {file.name: file.stat().st_size for file in directory.iterdir() if file.is_file()}
    if any(sizes.get(name, 0) > _PLAIN_BESIDE for name in _BESIDE):
        return False
    file = directory / "tokenizer.json"
    if not is_there(file):
        return all(
            size <= _PLAIN_BYTES // 2 for name, size in sizes.items() if _is_vocabulary(name)
        )
    if sizes.get(file.name, 0) > _PLAIN_BYTES:
        return False
    data = parse_json(read_bytes(file, "tokenizer", MAX_TABLE_BYTES), f"tokenizer: {file}")
    if not isinstance(data, dict):
        return False
    steps = list(_steps(data))
    if (growth := _growth(steps, certain=True)) > _MOST_GROWTH:
        raise InputError(
            f"tokenizer: {file}: its steps make a text up to {growth:,.0f} times as long; expected "
            f"at most {_MOST_GROWTH:,} times"
        )
    for key, text in ((k, t) for step in steps for k in _WRITTEN if (t := step.get(k)) is not None):
        if len(str(text)) > _MOST_WRITTEN:
            raise InputError(
                f"tokenizer: {file}: key {key}: {len(str(text)):,} characters are put into a text; "
                f"expected at most {_MOST_WRITTEN:,}"
            )
    return _has_plain_parts(data)


def _is_vocabulary(name: str) -> bool:
    return name.startswith(("vocab.", "merges.", "tokenizer.model", "tiktoken"))


def _has_plain_parts(data: Mapping[str, Any]) -> bool:
    model, added = data.get("model"), data.get("added_tokens") or []
    if not isinstance(model, dict) or not isinstance(added, list):
        return False
    tables = [model.get("vocab") or [], model.get("merges") or []]
    if any(not isinstance(table, (dict, list)) or len(table) > _PLAIN_ENTRIES for table in tables):
        return False
    steps = list(_steps(data))
    characters = sum(_characters(data.get(part)) for part in _STEPS)
    return (
        len(added) <= _PLAIN_ADDED
        and characters <= _PLAIN_STEPS_TEXT
        and _growth(steps) <= _PLAIN_GROWTH
        and sum(len(str(step.get("prepend") or "")) for step in steps) <= _PLAIN_PREFIX
        and all(_ends(pattern) for pattern in _regexes(data))
    )


def _steps(data: Any) -> Iterator[dict[str, Any]]:
    """Every object within the steps of a tokenizer."""
    todo = [data.get(part) for part in _STEPS] if isinstance(data, dict) else []
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield item
            todo += item.values()
        elif isinstance(item, list):
            todo += item


def _characters(part: Any) -> int:
    """Of all texts in a part, the tables of precompiled normalizers left out: those have a form."""
    count, todo = 0, [part]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            count += sum(len(key) for key in item)
            todo += [value for key, value in item.items() if key != "precompiled_charsmap"]
        elif isinstance(item, list):
            count += len(item)
            todo += item
        elif isinstance(item, str):
            count += len(item)
    return count


def _growth(steps: list[dict[str, Any]], *, certain: bool = False) -> float:
    """How much longer replacements can make a text, at the very most.

    ``certain``: some text becomes so long, if the steps fit together; expressions are left out.
    """
    growth = 1.0
    for step in steps:
        content, pattern = step.get("content"), step.get("pattern")
        if not isinstance(content, str) or not isinstance(pattern, dict):
            continue
        text = pattern.get("String")
        if isinstance(text, str):
            growth *= max(1.0, len(content) / max(len(text), 1))
        elif content and not certain:
            growth *= len(content) + 1
    return growth


def _regexes(data: Mapping[str, Any]) -> Iterator[str]:
    for step in _steps(data):
        if isinstance(step.get("Regex"), str):
            yield step["Regex"]


def _ends(pattern: str) -> bool:
    """Whether it is clear that an expression ends soon: nothing repeated is within a repetition."""
    if len(pattern) > _PLAIN_REGEX:
        return False
    bare = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    bare = re.sub(r"\[[^\]]*\]", "x", bare)
    if re.search(r"\)[*+{]", bare):
        return False
    return all(len(_REPEATED.findall(part)) <= _UNBOUNDED_IN_A_ROW for part in bare.split("|"))
