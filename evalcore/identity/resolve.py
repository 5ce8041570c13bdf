"""From folders of adapters and checkpoint names to subjects: which base is certain, or an error."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalcore.errors import BaseUnresolvedError, IncompatibleError, InputError
from evalcore.identity.adapter import (
    ADAPTER_CONFIG,
    adapter_config,
    adapter_fingerprint,
    adapter_is_zero,
    adapter_rank,
)
from evalcore.identity.applying import Applied, check_adapter
from evalcore.identity.checkpoint import numeric_config, same_model
from evalcore.identity.globs import fits, plain, split_at
from evalcore.identity.provenance import (
    PROVENANCE_FILE,
    Provenance,
    read_provenance,
)
from evalcore.identity.readings import adapter_reading, differing, reading_of
from evalcore.identity.search import Problem, nothing_found, search, unfinished
from evalcore.identity.sources import name_of, open_checkpoint
from evalcore.identity.tokenizer import tokenizer_facts
from evalcore.identity.weights import weight_layout
from evalcore.shown import one_line, printable
from evalcore.types import Adapter, Checkpoint, Subject

logger = logging.getLogger("evalcore")

_WARNED = 5  # problems told at once; all of them are in the outcome
_HOW = "give --base-map GLOB=PATH|REPO@REV or --assume-base PATH|REPO@REV"


@dataclass(frozen=True, slots=True)
class Resolved:
    """What there is to score.

    Attributes:
        subjects: By checkpoint (step, name), the bare checkpoint first, adapters by name.
        problems: Adapters left out, with the reason: the others are scored.
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
    applied: Applied = "unmerged",
    leave_out: Sequence[str] = (),
    may_be_away: bool = False,
) -> Resolved:
    """Finds adapters and the checkpoint each was trained on, and fully tuned checkpoints.

    A base is certain by the adapter's provenance record (fingerprint verified), else by
    ``base_map``, else by adapter_config's local directory or hub name with revision, else by
    ``assume_base``. Hub access honours HF_HUB_OFFLINE.

    Args:
        adapter_paths: Folders searched for adapters and fully tuned checkpoints.
        checkpoints: Paths or ``REPO@REV`` scored on their own.
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
        may_be_away: Whether weights on the hub that are known by their hashes may stay there until
            they are read; whoever hands a folder on calls ``bring`` first.

    Raises:
        InputError: If nothing is found, or a checkpoint given by name is missing.
        BaseUnresolvedError: If nothing is left because bases are uncertain (all named at once).
        IncompatibleError: If nothing is left because adapters were trained on other bases.
    """
    if not adapter_paths and not checkpoints:
        raise InputError(
            "nothing to score: give folders of adapters, or --checkpoint PATH|REPO@REV"
        )
    bases = _Bases(checkpoints, base_map, assume_base, tokenizer, may_be_away)
    found = search(adapter_paths, leave_out)
    if adapter_paths and not (found.adapters or found.tuned):
        raise nothing_found(adapter_paths)
    problems = list(found.problems)
    faults: list[tuple[Path, InputError]] = []
    tuned: dict[str, dict[str, list[Adapter]]] = {}  # base -> adapter's fingerprint -> copies
    for path in found.adapters:
        problem = unfinished(path)
        if problem is not None:
            problems.append(problem)
            continue
        try:
            adapter, base = _adapter_and_base(path, bases, applied)
        except _GivenBaseError as error:
            raise InputError(str(error)) from None
        except InputError as error:
            faults.append((path, error))
            problems.append(_problem(path, error))
        else:
            own = bases.readings.get(adapter.path)
            known = adapter.fingerprint + (own.reading if own is not None else "")
            copies = tuned.setdefault(base.id, {}).setdefault(known, [])
            copies.append(adapter)
            if adapter_config(path).get("lora_alpha", 8) == 0:
                bases.notes.append(f"adapter {path}: lora_alpha is 0: it scores as its base does")
    alone = set(bases.given) | bases.open_tuned(found.tuned, problems)
    if not (tuned or alone):
        _raise_if_nothing_fits(faults)
    if include_bases:
        alone |= set(tuned) | bases.parents(alone)
    for problem in problems[:_WARNED]:
        logger.warning("%s", problem.message)
    if len(problems) > _WARNED:
        logger.warning("%d more are left out; all are named at the end", len(problems) - _WARNED)
    groups = {base: [_scored(each) for each in own.values()] for base, own in tuned.items()}
    notes = [
        f"adapter {copy} is an exact copy of {adapter.path}: scored once"
        for adapters in groups.values()
        for adapter in adapters
        for copy in adapter.copies
    ]
    return Resolved(
        _subjects(bases.known, alone, groups, bases.readings),
        tuple(problems),
        tuple(notes + bases.notes),
    )


def _adapter_and_base(path: Path, bases: _Bases, applied: Applied) -> tuple[Adapter, Checkpoint]:
    """An adapter and its certain base; whatever is wrong with it is an InputError."""
    try:
        str(path.resolve()).encode()
        record = read_provenance(path)
        adapter = _describe_adapter(path, record)
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


def _raise_if_nothing_fits(faults: Sequence[tuple[Path, InputError]]) -> None:
    """With nothing left to score, what is wrong with the adapters is the error of the run."""
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


class _GivenBaseError(Exception):
    """A base the user named on the command line cannot be opened: the whole run is wrong."""


class _Bases:
    """Checkpoints opened so far, by source and by fingerprint."""

    def __init__(
        self,
        checkpoints: Sequence[str],
        base_map: Sequence[str],
        assume_base: str | None,
        tokenizer: str,
        may_be_away: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._may_be_away = may_be_away
        if self._given_tokenizer is not None:
            _check_tokenizer(self._given_tokenizer)
        self.readings: dict[str, Checkpoint] = {}  # adapter's path -> its base as it is asked
        self.known: dict[str, Checkpoint] = {}
        self.notes: list[str] = []
        self._by_source: dict[str, Checkpoint] = {}
        self._also: dict[str, set[str]] = {}  # id -> other fingerprints of the same model
        self._layouts: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
        self.given = [self._open(source, "--checkpoint").id for source in checkpoints]
        self._map = [self._parse(entry) for entry in base_map]
        self._assume = assume_base

    @staticmethod
    def _parse(entry: str) -> tuple[str, str]:
        glob, *parts = split_at(entry, "=")
        source = "=".join(parts)
        if not (glob and source):
            raise InputError(f"--base-map {entry!r}: expected GLOB=PATH or GLOB=REPO@REV")
        return glob, plain(source)

    def _open(self, source: str, what: str) -> Checkpoint:
        if source not in self._by_source:
            checkpoint = self._apart(
                open_checkpoint(
                    source,
                    what=what,
                    tokenizer=self._given_tokenizer,
                    may_be_away=self._may_be_away,
                )
            )
            twin = self._twin(checkpoint)
            if twin is not None:
                self._by_source[source] = twin
                return twin
            if checkpoint.tokenizer_note and checkpoint.id not in self.known:
                self.notes.append(f"checkpoint {checkpoint.path}: {checkpoint.tokenizer_note}")
            # The same under two names is one checkpoint: the first name stays.
            self._by_source[source] = self.known.setdefault(checkpoint.id, checkpoint)
        return self._by_source[source]

    def _twin(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """A known checkpoint that this one is, saved by another version of a library."""
        for known in self.known.values():
            if (
                known.fingerprint != checkpoint.fingerprint
                and not differing(known, checkpoint)
                and same_model(known.path, checkpoint.path)
            ):
                self._also.setdefault(known.id, set()).add(checkpoint.fingerprint)
                self.notes.append(
                    f"checkpoint {checkpoint.path} is {known.path}, saved by another version of a "
                    f"library: scored once"
                )
                return known
        return None

    def _is(self, checkpoint: Checkpoint, fingerprint: str) -> bool:
        """Whether a checkpoint has a fingerprint, by itself or as another version saved it."""
        also = self._also.get(checkpoint.id, ())
        return checkpoint.fingerprint == fingerprint or fingerprint in also

    @property
    def _given_tokenizer(self) -> str | None:
        return None if self._tokenizer in ("adapter", "base") else self._tokenizer

    def read_by(self, path: Path, base: Checkpoint) -> None:
        """Notes an adapter's own tokenizer, where it is another than its base's."""
        if self._tokenizer != "adapter":
            return
        try:
            own, note = adapter_reading(path, base)
        except InputError as error:
            raise InputError(
                f"adapter {path}: its own tokenizer cannot be used ({error}); mend it, or ignore "
                "it with --tokenizer base"
            ) from None
        if note:
            self.notes.append(note)
        if own is not None:
            self.readings[str(path.resolve())] = own

    def _apart(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint, marked where its weights are known but asked otherwise there."""
        first = self.known.get(checkpoint.fingerprint)
        ways = differing(first, checkpoint) if first is not None else []
        if first is None or not ways:
            return checkpoint
        marked = replace(checkpoint, reading=reading_of(checkpoint))
        if marked.id not in self.known:
            self.notes.append(
                f"checkpoint {checkpoint.path} has the weights of {first.path} but its own "
                f"{' and '.join(ways)}: what that decides is scored for both"
            )
        return marked

    def _open_given(self, source: str, what: str) -> Checkpoint:
        try:
            return self._open(source, what)
        except InputError as error:
            raise _GivenBaseError(str(error)) from None

    def open_tuned(self, paths: Sequence[Path], problems: list[Problem]) -> set[str]:
        """Fingerprints of fully tuned checkpoints; those that cannot be used become problems."""
        opened = set()
        for path in paths:
            problem = unfinished(path)
            try:
                if problem is None:
                    opened.add(self._open(str(path), "tuned checkpoint").id)
            except InputError as error:
                problem = Problem(str(path), str(error))
            if problem is not None:
                problems.append(problem)
        return opened

    def parents(self, fingerprints: set[str]) -> set[str]:
        """Fingerprints of what fully tuned checkpoints were tuned from, where it is at hand."""
        found = set()
        for checkpoint in [self.known[own] for own in sorted(fingerprints)]:
            if checkpoint.parent is None or checkpoint.parent in self.known:
                found |= {checkpoint.parent} if checkpoint.parent else set()
                continue
            parent = self._parent(checkpoint)
            if parent is not None:
                found.add(parent.id)
            else:
                self.notes.append(
                    f"checkpoint {checkpoint.path}: the checkpoint it was tuned from is not at "
                    f"hand, so there is no gain; give it with --checkpoint"
                )
        return found

    def _parent(self, checkpoint: Checkpoint) -> Checkpoint | None:
        record = read_provenance(Path(checkpoint.path))
        assert record is not None  # else it would have no parent
        for place in self._recorded_places(Path(checkpoint.path), record):
            with contextlib.suppress(InputError):  # gone, changed or not to be had: look on
                parent = self._open(place, f"parent of {checkpoint.path}")
                if parent.fingerprint == checkpoint.parent:
                    return parent
        return None

    def layout(self, base: Checkpoint) -> dict[str, tuple[str, tuple[int, ...]]]:
        if base.fingerprint not in self._layouts:
            self._layouts[base.fingerprint] = weight_layout(base.path)
        return self._layouts[base.fingerprint]

    def of(self, path: Path, record: Provenance | None) -> Checkpoint:
        """The base of the adapter at ``path``."""
        mapped = self._mapped(path)
        if mapped is not None:
            glob, source = mapped
            base = self._open_given(source, "--base-map")
            if record is not None and not self._is_recorded(path, base, record):
                raise IncompatibleError(
                    f"adapter {path} was trained on another base: its {PROVENANCE_FILE} records "
                    f"{record.base.name} ({record.base.fingerprint[:12]}), --base-map {glob}="
                    f"{source} is {base.fingerprint[:12]}"
                )
            return base
        if record is not None:
            return self._recorded(path, record)
        return self._configured(path)

    def _is_recorded(self, path: Path, base: Checkpoint, record: Provenance) -> bool:
        """Whether a base is the recorded one, which may be on disk as another version saved it."""
        if not self._is(base, record.base.fingerprint):
            for place in self._recorded_places(path, record):
                with contextlib.suppress(InputError):  # gone or changed: it says nothing then
                    self._open(place, f"adapter {path}")
        return self._is(base, record.base.fingerprint)

    def _mapped(self, path: Path) -> tuple[str, str] | None:
        names = {str(path), path.as_posix(), str(path.resolve()), path.resolve().name}
        for glob, source in self._map:
            if fits(glob, names):
                return glob, source
        return None

    def _recorded(self, path: Path, record: Provenance) -> Checkpoint:
        want = record.base.fingerprint
        # Given with --checkpoint, or met before: content decides, then the place it was trained at.
        known = [each for each in self.known.values() if self._is(each, want)]
        if known:
            places = {str(Path(p).resolve()) for p in self._recorded_places(path, record)}
            return next((each for each in known if each.path in places), known[0])
        changed = None
        for place in self._recorded_places(path, record):
            base = self._open(place, f"adapter {path}")
            if self._is(base, want):
                return base
            changed = place
        if self._assume is not None:
            base = self._open_given(self._assume, "--assume-base")
            if base.fingerprint == want:
                return base
            raise IncompatibleError(
                f"adapter {path} was trained on another base: its {PROVENANCE_FILE} records "
                f"{record.base.name} ({want[:12]}), --assume-base {self._assume} is "
                f"{base.fingerprint[:12]}"
            )
        if changed is not None:
            raise IncompatibleError(
                f"adapter {path} was trained on another base: {changed} is no longer the "
                f"checkpoint its {PROVENANCE_FILE} records ({want[:12]}); give the right one with "
                f"--base-map GLOB=PATH|REPO@REV"
            )
        was = record.base.path or record.base.source or record.base.name
        raise BaseUnresolvedError(f"base {was} is not there any more")

    @staticmethod
    def _recorded_places(path: Path, record: Provenance) -> list[str]:
        places = []
        if record.base.path_relative:
            places.append(path / record.base.path_relative)
        if record.base.path:
            places.append(Path(record.base.path))
        found = [str(place) for place in places if (place / "config.json").is_file()]
        source = record.base.source
        if not found and source and record.base.revision and not Path(source).exists():
            found.append(f"{source.split('@')[0]}@{record.base.revision}")
        return found

    def _configured(self, path: Path) -> Checkpoint:
        config = adapter_config(path)
        name, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
        if name:
            for place in (Path(os.path.expanduser(name)), path / name):
                if (place / "config.json").is_file():
                    return self._open(str(place), f"adapter {path}")
        hub = bool(name) and not name.startswith((".", "/", "~"))
        if hub and isinstance(revision, str) and revision and name.count("/") <= 1:
            return self._open(f"{name}@{revision}", f"adapter {path}")
        if self._assume is not None:
            base = self._open_given(self._assume, "--assume-base")
            note = f"adapter {path}: base assumed to be {self._assume} ({base.fingerprint[:12]})"
            self.notes.append(note)
            return base
        if not name:
            raise BaseUnresolvedError(f"{ADAPTER_CONFIG} names no base")
        if hub and name.count("/") <= 1:
            raise BaseUnresolvedError(f"base {name} has no revision in {ADAPTER_CONFIG}")
        raise BaseUnresolvedError(f"base {name} named by {ADAPTER_CONFIG} is not on disk")


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


def _describe_adapter(path: Path, record: Provenance | None) -> Adapter:
    fingerprint = adapter_fingerprint(path)
    if record is not None and record.adapter_fingerprint not in (None, fingerprint):
        raise InputError(
            f"adapter {path} is not the one its {PROVENANCE_FILE} records: fingerprint "
            f"{fingerprint[:12]}, recorded {str(record.adapter_fingerprint)[:12]}"
        )
    return Adapter(
        name=name_of(path),
        path=str(path.resolve()),
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
    wanted.sort(key=lambda c: (c.step is None, c.step or 0, c.name, c.path))
    names = _unique([c.name for c in wanted], [c.path for c in wanted])
    subjects = []
    for checkpoint, name in zip(wanted, names, strict=True):
        checkpoint = replace(checkpoint, name=name)
        if checkpoint.id in alone:
            subjects.append(Subject(checkpoint))
        group = sorted(tuned.get(checkpoint.id, []), key=lambda a: (a.name, a.path))
        own = _unique([a.name for a in group], [a.path for a in group])
        subjects += [
            Subject(
                checkpoint, replace(adapter, name=unique), _named(readings, adapter, checkpoint)
            )
            for adapter, unique in zip(group, own, strict=True)
        ]
    return tuple(subjects)


def _check_tokenizer(path: str) -> None:
    try:
        tokenizer_facts(Path(path).expanduser().resolve())
    except InputError as error:
        raise InputError(
            f"--tokenizer {path}: expected adapter, base, or a folder with a tokenizer: {error}"
        ) from None


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
