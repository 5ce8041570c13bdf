"""What results ask of a file system is tried when they are opened."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import ResultsError
from evalcore.files import pinned, remove_dead_scratch, scratch_folder, try_folder, try_lock
from evalcore.store import ResultStore


def test_a_sound_folder_passes_and_stays_empty(tmp_path: Path) -> None:
    try_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def late(path: Any = ".") -> list[str]:
    """A listing that is behind."""
    return []


def kept(path: Any = ".") -> list[str]:
    """A listing that never forgets."""
    real = {entry.name for entry in os.scandir(path)}
    kept.seen = getattr(kept, "seen", set()) | real  # type: ignore[attr-defined]
    return list(kept.seen)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("listing", "said"), [(late, "is not listed at once"), (kept, "is still listed")]
)
def test_a_folder_that_does_not_keep_its_promise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: Any, said: str
) -> None:
    monkeypatch.setattr("evalcore.files.os.listdir", listing)
    with pytest.raises(ResultsError, match=said) as caught:
        ResultStore(tmp_path / "results")
    assert "\n" not in str(caught.value)


def test_bytes_that_come_back_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path)[:-1] + b"?")
    with pytest.raises(OSError, match="reads back otherwise"):
        try_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_scratch_of_a_killed_process_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import sys, time\n"
        "from evalcore.files import scratch_folder\n"
        "with scratch_folder('tune') as folder:\n"
        "    (folder / 'large').write_text('x')\n"
        "    print(folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env
    ) as child:
        assert child.stdout is not None
        theirs = Path(child.stdout.readline().strip())
        with scratch_folder("tune") as own:
            assert theirs.parent == own.parent == tmp_path
            assert (theirs / "large").exists(), "it lives"
        assert not own.exists()
        child.kill()
    (tmp_path / "evalcore-tune-of-somebody").mkdir()
    (tmp_path / theirs.name.replace("tune", "link")).symlink_to(tmp_path)
    with scratch_folder("merged", tmp_path) as own:
        assert own.name.startswith(".evalcore-merged.")
        assert not theirs.exists()
    assert remove_dead_scratch(tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 2, "what is no folder of ours stays"


def test_a_lock_is_free_held_or_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "lock", "ab") as mine, open(tmp_path / "lock", "ab") as other:
        assert try_lock(mine) is True
        assert try_lock(other) is False
        mine.close()
        assert try_lock(other) is True

    def unknown(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", unknown)
    with open(tmp_path / "lock", "ab") as file:
        assert try_lock(file) is None


def test_a_path_through_links_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that is pointed elsewhere during a run moves nothing of it."""
    monkeypatch.chdir(tmp_path)
    Path("one").mkdir()
    Path("link").symlink_to("one")
    assert pinned(Path("link/results")) == tmp_path / "one/results"
    assert pinned(Path("one/results")) == Path("one/results")
    Path("nothing").symlink_to("two")
    assert pinned(Path("nothing")) == tmp_path / "two"
