"""Which subjects the witness is asked about, and what its answers do to rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evalcore.app.outcome import doubted, left_out
from evalcore.app.words import witness_lines
from evalcore.engines import witness_process
from evalcore.engines.agreement import SEEN, architecture_of, compare, is_seen
from evalcore.engines.protocol import EngineSpec, LoadReport
from evalcore.errors import WitnessError
from evalcore.scoring import RunSummary, Witnessed, witnessing
from evalcore.scoring.witnessing import Witnessing
from evalcore.store import ResultStore
from evalcore.types import Adapter, Checkpoint, Subject
from tests.toys.scoring import ROWS_PER_UNIT, FakeWitness, Run, unit_job, write_requests
from tests.toys.small_cells import make_cell, score

SPEC = EngineSpec(device="cpu")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witnessing, "WitnessProcess", FakeWitness)
    monkeypatch.setattr(witnessing, "is_seen", lambda name, device: name == "LlamaForCausalLM")


def folder(root: Path, architecture: str = "LlamaForCausalLM", **more: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "architectures": [architecture], **more}
    (root / "config.json").write_text(json.dumps(config))
    return root


def report(off: float = 0.0, way: str = "", strategy: str = "packed") -> LoadReport:
    return LoadReport("swap", 0, 0, True, {}, 1.0, "", strategy, way, np.full(15, off), 9)


def subject(path: Path, name: str, adapter: str = "") -> Subject:
    base = Checkpoint(name, str(path), name * 4, "t")
    return Subject(base, Adapter(adapter, "", adapter, 8) if adapter else None)


def test_one_of_each_kind_is_asked_and_the_others_wait_for_it(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    who = Witnessing(replace(SPEC, witness="auto"), frozenset())
    for name in ("a", "b", "c"):
        who.loaded(subject(path, name), report())
    assert who.compared("aaaa") is who.compared("bbbb") is None, "nothing is known yet"
    who.loaded(subject(path, "a", "x"), report(way="merged"))
    who.loaded(subject(path, "a", "y"), report(way="merged"))
    who.wait()
    assert who.compared("aaaa") == "yes"
    assert who.compared("bbbb") == "no: another subject of its kind agrees"
    assert (who.compared("aaaa+x"), (who.compared("aaaa+y") or "")[:2]) == ("yes", "no")
    who.loaded(subject(path, "a", "z"), report(way="batched", strategy="cached"))
    who.loaded(subject(folder(tmp_path / "wide", rope_theta=7.0), "w"), report())
    who.wait()
    assert who.compared("aaaa+z") == who.compared("wwww") == "yes"
    told = who.report()
    assert (told.agreed, told.unasked, told.disagreed) == (4, 3, 0)


def test_who_relied_on_a_subject_that_disagrees_is_asked_in_turn(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    who = Witnessing(replace(SPEC, witness="auto"), frozenset())
    for name, off in (("a", 1e-3), ("b", np.nan), ("c", 0.0), ("d", 9.0)):
        who.loaded(subject(path, name), report(off))
    who.wait()
    for name, gap in (("aaaa", "0.001"), ("bbbb", "nan")):
        with pytest.raises(WitnessError, match=f"{gap} nats from transformers' .allowed 0.0001"):
            who.compared(name)
        with pytest.raises(WitnessError):
            who.loaded(subject(path, name[0]), report())
    assert who.compared("cccc") == "yes"
    # The kind is known to agree, so that d was believed: it is asked only if there is time.
    assert (who.compared("dddd") or "").startswith("no: another")


def test_a_share_of_the_time_is_spent_on_more_of_a_kind(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    who = Witnessing(replace(SPEC, witness="auto"), frozenset())
    asked = []
    for i in range(200):
        name = f"s{i:03d}"
        who.loaded(subject(path, name), report())
        who.worked(0.05)  # an answer costs 0.01 s
        who.look()
        who.look()
        asked.append(who.compared(name * 4) == "yes")
    share = who.report().cpu_s / (200 * 0.05)
    assert 0.04 < share <= 0.052
    assert sum(asked[100:]) > 10, "to the end"


def test_a_family_that_no_test_compares_is_asked_before_it_is_scored(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", "NewForCausalLM")
    who = Witnessing(replace(SPEC, witness="auto"), frozenset())
    who.loaded(subject(path, "a"), report())
    assert who.compared("aaaa") == "yes", "it was waited for"
    with pytest.raises(WitnessError, match="NewForCausalLM, strategy packed, adapter merged"):
        who.loaded(subject(path, "a", "x"), report(2.0, way="merged"))
    assert who.report().unseen == {"NewForCausalLM": 2}


def test_all_and_off_and_doubted(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    every = Witnessing(replace(SPEC, witness="all"), frozenset())
    for name in ("a", "b"):
        every.loaded(subject(path, name), report())
    every.wait()
    assert every.compared("aaaa") == every.compared("bbbb") == "yes"
    every.loaded(subject(path, "large"), report())
    every.wait()
    with pytest.raises(WitnessError, match="cannot be compared with transformers: too large"):
        every.compared("large" * 4)
    auto = Witnessing(replace(SPEC, witness="auto"), frozenset({"bbbb"}))
    auto.loaded(subject(path, "large"), report())
    auto.loaded(subject(path, "c"), report())
    auto.loaded(subject(path, "b"), report(4.0))
    auto.wait()
    assert auto.compared("large" * 4) == auto.compared("cccc") == "not compared: too large"
    with pytest.raises(WitnessError):
        auto.compared("bbbb")
    assert auto.report().not_compared == {"too large": 1}
    off = Witnessing(replace(SPEC, witness="off"), frozenset())
    off.loaded(subject(path, "a"), report(4.0))
    assert off.compared("aaaa") == "not compared: witness off"
    hf = Witnessing(EngineSpec(kind="hf", device="cpu"), frozenset())
    hf.loaded(subject(path, "a"), report(4.0))
    assert hf.compared("aaaa") == "yes: it is transformers"


def test_rows_of_a_subject_that_disagrees_never_reach_the_disk(tmp_path: Path) -> None:
    """Two workers, every unit committed as soon as it can be; other subjects lose nothing."""
    requests = write_requests(tmp_path / "requests.arrow")
    path = folder(tmp_path / "m")
    jobs = [
        unit_job(requests, name, i, once=path)
        for name in ("good", "wrong", "fine", "large")
        for i in range(6)
    ]
    config = {"spec": replace(SPEC, witness="all")}
    run = Run(tmp_path / "results", make="make_witnessed", config=config, workers=2)(jobs)
    refused = {job.id for job in jobs if job.payload.unit.label in ("wrong", "large")}
    assert run.outcome == "done"
    assert set(run.failures) == refused
    assert all(isinstance(error, WitnessError) for error in run.failures.values())
    assert sorted(run.committed) == sorted(job.id for job in jobs if job.id not in refused)
    assert run.rows_written() == 12 * ROWS_PER_UNIT
    assert run.starts == 2, "no engine is lost for it"
    made = {record["compared"] for record in ResultStore(run.results).makers().values()}
    assert made == {"yes"}


def test_rows_of_refused_weights_from_elsewhere_are_left_out(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    path = folder(tmp_path / "m")
    subjects = {"a": subject(path, "a"), "b": subject(path, "b"), "c": subject(path, "c")}
    cells = [SimpleNamespace(cell=SimpleNamespace(key=k, subject=s)) for k, s in subjects.items()]
    store.write_cells([make_cell(key, subject=key) for key in subjects])
    score(store, "a")
    score(store, "b")
    prepared: Any = SimpleNamespace(store=store, grids=[SimpleNamespace(cells=cells)])
    ((label, what),) = left_out(prepared, {"bbbb": "3 nats off", "cccc": "3 nats off"})
    assert (label, what[:20]) == ("b", "1 cells with rows of")
    assert set(store.read()["cell"].to_pylist()) == {"a"}
    assert "1 cells were dropped" in store.left_out()[0]
    assert left_out(prepared, {}) == []
    store.runs.append({"summary": {"disagreed": {"bbbb": "3 nats off"}}})
    assert doubted(prepared) == {"bbbb"}


def test_how_far_apart_counts_as_agreeing() -> None:
    rng = np.random.default_rng(0)
    exact = -10 * rng.random(15)

    def agrees(off: float, dtype: Any = "float32", device: Any = "cpu", **more: bool) -> bool:
        rough = None if dtype == "float32" else exact + 0.01 * rng.normal(size=15)
        return compare(exact + off, exact, rough, dtype, device, **more).agrees

    assert agrees(9e-5)
    assert not agrees(1.1e-4)
    assert agrees(1e-3, device="cuda")
    assert agrees(9e-4, sums=True)
    assert agrees(0.03, "bfloat16")
    assert not agrees(0.2, "bfloat16")
    assert not agrees(np.nan)
    assert not compare(exact[:3], exact, None, "float32", "cpu").agrees


def test_families_seen_are_compared_by_tests() -> None:
    """By ``bench.matrix``: second checkpoints and adapters of each, against transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    from tests.agreement.families import FAMILIES

    assert SEEN["cpu"] <= {NAMES[build().model_type] for build in FAMILIES.values()}


def test_a_config_that_names_no_architecture() -> None:
    assert architecture_of({"model_type": "llama"}) == "LlamaForCausalLM"
    assert architecture_of({"model_type": "llama", "architectures": ["X"]}) == "X"
    assert architecture_of({"model_type": "new"}) == "new"


def test_another_vllm_has_seen_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "evalcore.engines.agreement.package_versions"
    monkeypatch.setattr(module, lambda: {"vllm": "0.32.1"})
    assert is_seen("LlamaForCausalLM", "cpu")
    assert not is_seen("LlamaForCausalLM", "cuda")
    assert not is_seen("NewForCausalLM", "cpu")
    monkeypatch.setattr(module, lambda: {"vllm": "0.33.0"})
    assert not is_seen("LlamaForCausalLM", "cpu")


def test_a_base_too_large_for_the_machine(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert witness_process.too_large(str(tiny_checkpoint)) == ""
    monkeypatch.setattr(witness_process, "available_bytes", lambda: 1 << 30)
    said = witness_process.too_large(str(tiny_checkpoint))
    assert said == "it takes 2.0 GiB in float32, and 1.0 GiB are free"


def test_the_summary_says_what_was_compared() -> None:
    summary = RunSummary(worker_s=20.0, start_s=10.0)
    assert witness_lines(summary) == []
    summary.witnessed = Witnessed(
        agreed=3, disagreed=1, unasked=12, not_compared={"too large": 2}, unseen={"New": 2},
        largest=0.1, gap=3e-6, cpu_s=0.3, start_s=5.0, wait_s=0.5, memory_bytes=3 << 29,
    )  # fmt: skip
    assert witness_lines(summary) == [
        "witness: of subjects and transformers 3 agree, 1 do not and are refused, 12 were not "
        "compared, as others of their kind agree (within 3e-06 nats)",
        "witness: NOT COMPARED with transformers: 2 subjects: too large",
        "witness: no test of this version compares New on this device (2 subjects)",
        "witness: 0.3 s of a core (3.0 % of the time after the start), waited for 0.5 s; its "
        "start 5.0 s, 1.5 GiB",
    ]
