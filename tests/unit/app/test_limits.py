"""The least work of request files, read part by part, against batches that hold all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalcore.app.limits import File, _limits
from evalcore.app.outcome import ScoreOutcome
from evalcore.app.words import summary_lines
from evalcore.planning import Plan, PlanCounts, chunks, prefix_profile
from evalcore.prompting import REQUEST_SCHEMA
from evalcore.scoring import RunSummary, generate_requests, score_requests
from evalcore.types import GenerationSettings
from tests.toys.requests import examples, table_of


def write(path: Path, table: pa.Table) -> None:
    """A request file of several batches, as they are written."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, REQUEST_SCHEMA) as out:
        out.write_table(table, max_chunksize=3)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tables=st.lists(st.lists(examples(), min_size=1, max_size=9), min_size=1, max_size=3),
    generates=st.lists(st.booleans(), min_size=3, max_size=3),
    skip=st.integers(1, 3),
    tokens=st.integers(1, 40),
)
def test_parts_of_files_add_up(
    tmp_path: Path, tables: list, generates: list[bool], skip: int, tokens: int
) -> None:
    files, scored, generated = {}, [], []
    for number, (rows, generate) in enumerate(zip(tables, generates, strict=False)):
        path, table = tmp_path / f"{number}.arrow", table_of(rows)
        write(path, table)
        asked = np.arange(0, len(rows), skip)
        setting = GenerationSettings() if generate else None
        files[File(str(path), setting)] = asked
        scored.append(table.take(pa.array(asked)))
        if setting is not None:
            generated.append(generate_requests(scored[-1], setting).batch)
    batch = score_requests(pa.concat_tables(scored)).batch
    whole = prefix_profile([batch, *generated])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "TOKENS_AT_ONCE", tokens)
        patch.setattr(chunks, "_SAMPLED", 1)
        found = _limits(files, 32)
    assert found["token_limit"] == whole.token_limit
    assert found["block_limit"] == whole.block_limit(32)
    assert found["continuation_tokens"] == len(batch.continuation_tokens)


def test_a_run_that_was_stopped_is_measured_against_what_it_did() -> None:
    """A third of the plan, at twice the least work there: not two thirds of the limit."""
    counts = PlanCounts(1, 1, 1, 1, 3, 30, 0, 9000, 1)
    summary = RunSummary(planned=30, examples=10, prompt_tokens=3000, computed_tokens=1200)
    limits = {"token_limit": 1800, "block_limit": 2400}
    outcome = ScoreOutcome(Path("r"), Plan((), counts, {}), summary, False, limits=limits)
    (line,) = (line for line in summary_lines(outcome) if "token limit" in line)
    assert "about 2.00 x the token limit (1.50 x the block limit)" in line
    outcome.summary.prompt_tokens, outcome.summary.computed_tokens = 9000, 3600
    (line,) = (line for line in summary_lines(outcome) if "token limit" in line)
    assert "tokens, 2.00 x the token limit (1.50 x the block limit)" in line
