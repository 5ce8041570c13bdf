"""Cost before training: tokens against those really trained, operations, memory, shared GPUs."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evalcore.app.overlap import split_gpus
from evalcore.app.study import StudyOptions
from evalcore.app.tuning import collect_loss_curves, dry_run_lines, jobs_per_gpu
from evalcore.errors import InputError
from finetune import (
    Assumption,
    MethodSpec,
    Selection,
    TuneConfig,
    TuneJob,
    TuneWorker,
    check_data,
    estimate,
    job_bytes,
    parse_study,
    plan_jobs,
)
from finetune.api import Devices, _worker_env
from finetune.estimate import flops_per_token, parameters_of

STUDY = """
name: small
checkpoints: {paths: ["step-*"]}
method: {epochs: 2, batch_size: 8, rank: 2}
tunings:
  - {name: nli, task: pocket_nli, examples: 24, seeds: [5]}
  - {name: nli+full, task: pocket_nli, examples: 24, method: {kind: full, learning_rate: 1.0e-4}}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_checkpoint(folder / "step-00007", seed=7, tied=True)
    return folder


@pytest.fixture(scope="module")
def jobs(out: Path) -> list[TuneJob]:
    return list(plan_jobs(parse_study(STUDY, out / "s.yaml"), out).jobs)


def test_estimated_tokens_are_the_trained_ones_and_curves_are_collected(
    out: Path, jobs: list[TuneJob]
) -> None:
    assert len(collect_loss_curves(out)) == 0
    study = parse_study(STUDY, out / "s.yaml")
    costs = estimate(study, jobs, check_data(jobs), Assumption())
    worker = TuneWorker(TuneConfig(threads=1, device="cpu"))
    results = [worker.run(job) for job in jobs]
    # Whole passes over all rows: the mean row makes an exact sum.
    assert [cost.tokens for cost in costs] == [result.tokens for result in results]
    curves = collect_loss_curves(out)
    assert curves.column_names == [
        "checkpoint", "base_step", "name", "tuning", "kind", "control", "seed", "step", "loss",
        "learning_rate", "completion_tokens",
    ]  # fmt: skip
    rows = curves.to_pylist()
    assert [(r["kind"], r["name"], r["seed"]) for r in rows] == (
        [("lora", "nli-seed5", 5)] * 6 + [("full", "nli+full", 0)] * 6
    )
    assert {(r["checkpoint"], r["base_step"], r["control"]) for r in rows} == {
        ("step-00007", 7, None)
    }
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6] * 2
    for result, mine in zip(results, (rows[:6], rows[6:]), strict=True):
        assert mine[0]["loss"] == pytest.approx(result.first_loss)
    (out / "adapters" / "step-00007" / "nli-seed5" / "loss.arrow").write_bytes(b"ARROW1 no more")
    with pytest.raises(InputError, match="is broken"):
        collect_loss_curves(out)


def test_operations_and_hours(out: Path, jobs: list[TuneJob]) -> None:
    lora, full = MethodSpec(), MethodSpec(kind="full", learning_rate=1e-5)
    assert flops_per_token(full, 10) == 60
    assert flops_per_token(lora, 10) == 40
    assert flops_per_token(lora.merged({"gradient_checkpointing": True}), 10) == 60
    assert flops_per_token(lora, None) is None
    study = parse_study(STUDY, out / "s.yaml")
    (cost,) = estimate(study, jobs[:1], check_data(jobs[:1]), Assumption(100, 0.5))
    parameters = parameters_of(jobs[0].checkpoint)
    assert parameters is not None
    assert cost.flops == cost.tokens * 4 * parameters  # type: ignore[operator]
    assert cost.gpu_hours == pytest.approx(cost.flops / 50e12 / 3600)
    for wrong in ((0, 0.3), (312, 0), (312, 1.5)):
        with pytest.raises(InputError, match="positive peak"):
            Assumption(*wrong)


def test_a_tied_head_is_counted_once(out: Path, jobs: list[TuneJob]) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(out / "step-00007" / "model.safetensors")
    assert parameters_of(jobs[0].checkpoint) == sum(np.prod(t.shape) for t in tensors.values())


def test_an_adapters_disk_is_known_from_the_bases_config_alone(
    out: Path, jobs: list[TuneJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: ``disk unknown`` until the base's weights were there."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub = STUDY.replace('paths: ["step-*"]', "hub: [{repo: org/base, revisions: [one, two]}]")
    study = parse_study(hub, tmp_path / "s.yaml")

    def planned() -> tuple[list[int | None], str]:
        lines = "\n".join(dry_run_lines(study, StudyOptions(study.file, tmp_path / "out")))
        jobs = plan_jobs(study, tmp_path / "out", at_hand_only=True).jobs
        return [cost.disk for cost in estimate(study, jobs, {}, Assumption())], lines

    found, said = planned()
    assert found == [None] * 4
    wanted = "disk of 4 models unknown: neither weights nor config.json of their bases are at hand"
    assert f"{wanted}; hf download org/base config.json --revision one" in said
    snapshot = tmp_path / "models--org--base/snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    shutil.copy(out / "step-00007/config.json", snapshot)
    found, said = planned()
    here = [cost.disk for cost in estimate(study, jobs, {}, Assumption())]
    assert found == here * 2
    assert "unknown: neither" not in said


def test_a_selection_costs_every_candidate(out: Path, jobs: list[TuneJob]) -> None:
    study = parse_study(STUDY, out / "s.yaml")
    job = replace(jobs[0], selection=Selection((1e-3, 1e-4, 1e-5), held_out_rows=8))
    (plain,) = estimate(study, jobs[:1], check_data(jobs[:1]), Assumption())
    (chosen,) = estimate(study, [job], check_data([job]), Assumption())
    # 16 rows twice and 8 scored once, three times over, then the best on 24 rows twice.
    ratio = (3 * (2 * 16 + 8) + 2 * 24) / (2 * 24)
    assert chosen.tokens / plain.tokens == pytest.approx(ratio, rel=1e-3)  # type: ignore[operator]


def test_memory_grows_with_what_is_trained(jobs: list[TuneJob]) -> None:
    lora, full = (job_bytes(job) for job in jobs)
    assert lora is not None
    assert full is not None
    parameters = parameters_of(jobs[0].checkpoint)
    assert full - lora == pytest.approx(16 * parameters, rel=0.5)  # type: ignore[operator]
    assert jobs_per_gpu(jobs, memory=full * 3) == 2
    assert jobs_per_gpu(jobs, memory=full // 2) == 1
    assert jobs_per_gpu(jobs, memory=full * 1000) == 8
    away = replace(jobs[0], checkpoint=replace(jobs[0].checkpoint, path=""))
    assert jobs_per_gpu([away], memory=2**40) == 1


def test_where_workers_run() -> None:
    assert Devices().places(1) == []
    two = Devices(gpus=("0", "1"), jobs_per_gpu=2)
    assert two.places(1) == ["0", "1", "0", "1"]
    assert two.places(2) == ["0,1"]
    assert [Devices(ray_gpus=0.5).ray_share(n) for n in (1, 2)] == [0.5, 2.0]
    assert Devices().ray_share(2) == 0.0
    four = Devices(gpus=("4", "5", "6", "7"))
    assert four.places(2) == ["4,5", "6,7"]
    assert four.places(3) == ["4,5,6"]
    with pytest.raises(InputError, match=r"method.devices is 3, but there are 2 GPUs"):
        two.places(3)
    assert _worker_env(2, ("4,5", "6,7"), 1)["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert "CUDA_VISIBLE_DEVICES" not in _worker_env(2, (), 0)


def test_gpus_are_split_between_the_stages() -> None:
    assert split_gpus([], 1, 1) == ([], [])
    assert split_gpus(["0"], 1, 1) == (["0"], [])
    assert split_gpus(["0", "1", "2"], 1, 1) == (["0", "1"], ["2"])
    assert split_gpus(["0", "1", "2", "3"], 3, 1) == (["0", "1", "2"], ["3"])
    assert split_gpus(["0", "1", "2", "3"], 1, 3) == (["0"], ["1", "2", "3"])
    assert split_gpus(["0", "1"], 2, 1) == (["0", "1"], [])
    for count, job, engine in itertools.product(range(9), range(1, 9), range(1, 9)):
        names = [str(i) for i in range(count)]
        tuning, scoring = split_gpus(names, job, engine)
        assert tuning + scoring == names, "no GPU is of both"
        assert len(tuning) >= min(job, count)
        assert not scoring or len(scoring) >= engine
        assert bool(scoring) == (job + engine <= count)
