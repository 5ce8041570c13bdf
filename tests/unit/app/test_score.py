"""``score()``: what is refused leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evalcore.app import early
from evalcore.app.score import score
from evalcore.config import ScoreConfig
from evalcore.errors import EXIT_BAD_INPUT, EvalcoreError


class _Waiting:
    """A pool whose workers have begun to write their logs."""

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "wrong",
    [
        {"adapters": ("nowhere",)},
        {"checkpoints": ("nowhere",)},
        {"checkpoints": ("nowhere",), "grid": (("no_such_task", "default"),)},
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_what_is_refused_creates_no_folder(
    wrong: dict[str, Any], there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warm(spec: object, *, log_dir: Path, **more: object) -> _Waiting:
        assert log_dir.is_dir()
        (log_dir / "worker-0.log").write_text("importing")
        return _Waiting()

    monkeypatch.setattr(early, "warm_workers", warm)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "new" / "results"
    if there:
        out.mkdir(parents=True)
        (out / "mine.txt").write_text("kept")
    given = {"grid": (("pocket_nli", "default"),), **wrong}
    config = ScoreConfig.of(output=out, engine="hf", device="cpu", **given)
    with pytest.raises(EvalcoreError) as refused:
        score(config)
    assert refused.value.exit_status == EXIT_BAD_INPUT
    if there:
        assert [path.name for path in out.iterdir()] == ["mine.txt"]
    else:
        assert not (tmp_path / "new").exists()
