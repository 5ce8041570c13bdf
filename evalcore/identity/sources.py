"""Checkpoints as users name them: a local directory or ``REPO@REV``."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity.adapter import ADAPTER_CONFIG
from evalcore.identity.away import (
    Away,
    Held,
    away_at,
    is_here,
    known_weights,
    note_weights,
    set_away,
)
from evalcore.identity.bases import check_base, check_tied
from evalcore.identity.checkpoint import checkpoint_fingerprint, numeric_config, weight_digests
from evalcore.identity.hub import HubError, HubRepository, is_commit, is_offline
from evalcore.identity.model_schema import check_sizes
from evalcore.identity.provenance import PROVENANCE_FILE, read_provenance
from evalcore.identity.readings import read_through, with_tokenizer
from evalcore.identity.tokenizer import tokenizer_facts
from evalcore.identity.weights import file_sha256, weight_files, weight_layout, weight_names
from evalcore.reading import read_json
from evalcore.types import Checkpoint

logger = logging.getLogger("evalcore")

_REPO = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_STEP = re.compile(
    r"(?:^|[-_./@])(?:global[-_]?)?(?:step|checkpoint|ckpt|iter)[-_]?(\d+)(?!\d)", re.I
)
_WEIGHTS = "*.safetensors"
_SMALL = ["*.json", "*.model", "*.txt", "*.jinja"]
# the same weights in another layout, beside those that are read
_NOT_FILES = ["original/*", "*/*.safetensors", "consolidated*.safetensors"]


def split_source(text: str) -> tuple[str, str | None]:
    """Splits ``REPO@REV`` into (repo, revision); a local path has revision None."""
    if not Path(text).expanduser().exists() and "@" in text:
        repo, _, revision = text.partition("@")
        if _REPO.match(repo) and revision:
            return repo, revision
    return text, None


def is_local(text: str) -> bool:
    """Whether a source is a path, not ``REPO@REV``."""
    return split_source(text)[1] is None


def step_of(name: str) -> int | None:
    """The pre-training step in a name (``step-00400``, ``step1000-tokens4B``, ``00400``)."""
    if name.isdigit():
        return int(name)
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
    may_be_away: bool = False,
) -> Checkpoint:
    """Resolves a path or ``REPO@REV`` and fingerprints it.

    Args:
        source: A local directory, or a hub repository at a revision. With HF_HUB_OFFLINE=1 the
            hub's local cache is used alone.
        what: Names the source in messages (``--checkpoint``, ``--base-map``).
        tokenizer: Directory of another tokenizer than its own.
        may_be_away: Whether weights on the hub that are known by their hashes may stay there until
            they are read (:mod:`evalcore.identity.away`).

    Raises:
        InputError: If it is missing, has no safetensors weights or no tokenizer.
    """
    repo, revision = split_source(source)
    if revision is None:
        path = Path(source).expanduser()
        if not path.exists():
            hint = ""
            if _REPO.match(source) and source.count("/") <= 1 and not source.startswith("."):
                hint = f" (a model on the hub needs a revision: {source}@REVISION)"
            raise InputError(f"{what}: base missing on disk: {source}{hint}")
        return describe_checkpoint(path, source=source, tokenizer=tokenizer)
    path, commit = fetch_snapshot(repo, revision, what=what, may_be_away=may_be_away)
    name = f"{repo.split('/')[-1]}@{revision[:12] if is_commit(revision) else revision}"
    return describe_checkpoint(path, source=source, name=name, revision=commit, tokenizer=tokenizer)


def fetch_snapshot(
    repo: str, revision: str, *, what: str, may_be_away: bool = False
) -> tuple[Path, str]:
    """Local snapshot of a hub repository and its resolved commit.

    Args:
        repo: Its name.
        revision: A commit, branch or tag.
        what: Names the source in messages.
        may_be_away: As for :func:`open_checkpoint`.

    Raises:
        InputError: If it is neither in the cache nor (online) on the hub.
    """
    repository = HubRepository("model", repo)
    try:
        commit, note = repository.resolve(revision)
        path = _without_weights(repository, commit) if may_be_away else None
        if path is None:
            path = repository.fetch(commit, [_WEIGHTS, *_SMALL], _NOT_FILES)
            is_here(path)
        repository.remember(revision, commit)
    except HubError as error:
        raise InputError(f"{what}: {repo}@{revision} {error}, or give a local path") from None
    if note is not None:
        level = logging.INFO if is_offline() else logging.WARNING  # offline by choice is no news
        logger.log(level, "%s: %s: %s", what, repo, note)
    return path, commit


def _without_weights(repository: HubRepository, commit: str) -> Path | None:
    """Folder with the small files of a commit whose weights are known; None if they are not,
    or if they are here.

    Raises:
        HubError: The small files are not to be had.
    """
    from huggingface_hub.utils import filter_repo_objects

    folder = repository.folder / "snapshots" / commit
    if away_at(folder) is None and _has_weights(folder):
        return None  # and nothing is asked: it may be used while the hub does not answer
    hashes = repository.listing(commit)
    names = set(filter_repo_objects(hashes, allow_patterns=[_WEIGHTS], ignore_patterns=_NOT_FILES))
    if not names or all((folder / name).is_file() for name in names):
        return None
    folder = repository.fetch(commit, _SMALL, _NOT_FILES)
    try:
        wanted = [hashes[name] for name in weight_names(folder, names)]
        every = [sha256 for sha256 in wanted if sha256 is not None]
        held = known_weights(numeric_config(folder), every)
    except InputError:
        return None  # what is wrong with it is said by whoever reads all of it
    if held is None or len(every) != len(wanted):
        return None
    patterns, ignore = (_WEIGHTS, *_SMALL), tuple(_NOT_FILES)
    set_away(folder, Away(repository, commit, frozenset(names), patterns, ignore, held))
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
    revision: str | None = None,
    tokenizer: str | None = None,
) -> Checkpoint:
    """Fingerprints a local checkpoint directory; step and parent from its records or its name.

    Raises:
        InputError: If it is not a checkpoint directory, or not the one its record describes.
    """
    if not (path / "config.json").is_file():
        inside = sorted(item.parent.name for item in path.glob("*/config.json"))
        hint = f"; it holds {len(inside)} checkpoints: {', '.join(inside[:4])}" if inside else ""
        raise InputError(f"base missing on disk: {path} has no config.json{hint}")
    if (path / ADAPTER_CONFIG).is_file():
        # transformers would apply it once more, vLLM would read it as weights (peft #1381).
        raise InputError(
            f"checkpoint {path} holds a whole model and an adapter ({ADAPTER_CONFIG}), which may "
            f"be merged into it already or not; move one of them to another folder"
        )
    name = name or name_of(path)
    record_file = path / "checkpoint.json"
    record = read_json(record_file, "checkpoint") if record_file.is_file() else {}
    tuned = read_provenance(path)
    step = record.get("step")
    if step is None and tuned is not None:
        step = tuned.base.step
    if step is not None and not isinstance(step, int):
        raise InputError(f"{record_file}: key 'step' should be a whole number, not {step!r}")
    config, layout = numeric_config(path), weight_layout(path)
    check_sizes(config, layout, path / "config.json")
    check_base(str(path), config, layout)
    if away_at(path) is None:  # else it was done when they were read
        check_tied(path, config, layout)
    fingerprint = checkpoint_fingerprint(path)
    if away_at(path) is None:
        hashes = [file_sha256(file) for file in weight_files(path)]
        note_weights(config, hashes, lambda: Held(layout, weight_digests(path)))
    if tuned is not None and tuned.checkpoint_fingerprint not in (None, fingerprint):
        raise InputError(
            f"checkpoint {path} is not the one its {PROVENANCE_FILE} records: fingerprint "
            f"{fingerprint[:12]}, recorded {str(tuned.checkpoint_fingerprint)[:12]}"
        )
    if tuned is not None and tuned.base.fingerprint == fingerprint:
        raise InputError(
            f"checkpoint {path} has the weights of its parent {tuned.base.name}: tuning changed "
            f"nothing; score the parent"
        )
    checkpoint = Checkpoint(
        name=name,
        path=str(path.resolve()),
        fingerprint=fingerprint,
        tokenizer_fingerprint="",
        step=step if step is not None else step_of(name),
        source=source or str(path),
        revision=revision,
        parent=tuned.base.fingerprint if tuned else None,
        tuning=tuned.tuning.name if tuned else None,
        tuned_on=tuned.tuned_on if tuned else None,
        control=tuned.tuning.control if tuned else None,
        seed=tuned.tuning.seed if tuned else None,
    )
    if tokenizer is not None:
        return read_through(checkpoint, Path(tokenizer).expanduser().resolve())
    return with_tokenizer(checkpoint, checkpoint.path, tokenizer_facts(path))
