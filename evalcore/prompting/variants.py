"""Finding prompt variants: files by name or pattern, sets of them, formats of the grammar."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from evalcore.errors import DefinitionError, InputError, UnknownNameError
from evalcore.identity import differences, text_fingerprint
from evalcore.prompting.faults import PromptError, PromptFault
from evalcore.prompting.grammar import formats
from evalcore.prompting.model import RESERVED_NAMES, PromptDefinition, TemplateInFileError
from evalcore.prompting.selection import Options, parse_selection
from evalcore.prompting.shots import count_orders
from evalcore.tasks import definition_error, once_per_state, read_yaml, validation_line
from evalcore.types import AXES, TEMPLATE_DATE, Variant

# Raise it when the same template and document would give other text than before.
RENDERER_VERSION = 1
PAPER = ("default", "instruct", "io")
"""Three formats after those of Sun & Dredze (2024), in our own words; every group has them."""
_PARAPHRASE = re.compile(r"^p\d+$")
_PACKAGE = Path(__file__).resolve().parent.parent


def prompts_root() -> Path:
    """Folder of the prompts that come with evalcore (in the wheel, or the repository's)."""
    installed = _PACKAGE / "_prompts"
    return installed if installed.is_dir() else _PACKAGE.parent / "prompts"


@once_per_state(4096)
def read_prompt(path: Path) -> Variant:
    """Reads one prompt file as a variant without shots.

    Raises:
        TaskError: If it is not YAML, or not what the schema says (one line: file, key, expected).
        PromptError: If a template in it is wrong.
    """
    try:
        definition = PromptDefinition.model_validate(read_yaml(path, "prompt file"))
    except ValidationError as error:
        fault = _template_fault(error)
        if fault is None:
            raise definition_error(error, "prompt file", path, PromptDefinition) from None
        line = validation_line(error, "prompt file", path, PromptDefinition)
        raise PromptError(fault, line) from None
    return Variant(
        name=definition.name,
        group=definition.group,
        template=definition.template,
        target=definition.target,
        delimiter=definition.delimiter,
        separator=definition.separator,
        label_words=tuple(
            (label, words if isinstance(words, str) else _one_or_more(words))
            for label, words in sorted(definition.label_words.items())
        ),
        system=definition.system,
        listing=definition.listing,
        answer=definition.answer,
    )


def _one_or_more(words: Sequence[str]) -> str | tuple[str, ...]:
    """One text alone is that text, so that both ways to write it are the same variant."""
    return words[0] if len(words) == 1 else tuple(words)


def _template_fault(error: ValidationError) -> PromptFault | None:
    """The fault of a template, where that is what is wrong first."""
    cause = error.errors()[0].get("ctx", {}).get("error")
    return cause.fault if isinstance(cause, TemplateInFileError) else None


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
    """The prompts of a group without shots: the paper's three first, then by name.

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
            raise PromptError(
                PromptFault.WRONG_GROUP,
                f"prompt file {file}: key group: is {variant.group!r}, its folder is {group!r}",
            )
        if variant.name in found:
            raise PromptError(
                PromptFault.DEFINED_TWICE,
                f"prompt file {file}: key name: {group}/{variant.name} is defined twice",
            )
        found[variant.name] = variant
    return [found[name] for name in sorted(found, key=_rank)]


def _rank(name: str) -> tuple[int, str]:
    return (PAPER.index(name) if name in PAPER else len(PAPER), name)


def load_variants(
    group: str,
    selection: str = "default,instruct",
    *,
    num_fewshot: int | None = None,
    shots_seed: int | None = None,
    chat: bool | None = None,
    system: str | None = None,
    chat_args: str = "",
    chat_date: str = TEMPLATE_DATE,
    search: Sequence[Path] = (),
) -> list[Variant]:
    """Variants of a selection ``NAME[:key=value[,key=value]]`` joined by commas.

    NAME is a prompt, a pattern (``p0*``), ``paper`` (default, instruct, io), ``paraphrases``
    (p01, p02, ...), ``all`` files, or ``grammar``. A piece ``key=value`` without a name belongs
    to the name before it. Keys: ``shots``, ``seed`` (of the shots), ``order`` (of the shots),
    ``balance`` (labels take turns), ``chat``, ``chat_shots`` (turns, text), ``space`` (0 or 1:
    what stands before an answer), ``answer`` (choices, first_token, constrained, free). Of the
    grammar: ``n``, ``seed``, ``i`` (one format), ``listing``, and ``shots_seed``. The keyword
    arguments hold where a selection says nothing.

    Args:
        group: Prompt group of the task.
        selection: What to load.
        num_fewshot: Number of shots.
        shots_seed: Seed that draws the shots.
        chat: Whether to apply the chat template.
        system: System text of the chat, instead of the file's.
        chat_args: Arguments of the chat template, canonical JSON.
        chat_date: Day the chat template may write.
        search: More folders with ``<group>/<name>.yaml``.

    Raises:
        UnknownNameError: With the nearest names.
        InputError: If the selection or a value is wrong.
    """
    known = {variant.name: variant for variant in list_prompts(group, search)}
    variants: dict[str, Variant] = {}
    for name, options in parse_selection(selection):
        seed_key = "shots_seed" if name == "grammar" or "shots_seed" in options else "seed"
        use_chat = bool(options.get("chat", int(bool(chat))))
        if system is not None and not use_chat:
            raise InputError(
                f"prompt {group}/{name}: a system text needs the chat template (chat=1)"
            )
        settings: dict[str, Any] = {
            "shots": options.get("shots", num_fewshot or 0),
            "shots_seed": options.get(seed_key, shots_seed or 0),
            "shots_order": options.get("order", 0),
            "shots_balance": bool(options.get("balance", 0)),
            "chat": use_chat,
            "chat_shots": options.get("chat_shots", "turns"),
            "system": system,
            "chat_args": chat_args,
            "chat_date": chat_date,
            "space": options.get("space"),
            **{key: options[key] for key in AXES if key in options},
        }
        for base in _bases(group, name, options, known):
            variant = with_options(base, **settings)
            variants.setdefault(variant.name, variant)
    return list(variants.values())


def _bases(group: str, name: str, options: Options, known: dict[str, Variant]) -> Sequence[Variant]:
    """The prompts a name of a selection stands for, without options."""
    if name == "grammar":
        return _from_grammar(group, options)
    if name in known:
        return [known[name]]
    if name == "all":
        return list(known.values())
    if name == "paper":
        wanted = list(PAPER)
    elif name == "paraphrases":
        wanted = [each for each in known if _PARAPHRASE.match(each)]
    else:
        wanted = [each for each in known if fnmatch.fnmatchcase(each, name)]
    missing = [each for each in wanted if each not in known]
    if missing or not wanted:
        raise UnknownNameError(
            f"prompt of group {group}", missing[0] if missing else name, [*known, *RESERVED_NAMES]
        )
    return [known[each] for each in wanted]


def _from_grammar(group: str, options: Options) -> list[Variant]:
    listing: Literal["cloze", "letters"] = (
        "letters" if options.get("listing") == "letters" else "cloze"
    )
    seed = int(options.get("seed", 0))
    if "i" in options:
        if "n" in options:
            raise InputError("prompts: grammar takes n (the first N formats) or i (one), not both")
        one = int(options["i"])
        return formats(group, one + 1, seed=seed, listing=listing)[one:]
    if "n" not in options:
        raise InputError("prompts: grammar needs n, the number of formats: grammar:n=40,seed=1")
    return formats(group, int(options["n"]), seed=seed, listing=listing)


def with_options(
    base: Variant,
    *,
    shots: int = 0,
    shots_seed: int = 0,
    shots_order: int = 0,
    shots_balance: bool = False,
    chat: bool = False,
    chat_shots: Literal["turns", "text"] = "turns",
    system: str | None = None,
    chat_args: str = "",
    chat_date: str = TEMPLATE_DATE,
    space: int | None = None,
    **axes: Any,
) -> Variant:
    """A prompt as its file has it, with options: canonical name and fingerprint.

    What has no effect does not count: a seed or order without shots, a system text without a
    chat, a value that is the file's own.

    Args:
        base: The prompt.
        shots: Worked examples.
        shots_seed: Seed that draws them.
        shots_order: 0: as drawn; else the number of another order.
        shots_balance: Whether labels take turns.
        chat: Whether the chat template is applied.
        chat_shots: Shots as turns, or as text in the one question.
        system: System text of the chat, instead of the file's.
        chat_args: Arguments of the chat template, canonical JSON.
        chat_date: Day the chat template may write.
        space: 1: a space before the answer, 0: nothing, None: the file's delimiter.
        **axes: Other fields (``types.AXES``), where they are not as the file has them.

    Raises:
        InputError: If a value is out of range, or a space is asked for in a chat.
    """
    if shots < 0:
        raise InputError(f"prompt {base.name}: shots should be 0 or more, not {shots}")
    if chat and space is not None:
        raise InputError(
            f"prompt {base.name}: space={space} has no effect with the chat template, where the "
            "answer begins a turn; leave it out"
        )
    order = shots_order if shots > 1 else 0
    if order and order >= count_orders(min(shots, 20)):
        raise InputError(
            f"prompt {base.name}: {shots} shots have {count_orders(shots)} orders: order should "
            f"be 0 to {count_orders(shots) - 1}, not {order}"
        )
    delimiter = base.delimiter if space is None else " " * space
    variant = replace(
        base,
        delimiter=delimiter,
        shots=shots,
        shots_seed=shots_seed if shots else 0,
        shots_order=order,
        shots_balance=shots_balance and shots > 0,
        chat=chat,
        chat_shots=chat_shots if chat and shots else "turns",
        system=(system if system is not None else base.system) if chat else None,
        chat_args=chat_args if chat else "",
        chat_date=chat_date if chat else TEMPLATE_DATE,
        **axes,
    )
    variant = replace(variant, name=_canonical_name(base, variant, system))
    return replace(variant, fingerprint=variant_fingerprint(variant))


def _canonical_name(base: Variant, variant: Variant, system: str | None) -> str:
    """Name and options in fixed order, what the file has itself left out."""
    own, _, rest = base.name.partition(":")
    options = rest.split(",") if own == "grammar" and rest else []
    seed_key = "shots_seed" if own == "grammar" else "seed"
    values = {
        "shots": variant.shots,
        seed_key: variant.shots_seed,
        "order": variant.shots_order,
        "balance": int(variant.shots_balance),
        "chat": int(variant.chat),
    }
    options += [f"{key}={value}" for key, value in values.items() if value]
    if variant.chat_shots != "turns":
        options.append(f"chat_shots={variant.chat_shots}")
    if variant.delimiter != base.delimiter:
        options.append(f"space={len(variant.delimiter)}")
    for axis in AXES:
        if getattr(variant, axis) != getattr(base, axis):
            options.append(f"{axis}={getattr(variant, axis)}")
    if variant.chat and system is not None and system != base.system:
        options.append(f"system={_mark(system)}")
    if variant.chat_args:
        options.append(f"args={_mark(variant.chat_args)}")
    return own + (":" + ",".join(options) if options else "")


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def variant_fingerprint(variant: Variant) -> str:
    """32 hex digits over everything that decides text and answer, but the name.

    The date a chat template may write is for the cell's key: it counts where one does. What is at
    its default, or has no effect, does not count: a new way to vary prompts leaves the
    fingerprints of all earlier variants as they are.
    """
    effective = replace(
        variant,
        label_words=tuple(sorted(variant.label_words)),
        shots_seed=variant.shots_seed if variant.shots else 0,
        shots_order=variant.shots_order if variant.shots > 1 else 0,
        shots_balance=variant.shots_balance and variant.shots > 0,
        chat_shots=variant.chat_shots if variant.chat and variant.shots else "turns",
        system=variant.system if variant.chat else None,
        chat_args=variant.chat_args if variant.chat else "",
    )
    content = differences(effective, leave_out=("name", "fingerprint", "chat_date"))
    return text_fingerprint({"variant": RENDERER_VERSION, **content})
