"""From folders of adapters and checkpoint names to subjects: which base is certain, or an error."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalcore.errors import BaseUnresolvedError, IncompatibleError, InputError
from evalcore.identity.adapter import (
    adapter_config,
    adapter_fingerprint,
    adapter_is_zero,
    adapter_rank,
    numeric_adapter_config,
)
from evalcore.identity.applying import Applied, check_adapter
from evalcore.identity.away import AwayRule, NamedWeights, away_at, files_state
from evalcore.identity.checkpoint import numeric_config
from evalcore.identity.globs import fits
from evalcore.identity.hub_adapters import open_hub_adapters
from evalcore.identity.opening import Bases, BrokenBaseError
from evalcore.identity.places import HubPlace
from evalcore.identity.provenance import (
    PROVENANCE_FILE,
    Provenance,
    read_provenance,
)
from evalcore.identity.search import Found, Problem, nothing_found, search, unfinished
from evalcore.identity.sources import name_of
from evalcore.shown import natural, one_line, printable
from evalcore.types import Adapter, Checkpoint, Subject

logger = logging.getLogger("evalcore")

_NAMED = 20  # adapters of a broken base that its line names
WARNED = 5
"""Problems told at once; all of them are in the outcome."""
_HOW = "give --base-map GLOB=PATH|REPO@REV or --assume-base PATH|REPO@REV"


@dataclass(frozen=True, slots=True)
class Resolved:
    """What there is to score.

    Attributes:
        subjects: By checkpoint (step, name), the bare checkpoint first, adapters by name.
        problems: Adapters and checkpoints left out, with the reason: the others are scored.
        notes: Things worth telling (exact copies, how a base was found).
    """

    subjects: tuple[Subject, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def resolve_subjects(
    adapter_paths: Sequence[str | Path],
    checkpoints: Sequence[str] = (),
    base_map: Sequence[str] = (),
    assume_base: str | None = None,
    *,
    include_bases: bool = True,
    tokenizer: str = "adapter",
    applied: Applied = "either",
    leave_out: Sequence[str] = (),
    rule: AwayRule | None = None,
) -> Resolved:
    """Finds adapters and the checkpoint each was trained on, and fully tuned checkpoints.

    A base is certain by the adapter's provenance record (fingerprint verified), else by
    ``base_map``, else by adapter_config's local directory or hub name with revision, else by
    ``assume_base``. Hub access honours HF_HUB_OFFLINE.

    Args:
        adapter_paths: Folders searched for adapters and fully tuned checkpoints, and places of
            adapters on the hub (``[hf:]REPO@REV[#FOLDER]``).
        checkpoints: Paths or places on the hub scored on their own.
        base_map: ``GLOB=PATH|REPO@REV``; GLOB is matched with an adapter's path and name.
        assume_base: Base of adapters whose own record leaves it open.
        include_bases: Whether each adapter's base, and the parent of each fully tuned checkpoint,
            is scored alone too.
        tokenizer: ``adapter``: an adapter's own tokenizer, chat template and end token are used
            where they change what is asked; ``base``: never; else the directory of one tokenizer
            for everything.
        applied: What the engine of the run does with adapters; those it cannot apply exactly
            become problems.
        leave_out: Globs of paths and names of adapters that are not there.
        rule: Which weights on the hub may stay there until they are read; None: none.

    Raises:
        InputError: If nothing is found, or nothing is left because checkpoints are missing or
            broken; while something is left these cost themselves and their adapters.
        BaseUnresolvedError: If nothing is left because bases are uncertain (all named at once).
        IncompatibleError: If nothing is left because adapters were trained on other bases.
    """
    if not adapter_paths and not checkpoints:
        raise InputError(
            "nothing to score: give folders of adapters, or --checkpoint PATH|REPO@REV"
        )
    bases = Bases(checkpoints, base_map, assume_base, tokenizer, rule)
    found = _searched(adapter_paths, bases, leave_out, rule)
    fitted = _fitted([*found.adapters, *bases.origins], bases, applied)
    problems = [*found.problems, *fitted.problems]
    alone = set(bases.given) | bases.open_tuned(found.tuned, fitted.lost, problems)
    problems += [_without_base(error, paths) for error, paths in fitted.lost.values()]
    if not (fitted.tuned or alone):
        _raise_if_nothing_fits(fitted.faults, [error for error, _ in fitted.lost.values()])
    if include_bases:
        alone |= set(fitted.tuned) | bases.parents(alone)
    _warn(problems)
    groups = {base: [_scored(each) for each in own.values()] for base, own in fitted.tuned.items()}
    return Resolved(
        _subjects(bases.known, alone, groups, bases.readings),
        tuple(problems),
        (*_copies(groups), *bases.notes, *bases.assumed_note()),
    )


def _searched(
    adapter_paths: Sequence[str | Path],
    bases: Bases,
    leave_out: Sequence[str],
    rule: AwayRule | None,
) -> Found:
    """What lies in the folders given; adapters of the hub are brought into ``bases.origins``."""
    places = {path: HubPlace.parse(str(path)) for path in adapter_paths}
    folders = [path for path, place in places.items() if place is None]
    found = search(folders, leave_out)
    if folders and not (found.adapters or found.tuned):
        raise nothing_found(folders)
    for hub_place in filter(None, places.values()):
        for path, origin in open_hub_adapters(hub_place, rule).items():
            names = (str(origin), f"{origin.repo}@{hub_place.revision}", origin.repo, path.name)
            if not any(fits(glob, names) for glob in leave_out):
                bases.origins[path] = origin
    broken = [Path(each.path) for each in found.problems]
    bases.check_map([*found.adapters, *bases.origins, *broken])
    return found


@dataclass
class _Fitted:
    """Adapters by what came of them.

    Attributes:
        tuned: Base -> fingerprint of the adapter -> its copies.
        faults: What is wrong with others, and (``problems``) what is told of them.
        lost: Base that cannot be opened -> (why, the adapters on it).
    """

    tuned: dict[str, dict[str, list[Adapter]]]
    faults: list[tuple[Path, InputError]]
    problems: list[Problem]
    lost: dict[str, tuple[BrokenBaseError, list[Path]]]


def _fitted(paths: Sequence[Path], bases: Bases, applied: Applied) -> _Fitted:
    """Opens every adapter and its base."""
    lost = {source: (error, list[Path]()) for source, error in bases.broken.items()}
    made = _Fitted({}, [], [], lost)
    for path in paths:
        problem = unfinished(path)
        if problem is not None:
            made.problems.append(problem)
            continue
        try:
            adapter, base = _adapter_and_base(path, bases, applied)
        except BrokenBaseError as error:
            made.lost.setdefault(error.source, (error, []))[1].append(path)
        except InputError as error:
            made.faults.append((path, error))
            made.problems.append(_problem(path, error))
        else:
            own = bases.readings.get(adapter.path)
            known = adapter.fingerprint + (own.reading if own is not None else "")
            made.tuned.setdefault(base.id, {}).setdefault(known, []).append(adapter)
            if adapter_config(path).get("lora_alpha", 8) == 0:
                bases.notes.append(f"adapter {path}: lora_alpha is 0: it scores as its base does")
    return made


def _warn(problems: Sequence[Problem]) -> None:
    for problem in problems[:WARNED]:
        logger.warning("%s", problem.message)
    if len(problems) > WARNED:
        logger.warning("%d more are left out; all are named at the end", len(problems) - WARNED)


def _copies(groups: Mapping[str, Sequence[Adapter]]) -> list[str]:
    return [
        f"adapter {copy} is an exact copy of {adapter.path}: scored once"
        for adapters in groups.values()
        for adapter in adapters
        for copy in adapter.copies
    ]


def _adapter_and_base(path: Path, bases: Bases, applied: Applied) -> tuple[Adapter, Checkpoint]:
    """An adapter and its certain base; whatever is wrong with it is an InputError."""
    try:
        str(path.resolve()).encode()
        record = read_provenance(path)
        adapter = _describe_adapter(path, record, bases.origins.get(path), bases.weights)
        base = bases.of(path, record)
        config = numeric_config(base.path)
        check_adapter(path, bases.layout(base), config, base.source, applied, base.path)
        bases.read_by(path, base)
    except UnicodeError:
        raise InputError(
            f"adapter {printable(str(path))}: its path is not UTF-8, which tables of results are; "
            f"rename it"
        ) from None
    except OSError as error:
        raise InputError(f"adapter {path} cannot be read ({error.strerror or error})") from None
    return adapter, base


def _problem(path: Path, error: InputError) -> Problem:
    if isinstance(error, BaseUnresolvedError):
        text = f"adapter {path}: its base is not certain: {error}; {_HOW}"
        return Problem(str(path), one_line(text), "uncertain")
    kind = "misfit" if isinstance(error, IncompatibleError) else "broken"
    return Problem(str(path), one_line(str(error)), kind)


def _without_base(error: BrokenBaseError, adapters: Sequence[Path]) -> Problem:
    """What there is to say of a base that cannot be opened, and of the adapters on it."""
    text = str(error)
    if adapters:
        names = ", ".join(map(str, adapters[:_NAMED]))
        more = f" and {len(adapters) - _NAMED:,} more" if len(adapters) > _NAMED else ""
        many = "adapters" if len(adapters) > 1 else "adapter"
        text += f"; with it {len(adapters):,} {many}: {names}{more}"
    return Problem(error.source, one_line(text))


def _raise_if_nothing_fits(
    faults: Sequence[tuple[Path, InputError]], broken: Sequence[BrokenBaseError]
) -> None:
    """With nothing left to score, what is wrong with it is the error of the run."""
    if broken:
        rest = len(broken) + len(faults) - 1
        more = f" (and {rest:,} more checkpoints and adapters)" if rest else ""
        raise InputError(f"{broken[0]}{more}")
    uncertain = [(p, str(fault)) for p, fault in faults if isinstance(fault, BaseUnresolvedError)]
    if uncertain:
        raise BaseUnresolvedError(_unresolved_message(uncertain))
    misfits = [fault for _, fault in faults if isinstance(fault, IncompatibleError)]
    if misfits:
        more = f" (and {len(misfits) - 1} more adapters)" if len(misfits) > 1 else ""
        raise IncompatibleError(f"{misfits[0]}{more}")


def _scored(copies: Sequence[Adapter]) -> Adapter:
    """The one of exact copies that is scored: with the plainest configuration, first by name."""

    def extras(adapter: Adapter) -> int:
        return sum(value not in (None, {}, []) for value in adapter_config(adapter.path).values())

    chosen = min(copies, key=extras) if len(copies) > 1 else copies[0]
    return replace(chosen, copies=tuple(c.path for c in copies if c is not chosen))


def _unresolved_message(unresolved: Sequence[tuple[Path, str]]) -> str:
    reasons: dict[str, list[Path]] = {}
    for path, reason in unresolved:
        reasons.setdefault(reason, []).append(path)
    parts = []
    for reason, paths in list(reasons.items())[:3]:
        more = f" and {len(paths) - 2} more" if len(paths) > 2 else ""
        parts.append(f"{', '.join(str(path) for path in paths[:2])}{more}: {reason}")
    if len(reasons) > 3:
        parts.append(f"{len(reasons) - 3} other reasons")
    many = (
        f"base of {len(unresolved)} adapters is not certain"
        if len(unresolved) > 1
        else ("base of an adapter is not certain")
    )
    return one_line(f"{many}: {'; '.join(parts)}; {_HOW}")


def _describe_adapter(
    path: Path, record: Provenance | None, origin: HubPlace | None, weights: NamedWeights
) -> Adapter:
    fingerprint, content = adapter_fingerprint(path), ""
    if (away := away_at(path)) is not None:
        state = files_state(numeric_adapter_config(path), away.files.values())
        fingerprint, content = away.fingerprint(state)
    elif weights.used(fingerprint) != fingerprint:
        fingerprint, content = weights.used(fingerprint), fingerprint
    unread = away is not None and away.name is None
    known = (None, fingerprint, content)
    if record is not None and not unread and record.adapter_fingerprint not in known:
        raise InputError(
            f"adapter {path} is not the one its {PROVENANCE_FILE} records: fingerprint "
            f"{fingerprint[:12]}, recorded {str(record.adapter_fingerprint)[:12]}"
        )
    return Adapter(
        name=name_of(path),
        path=str(path.resolve()),
        origin=str(origin) if origin is not None else "",
        content=content,
        fingerprint=fingerprint,
        rank=adapter_rank(path),
        tuning=record.tuning.name if record else None,
        tuned_on=record.tuned_on if record else None,
        control=record.tuning.control if record else None,
        seed=record.tuning.seed if record else None,
        # Magnitudes (DoRA) and orthogonal pairs are not zero even when nothing was learned.
        untrained=adapter_is_zero(path) or (record is not None and record.untrained),
    )


def _subjects(
    known: dict[str, Checkpoint],
    alone: set[str],
    tuned: dict[str, list[Adapter]],
    readings: dict[str, Checkpoint],
) -> tuple[Subject, ...]:
    wanted = [known[key] for key in known if key in alone or key in tuned]
    wanted.sort(key=lambda c: (c.step is None, c.step or 0, natural(c.name), c.path))
    names = _unique([c.name for c in wanted], [c.path for c in wanted])
    subjects = []
    for checkpoint, name in zip(wanted, names, strict=True):
        checkpoint = replace(checkpoint, name=name)
        if checkpoint.id in alone:
            subjects.append(Subject(checkpoint))
        group = sorted(tuned.get(checkpoint.id, []), key=lambda a: (natural(a.name), a.path))
        own = _unique([a.name for a in group], [a.path for a in group])
        subjects += [
            Subject(
                checkpoint, replace(adapter, name=unique), _named(readings, adapter, checkpoint)
            )
            for adapter, unique in zip(group, own, strict=True)
        ]
    return tuple(subjects)


def _named(
    readings: dict[str, Checkpoint], adapter: Adapter, checkpoint: Checkpoint
) -> Checkpoint | None:
    own = readings.get(adapter.path)
    return own and replace(own, name=f"{checkpoint.name}~{own.reading}")


def _unique(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Names made unique by the parent folder's name, then by a number."""
    result: dict[str, None] = {}
    numbers: Counter[str] = Counter()  # of a name, the last number it was given
    count = Counter(names)
    for name, path in zip(names, paths, strict=True):
        if count[name] > 1:
            name = f"{Path(path).parent.name}/{name}"
        name = one_line(name)  # tables have a line for each
        unique, number = name, numbers[name] or 2
        while unique in result:
            unique, number = f"{name}#{number}", number + 1
        numbers[name] = number
        result[unique] = None
    return list(result)
