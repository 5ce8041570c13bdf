"""``evalcore bench`` as a user runs it, with the engine that needs no vLLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from bench import components

pytestmark = pytest.mark.slow


def rows_of(folder: Path) -> list[dict]:
    with pa.memory_map(str(folder / "bench.arrow")) as source:
        return pa.ipc.open_file(source).read_all().to_pylist()


def test_a_sweep_over_random_weights(evalcore: Callable, tmp_path: Path) -> None:
    done = evalcore(
        "bench", "-o", tmp_path, "--engine", "hf", "--contexts", 2, "--context-tokens", 12,
        "--shots", "0,1", "--adapters", "0,1", "--repeats", 1, "--peak-tflops", 1,
        "--threads", 1,
    )  # fmt: skip
    assert done.status == 0, done.err
    rows = rows_of(tmp_path)
    assert len(rows) == 4
    for row in rows:
        assert row["status"] == "measured"
        assert row["start_s"] > 0
        assert len(row["wall_s"]) == 1
        assert row["min_s"] <= row["median_s"] <= row["max_s"]
        # The oracle runs each choice with its whole context, but no choice's last token.
        assert row["computed_tokens"] == row["naive_tokens"] - row["requests"]
        assert row["computed_tokens"] > row["token_limit"]
        assert 0 < row["mfu"] < 1
        assert row["peak_rss_mb"] > 50
    alone, tuned = rows[0], rows[2]
    assert (tuned["subjects"], tuned["token_limit"]) == (2, 2 * alone["token_limit"])
    assert tuned["load_median_s"] > 10 * alone["load_median_s"], "each subject is loaded in turn"
    assert (tmp_path / "bench.png").is_file()
    assert all(row["label"] in done.out for row in rows)


def test_requests_of_a_run(evalcore: Callable, tmp_path: Path, mini: Path) -> None:
    done = evalcore(
        "bench", "-o", tmp_path, "--engine", "hf", "-m", mini / "pretrained" / "step-00040",
        "--requests", mini / "results", "--limit", 3, "--repeats", 1, "--threads", 1,
    )  # fmt: skip
    assert done.status == 0, done.err
    (row,) = rows_of(tmp_path)
    assert row["status"] == "measured"
    assert row["contexts"] is None
    assert row["examples"] > 3
    assert not (tmp_path / "models").exists(), "real weights need no random ones"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--strategies", "quickest"), "unknown strategy"),
        (("--config", "olmo-2b"), "unknown model config"),
        (("--choices", "two"), "joined by commas"),
    ],
)
def test_bad_input_is_one_line(
    evalcore: Callable, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = evalcore("bench", "-o", tmp_path, "--engine", "hf", *arguments)
    assert done.status == 2
    assert words in done.err
    assert "Traceback" not in done.err


def test_component_costs_of_a_small_grid(tmp_path: Path) -> None:
    (row,) = components.measure([400], 1, lambda text: None)
    assert row["requests"] == 400
    assert set(row["us"]) == set(components.STAGES)
    assert all(value > 0 for value in row["us"].values())
    assert 0 < row["subject_us"] < row["total_us"]
    assert row["peak_mb"] >= row["before_mb"]
    page = components.write([row], tmp_path)[1].read_text()
    assert "| 400 |" in page
