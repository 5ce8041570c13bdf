"""The loopback hub for the real clients: own cache, online, no real network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evalcore.identity import hub as client
from evalcore.identity import hub_faults
from evalcore.tasks import hub as data
from evalcore.tasks import load_task
from tests.hub.loopback import LoopbackHub

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data" / "root"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def forget() -> None:
    """A process that has asked nothing yet."""
    data._resolved.cache_clear()
    data._fetched.cache_clear()
    data._RESOLVED.clear()
    client._silent_since.clear()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A running hub that this process asks; waits between tries are cut to hundredths."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with LoopbackHub() as server:
        for name in (*OFFLINE, "HF_TOKEN", "HF_HUB_CACHE", "EVALCORE_DATA_ROOT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read when it was imported
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(hub_faults, "WAIT_S", 0.01)
        sleep = _http.time.sleep
        monkeypatch.setattr("time.sleep", lambda seconds: sleep(seconds / 100))
        forget()
        yield server
        forget()


@pytest.fixture
def evalcore_cli(hub: LoopbackHub, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """The command line in a process of its own, with this hub and cache."""

    def run(
        *arguments: str, timeout_s: float = 300, **environment: str
    ) -> subprocess.CompletedProcess:
        own = {name: value for name, value in os.environ.items() if name not in OFFLINE}
        own |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
        own["PYTHONPATH"] = os.pathsep.join([str(ROOT), own.get("PYTHONPATH", "")])
        script = "from evalcore.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True, text=True, timeout=timeout_s, env=own, cwd=tmp_path,
        )  # fmt: skip

    return run


@pytest.fixture
def glue(hub: LoopbackHub) -> str:
    """The rows of RTE in the layout of their repository, under the commit of the definition."""
    pinned = load_task("rte").spec["source"]["hub"]
    parts = [{"split": name, "path": f"rte/{name}-*"} for name in ("train", "validation")]
    card = {"configs": [{"config_name": "rte", "data_files": parts}]}
    files: dict[str, bytes | str] = {"README.md": f"---\n{json.dumps(card)}\n---\n"}
    for name in ("train", "validation"):
        rows = (DATA / pinned["repo"] / "rte" / f"{name}.jsonl").read_bytes()
        files[f"rte/{name}-00000-of-00001.jsonl"] = rows
    hub.repository("dataset", pinned["repo"]).commit(files, sha=pinned["revision"])
    return str(pinned["revision"])
