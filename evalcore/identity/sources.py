"""Checkpoints as users name them: a local directory or ``REPO@REV``."""

from __future__ import annotations

import glob
import logging
import re
from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity.adapter import ADAPTER_CONFIG
from evalcore.identity.away import (
    Away,
    AwayRule,
    Held,
    NamedWeights,
    away_at,
    files_state,
    is_here,
    known_weights,
    note_weights,
    set_away,
)
from evalcore.identity.bases import check_base, check_tied
from evalcore.identity.checkpoint import checkpoint_fingerprint, numeric_config, weight_digests
from evalcore.identity.hub import HubError, HubRepository, is_commit
from evalcore.identity.listings import check_budget, files_of, remote_header, weight_names_of
from evalcore.identity.model_schema import check_sizes
from evalcore.identity.places import HubPlace, looks_like_hub
from evalcore.identity.provenance import PROVENANCE_FILE, Provenance, read_provenance
from evalcore.identity.readings import read_through, with_tokenizer
from evalcore.identity.tokenizer import tokenizer_facts
from evalcore.identity.unasked import is_offline
from evalcore.identity.weights import file_sha256, weight_files, weight_layout, weight_names
from evalcore.reading import is_there, read_json
from evalcore.shown import listed
from evalcore.types import Checkpoint

logger = logging.getLogger("evalcore")

_STAGE = re.compile(r"(?<![a-z])stage[-_]?([0-9]{1,3})(?![0-9])", re.IGNORECASE)
_STEP = re.compile(
    r"(?:^|[-_./@])(?:global[-_]?)?(?:step|checkpoint|ckpt|iter)[-_]?([0-9]{1,18})(?!\d)", re.I
)
_WEIGHTS = "*.safetensors"
_SMALL = ["*.json", "*.model", "*.txt", "*.jinja"]
# the same weights in another layout, beside those that are read
_NOT_FILES = ["original/*", "*/*.safetensors", "consolidated*.safetensors"]


def is_local(text: str) -> bool:
    """Whether a source is a path, no place on the hub."""
    return HubPlace.parse(text) is None


def step_of(name: str) -> int | None:
    """The pre-training step in a name (``step-00400``, ``step1000-tokens4B``, ``00400``).

    Later stages count from zero again (``stage2-ingredient1-step23000``): those are no steps of the
    pre-training, and such checkpoints come after those that have one.
    """
    if name.isascii() and name.isdecimal() and len(name) <= 18:
        return int(name)
    stage = _STAGE.search(name)
    if stage is not None and int(stage[1]) > 1:
        return None
    found = _STEP.findall(name)
    return int(found[-1]) if found else None


def name_of(path: Path) -> str:
    """What a folder is called; a snapshot of the hub's cache by its repository, not by a hash."""
    real = path.resolve()
    repository = real.parent.parent.name
    if real.parent.name == "snapshots" and repository.startswith("models--"):
        return f"{repository.rpartition('--')[2]}@{real.name[:12]}"
    return real.name


def open_checkpoint(
    source: str,
    *,
    what: str = "checkpoint",
    tokenizer: str | None = None,
    rule: AwayRule | None = None,
) -> Checkpoint:
    """Resolves a path or a place on the hub and fingerprints it.

    Args:
        source: A local directory, or ``[hf:]REPO@REV[#FOLDER]``. With HF_HUB_OFFLINE=1 the hub's
            local cache is used alone.
        what: Names the source in messages (``--checkpoint``, ``--base-map``).
        tokenizer: Directory of another tokenizer than its own.
        rule: Which weights on the hub may stay there until they are read
            (:mod:`evalcore.identity.away`); None: they are fetched.

    Raises:
        InputError: If it is missing, has no safetensors weights or no tokenizer.
    """
    place = HubPlace.parse(source)
    known = rule.known if rule is not None else NamedWeights()
    if place is None:
        path = Path(source).expanduser()
        if not path.exists():
            hint = ""
            if looks_like_hub(source):
                hint = f" (a model on the hub needs a revision: {source}@REVISION)"
            raise InputError(f"{what}: base missing on disk: {source}{hint}")
        return describe_checkpoint(path, source=source, tokenizer=tokenizer, known=known)
    path, commit = fetch_snapshot(place, what=what, rule=rule)
    own = place.revision[:12] if is_commit(place.revision) else place.revision
    name = f"{place.repo.split('/')[-1]}@{own}" + (f"/{place.folder}" if place.folder else "")
    return describe_checkpoint(
        path, source=source, name=name, origin=place.at(commit), tokenizer=tokenizer, known=known
    )


def fetch_snapshot(place: HubPlace, *, what: str, rule: AwayRule | None = None) -> tuple[Path, str]:
    """Local folder of a place on the hub, and its resolved commit.

    Args:
        place: On the hub.
        what: Names the source in messages.
        rule: As for :func:`open_checkpoint`.

    Raises:
        InputError: If it is neither in the cache nor (online) on the hub, or larger than the
            budget of what only passes through.
    """
    repository = HubRepository("model", place.repo)
    try:
        commit, note = repository.resolve(place.revision)
        path = None if rule is None else _without_weights(repository, place.at(commit), rule, what)
        if path is None:
            patterns, ignore = _patterns(place)
            path = repository.fetch(commit, patterns, ignore) / place.folder
            is_here(path)
        repository.remember(place.revision, commit)
    except HubError as error:
        raise InputError(f"{what}: {place} {error}, or give a local path") from None
    if note is not None:
        level = logging.INFO if is_offline() else logging.WARNING  # offline by choice is no news
        logger.log(level, "%s: %s: %s", what, place.repo, note)
    return path, commit


def _patterns(place: HubPlace, weights: bool = True) -> tuple[list[str], list[str]]:
    """(what to fetch of a place, of that what not), as globs of names in its repository."""
    below = glob.escape(place.below)
    wanted = [_WEIGHTS, *_SMALL] if weights else _SMALL
    return [f"{below}{name}" for name in wanted], [f"{below}{name}" for name in _NOT_FILES]


def _without_weights(
    repository: HubRepository, place: HubPlace, rule: AwayRule, what: str
) -> Path | None:
    """Folder with the small files of a place whose weights may stay on the hub; None if they may
    not, or if they are here.

    Raises:
        HubError: The small files are not to be had.
        InputError: They may, and are larger than their budget.
    """
    folder = repository.folder / "snapshots" / place.revision / place.folder
    if away_at(folder) is None and _has_weights(folder):
        return None  # and nothing is asked: it may be used while the hub does not answer
    listing = repository.listing(place.revision)
    names = weight_names_of(listing, place)
    if not names or all((folder / name).is_file() for name in names):
        return None
    check_budget(files_of(listing, place), rule.budget, f"{what}: {place}")
    small, ignore = _patterns(place, weights=False)
    folder = repository.fetch(place.revision, small, ignore, quiet=True) / place.folder
    try:
        wanted = {name: listing[place.below + name] for name in weight_names(folder, names)}
        hashes = {name: file.sha256 for name, file in wanted.items() if file.sha256 is not None}
        if len(hashes) != len(wanted):
            return None
        config = numeric_config(folder)
    except InputError:
        return None  # what is wrong with it is said by whoever reads all of it
    held = known_weights(config, hashes.values())
    name = rule.known.by_files.get(files_state(config, hashes.values()))
    if held is None and name is None and rule.budget is None:
        return None
    layout = {} if held is None else held.layout
    if held is None:
        for file, about in wanted.items():
            header = remote_header(repository, place, file, about)
            layout |= {tensor: (info.dtype, info.shape) for tensor, info in header[0].items()}
    patterns, ignore = _patterns(place)
    digests = None if held is None else held.digests
    away = Away(
        place, hashes, tuple(patterns), tuple(ignore), layout, {}, digests, name,
        rule.budget is not None,
    )  # fmt: skip
    set_away(folder, away)
    return folder


def _has_weights(folder: Path) -> bool:
    try:
        return bool(weight_names(folder))
    except InputError:
        return False


def describe_checkpoint(
    path: Path,
    *,
    source: str = "",
    name: str | None = None,
    origin: HubPlace | None = None,
    tokenizer: str | None = None,
    known: NamedWeights | None = None,
) -> Checkpoint:
    """Fingerprints a local checkpoint directory; step and parent from its records or its name.

    Args:
        path: The directory.
        source: What the user gave.
        name: What it is called.
        origin: Where on the hub it is from, at a commit.
        tokenizer: Directory of another tokenizer than its own.
        known: Under which fingerprints weights are scored in the results.

    Raises:
        InputError: If it is not a checkpoint directory, or not the one its record describes.
    """
    _check_folder(path)
    name = name or name_of(path)
    tuned = read_provenance(path)
    step = _recorded_step(path, tuned)
    fingerprint, content = _fingerprints(path, known)
    _check_record(path, tuned, fingerprint, content)
    checkpoint = Checkpoint(
        name=name,
        path=str(path.resolve()),
        fingerprint=fingerprint,
        tokenizer_fingerprint="",
        step=step if step is not None else step_of(name),
        source=source or str(path),
        revision=origin.revision if origin is not None else None,
        origin=str(origin) if origin is not None else "",
        content=content,
        parent=tuned.base.fingerprint if tuned else None,
        tuning=tuned.tuning.name if tuned else None,
        tuned_on=tuned.tuned_on if tuned else None,
        control=tuned.tuning.control if tuned else None,
        seed=tuned.tuning.seed if tuned else None,
    )
    if tokenizer is not None:
        return read_through(checkpoint, Path(tokenizer).expanduser().resolve())
    return with_tokenizer(checkpoint, checkpoint.path, tokenizer_facts(path))


def _check_folder(path: Path) -> None:
    if not is_there(path / "config.json"):
        inside = sorted(item.parent.name for item in path.glob("*/config.json"))
        hint = f"; it holds {len(inside)} checkpoints: {listed(inside, 4)}" if inside else ""
        raise InputError(f"base missing on disk: {path} has no config.json{hint}")
    if is_there(path / ADAPTER_CONFIG):
        # transformers would apply it once more, vLLM would read it as weights (peft #1381).
        raise InputError(
            f"checkpoint {path} holds a whole model and an adapter ({ADAPTER_CONFIG}), which may "
            f"be merged into it already or not; move one of them to another folder"
        )


def _recorded_step(path: Path, tuned: Provenance | None) -> int | None:
    """The pre-training step that checkpoint.json says, or the record of what it was tuned from."""
    record_file = path / "checkpoint.json"
    record = read_json(record_file, "checkpoint") if is_there(record_file) else {}
    step = record.get("step")
    if step is None and tuned is not None:
        step = tuned.base.step
    if step is not None and not isinstance(step, int):
        raise InputError(f"{record_file}: key 'step' should be a whole number, not {step!r}")
    return step


def _fingerprints(path: Path, known: NamedWeights | None) -> tuple[str, str]:
    """(fingerprint, that of its content where weights are called otherwise; else empty)."""
    config, layout = numeric_config(path), weight_layout(path)
    check_sizes(config, layout, path / "config.json")
    check_base(str(path), config, layout)
    away = away_at(path)
    if away is None:  # else it was done when they were read
        check_tied(path, config, layout)
    fingerprint, content = checkpoint_fingerprint(path), ""
    if away is not None and away.digests is None:
        _, content = away.fingerprint(files_state(config, away.files.values()))
    elif known is not None and known.used(fingerprint) != fingerprint:
        fingerprint, content = known.used(fingerprint), fingerprint
    if away is None:
        hashes = [file_sha256(file) for file in weight_files(path)]
        note_weights(config, hashes, lambda: Held(layout, weight_digests(path)))
    return fingerprint, content


def _check_record(path: Path, tuned: Provenance | None, fingerprint: str, content: str) -> None:
    """A tuned checkpoint is the one its record describes, and not its parent."""
    if tuned is None:
        return
    away = away_at(path)
    unread = away is not None and away.digests is None and not content
    recorded = None if unread else tuned.checkpoint_fingerprint
    if recorded not in (None, fingerprint, content):
        raise InputError(
            f"checkpoint {path} is not the one its {PROVENANCE_FILE} records: fingerprint "
            f"{fingerprint[:12]}, recorded {str(recorded)[:12]}"
        )
    if tuned.base.fingerprint in (fingerprint, content):
        raise InputError(
            f"checkpoint {path} has the weights of its parent {tuned.base.name}: tuning changed "
            f"nothing; score the parent"
        )
