"""A worker with a real engine: every way of answering and every output type, from text to rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.engines.hf import HFEngine
from evalcore.engines.protocol import EngineSpec
from evalcore.identity import resolve_subjects
from evalcore.metrics import cell_scores, needs_unconditional
from evalcore.planning import Unit, UnitSlice
from evalcore.prompting import cached_requests, load_tokenizer
from evalcore.scoring import CellWork, ScoringWorker, UnitJob, WorkerConfig
from evalcore.scoring.certificates.judging import judge
from evalcore.store import ResultStore
from evalcore.types import (
    Cell,
    Document,
    EncodingSettings,
    GenerateBatch,
    GenerateResult,
    GenerationSettings,
    ScoreBatch,
    ScoreResult,
    Task,
    Variant,
)

pytestmark = pytest.mark.slow  # torch, transformers and a model

LABELS = ("entailment", "neutral", "contradiction")
CHOICE = Task("t", 1, "g", "multiple_choice", ("acc", "acc_mutual_info"), "acc", choices=LABELS)
ROLLED = Task("r", 1, "g", "loglikelihood_rolling", ("bits_per_byte",), "bits_per_byte")
SPOKEN = Task("l", 1, "g", "loglikelihood", ("perplexity", "acc"), "perplexity")
WRITER = Task("w", 1, "g", "generate_until", ("rouge_l",), "rouge_l",
              generation=GenerationSettings(6))  # fmt: skip
PLAIN = Variant("default", "g", "{{ text }}\nRelation:")
WINDOW = 7
TEXTS = ("the old mill", "Dorira is a baker", "behind the quiet harbour", "a dog")


def documents(task: Task) -> list[Document]:
    choices = task.choices
    return [
        Document(f"{i:032x}", i, {"text": text}, choices, i % 3 if choices else -1,
                 () if choices else (f" {text} stands behind",))
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip


def unit_of(
    cells: dict[str, tuple[Cell, EncodingSettings]], folder: Path, checkpoint: Path
) -> Unit:
    """All documents of some cells of one subject."""
    slices = []
    for key, (cell, limits) in cells.items():
        path = cached_requests(folder / "cache", cell.task, cell.variant, documents(cell.task), [],
                               checkpoint, limits,
                               unconditional=needs_unconditional(cell.task))  # fmt: skip
        slices.append(UnitSlice(key, str(path), np.arange(len(TEXTS), dtype=np.int32)))
    (subject,) = {cell.subject for cell, _ in cells.values()}
    return Unit("u", subject, tuple(slices), len(slices) * len(TEXTS), 0)


def worker_of(results: Path) -> ScoringWorker:
    ResultStore(results)
    spec = EngineSpec(kind="hf", dtype="float32", max_length=64, device="cpu", threads=1)
    return ScoringWorker(WorkerConfig(str(results), spec))


@pytest.fixture(scope="module")
def rows(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """Example rows by name of cell, all scored in one unit."""
    folder = tmp_path_factory.mktemp("worker")
    (subject,) = resolve_subjects([], [str(tiny_checkpoint)]).subjects
    settings = EncodingSettings(max_length=WINDOW)
    wide = EncodingSettings(max_length=64)
    cells: dict[str, tuple[Cell, EncodingSettings]] = {
        way: (Cell(way, subject, CHOICE, replace(PLAIN, answer=way, fingerprint=way)), wide)  # type: ignore[arg-type]
        for way in ("choices", "first_token", "constrained", "free")
    }
    cells["rolled"] = (Cell("rolled", subject, ROLLED, PLAIN), settings)
    cells["spoken"] = (Cell("spoken", subject, SPOKEN, PLAIN), wide)
    cells["written"] = (Cell("written", subject, WRITER, PLAIN), wide)
    unit = unit_of(cells, folder, tiny_checkpoint)
    results = folder / "results"
    worker = worker_of(results)
    worker.run(UnitJob(unit, {key: CellWork.of(cell) for key, (cell, _) in cells.items()}))
    worker.close()
    table = ResultStore(results, read_only=True).examples()
    found: dict[str, list[dict]] = {key: [] for key in cells}
    for row in table.to_pylist():
        found[row["cell"]].append(row)
    return {key: sorted(own, key=lambda row: row["doc_index"]) for key, own in found.items()}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint).eval()


def next_logprobs(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def test_constrained_answers_equal_decoding_with_a_mask(
    rows: dict[str, list[dict]], model: Any, tiny_checkpoint: Path
) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    for row, text in zip(rows["constrained"], TEXTS, strict=True):
        context = tokenizer(f"{text}\nRelation:")["input_ids"]
        wanted = [tokenizer(f" {label}", add_special_tokens=False)["input_ids"] for label in LABELS]
        written: list[int] = []
        while written not in wanted:
            allowed = sorted({w[len(written)] for w in wanted if w[: len(written)] == written})
            scores = next_logprobs(model, context + written)
            written = [*written, max(allowed, key=lambda token: float(scores[token]))]
        assert row["prediction"] == wanted.index(written)
    assert [r["choice_logprobs"] for r in rows["constrained"]] == [
        r["choice_logprobs"] for r in rows["choices"]
    ]


def test_first_tokens_and_bare_choices(
    rows: dict[str, list[dict]], model: Any, tiny_checkpoint: Path
) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    first = [tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0] for label in LABELS]
    for row, text in zip(rows["first_token"], TEXTS, strict=True):
        scores = next_logprobs(model, tokenizer(f"{text}\nRelation:")["input_ids"])
        expected = [float(scores[token]) for token in first]
        assert row["choice_logprobs"] == pytest.approx(expected, abs=1e-4)
        assert row["choice_tokens"] == [1, 1, 1]
        assert row["prediction"] == int(np.argmax(expected))
    alone = next_logprobs(model, [tokenizer.bos_token_id])
    for row in rows["first_token"] + rows["choices"]:
        assert len(row["unconditional_logprobs"]) == 3
        assert all(
            value <= float(alone[token]) + 1e-4
            for value, token in zip(row["unconditional_logprobs"], first, strict=True)
        )


def test_free_answers_have_text_and_scores(rows: dict[str, list[dict]]) -> None:
    for row, ranked in zip(rows["free"], rows["choices"], strict=True):
        assert row["text"] is not None
        assert row["gen_tokens"] <= 5
        assert row["prediction"] in (-1, 0, 1, 2)
        assert row["choice_logprobs"] == ranked["choice_logprobs"]
        assert ranked["text"] is None


def test_windows_and_sentences(
    rows: dict[str, list[dict]], model: Any, tiny_checkpoint: Path
) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    for row in rows["rolled"]:
        (text,) = row["references"]
        ids = tokenizer(text)["input_ids"]
        start = tokenizer.bos_token_id
        total = 0.0
        for k, token in enumerate(ids):
            window = k // WINDOW
            end = min(len(ids), WINDOW * (window + 1))
            before = [start, *ids][max(0, end - WINDOW) if window else 0 : k + 1]
            total += float(next_logprobs(model, before)[token])
        assert sum(row["choice_logprobs"]) == pytest.approx(total, abs=1e-3)
        assert len(row["choice_logprobs"]) == -(-len(ids) // WINDOW) > 1
    for row in rows["spoken"]:
        assert len(row["choice_logprobs"]) == 1
        assert (row["gold"], row["prediction"]) == (-1, -1)
    for row in rows["written"]:
        assert row["text"] is not None
        assert len(row["choice_logprobs"]) == 1


def test_all_rows_can_be_valued(rows: dict[str, list[dict]]) -> None:
    from tests.toys.tables import to_table

    about = {"choices": CHOICE, "first_token": CHOICE, "constrained": CHOICE, "free": CHOICE,
             "rolled": ROLLED, "spoken": SPOKEN, "written": WRITER}  # fmt: skip
    joined = [
        {**row, "output_type": about[key].output_type, "answer": key if about[key].choices else
         "choices", "metrics": list(about[key].metrics), "primary_metric": about[key].primary}
        for key, own in rows.items()
        for row in own
    ]  # fmt: skip
    for score in cell_scores(to_table(joined)).to_pylist():
        assert score["n"] == len(TEXTS)
        assert score["value"] == score["value"]


class Moody(HFEngine):
    """Answers well at first; every later time the worst choice comes out best."""

    asked = 0

    def score(self, batch: ScoreBatch) -> ScoreResult:
        self.asked += 1
        result = super().score(batch)
        if self.asked == 1:
            return result
        return replace(result, token_logprobs=-result.token_logprobs)

    def generate(self, batch: GenerateBatch) -> GenerateResult:
        result = super().generate(batch)
        if self.asked == 1:
            return result
        return replace(result, texts=[f"{text} AGAIN" for text in result.texts])


@pytest.mark.parametrize("engine", [HFEngine, Moody])
def test_certificates_see_an_engine_that_answers_differently_the_second_time(
    engine: type[HFEngine], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalcore.scoring.worker.create_engine", lambda spec: engine(spec))
    (subject,) = resolve_subjects([], [str(tiny_checkpoint)]).subjects
    limits = EncodingSettings(max_length=64)
    cells = {
        name: (Cell(name, subject, task, PLAIN), limits)
        for name, task in (("choice", CHOICE), ("spoken", SPOKEN), ("written", WRITER))
    }
    works = {key: CellWork.of(cell) for key, (cell, _) in cells.items()}
    every = np.arange(len(TEXTS))
    sample = {"choice": every, "spoken": every[:2], "written": every}
    worker = worker_of(tmp_path / "results")
    report = worker.run(UnitJob(unit_of(cells, tmp_path, tiny_checkpoint), works, sample)).result
    worker.close()
    assert report.rescored.texts == 4
    found = judge(report.rescored, "float32")
    # 4 x 3 choices and as many alone (mutual information), and 2 + 4 references.
    assert found.choices == 4 * 3 * 2 + 2 + 4
    if engine is HFEngine:
        assert found.max_difference < 1e-4
        assert (found.flips, found.changed_texts) == (0, 0)
        assert found.holds
    else:
        assert found.max_difference > 1
        assert found.flips == len(TEXTS)
        assert found.changed_texts == 4
        assert not found.holds
        assert found.lines()[-1].startswith("NOT CERTIFIED: ")
    stored = ResultStore(tmp_path / "results", read_only=True).examples()
    assert len(stored) == 12  # nothing of the second time
    assert all("AGAIN" not in (text or "") for text in stored["text"].to_pylist())
