"""Weights that are known by their hashes are not fetched; what is not known for certain is."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.cli import main
from evalcore.errors import InputError
from evalcore.identity import away as table
from evalcore.identity import (
    away_at,
    bring,
    numeric_config,
    open_checkpoint,
    resolve_subjects,
    weight_files,
    weight_layout,
)
from evalcore.identity.away import AwayRule
from evalcore.identity.weights import file_sha256
from evalcore.types import Checkpoint
from tests.hub.conftest import forget
from tests.hub.loopback import Fault, LoopbackHub

Make = Callable[..., Path]
OLD_S = 100.0
"""Files this old are remembered by their times."""


def files_of(folder: Path) -> dict[str, bytes | str]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def aged(folder: Path) -> Path:
    for file in folder.iterdir():
        os.utime(file, (time.time() - OLD_S,) * 2)
    return folder


def weights_sent(hub: LoopbackHub) -> int:
    """How often weights were asked for since the last time."""
    asked = [path for method, path in hub.requests if method == "GET" and "/cdn/" in path]
    hub.requests.clear()
    return len(asked)


@pytest.fixture
def one(make_checkpoint: Make, tmp_path: Path) -> Path:
    return aged(make_checkpoint(tmp_path / "one", seed=1))


@pytest.fixture
def commit(hub: LoopbackHub, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """``one`` as org/base@main, and nothing known of anything."""
    monkeypatch.setenv("EVALCORE_CACHE", str(tmp_path / "facts"))
    monkeypatch.setattr(table, "_AWAY", {})
    return hub.repository("model", "org/base").commit(files_of(one))


def clear_hub_cache(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "hf")
    forget()


def planned(source: str = "org/base@main") -> Checkpoint:
    return open_checkpoint(source, rule=AwayRule())


def test_weights_read_before_are_not_fetched_again(
    hub: LoopbackHub, commit: str, tmp_path: Path
) -> None:
    first = planned()
    assert away_at(first.path) is None
    assert weights_sent(hub) == 1
    layout = weight_layout(first.path)
    clear_hub_cache(tmp_path)
    second = planned()
    assert weights_sent(hub) == 0
    assert second == first
    assert away_at(second.path) is not None
    assert not list(Path(second.path).glob("*.safetensors"))
    assert weight_layout(second.path) == layout
    assert open_checkpoint("org/base@main") == first  # whoever does not ask for it gets all of it
    assert (Path(second.path) / "model.safetensors").is_file()
    assert away_at(second.path) is None


def test_weights_scored_here_are_known_on_the_hub(hub: LoopbackHub, commit: str, one: Path) -> None:
    local = open_checkpoint(str(one))
    found = planned()
    assert weights_sent(hub) == 0
    assert (found.fingerprint, found.revision) == (local.fingerprint, commit)
    (subject,) = resolve_subjects([], [str(one), "org/base@main"], rule=AwayRule()).subjects
    assert subject.checkpoint.path == local.path


def test_a_branch_that_moved_is_planned_anew(
    hub: LoopbackHub, commit: str, one: Path, make_checkpoint: Make, tmp_path: Path
) -> None:
    first = planned()
    other = make_checkpoint(tmp_path / "two", seed=2)
    moved = hub.repository("model", "org/base").commit(files_of(other))
    weights_sent(hub)
    second = planned()
    assert weights_sent(hub) == 1
    assert second.revision == moved != first.revision
    assert second.fingerprint == open_checkpoint(str(other)).fingerprint != first.fingerprint


def test_whoever_reads_weights_has_them_fetched(
    hub: LoopbackHub, commit: str, one: Path, tmp_path: Path
) -> None:
    open_checkpoint(str(one))
    found = planned()
    hub.faults.append(Fault("/cdn/", 503, headers={"Retry-After": "0"}))
    with pytest.raises(InputError, match=f"org/base@{commit} could not be fetched: .* 503"):
        bring(found.path)
    hub.faults.clear()
    (file,) = weight_files(Path(found.path))
    assert file.read_bytes() == (one / "model.safetensors").read_bytes()
    assert away_at(found.path) is None
    weights_sent(hub)
    bring(found.path)
    assert weights_sent(hub) == 0


def test_offline_the_listing_of_a_commit_is_remembered(
    hub: LoopbackHub, commit: str, one: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_checkpoint(str(one))
    first = planned()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    forget()
    assert planned() == first
    with pytest.raises(InputError, match=r"not (complete )?in the local cache"):
        bring(first.path)


def test_what_is_here_is_used_while_the_hub_fails(hub: LoopbackHub, commit: str) -> None:
    first = open_checkpoint("org/base@main")  # does not ask what the commit lists
    hub.faults.append(Fault("org/base", 503, headers={"Retry-After": "0"}))
    assert planned() == first


def test_a_shard_of_which_nothing_is_known(hub: LoopbackHub, commit: str, one: Path) -> None:
    """The first is known, both together are not: all of it is read, and refused as ever."""
    open_checkpoint(str(one))
    files = files_of(one)
    weights = files.pop("model.safetensors")
    assert isinstance(weights, bytes)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    both = {"model-1.safetensors": weights, "model-2.safetensors": weights[:-1] + b"x"}
    files |= both | {"model.safetensors.index.json": json.dumps(index)}
    hub.repository("model", "org/base").commit(files)
    with pytest.raises(InputError, match="another of its files hold different tensors"):
        planned()
    assert weights_sent(hub) == 2


def test_known_weights_under_another_configuration(
    hub: LoopbackHub, commit: str, one: Path
) -> None:
    known = open_checkpoint(str(one))
    config = json.loads((one / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
    hub.repository("model", "org/base").commit(files_of(one) | {"config.json": json.dumps(config)})
    assert planned().fingerprint != known.fingerprint
    assert weights_sent(hub) == 1


def test_a_damaged_entry_is_not_believed(hub: LoopbackHub, commit: str, one: Path) -> None:
    open_checkpoint(str(one))
    for entry in (Path(os.environ["EVALCORE_CACHE"]) / "fingerprints").glob("*.json"):
        entry.write_text(entry.read_text().replace("model.", "nodel."))
    assert planned().fingerprint == open_checkpoint(str(one)).fingerprint
    assert weights_sent(hub) == 1


def test_weights_without_every_hash_are_not_noted(commit: str, one: Path) -> None:
    sha256 = file_sha256(one / "model.safetensors")
    assert sha256 is None  # nobody has read it
    open_checkpoint(str(one))
    sha256 = file_sha256(one / "model.safetensors")
    assert sha256 is not None
    config = numeric_config(one)
    held = table.known_weights(config, [sha256])
    assert held is not None
    table.note_weights(config, [sha256, None], lambda: held)
    assert table.known_weights(config, [sha256, sha256]) is None
    assert table.known_weights(config, []) is None


@pytest.mark.slow
def test_a_second_run_fetches_no_weights(
    hub: LoopbackHub,
    commit: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Scored and the cache cleared: a plan and a run with nothing to do fetch none, others do."""

    def score(limit: int, *more: str) -> str:
        data = Path(__file__).resolve().parents[1] / "data" / "root"
        command = ("score", "-m", "org/base@main", "-t", "rte", "--limit", str(limit), "-o", "r",
                   "--engine", "hf", "--data-root", str(data), *more)  # fmt: skip
        monkeypatch.setattr("sys.argv", ["evalcore", *command])
        forget()
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert not ended.value.code, shown.err
        return shown.out + shown.err

    monkeypatch.chdir(tmp_path)
    score(2)
    assert weights_sent(hub) == 1
    clear_hub_cache(tmp_path)
    for limit, more in ((3, ["--dry-run"]), (2, [])):
        said = score(limit, *more)
        assert weights_sent(hub) == 0
    assert "weights that stayed on the hub: of 1 " in said
    score(3)
    assert weights_sent(hub) == 1
