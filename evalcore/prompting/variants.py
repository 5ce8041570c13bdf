"""Finding prompt variants and reading selections such as ``default,instruct:shots=4,seed=1``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from evalcore.errors import DefinitionError, InputError, UnknownNameError
from evalcore.identity import text_fingerprint
from evalcore.prompting.model import PromptDefinition
from evalcore.tasks import read_yaml, validation_line
from evalcore.types import Variant

# Raise it when the same template and document would give other text than before.
RENDERER_VERSION = 1
_KEYS = ("shots", "seed", "chat")
_PACKAGE = Path(__file__).resolve().parent.parent


def prompts_root() -> Path:
    """Folder of the prompts that come with evalcore (in the wheel, or the repository's)."""
    installed = _PACKAGE / "_prompts"
    return installed if installed.is_dir() else _PACKAGE.parent / "prompts"


def read_prompt(path: Path) -> Variant:
    """Reads one prompt file as a variant without shots.

    Raises:
        DefinitionError: If it is not what the schema says (one line: file, key, expected).
    """
    try:
        definition = PromptDefinition.model_validate(read_yaml(path, "prompt file"))
    except ValidationError as error:
        raise DefinitionError(validation_line(error, "prompt file", path)) from None
    return Variant(
        name=definition.name,
        group=definition.group,
        template=definition.template,
        target=definition.target,
        delimiter=definition.delimiter,
        separator=definition.separator,
        label_words=tuple(sorted(definition.label_words.items())),
        system=definition.system,
    )


def _groups(search: Sequence[Path]) -> dict[str, list[Path]]:
    """Group -> its prompt files; user folders first, each holding <group>/<name>.yaml."""
    groups: dict[str, list[Path]] = {}
    for root in (*search, prompts_root()):
        root = Path(root)
        if not root.is_dir():
            if root in map(Path, search):
                raise DefinitionError(f"prompt folder {root} does not exist")
            continue
        for folder in sorted(item for item in root.iterdir() if item.is_dir()):
            files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
            if files:
                groups.setdefault(folder.name, []).extend(files)
    return groups


def list_groups(search: Sequence[Path] = ()) -> list[str]:
    """Names of the prompt groups there are."""
    return sorted(_groups(search))


def list_prompts(group: str, search: Sequence[Path] = ()) -> list[Variant]:
    """The prompts of a group without shots, ``default`` first, then by name.

    Raises:
        UnknownNameError: If there is no such group.
        DefinitionError: If a file is broken or lies in the wrong folder.
    """
    groups = _groups(search)
    if group not in groups:
        raise UnknownNameError("prompt group", group, groups, "see: evalcore prompts list")
    found: dict[str, Variant] = {}
    for file in groups[group]:
        variant = read_prompt(file)
        if variant.group != group:
            raise DefinitionError(
                f"prompt file {file}: key group: is {variant.group!r}, its folder is {group!r}"
            )
        if variant.name in found:
            raise DefinitionError(f"prompt file {file}: {group}/{variant.name} is defined twice")
        found[variant.name] = variant
    return [found[name] for name in sorted(found, key=lambda name: (name != "default", name))]


def load_variants(
    group: str,
    selection: str = "default,instruct",
    *,
    num_fewshot: int | None = None,
    shots_seed: int | None = None,
    chat: bool | None = None,
    system: str | None = None,
    search: Sequence[Path] = (),
) -> list[Variant]:
    """Variants of a selection ``NAME[:key=value[,key=value]]`` joined by commas, or ``all``.

    A piece ``key=value`` without a name belongs to the name before it. Keys: ``shots``,
    ``seed`` (of the shots), ``chat`` (1: apply the tokenizer's chat template). The keyword
    arguments hold where a selection says nothing.

    Args:
        group: Prompt group of the task.
        selection: What to load.
        num_fewshot: Number of shots.
        shots_seed: Seed that draws the shots.
        chat: Whether to apply the chat template.
        system: System text of the chat, instead of the file's.
        search: More folders with ``<group>/<name>.yaml``.

    Raises:
        UnknownNameError: With the nearest names.
        InputError: If the selection or a value is wrong.
    """
    known = {variant.name: variant for variant in list_prompts(group, search)}
    variants: dict[str, Variant] = {}
    for name, options in parse_selection(selection):
        if name != "all" and name not in known:
            raise UnknownNameError(f"prompt of group {group}", name, [*known, "all"])
        for base in known.values() if name == "all" else [known[name]]:
            shots = options.get("shots", num_fewshot or 0)
            use_chat = bool(options.get("chat", int(bool(chat))))
            if system is not None and not use_chat:
                raise InputError(
                    f"prompt {group}/{name}: a system text needs the chat template (chat=1)"
                )
            variant = with_options(
                base,
                shots=shots,
                shots_seed=options.get("seed", shots_seed or 0),
                chat=use_chat,
                system=system,
            )
            variants.setdefault(variant.name, variant)
    return list(variants.values())


def with_options(
    base: Variant,
    *,
    shots: int = 0,
    shots_seed: int = 0,
    chat: bool = False,
    system: str | None = None,
) -> Variant:
    """A prompt with shots and chat settings: canonical name and fingerprint.

    What has no effect does not count: a seed without shots, a system text without a chat.
    """
    if shots < 0:
        raise InputError(f"prompt {base.name}: shots should be 0 or more, not {shots}")
    seed = shots_seed if shots else 0
    own = base.name.split(":")[0]
    options = [f"shots={shots}"] if shots else []
    options += [f"seed={seed}"] if seed else []
    options += ["chat=1"] if chat else []
    if chat and system is not None and system != base.system:
        mark = hashlib.blake2b(system.encode(), digest_size=4).hexdigest()
        options.append(f"system={mark}")
    text = (system if system is not None else base.system) if chat else None
    variant = replace(
        base,
        name=own + (":" + ",".join(options) if options else ""),
        shots=shots,
        shots_seed=seed,
        chat=chat,
        system=text,
    )
    return replace(variant, fingerprint=variant_fingerprint(variant))


def variant_fingerprint(variant: Variant) -> str:
    """32 hex digits over everything that decides the text but the name."""
    return text_fingerprint(
        {
            "variant": RENDERER_VERSION,
            "group": variant.group,
            "template": variant.template,
            "target": variant.target,
            "delimiter": variant.delimiter,
            "separator": variant.separator,
            "label_words": sorted(variant.label_words),
            "shots": variant.shots,
            "shots_seed": variant.shots_seed if variant.shots else 0,
            "chat": variant.chat,
            "system": variant.system if variant.chat else None,
        }
    )


def parse_selection(selection: str) -> list[tuple[str, dict[str, int]]]:
    """Splits a selection into (name, options).

    Raises:
        InputError: If it is empty or a piece is not ``key=whole number``.
    """
    result: list[tuple[str, dict[str, int]]] = []
    for piece in (part.strip() for part in selection.split(",")):
        if not piece:
            continue
        name, colon, option = piece.partition(":")
        if not colon and "=" in piece:
            name, option = "", piece
        if name:
            result.append((name.strip(), {}))
        elif not result:
            raise InputError(f"prompts {selection!r}: {piece!r} follows no prompt name")
        if option or colon:
            key, value = _option(option.strip(), selection)
            result[-1][1][key] = value
    if not result:
        raise InputError("no prompts given: expected NAME[:shots=K,seed=S,chat=1],... or all")
    return result


def _option(text: str, selection: str) -> tuple[str, int]:
    key, _, value = text.partition("=")
    if key not in _KEYS:
        raise UnknownNameError(f"key in prompts {selection!r}", key, _KEYS)
    if not value.isdecimal() or (key == "chat" and value not in ("0", "1")):
        expected = "0 or 1" if key == "chat" else "a whole number"
        raise InputError(f"prompts {selection!r}: {key} should be {expected}, not {value!r}")
    return key, int(value)
