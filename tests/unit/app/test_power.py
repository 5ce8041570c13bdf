"""``evalcore power`` on results: what is asked is answered, or refused in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from evalcore.analysis import analyse
from evalcore.analysis.gains import gap_cube
from evalcore.app.power import PowerOptions, power, results_of
from evalcore.cli import cli
from evalcore.errors import InputError
from tests.toys.tables import stored_study, study_table


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder: study.yaml and results/ with known effects."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text("name: x\n")
    stored_study(folder / "results")
    return folder


def test_the_cube_of_a_gain_has_its_mean() -> None:
    analysis = analyse(study_table(documents=20))
    for gain in analysis.own_gains():
        clusters, cube = gap_cube(analysis.book, gain)
        assert len(np.unique(clusters)) == len(cube) == gain.pooled.n
        assert cube.shape[1:] == (len(gain.by_variant), max(len(gain.by_seed), 1))
        assert cube.mean() == pytest.approx(gain.pooled.value)


def test_a_study_says_what_it_takes(study: Path) -> None:
    table = power(study / "study.yaml", PowerOptions(0.1))
    assert table.rate == 100.0
    assert {t.task for t in table.tasks} == {
        g.task.name for g in analyse(study_table(documents=40)).own_gains()
    }
    for task in table.tasks:
        assert task.seen[0] == 40
        assert 0 < task.now < 1
        enough = [d.documents for p, s, _, d in task.designs if (p, s) == (1, 1) and d is not None]
        tighter = power(study, PowerOptions(0.05, tasks=(task.task,))).tasks[0]
        more = [d.documents for p, s, _, d in tighter.designs if (p, s) == (1, 1) and d is not None]
        assert more[0] == pytest.approx(4 * enough[0], rel=0.15)


def test_the_command(study: Path) -> None:
    done = CliRunner().invoke(cli, ["power", str(study), "--effect", ".1", "--sd-seeds", ".02"])
    assert done.exit_code == 0, done.output
    assert "find a true difference of 0.1 80% of the time" in done.output
    assert "other prompts and seeds" in done.output
    assert "at 100 examples/s" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (PowerOptions(0.0), "--effect"),
        (PowerOptions(0.1, power=1.5), "--power"),
        (PowerOptions(0.1, tasks=("nobody",)), "no gain over a base on nobody"),
    ],
)
def test_what_cannot_be_answered_is_said(study: Path, options: PowerOptions, said: str) -> None:
    with pytest.raises(InputError, match=said):
        power(study, options)


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="variances come from results"):
        results_of(tmp_path)
