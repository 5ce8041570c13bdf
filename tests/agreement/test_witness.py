"""The witness beside a real engine: honest loads agree, seeded faults are refused without a proof.

The whole worker runs, with vLLM, the witness's process and the results folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from evalcore.engines.protocol import EngineSpec
from evalcore.engines.witness import WitnessProcess
from evalcore.errors import WitnessError
from evalcore.planning import UnitSlice
from evalcore.planning.unit import make_unit
from evalcore.scoring import CellWork, ScoringWorker, UnitJob, Witnessed, WorkerConfig
from evalcore.store import ResultStore
from evalcore.types import Checkpoint, Subject
from tests.agreement.engine_models import save_adapter, save_model, subject
from tests.agreement.engine_processes import Child, import_vllm
from tests.agreement.mutation_cases import FAULTS
from tests.agreement.mutations import Scene
from tests.toys.scoring import write_requests

pytestmark = pytest.mark.slow
SPEC = EngineSpec(device="cpu", threads=2, max_length=256)
Step = tuple[str, Subject, str, bool]
"""Name of the unit, whose it is, the fault in its load or "", whether tests know the family."""


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """The engine's process."""
    one = Child(import_vllm)
    yield one
    one.close()


@contextlib.contextmanager
def no_proof() -> Iterator[None]:
    """The proof says yes to everything: only the witness is left."""
    from evalcore.engines.vllm.merging import MergeCheck
    from evalcore.engines.vllm.proof import Verdict
    from evalcore.engines.vllm.resident import Resident

    def believe(self: Any, subject: Subject, answers: Any, when: str, details: Any) -> None:
        self._verdict = Verdict(proven=set(self._trusted) or {"everything"}, share=1.0)

    with (
        patch.object(Resident, "_accept", believe),
        patch.object(MergeCheck, "finish", lambda self, label: None),
    ):
        yield


def scored(
    folder: str, steps: list[Step], doubted: frozenset[str], tokens: Sequence[int] = ()
) -> tuple[dict[str, str], dict[str, int], list[str], Witnessed]:
    """What was refused and why, rows on disk by cell, what they were compared with, and the cost.

    Each step is a unit of five rows, scored without a proof; ``tokens``: of each step's contexts.
    """
    root = Path(folder)
    tokens = tokens or [2] * len(steps)
    files = {n: write_requests(root / f"{n}.arrow", tokens=n) for n in set(tokens)}
    ResultStore(root / "results")
    config = WorkerConfig(str(root / "results"), SPEC, 0.0, doubted)
    worker: Any = ScoringWorker(config, 0)
    refused: dict[str, str] = {}
    told = Witnessed()
    names: dict[str, str] = {}
    place: Subject | None = None

    def took(reply: Any) -> None:
        nonlocal told
        told = told.plus(reply.result.witnessed)
        refused.update({names[job]: info.message for job, info in reply.refused})

    with no_proof():
        for (name, who, fault, seen), length in zip(steps, tokens, strict=True):
            rows = np.arange(5, dtype=np.int32)
            unit = make_unit((who,), (UnitSlice(name, str(files[length]), rows),), 5, 100)
            names[unit.id] = name
            context: Any = contextlib.nullcontext()
            if fault:
                assert place is not None
                context = FAULTS[fault].context(Scene(worker._engine, place, who))
            known = patch("evalcore.scoring.witnessing.is_seen", lambda *_, seen=seen: seen)
            try:
                with context, known:
                    took(worker.run(UnitJob(unit, {name: CellWork("choices")})))
            except WitnessError as error:
                refused[name] = f"at once: {error}"
            place = who
            worker._witness.wait()
        took(worker.flush())
    worker.close()
    store = ResultStore(root / "results")
    counts = {cell: len(ids) for cell, ids in store.coverage().items()}
    return refused, counts, sorted(r["compared"] for r in store.makers().values()), told


def test_the_worker_and_its_witness(child: Child, tmp_path: Path) -> None:
    """Honest loads are stored as compared, faults that no proof sees are refused."""
    first, second = (save_model(tmp_path / f"step-{seed}", "llama-untied", seed) for seed in (1, 2))
    tuned, other = (save_adapter(tmp_path / f"t{seed}", first, seed, r=4) for seed in (11, 12))
    base, later = subject(first), subject(second)
    one, two = subject(first, tuned), subject(first, other)
    steps = [
        ("first of its kind", base, "", True),
        ("merged twice", one, "scaled twice", True),
        ("base again", base, "", True),
        ("of a family not seen", two, "scaled twice", False),
        ("doubted", later, "a layer kept", True),
        ("merged by another engine", subject(second, other), "", True),
    ]
    doubted = frozenset({later.weights})
    refused, counts, compared, told = child.call(scored, str(tmp_path), steps, doubted)
    wrong = {"merged twice", "doubted", "of a family not seen"}
    assert refused.keys() == wrong, refused
    assert counts == {name: 5 for name, *_ in steps if name not in wrong}
    assert all("nats from transformers' (allowed 0.0001" in why for why in refused.values())
    assert refused["of a family not seen"].startswith("at once: ")
    assert set(compared) == {"yes"}
    assert (told.agreed, told.disagreed) == (2, 3)
    assert told.gap < 2e-5
    assert told.cpu_s > 0 < told.memory_bytes


def test_long_texts_and_their_witness(child: Child, tmp_path: Path) -> None:
    """A family that vLLM reads otherwise beyond its window (48 tokens; canaries have 38)."""
    wrong, right = (
        subject(save_model(tmp_path / kind, f"{kind}-sliding", 1))
        for kind in ("cohere2", "mistral")
    )
    tuned = subject(tmp_path / "mistral", save_adapter(tmp_path / "t", tmp_path / "mistral", 2))
    steps = [
        ("short", wrong, "", False),
        ("long", wrong, "", False),
        ("longer", right, "", True),
        ("merged", tuned, "", True),
        ("longest", right, "", True),
    ]
    found = child.call(scored, str(tmp_path), steps, frozenset(), [2, 150, 100, 150, 200])
    refused, counts, compared, told = found
    assert refused.keys() == {"long"}, refused
    assert "its scores of texts of 152 tokens are" in refused["long"]
    assert counts == {name: 5 for name, *_ in steps if name != "long"}
    assert set(compared) == {"yes"}
    assert (told.agreed, told.disagreed, told.tokens) == (3, 1, 202)
    assert told.gap < 2e-5


def subject_without_weights(folder: Path) -> Subject:
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return Subject(Checkpoint("empty", str(folder), "0" * 32, "1" * 32))


def test_a_witness_that_cannot_or_is_killed(tmp_path: Path) -> None:
    process = WitnessProcess(SPEC)
    process.ask(subject_without_weights(tmp_path), 512)
    answers: list[Any] = []
    while not answers:
        answers += process.poll(1.0)
    assert "transformers cannot score it" in answers[0].reason
    assert process.start_s > 0
    process.ask(subject_without_weights(tmp_path), 512)
    process._process.kill()
    while len(answers) < 2:
        answers += process.poll(1.0)
    assert answers[1].reason == "the witness ended (killed by SIGKILL)"
    assert process.gone
