"""Every fault of a hub that the loopback hub has, every command that asks one, and what is read."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import write_adapter, write_checkpoint
from tests.hub.loopback import Fault, LoopbackHub

BASE, LORA, GLUE = "org/base", "org/lora", "nyu-mll/glue"
STUDY = """
name: s
checkpoints: {hub: [{repo: org/base, revisions: [step10]}]}
tunings: [{name: rte, task: TASK, examples: 6}]
method: {kind: lora, steps: 1, batch_size: 2, rank: 2, learning_rate: 1.0e-3}
evaluation: {tasks: [TASK], prompts: default, limit: 2, engine: hf}
"""
Befalls = Callable[[LoopbackHub, str], None]


@dataclass(frozen=True)
class HubFault:
    """Something that befalls a repository.

    Attributes:
        befalls: Makes it so.
        words: What people read; empty: nothing, as all goes well.
        environment: What is set while a command runs.
        primed: Whether everything was fetched before, while all was well.
    """

    befalls: Befalls
    words: str
    environment: Mapping[str, str] = field(default_factory=dict)
    primed: bool = False


def _gated(hub: LoopbackHub, repo: str) -> None:
    for (_, name), repository in hub.repositories.items():
        repository.gated |= name == repo


def _private(hub: LoopbackHub, repo: str) -> None:
    for (_, name), repository in hub.repositories.items():
        repository.private |= name == repo


def _without(hub: LoopbackHub, repo: str) -> None:
    for (_, name), repository in hub.repositories.items():
        if name == repo:
            repository.commits.clear()
            repository.refs.clear()


def _moved(hub: LoopbackHub, repo: str) -> None:
    for (_, name), repository in hub.repositories.items():
        if name == repo:
            for ref, commit in list(repository.refs.items()):
                repository.commit({**repository.commits[commit], "NEWS.md": "moved"}, ref=ref)


def _answering(status: int, **headers: str) -> Befalls:
    return lambda hub, repo: hub.faults.append(Fault(repo, status, headers=headers))


def _redirecting(place: str) -> Befalls:
    return lambda hub, repo: hub.faults.append(
        Fault(repo, 302, headers={"Location": place.format(hub=hub.endpoint, repo=repo)})
    )


def _bodies(**how: bool) -> Befalls:
    """Files of the repository, and what a CDN sends, come cut short or changed."""

    def befalls(hub: LoopbackHub, repo: str) -> None:
        for place in (f"{repo}/resolve", "/cdn/"):
            hub.faults.append(Fault(place, 0, method="GET", **how))  # type: ignore[arg-type]

    return befalls


def _silent(hub: LoopbackHub, repo: str) -> None:
    hub.faults.append(Fault(repo, 0, silent_s=30))


def _trickling(hub: LoopbackHub, repo: str) -> None:
    hub.faults.append(Fault(repo, 0, method="GET", trickle_s=0.05))


def _away(hub: LoopbackHub, repo: str) -> None:
    hub.stop()


def _nothing(hub: LoopbackHub, repo: str) -> None:
    pass


WAIT = {"Retry-After": "0"}
OFFLINE = {"HF_HUB_OFFLINE": "1"}
FAULTS: dict[str, HubFault] = {
    "gated, no token (401)": HubFault(_gated, "is gated: accept its terms at"),
    "gated, a token without consent (403)": HubFault(
        _gated, "is gated: accept its terms at", {"HF_TOKEN": "hf_other"}
    ),
    "no such repository, or private": HubFault(_private, "is not on the hub"),
    "no such revision": HubFault(_without, "has no such revision"),
    "429": HubFault(_answering(429, **WAIT), "the hub answered 429 to 4 tries"),
    "429, Retry-After: 300": HubFault(
        _answering(429, **{"Retry-After": "300"}), "run again in 300 s, or log in"
    ),
    "503": HubFault(_answering(503), "the hub answered 503 to 4 tries"),
    "503, Retry-After: 300": HubFault(
        _answering(503, **{"Retry-After": "300"}), "run again in 300 s"
    ),
    "body cut short": HubFault(_bodies(), "the connection broke off in"),
    "other bytes than its hash": HubFault(
        _bodies(change=True), "came with other bytes than the hub names"
    ),
    "redirects in a circle": HubFault(
        _redirecting("{hub}/api/models/{repo}/revision/round"),
        "redirects without end; check HF_ENDPOINT and the proxy",
    ),
    "redirect to a host without address": HubFault(
        _redirecting("http://no-such-host.invalid/x"), "the connection broke off in"
    ),
    "silence": HubFault(_silent, "no answer to"),
    "drop by drop": HubFault(_trickling, "the hub sends too slowly"),
    "away": HubFault(_away, "cannot be reached"),
    "offline, nothing cached": HubFault(
        _nothing, "not in the local cache and HF_HUB_OFFLINE is set", OFFLINE
    ),
    "offline after online": HubFault(_nothing, "", OFFLINE, primed=True),
    "away after online": HubFault(_away, "", primed=True),
    "branch moved since": HubFault(_moved, "moved: it was", primed=True),
}
ONCE = ("-p", "default", "--limit", "2", "--engine", "hf", "-o", "r")
MODEL = ("-m", "org/base@step10", "-t", "pocket_nli", *ONCE)
ROWS = ("-m", "{base}", "-t", "rte", *ONCE)
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "`score -m REPO`": (BASE, ("score", *MODEL)),
    "`--dry-run`": (BASE, ("score", *MODEL, "--dry-run")),
    "`score REPO` (adapter)": (LORA, ("score", "org/lora@main", "-t", "pocket_nli", *ONCE)),
    "`score DIR` (base)": (BASE, ("score", "{lora}", "-t", "pocket_nli", *ONCE)),
    "`finetune`": (BASE, ("finetune", "models.yaml", "-o", "out")),
    "`run`": (BASE, ("run", "models.yaml", "-o", "out")),
    "`run --dry-run`": (BASE, ("run", "models.yaml", "-o", "out", "--dry-run")),
    "rows: `score`": (GLUE, ("score", *ROWS)),
    "rows: `--dry-run`": (GLUE, ("score", *ROWS, "--dry-run")),
    "rows: `finetune`": (GLUE, ("finetune", "rows.yaml", "-o", "out")),
    "rows: `run`": (GLUE, ("run", "rows.yaml", "-o", "out")),
    "rows: `run --dry-run`": (GLUE, ("run", "rows.yaml", "-o", "out", "--dry-run")),
    "`tasks check`": (GLUE, ("tasks", "check", "rte")),
    "`tasks show --data-root`": (GLUE, ("tasks", "show", "rte", "--data-root", "{empty}")),
    "`prompts show`": (GLUE, ("prompts", "show", "rte")),
    "`prompts check`": (GLUE, ("prompts", "check", "{prompt}", "--data-root", "{empty}")),
    "`doctor`": (BASE, ("doctor",)),
}  # fmt: skip
"""Heading of its column -> (what the fault befalls, the command)."""
WATCH = ("watch", "{near}", *MODEL, "--idle", "1s", "--every", "0.2")
QUICK = ("`score -m REPO`", "`finetune`", "rows: `score`", "`tasks check`")


@dataclass(frozen=True)
class Said:
    """What a command ended with and wrote."""

    status: int
    out: str
    err: str

    def cell(self, words: str) -> str:
        """Of the table: the status; whether the words are the last line, or one of others."""
        last = (self.err.strip().splitlines() or [""])[-1]
        if not words or (words in last and last.startswith("evalcore: ")):
            return str(self.status)
        return f"{self.status}, named" if words in self.out + self.err else f"{self.status}, -"


def write_places(folder: Path, hub: LoopbackHub) -> dict[str, Path]:
    """A checkpoint and an adapter, on the hub and here, and study files, all below ``folder``."""
    base = write_checkpoint(folder / "base")
    lora = write_adapter(folder / "lora", base)
    config = json.loads((lora / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": BASE, "revision": "step10"}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    near = write_adapter(folder / "near" / "a", base)
    for file in (*base.iterdir(), *near.iterdir()):
        os.utime(file, (time.time() - 100,) * 2)
    for repo, files, ref in ((BASE, base, "step10"), (LORA, lora, "main")):
        own: dict[str, bytes | str] = {f.name: f.read_bytes() for f in files.iterdir()}
        hub.repository("model", repo).commit(own, ref=ref)
    (folder / "empty").mkdir()
    (folder / "models.yaml").write_text(STUDY.replace("TASK", "pocket_nli"))
    hubs = "{hub: [{repo: org/base, revisions: [step10]}]}"
    rows = STUDY.replace("TASK", "rte").replace(hubs, f'{{paths: ["{base}"]}}')
    (folder / "rows.yaml").write_text(rows)
    prompt = Path(__file__).resolve().parents[2] / "prompts/nli/default.yaml"
    return {"base": base, "lora": lora, "near": folder / "near", "empty": folder / "empty",
            "prompt": prompt}  # fmt: skip


def clear(folder: Path, *, cache: bool = True) -> None:
    """Takes away what commands wrote and, if told, the cache of the hub."""
    for name in ("r", "out", *(("hf", "facts") if cache else ())):
        shutil.rmtree(folder / name, ignore_errors=True)


def table(cells: Mapping[str, Mapping[str, str]]) -> str:
    """The table of docs/hub.md: fault -> heading -> cell."""
    heads = [name for name in COMMANDS if any(name in row for row in cells.values())]
    lines = ["| fault | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for fault, row in cells.items():
        lines.append(f"| {fault} | " + " | ".join(row[head] for head in heads) + " |")
    return "\n".join(lines) + "\n"
