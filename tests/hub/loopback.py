"""A small hub on 127.0.0.1 that the real clients talk to, with the faults a real one has.

It speaks what huggingface_hub and datasets ask for: repository facts, revisions, trees, references,
paths-info, resolve (HEAD and GET, ranges, commit and ETag headers), large files by redirect to
another host name (as a CDN), gated and missing repositories, 429 and 5xx with Retry-After, bodies
cut short, branches that move. It does not speak Xet: files may say that they are stored so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet")


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match, so many times.

    Attributes:
        path: Part of the path.
        status: Answered instead (0: the body is cut short after half of it, or ``change``).
        times: How often; then all is well.
        headers: Sent with it.
        method: Only requests of this method.
        silent_s: Seconds without an answer; then the connection is closed.
        change: One byte of the body is another, whatever its length.
        trickle_s: Seconds between one byte of the body and the next, without end.
    """

    path: str
    status: int
    times: int = 10**9
    headers: dict[str, str] = field(default_factory=dict)
    method: str | None = None
    silent_s: float = 0.0
    change: bool = False
    trickle_s: float = 0.0


@dataclass(frozen=True)
class Body:
    """What was sent of a file at one request.

    Attributes:
        name: sha256 of a large file, else the path asked for.
        count: Bytes sent.
        beginning: Whether only its first bytes were asked for, as for a header.
        agent: Who asked.
    """

    name: str
    count: int
    beginning: bool
    agent: str


@dataclass
class Repository:
    """Commits by their id, and what branches point to."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    xet: bool = False

    def commit(
        self, files: dict[str, bytes | str], ref: str | None = "main", sha: str | None = None
    ) -> str:
        """Adds a commit with exactly these files and lets a branch point to it.

        Args:
            files: Contents by path.
            ref: The branch; None moves none.
            sha: Id of the commit, where a test wants a known one.
        """
        held = {name: f.encode() if isinstance(f, str) else f for name, f in files.items()}
        parts = [f"{name}:{hashlib.sha1(held[name]).hexdigest()}" for name in sorted(held)]
        sha = sha or hashlib.sha1(f"{len(self.commits)} {parts}".encode()).hexdigest()
        self.commits[sha] = held
        if ref is not None:
            self.refs[ref] = sha
        return sha


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what faults are for: nothing is printed among its words."""


class LoopbackHub:
    """The server; use it as a context manager.

    Attributes:
        endpoint: For HF_ENDPOINT.
        requests: (method, path) of all that were asked.
        faults: Looked through in order at each request.
        token: Opens gated and private repositories.
        bodies: What was sent of files, request by request.
    """

    token = "hf_loopback"

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[Body] = []
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Nobody answers any more."""
        self.stopping.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def repository(self, kind: str, name: str, **facts: Any) -> Repository:
        """A repository (``model`` or ``dataset``), made when first asked for."""
        return self.repositories.setdefault((kind, name), Repository(**facts))

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that is due for a request, counted down."""
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.path in path and fault.method in (None, method) and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


@dataclass(frozen=True)
class _Asked:
    """One file of one commit."""

    commit: str
    name: str
    content: bytes

    @property
    def large(self) -> bool:
        return self.name.endswith(LARGE)

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_id

    def entry(self, xet: bool) -> dict[str, Any]:
        """As listed by the tree and paths-info routes."""
        found = {"type": "file", "path": self.name, "size": len(self.content), "oid": self.git_id}
        if self.large:
            size = len(self.content)
            found["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": 134}
            if xet:
                found["xetHash"] = self.sha256
        return found


class _Refused(Exception):
    """An error answer: status, X-Error-Code."""

    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = hub.fault(self.command, self.path)
            if fault is not None and fault.silent_s:
                hub.stopping.wait(fault.silent_s)
                self.close_connection = True
                return None
            self._changed = fault is not None and fault.change
            if fault is not None and fault.trickle_s:
                return self._trickle(fault.trickle_s)
            if fault is not None and fault.status:
                return self._send(fault.status, b"a fault", fault.headers)
            try:
                self._route(body, cut=fault is not None and not fault.change)
            except _Refused as refused:
                self._send(refused.status, b"", {"X-Error-Code": refused.code})

        def _route(self, body: bytes, cut: bool) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if parts[0] == "cdn":
                return self._send_file(_of_cdn(hub, parts[1]), {}, cut)
            if parts[0] == "api":
                return self._api(parts[1].removesuffix("s"), parts[2:], body)
            kind = "model"
            if parts[0] == "datasets":
                kind, parts = "dataset", parts[1:]
            at = parts.index("resolve")
            self._resolve(kind, "/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]), cut)
            return None

        def _repository(self, kind: str, name: str) -> Repository:
            found = hub.repositories.get((kind, name))
            if found is None or (found.private and not self._allowed()):
                # the real one does not tell the two apart to strangers
                raise _Refused(404 if self._allowed() else 401, "RepoNotFound")
            return found

        def _allowed(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {hub.token}"

        def _api(self, kind: str, parts: list[str], body: bytes) -> None:
            name = "/".join(parts[:2])
            rest = parts[2:]
            repository = self._repository(kind, name)
            if not rest or rest[0] == "revision":
                commit = _commit(repository, rest[1] if rest else "main")
                held = repository.commits[commit]
                facts = {"id": name, "sha": commit, "gated": repository.gated, "private": False,
                         "siblings": [{"rfilename": file} for file in held], "tags": [],
                         "downloads": 0, "likes": 0}  # fmt: skip
                return self._json(facts)
            if rest[0] == "refs":
                branches = [
                    {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": commit}
                    for ref, commit in repository.refs.items()
                ]
                return self._json({"branches": branches, "converts": [], "tags": []})
            files = list(_files(repository, _commit(repository, rest[1])))
            if rest[0] == "paths-info":
                form = parse_qs(body.decode())
                wanted = form.get("paths") or json.loads(body or b"{}").get("paths", [])
                found = [f.entry(repository.xet) for f in files if f.name in wanted]
                folders = [
                    {"type": "directory", "path": path, "oid": "0" * 40}
                    for path in wanted
                    if any(f.name.startswith(f"{path}/") for f in files)
                ]
                return self._json([*found, *folders])
            if rest[0] == "tree":
                under = "/".join(rest[2:])
                entries = list(_tree(files, under, repository.xet))
                if under and not entries:
                    raise _Refused(404, "EntryNotFound")
                deep = "recursive=true" in self.path.lower()
                direct = under.count("/") + 1 if under else 0
                return self._json([e for e in entries if deep or e["path"].count("/") == direct])
            raise _Refused(404, "EntryNotFound")  # xet tokens, too: no Xet here

        def _resolve(self, kind: str, name: str, revision: str, path: str, cut: bool) -> None:
            repository = self._repository(kind, name)
            commit = _commit(repository, revision)
            if repository.gated and not self._allowed():
                raise _Refused(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            content = repository.commits[commit].get(path)
            headers = {"X-Repo-Commit": commit}
            if content is None:
                return self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
            asked = _Asked(commit, path, content)
            headers["ETag"] = f'"{asked.etag}"'
            if not asked.large:
                return self._send_file(content, headers, cut)
            if repository.xet:
                headers["X-Xet-Hash"] = asked.sha256
                headers["X-Xet-Refresh-Route"] = (
                    f"{hub.endpoint}/api/{kind}s/{name}/xet-read-token/{commit}"
                )
            headers["X-Linked-ETag"] = f'"{asked.sha256}"'
            headers["X-Linked-Size"] = str(len(content))
            headers["Location"] = f"http://localhost:{hub.port}/cdn/{asked.sha256}"
            self._send(302, b"", headers)
            return None

        def _send_file(self, content: bytes, headers: dict[str, str], cut: bool) -> None:
            wanted = self.headers.get("Range", "")
            status = 200
            if wanted.startswith("bytes=") and self.command == "GET":
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), int(last) + 1 if last else len(content)
                headers = {
                    **headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"
                }  # fmt: skip
                content, status = content[start:stop], 206
            if self.command == "GET":
                sent = len(content) // 2 if cut else len(content)
                name = self.path.rpartition("/cdn/")[2] or self.path
                part = wanted.startswith("bytes=0-") and not wanted.endswith("-")
                agent = self.headers.get("User-Agent", "")
                hub.bodies.append(Body(name, sent, part, agent))
            self._send(status, content, headers, cut)

        def _trickle(self, every_s: float) -> None:
            self.send_response(200)
            for name, value in {"X-Repo-Commit": "0" * 40, "ETag": '"x"'}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "1000000000")
            self.end_headers()
            self.close_connection = True
            with contextlib.suppress(OSError):
                while not hub.stopping.wait(every_s):
                    self.wfile.write(b" ")

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(
            self, status: int, body: bytes, headers: dict[str, str], cut: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if self._changed and body:
                body = bytes([body[0] ^ 1]) + body[1:]
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.wfile.flush()
                self.close_connection = True

    return Handler


def _commit(repository: Repository, revision: str) -> str:
    commit = repository.refs.get(revision, revision)
    if commit not in repository.commits:
        raise _Refused(404, "RevisionNotFound")
    return commit


def _files(repository: Repository, commit: str) -> Iterator[_Asked]:
    for name, content in sorted(repository.commits[commit].items()):
        yield _Asked(commit, name, content)


def _tree(files: list[_Asked], under: str, xet: bool) -> Iterator[dict[str, Any]]:
    """Folders and files below a folder."""
    inside = [f for f in files if not under or f.name.startswith(f"{under}/")]
    folders = {
        "/".join(parts[:depth])
        for parts in (f.name.split("/") for f in inside)
        for depth in range(1, len(parts))
    }
    for path in sorted(folders):
        if not under or path.startswith(f"{under}/"):
            yield {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
    yield from (f.entry(xet) for f in inside)


def _of_cdn(hub: LoopbackHub, digest: str) -> bytes:
    for repository in hub.repositories.values():
        for commit in repository.commits:
            for asked in _files(repository, commit):
                if asked.large and asked.sha256 == digest:
                    return asked.content
    raise _Refused(404, "EntryNotFound")
