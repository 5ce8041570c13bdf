"""The wheel, installed outside the repository: commands, examples and the names users import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.e2e.conftest import Own

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.proof  # building asks the package index for the build tool


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel, and with this environment's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("evalcore-*.whl")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "env" / "bin" / "python")]
    subprocess.run([*pip, "install", "-q", "--no-deps", str(wheel)], check=True, cwd=folder)
    # A folder named in a .pth is searched, its own .pth files (an editable install's) are not read.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env" / "bin"


def ran(command: list[object], folder: Path) -> str:
    """What a command prints, run outside the repository and without its path."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_outside_the_repository(installed: Path, own: Own, tmp_path: Path) -> None:
    python, evalcore = installed / "python", installed / "evalcore"
    where = ran([python, "-c", "import evalcore, finetune; print(evalcore.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)

    assert "score" in ran([evalcore, "--help"], tmp_path)
    assert "pocket_nli" in ran([evalcore, "tasks", "list"], tmp_path)
    assert "instruct" in ran([evalcore, "prompts", "list", "pocket_nli"], tmp_path)
    demo = ran([evalcore, "demo", tmp_path / "demo", "--dry-run"], tmp_path)
    assert "pre-training" in demo

    results, examples = tmp_path / "results", tmp_path / "examples"
    shutil.copytree(own.results, results)
    shutil.copytree(ROOT / "examples", examples)
    for name, *args in (
        ("score_adapters.py", own.runs, results, "--limit", 5, "--engine", "hf",
         "--tasks", "pocket_nli,pocket_facts", "--prompts", "default,io"),
        ("read_results.py", results),
        ("flips.py", results, "pocket_facts"),
        ("tuning_curve.py", results, tmp_path / "curve.png"),
        ("own_task.py", tmp_path / "own"),
    ):  # fmt: skip
        assert ran([python, examples / name, *args], tmp_path)
    scores = "import evalcore as ec, sys; print(ec.open(sys.argv[1]).scores()['adapter'])"
    assert "(base)" in ran([python, "-c", scores, results], tmp_path)
