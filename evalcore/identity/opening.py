"""Checkpoints as they are opened for a run: each once, and which one an adapter was trained on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from evalcore.errors import BaseUnresolvedError, IncompatibleError, InputError
from evalcore.identity.adapter import ADAPTER_CONFIG, adapter_config
from evalcore.identity.away import AwayRule, NamedWeights, away_at
from evalcore.identity.checkpoint import same_model
from evalcore.identity.globs import fits, plain, split_at
from evalcore.identity.places import HubPlace
from evalcore.identity.provenance import PROVENANCE_FILE, Provenance, read_provenance
from evalcore.identity.readings import adapter_reading, differing, reading_of
from evalcore.identity.search import Problem, unfinished
from evalcore.identity.sources import is_local, open_checkpoint
from evalcore.identity.tokenizer import tokenizer_facts
from evalcore.identity.weights import weight_layout
from evalcore.reading import is_there
from evalcore.types import Checkpoint


class BrokenBaseError(InputError):
    """A checkpoint cannot be opened: it costs itself and the adapters that were trained on it.

    Attributes:
        source: As it was named first.
    """

    def __init__(self, source: str, message: str) -> None:
        self.source = source
        super().__init__(message)


_NAMED = 3
"""Adapters that are named where an entry fits none."""


class Bases:
    """Checkpoints opened so far, by source and by fingerprint.

    Attributes:
        readings: An adapter's path -> its base as it is asked through the adapter's tokenizer.
        known: Identity -> checkpoint.
        given: Identities of the checkpoints named by the user that could be opened.
        broken: Those named by the user that could not, by source.
        notes: Things worth telling.
        weights: What the results know of weights.
        origins: Folders of adapters that are from the hub -> from where.
    """

    def __init__(
        self,
        checkpoints: Sequence[str],
        base_map: Sequence[str],
        assume_base: str | None,
        tokenizer: str,
        rule: AwayRule | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._rule = rule
        self.weights = rule.known if rule is not None else NamedWeights()
        self.origins: dict[Path, HubPlace] = {}
        if self._given_tokenizer is not None:
            _check_tokenizer(self._given_tokenizer)
        self.readings: dict[str, Checkpoint] = {}
        self.known: dict[str, Checkpoint] = {}
        self.notes: list[str] = []
        self._by_source: dict[str, Checkpoint] = {}
        self._also: dict[str, set[str]] = {}  # id -> other fingerprints of the same model
        self._layouts: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
        self._broken: dict[str, BrokenBaseError] = {}  # by the real path, or by the name
        self.given: list[str] = []
        self.broken: dict[str, BrokenBaseError] = {}
        for source in checkpoints:
            try:
                self.given.append(self._open(source, "--checkpoint").id)
            except BrokenBaseError as error:
                self.broken.setdefault(error.source, error)
        self._map = [self._parse(entry) for entry in base_map]
        self._assume = assume_base
        self._assumed = False

    @staticmethod
    def _parse(entry: str) -> tuple[str, str]:
        glob, *parts = split_at(entry, "=")
        source = "=".join(parts)
        if not (glob and source):
            raise InputError(f"--base-map {entry!r}: expected GLOB=PATH or GLOB=REPO@REV")
        return glob, plain(source)

    def _open(self, source: str, what: str) -> Checkpoint:
        place = _place(source)
        if place in self._broken:
            raise self._broken[place]
        if source not in self._by_source:
            try:
                opened = open_checkpoint(
                    source,
                    what=what,
                    tokenizer=self._given_tokenizer,
                    rule=self._rule,
                )
            except (InputError, OSError) as error:
                self._broken[place] = BrokenBaseError(source, _why(source, error))
                raise self._broken[place] from None
            checkpoint = self._apart(opened)
            twin = self._twin(checkpoint)
            if twin is not None:
                self._by_source[source] = twin
                return twin
            if checkpoint.tokenizer_note and checkpoint.id not in self.known:
                self.notes.append(f"checkpoint {checkpoint.path}: {checkpoint.tokenizer_note}")
            # The same under two names is one checkpoint: the first name stays.
            self._by_source[source] = self.known.setdefault(checkpoint.id, checkpoint)
        return self._by_source[source]

    def _is_broken(self, place: Path) -> bool:
        return _place(str(place)) in self._broken

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
        return fingerprint in (checkpoint.fingerprint, checkpoint.content, *also)

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

    def open_tuned(
        self, paths: Sequence[Path], told: Collection[str], problems: list[Problem]
    ) -> set[str]:
        """Identities of fully tuned checkpoints; those that cannot be used become problems.

        Args:
            paths: Their directories.
            told: Sources of broken checkpoints that are named already.
            problems: Added to.
        """
        opened = set()
        for path in paths:
            problem = unfinished(path)
            try:
                if problem is None:
                    opened.add(self._open(str(path), "tuned checkpoint").id)
            except BrokenBaseError as error:
                problem = None if error.source in told else Problem(str(path), str(error))
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
            base = self._open(source, "--base-map")
            if record is not None and not self._is_recorded(path, base, record):
                self._require_read(path, base, f"--base-map {glob}={source}")
                raise IncompatibleError(
                    f"adapter {path} was trained on another base: its {PROVENANCE_FILE} records "
                    f"{record.base.name} ({record.base.fingerprint[:12]}), --base-map {glob}="
                    f"{source} is {base.fingerprint[:12]}"
                )
            return base
        if record is not None:
            return self._recorded(path, record)
        return self._configured(path)

    def _require_read(self, path: Path, base: Checkpoint, said: str) -> None:
        if self._is_unread(base):
            raise IncompatibleError(
                f"adapter {path}: its {PROVENANCE_FILE} records its base by its bytes, and those "
                f"of {said} only pass through (--disk-budget); run once without a budget"
            )

    def _is_recorded(self, path: Path, base: Checkpoint, record: Provenance) -> bool:
        """Whether a base is the recorded one, which may be on disk as another version saved it."""
        if not self._is(base, record.base.fingerprint):
            for place in self._recorded_places(path, record):
                with contextlib.suppress(InputError):  # gone or changed: it says nothing then
                    self._open(place, f"adapter {path}")
        return self._is(base, record.base.fingerprint)

    def check_map(self, paths: Sequence[Path]) -> None:
        """Refuses entries of ``--base-map`` that fit none of the adapters that are there.

        Raises:
            InputError: Of the first of them.
        """
        names = [self._names(path) for path in paths] if self._map else []
        for glob, source in self._map:
            if not any(fits(glob, own) for own in names):
                there = ", ".join(str(self.origins.get(path, path)) for path in paths[:_NAMED])
                more = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
                raise InputError(
                    f"--base-map {glob}={source}: no adapter's path or name fits {glob!r} "
                    f"(there: {there or 'none'}{more})"
                )

    def assumed_note(self) -> list[str]:
        """A line where ``--assume-base`` was given and nothing asked for it."""
        if self._assume is None or self._assumed:
            return []
        return [f"--assume-base {self._assume}: no adapter needed it"]

    def _open_assumed(self, source: str) -> Checkpoint:
        self._assumed = True
        return self._open(source, "--assume-base")

    def _names(self, path: Path) -> set[str]:
        names = {str(path), path.as_posix(), str(path.resolve()), path.resolve().name}
        if (origin := self.origins.get(path)) is not None:
            names |= {str(origin), origin.repo, f"{origin.repo}#{origin.folder}"}
        return names

    def _mapped(self, path: Path) -> tuple[str, str] | None:
        names = self._names(path) if self._map else set()
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
            if self._is_unread(base) and base.origin == place:
                base = self._claimed(base, want)
            if self._is(base, want):
                return base
            changed = place
        if changed is None and record.base.path and self._is_broken(Path(record.base.path)):
            self._open(record.base.path, f"adapter {path}")  # named, but not there: says so
        if self._assume is not None:
            base = self._open_assumed(self._assume)
            if self._is(base, want):
                return base
            self._require_read(path, base, f"--assume-base {self._assume}")
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
    def _is_unread(base: Checkpoint) -> bool:
        """Whether nobody has read its weights yet."""
        away = away_at(base.path)
        return away is not None and away.digests is None and not base.content

    def _claimed(self, base: Checkpoint, content: str) -> Checkpoint:
        """A base whose record says what is in it, at the very commit; whoever reads it checks."""
        marked = replace(base, content=content)
        self.known[base.id] = marked
        self._by_source.update(
            {source: marked for source, each in self._by_source.items() if each.id == base.id}
        )
        return marked

    @staticmethod
    def _recorded_places(path: Path, record: Provenance) -> list[str]:
        places = []
        if record.base.path_relative:
            places.append(path / record.base.path_relative)
        if record.base.path:
            places.append(Path(record.base.path))
        found = [str(place) for place in places if is_there(place / "config.json")]
        source = record.base.source
        if not found and source and record.base.revision and not Path(source).exists():
            place = HubPlace.parse(source if "@" in source else f"{source}@main")
            found += [] if place is None else [str(place.at(record.base.revision))]
        return found

    def _configured(self, path: Path) -> Checkpoint:
        config = adapter_config(path)
        name, revision = str(config.get("base_model_name_or_path") or ""), config.get("revision")
        if name:
            for place in (Path(os.path.expanduser(name)), path / name):
                if is_there(place / "config.json") or self._is_broken(place):
                    return self._open(str(place), f"adapter {path}")
        hub = bool(name) and not name.startswith((".", "/", "~"))
        if hub and isinstance(revision, str) and revision and name.count("/") <= 1:
            return self._open(f"{name}@{revision}", f"adapter {path}")
        if self._assume is not None:
            base = self._open_assumed(self._assume)
            note = f"adapter {path}: base assumed to be {self._assume} ({base.fingerprint[:12]})"
            self.notes.append(note)
            return base
        if not name:
            raise BaseUnresolvedError(f"{ADAPTER_CONFIG} names no base")
        if hub and name.count("/") <= 1:
            raise BaseUnresolvedError(f"base {name} has no revision in {ADAPTER_CONFIG}")
        where = "" if os.path.isabs(os.path.expanduser(name)) else (
            f" (a relative path: looked for below {Path.cwd()} and below the adapter)"
        )  # fmt: skip
        raise BaseUnresolvedError(f"base {name} named by {ADAPTER_CONFIG} is not on disk{where}")


def _place(source: str) -> str:
    """The real path of a local checkpoint; else its name."""
    try:
        return os.path.realpath(Path(source).expanduser()) if is_local(source) else source
    except (ValueError, RuntimeError, OSError):  # no path at all: opening it says so
        return source


def _why(source: str, error: InputError | OSError) -> str:
    if isinstance(error, InputError):
        return str(error)
    return f"checkpoint {source} cannot be read ({error.strerror or error})"


def _check_tokenizer(path: str) -> None:
    try:
        tokenizer_facts(Path(path).expanduser().resolve())
    except InputError as error:
        raise InputError(
            f"--tokenizer {path}: expected adapter, base, or a folder with a tokenizer: {error}"
        ) from None
