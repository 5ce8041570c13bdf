"""Checkpoints as users name them: a local directory or ``REPO@REV``."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity.adapter import ADAPTER_CONFIG
from evalcore.identity.bases import check_base, check_tied
from evalcore.identity.checkpoint import checkpoint_fingerprint, numeric_config
from evalcore.identity.hub import HubError, HubRepository, is_commit, is_offline
from evalcore.identity.model_schema import check_sizes
from evalcore.identity.provenance import PROVENANCE_FILE, read_provenance
from evalcore.identity.readings import read_through, with_tokenizer
from evalcore.identity.tokenizer import tokenizer_facts
from evalcore.identity.weights import weight_layout
from evalcore.reading import read_json
from evalcore.types import Checkpoint

logger = logging.getLogger("evalcore")

_REPO = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_STEP = re.compile(
    r"(?:^|[-_./@])(?:global[-_]?)?(?:step|checkpoint|ckpt|iter)[-_]?(\d+)(?!\d)", re.I
)
_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
# the same weights in another layout, beside those that are read
_NOT_FILES = ["original/*", "*/*.safetensors", "consolidated*.safetensors"]


def split_source(text: str) -> tuple[str, str | None]:
    """Splits ``REPO@REV`` into (repo, revision); a local path has revision None."""
    if not Path(text).expanduser().exists() and "@" in text:
        repo, _, revision = text.partition("@")
        if _REPO.match(repo) and revision:
            return repo, revision
    return text, None


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
    source: str, *, what: str = "checkpoint", tokenizer: str | None = None
) -> Checkpoint:
    """Resolves a path or ``REPO@REV`` and fingerprints it.

    Args:
        source: A local directory, or a hub repository at a revision. With HF_HUB_OFFLINE=1 the
            hub's local cache is used alone.
        what: Names the source in messages (``--checkpoint``, ``--base-map``).
        tokenizer: Directory of another tokenizer than its own.

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
    path, commit = fetch_snapshot(repo, revision, what=what)
    name = f"{repo.split('/')[-1]}@{revision[:12] if is_commit(revision) else revision}"
    return describe_checkpoint(path, source=source, name=name, revision=commit, tokenizer=tokenizer)


def fetch_snapshot(repo: str, revision: str, *, what: str) -> tuple[Path, str]:
    """Local snapshot of a hub repository and its resolved commit.

    Raises:
        InputError: If it is neither in the cache nor (online) on the hub.
    """
    try:
        found = HubRepository("model", repo).snapshot(revision, _FILES, _NOT_FILES)
    except HubError as error:
        raise InputError(f"{what}: {repo}@{revision} {error}, or give a local path") from None
    if found.note is not None:
        level = logging.INFO if is_offline() else logging.WARNING  # offline by choice is no news
        logger.log(level, "%s: %s: %s", what, repo, found.note)
    return found.path, found.commit


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
    check_tied(path, config, layout)
    fingerprint = checkpoint_fingerprint(path)
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
