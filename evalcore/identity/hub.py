"""The hub, asked in one place: what was asked for is what is read, or one line says why not.

A revision is resolved to a commit first and everything is fetched at that commit, so that no
library can put another cached revision in its place. What may pass by itself (429, 5xx, a body cut
short) is tried again, a bounded number of times.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from evalcore.errors import InputError
from evalcore.files import write_atomically
from evalcore.identity import answers
from evalcore.identity.answers import LEAST_BYTES_PER_S, TooSlowError, bound_answers
from evalcore.identity.cache import known_fact, note_fact
from evalcore.identity.hub_faults import (
    LONGEST_S,
    PASSING,
    SILENCE_S,
    TRIES,
    is_silence,
    may_pass,
    real_fault,
    retry_after,
    shortly,
    status_of,
    wait_before,
    xet_failed,
)
from evalcore.identity.unasked import is_offline, why_offline

logger = logging.getLogger("evalcore")

Kind = Literal["model", "dataset"]
Got = TypeVar("Got")

_UNREACHABLE_FOR_S = 60.0
_LISTING = "hub-listing-2"
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")

# endpoint -> when it was last found not to answer
_silent_since: dict[str, float] = {}


class HubError(InputError):
    """A repository is not to be had; the message goes on after its name and ends in a remedy."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a commit: its sha256 (None where git itself holds it) and its size in bytes."""

    sha256: str | None
    size: int


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A model or data set on the hub."""

    kind: Kind
    name: str

    def fetch(
        self,
        commit: str,
        patterns: Sequence[str],
        ignore: Sequence[str] = (),
        into: Path | None = None,
        quiet: bool = False,
    ) -> Path:
        """Folder with the files of a commit that match; others may be missing there.

        Args:
            commit: Of it.
            patterns: Globs of names.
            ignore: Of those, what not.
            into: A cache of its own, laid out as the hub's; None: the hub's.
            quiet: Whether no bars are shown: for small files.

        Raises:
            HubError: They are not to be had; one line.
        """
        from huggingface_hub import snapshot_download  # heavy, and only hub users need it

        silent = is_offline() or not reachable()
        began = time.time()
        path = Path(
            self._tried(
                commit,
                lambda: snapshot_download(
                    self.name,
                    repo_type=self.kind,
                    revision=commit,
                    cache_dir=into or hub_cache_dir(),
                    local_files_only=silent,
                    allow_patterns=list(patterns),
                    ignore_patterns=list(ignore) or None,
                    endpoint=endpoint(),
                    etag_timeout=min(10.0, answers.ANSWER_S),
                    **({"tqdm_class": _quiet()} if quiet else {}),
                ),
            )
        )
        if path.name != commit:
            raise HubError(f"was asked for at {commit} and came from {path.name}; clear its cache")
        if not silent:
            _check_fetched(path, began)
        return path

    def resolve(self, revision: str | None) -> tuple[str, str | None]:
        """The commit a revision stands for now, and what is to be said about that.

        Raises:
            HubError: If there is none, or the hub has to be asked and cannot.
        """
        if is_commit(revision):
            assert revision is not None
            return revision, None
        name = revision or "main"
        before = self._remembered(name)
        if is_offline() or not reachable():
            if before is None:
                raise self._fault(revision, None)
            why = why_offline() if is_offline() else "the hub cannot be reached"
            return before, f"{why}: {name} is what it was when last fetched, {before}"
        from huggingface_hub import HfApi

        try:
            info = self._tried(
                revision,
                lambda: HfApi(endpoint=endpoint()).repo_info(
                    self.name, repo_type=self.kind, revision=revision, timeout=answers.ANSWER_S
                ),
            )
        except HubError as error:
            if before is None or not isinstance(error, _PassingError):
                raise
            return before, f"{error}: {name} is what it was when last fetched, {before}"
        commit = str(info.sha)
        if before not in (None, commit):
            return commit, f"{name} moved: it was {before}, it is {commit}"
        return commit, None

    def listing(self, commit: str) -> dict[str, HubFile]:
        """Names of a commit's files -> what the hub says of them.

        What a commit holds never changes: it is asked once and remembered. Empty where it is not
        remembered and no hub can be asked.

        Raises:
            HubError: The hub does not say.
        """
        state = f"{self.kind} {self.name}@{commit}"
        found: dict[str, list[Any]] | None = known_fact(_LISTING, state)
        if found is None:
            if is_offline() or not reachable():
                return {}
            found = self._tried(commit, lambda: self._listed(commit))
            note_fact(_LISTING, state, found)
        return {name: HubFile(*about) for name, about in found.items()}

    def _listed(self, commit: str) -> dict[str, list[Any]]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        tree = HfApi(endpoint=endpoint()).list_repo_tree(
            self.name, repo_type=self.kind, revision=commit, recursive=True
        )
        return {
            item.path: [item.lfs.sha256 if item.lfs is not None else None, item.size]
            for item in tree
            if isinstance(item, RepoFile)
        }

    def beginning(self, commit: str, name: str, count: int) -> bytes:
        """The first ``count`` bytes of a file; nothing is kept in a cache.

        Raises:
            HubError: They are not to be had.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(self.name, name, repo_type=self.kind, revision=commit, endpoint=endpoint())

        def asked() -> bytes:
            headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}"}
            answer = get_session().get(url, headers=headers, follow_redirects=True)
            hf_raise_for_status(answer)
            return bytes(answer.content[:count])

        if is_offline() or not reachable():
            raise self._fault(commit, None)
        return self._tried(commit, asked)

    @property
    def folder(self) -> Path:
        """Where the cache keeps it."""
        return hub_cache_dir() / f"{self.kind}s--{self.name.replace('/', '--')}"

    def cached(self, name: str, revision: str | None) -> Path | None:
        """A file in the cache, of a revision or else of any other commit; None if there is none.

        For what all commits of a repository are taken to have alike, such as sizes; asks no hub.
        """
        commit = revision if is_commit(revision) else self._remembered(revision or "main")
        folders = sorted((self.folder / "snapshots").glob("*"), key=lambda f: f.name != commit)
        return next((file for f in folders if (file := f / name).is_file()), None)

    def _remembered(self, name: str) -> str | None:
        file = self.folder / "refs" / name
        try:
            text = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if is_commit(text) else None

    def remember(self, revision: str | None, commit: str) -> None:
        """Keeps what a branch points to, where the library does: for use offline."""
        if is_commit(revision) or self._remembered(revision or "main") == commit:
            return
        file = self.folder / "refs" / (revision or "main")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda sink: sink.write(commit.encode()))
        except OSError:
            pass  # a cache on a read-only disk: nothing depends on it

    def _tried(self, revision: str | None, call: Callable[[], Got]) -> Got:
        """Calls, again where the fault may pass by itself."""
        begin = time.monotonic()
        number = 0
        bound_answers()
        while True:
            try:
                return call()
            except Exception as error:  # the libraries raise dozens of kinds
                real = real_fault(error)
                if xet_failed(error):
                    continue
                number += 1
                wait = wait_before(real, number)
                seconds = time.monotonic() - begin
                longest = SILENCE_S if is_silence(real) else LONGEST_S
                if wait is None or number == TRIES or seconds + wait > longest:
                    raise self._fault(revision, real, number, seconds) from None
                logger.info("%s: %s, once more in %.0f s", self.name, shortly(real), wait)
                time.sleep(wait)

    def _fault(
        self, revision: str | None, error: BaseException | None, tries: int = 1, seconds: float = 0
    ) -> HubError:
        """The line for a fault: what is wrong, and what to do."""
        kind = " --repo-type dataset" if self.kind == "dataset" else ""
        at = f" --revision {revision}" if revision else ""
        fetch = f"download it while online (hf download {self.name}{kind}{at})"
        page = f"{endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"
        names = {cls.__name__ for cls in type(error).__mro__}
        status = status_of(error)
        if "GatedRepoError" in names:
            return HubError(
                f"is gated: accept its terms at {page} and log in (hf auth login, or HF_TOKEN)"
            )
        if "RevisionNotFoundError" in names:
            return HubError(f"has no such revision{self._near(revision)}; see {page}/commits")
        if "RepositoryNotFoundError" in names or status in (401, 403):
            return HubError(
                f"is not on the hub ({endpoint()}), or is private; check its name, or log in "
                f"(hf auth login, or HF_TOKEN)"
            )
        if status in PASSING:
            login = ", or log in for a higher limit (hf auth login)" if status == 429 else ""
            wait = retry_after(error)
            later = f" in {wait:.0f} s" if wait else " later"
            return _PassingError(
                f"could not be fetched: the hub answered {status} to {tries} "
                f"{'try' if tries == 1 else 'tries'} in {seconds:.0f} s; run again{later}{login}"
            )
        if "IncompleteSnapshotError" in names:
            missing = re.search(r"\d+ file\(s\) are missing \([^)]*\)", str(error))
            what = missing[0].replace("(s)", "s") if missing else "files are missing"
            return HubError(f"is not complete in the local cache ({what}); {fetch}")
        if "TooManyRedirects" in names:
            return HubError(
                f"could not be fetched: {endpoint()} redirects without end; check HF_ENDPOINT and "
                f"the proxy"
            )
        if error is not None and is_silence(error):
            return _PassingError(
                f"could not be fetched: no answer to {tries} tries in {seconds:.0f} s "
                f"({shortly(error)}); run again, complete files are kept"
            )
        if error is None or names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
            why = (
                why_offline()
                if is_offline() or "OfflineModeIsEnabled" in names
                else f"the hub ({endpoint()}) cannot be reached"
            )
            return HubError(f"not in the local cache and {why}; {fetch}")
        if may_pass(error):
            return _PassingError(
                f"could not be fetched: the connection broke off in {tries} tries "
                f"({shortly(error)}); run again, complete files are kept"
            )
        if isinstance(error, TooSlowError):
            return _PassingError(
                f"could not be fetched: the hub sends too slowly ({error}; at least "
                f"{LEAST_BYTES_PER_S:,} bytes/s are waited for); run again, complete files "
                f"are kept, or ask another mirror (HF_ENDPOINT)"
            )
        if isinstance(error, OSError) and error.strerror and not status:
            return HubError(
                f"could not be written to the cache {hub_cache_dir()} ({error.strerror}); make "
                f"room, or set HF_HOME to another disk"
            )
        return HubError(f"could not be fetched ({shortly(error)}); {fetch}")

    def _near(self, revision: str | None) -> str:
        """Names of branches and tags that are like one that is not there."""
        from huggingface_hub import HfApi

        try:
            refs = HfApi(endpoint=endpoint()).list_repo_refs(self.name, repo_type=self.kind)
        except Exception:  # only a help: what is wrong is known
            return ""
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        near = difflib.get_close_matches(revision or "", names, n=3, cutoff=0.5) or names[:3]
        return f" (nearest: {', '.join(near)})" if near else ""


class _PassingError(HubError):
    """A fault that may be gone at the next try."""


def _quiet() -> Any:
    """A progress bar that shows nothing."""
    from huggingface_hub.utils import tqdm

    class Quiet(tqdm):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **{**more, "disable": True})

    return Quiet


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit, which can never mean other files."""
    return bool(revision and _COMMIT.match(revision))


def is_as_named(blob: Path) -> bool:
    """Whether a file of the cache holds what the hub named it for: sha256 (large files) or git's
    own hash; True where the name is neither, and nothing can be said."""
    if _SHA256.match(blob.name):
        digest = hashlib.sha256()
    elif is_commit(blob.name):
        size = blob.stat().st_size
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        return True
    with blob.open("rb") as content:
        while chunk := content.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest() == blob.name


def holds(file: Path, sha256: str) -> bool:
    """Whether a file's bytes, as they are now, have this sha256."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == sha256


def _check_fetched(folder: Path, began: float) -> None:
    """Whether files that came just now hold what the hub named them for; others are removed.

    Raises:
        HubError: If one does not.
    """
    for file in folder.rglob("*"):
        blob = file.resolve()
        if file.is_file() and blob.stat().st_mtime >= began - 2 and not is_as_named(blob):
            for wrong in (file, blob):
                wrong.unlink(missing_ok=True)
            raise HubError(
                f"came with other bytes than the hub names ({file.name}: its hash differs); run "
                f"again, or ask another mirror (HF_ENDPOINT)"
            )


def endpoint() -> str:
    """Address of the hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_cache_dir() -> Path:
    """Folder of the hub's cache, by the environment variables of huggingface_hub."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "huggingface") / "hub"


def reachable() -> bool:
    """Whether the hub answers; asked now and then, because its library tries for half a minute."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    where = endpoint()
    place = urlsplit(where)
    if getproxies().get(place.scheme):
        return True  # the proxy knows; a direct connection says nothing
    if time.monotonic() - _silent_since.get(where, -_UNREACHABLE_FOR_S) < _UNREACHABLE_FOR_S:
        return False
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname or "", port), timeout=5).close()
    except OSError:
        _silent_since[where] = time.monotonic()
        return False
    return True
