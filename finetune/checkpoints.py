"""The bases of a study: opened where they are at hand, named where they are not."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity import open_checkpoint, step_of, unasked
from evalcore.reading import is_there
from evalcore.types import Checkpoint
from finetune.study import Study


@dataclass(frozen=True, slots=True)
class Missing:
    """A checkpoint that is not at hand.

    Attributes:
        name: Its name, as it would be once there.
        message: One line: what to do.
    """

    name: str
    message: str


def resolve_checkpoints(
    study: Study, out_dir: Path
) -> tuple[tuple[Checkpoint, ...], tuple[Missing, ...]]:
    """Opens the study's checkpoints, sorted by step and name, each once.

    One that cannot be opened keeps its place (a tuning of the last checkpoint is of no other), has
    neither path nor fingerprint, and is missing.

    Raises:
        InputError: If a path or pattern matches nothing, two have the same name, or none can be
            opened.
    """
    found: list[Checkpoint] = []
    missing: list[Missing] = []
    for source in checkpoint_sources(study, out_dir):
        try:
            found.append(open_checkpoint(source, what=str(study.file)))
        except (InputError, OSError) as error:
            found.append(_absent(source))
            missing.append(Missing(found[-1].name, _why(source, error)))
    if found and len(missing) == len(found):
        more = f" (and {len(missing) - 1} more checkpoints)" if len(missing) > 1 else ""
        raise InputError(missing[0].message + more)
    return _sorted(study, found), tuple(missing)


def known_checkpoints(
    study: Study, out_dir: Path
) -> tuple[tuple[Checkpoint, ...], tuple[Missing, ...]]:
    """Like :func:`resolve_checkpoints`, but nothing is fetched and nothing has to be there.

    A checkpoint that is not at hand has neither path nor fingerprint. Patterns that match nothing
    yet (checkpoints still to be pre-trained) are missing too, under the name of the pattern.
    """
    found: list[Checkpoint] = []
    missing: list[Missing] = []
    for text in _texts(study):
        try:
            sources = _expand(text, study, out_dir)
        except InputError as error:
            planned = _to_be_pretrained(study, text)
            found += planned
            why = "pre-training makes it first" if planned else str(error)
            missing += [Missing(c.name, why) for c in planned] or [Missing(text, why)]
            continue
        for source in sources:
            checkpoint, problem = _look(source, study)
            found.append(checkpoint)
            if problem is not None:
                missing.append(problem)
    return _sorted(study, found), tuple(missing)


def checkpoint_sources(study: Study, out_dir: Path) -> list[str]:
    """Paths and ``repo@revision`` of the study's checkpoints, each once, in the study's order.

    Raises:
        InputError: If a path or pattern matches nothing.
    """
    sources = (source for text in _texts(study) for source in _expand(text, study, out_dir))
    return list(dict.fromkeys(sources))


def assumed_parameters(study: Study, source: str) -> int | None:
    """Number of weights the study states for a hub checkpoint."""
    for entry in study.checkpoints.hub:
        if source in entry.sources:
            return entry.parameters
    return None


def _texts(study: Study) -> list[str]:
    spec = study.checkpoints
    return [*spec.paths, *(source for entry in spec.hub for source in entry.sources)]


def _look(source: str, study: Study) -> tuple[Checkpoint, Missing | None]:
    try:
        with unasked():
            return open_checkpoint(source, what=str(study.file)), None
    except (InputError, OSError) as error:
        absent = _absent(source)
        repo, at, revision = source.rpartition("@")
        fetch = f"hf download {repo} --revision {revision}"
        fetched = f"not at hand; fetched when it is needed, or by {fetch}"
        return absent, Missing(absent.name, fetched if at else _why(source, error))


def _absent(source: str) -> Checkpoint:
    """One that cannot be opened, by the name it has where it can."""
    repo, at, revision = source.rpartition("@")
    name = f"{repo.split('/')[-1]}@{revision}" if at else Path(source).name
    return Checkpoint(name, "", "", "", step=step_of(name), source=source)


def _why(source: str, error: InputError | OSError) -> str:
    if isinstance(error, InputError):
        return str(error)
    return f"{source} cannot be read ({error.strerror or error})"


def _to_be_pretrained(study: Study, pattern: str) -> list[Checkpoint]:
    """Checkpoints that the study's own pre-training will put where a pattern looks."""
    steps = sorted(set(study.pretrain.save_steps)) if study.pretrain is not None else []
    names = {step: f"step-{step:05d}" for step in steps}
    return [
        Checkpoint(name, "", "", "", step=step, source=f"pretrained/{name}")
        for step, name in names.items()
        if fnmatch.fnmatchcase(f"pretrained/{name}", pattern)
    ]


def _expand(text: str, study: Study, out_dir: Path) -> list[str]:
    """Local directories a path or pattern names; a ``repo@revision`` stays as it is."""
    if text.startswith(("/", "~")):
        path = Path(text).expanduser()
        roots, pattern = [Path(path.anchor)], str(path.relative_to(path.anchor))
    else:
        roots, pattern = [out_dir, study.file.parent], text
    for root in roots:
        found = sorted(str(p) for p in root.glob(pattern) if _is_checkpoint(p))
        if found:
            return found
    if "@" in text:
        return [text]
    where = " or ".join(dict.fromkeys(str(root) for root in roots))
    raise InputError(
        f"{study.file}: checkpoints.paths: {text!r} matches no checkpoint (a folder with "
        f"config.json) in {where}"
    )


def _is_checkpoint(folder: Path) -> bool:
    """Whether it is one, or was: weights without a configuration are named, not passed over."""
    if is_there(folder / "config.json"):
        return True
    weights = [file.name for file in folder.glob("*.safetensors")]
    return any(not name.startswith("adapter") for name in weights)


def _sorted(study: Study, found: list[Checkpoint]) -> tuple[Checkpoint, ...]:
    names = [checkpoint.name for checkpoint in found]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(
            f"{study.file}: checkpoints: {doubled[0]!r} is the name of two checkpoints; "
            f"names decide the folders of their adapters and must differ"
        )
    return tuple(sorted(found, key=lambda c: (c.step is None, c.step or 0, c.name)))
