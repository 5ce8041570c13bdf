"""Fully tuned checkpoints without a record: which checkpoint each was tuned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evalcore.errors import IncompatibleError, InputError
from evalcore.identity.away import AwayRule
from evalcore.identity.globs import fits, plain, split_at, typed
from evalcore.identity.labels import path_names, trainer_labels
from evalcore.identity.search import search
from evalcore.identity.sources import open_checkpoint
from evalcore.types import Subject


@dataclass(frozen=True)
class ParentMap:
    """``--parent-map GLOB=CHECKPOINT``: parents by the path or name of what was tuned.

    Attributes:
        entries: (glob, source of the parent).
        tuned: Directories of checkpoints that fit a glob, in the folders searched.
    """

    entries: tuple[tuple[str, str], ...] = ()
    tuned: tuple[Path, ...] = ()

    @classmethod
    def parse(
        cls,
        entries: Sequence[str],
        folders: Sequence[str | Path],
        leave_out: Sequence[str] = (),
    ) -> ParentMap:
        """Raises:
        InputError: An entry is not of the form, or a folder is missing.
        """
        parsed = []
        for entry in entries:
            *globs, source = split_at(entry, "=")
            if not (any(globs) and source):
                raise InputError(
                    f"--parent-map {typed(entry)}: expected GLOB=PATH or GLOB=REPO@REV"
                )
            parsed.append(("=".join(globs), plain(source)))
        if not parsed:
            return cls()
        roots = [Path(folder).expanduser().resolve() for folder in folders]
        found = [
            path for path in search(folders, leave_out).checkpoints
            if _source_of(parsed, path_names(path.resolve(), roots))
        ]  # fmt: skip
        return cls(tuple(parsed), tuple(found))

    @property
    def parents(self) -> list[str]:
        """Sources of the parents, each once."""
        return list(dict.fromkeys(source for _, source in self.entries))

    def applied(
        self,
        subjects: Sequence[Subject],
        folders: Sequence[str | Path],
        broken: Sequence[str] = (),
        rule: AwayRule | None = None,
    ) -> list[Subject]:
        """The subjects, fully tuned ones with their parents.

        Args:
            subjects: Of the run.
            folders: Those searched.
            broken: Checkpoints that could not be opened: a glob may be theirs.
            rule: Which weights on the hub may stay there; None: none.

        Raises:
            InputError: A glob fits no checkpoint, or a checkpoint equals its parent.
            IncompatibleError: A checkpoint's record names another parent.
        """
        roots = [Path(folder).expanduser().resolve() for folder in folders]
        used = {_source_of(self.entries, path_names(Path(path), roots)) for path in broken}
        out = [self._with_parent(s, roots, used, rule) for s in subjects]
        for glob, source in self.entries:
            if source not in used:
                raise InputError(
                    f"--parent-map {glob}={source}: no checkpoint's path or name fits {typed(glob)}"
                )
        return out

    def _with_parent(
        self, subject: Subject, roots: Sequence[Path], used: set[str | None], rule: AwayRule | None
    ) -> Subject:
        checkpoint = subject.checkpoint
        names = [checkpoint.name, checkpoint.source, *path_names(Path(checkpoint.path), roots)]
        source = _source_of(self.entries, names)
        if subject.adapter is not None or source is None:
            return subject
        try:
            parent = open_checkpoint(source, what="--parent-map", rule=rule)
        except InputError:  # it is named by whoever opened it to be scored
            used.add(source)
            return subject
        if parent.fingerprint == checkpoint.fingerprint:
            if checkpoint.path == parent.path:
                return subject  # a glob such as * fits the parent too
            raise InputError(
                f"checkpoint {checkpoint.path} has the weights of {source}, which --parent-map "
                f"calls its parent: tuning changed nothing; score the parent"
            )
        if checkpoint.parent not in (None, parent.fingerprint):
            raise IncompatibleError(
                f"checkpoint {checkpoint.path} was tuned from another checkpoint by its record "
                f"({str(checkpoint.parent)[:12]}), --parent-map says {source} "
                f"({parent.fingerprint[:12]})"
            )
        used.add(source)
        # A number in its own name is a step of the tuning; it stands at its parent's step.
        own = trainer_labels(Path(checkpoint.path))
        name = f"{own.tuning}/{checkpoint.name}" if own.tuning_step else checkpoint.name
        return replace(
            subject,
            checkpoint=replace(checkpoint, parent=parent.fingerprint, step=parent.step, name=name),
        )


def _source_of(entries: Sequence[tuple[str, str]], names: Sequence[str]) -> str | None:
    return next((s for glob, s in entries if fits(glob, names)), None)
