"""evalcore and lm-eval's hf backend say the same of the same model, document by document."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evalcore.lm_eval.outcomes import read_outcomes, read_values
from tests.agreement.lm_eval_compare import Comparison
from tests.agreement.lm_eval_installed import TASKS as INSTALLED
from tests.agreement.lm_eval_installed import write_rows
from tests.agreement.lm_eval_peer import Job, run_lm_eval
from tests.agreement.lm_eval_runs import (
    Models,
    compare_all,
    job,
    make_models,
    run_score,
    selection,
    write_own_task,
)
from tests.agreement.lm_eval_tasks import GROUPS, TASKS, write_tasks

# Every output type, and the corners that differ most from each other.
SAMPLE = [
    "pk_several_tokens", "pk_letters", "pk_unicode", "pk_no_context", "pk_described_shots",
    "pk_mutual", "pk_two_inputs_shots", "pk_several_right", "pk_gold_outside", "pk_long_context",
    "pk_last_word", "pk_rolling", "pk_stops", "pk_filters",
]  # fmt: skip
EVERYTHING = [*TASKS, "pk_code"]
OWN = {"pocket_nli": 40, "pocket_facts": 40, "pocket_describe": 16}


CHAT = {"apply_chat_template": True, "fewshot_as_multiturn": True, "num_fewshot": 1,
        "system_instruction": "Answer briefly.", "fewshot_random_seed": 7, "limit": 3}  # fmt: skip
CHAT_OPTIONS = (
    "--apply_chat_template", "--num_fewshot", 1, "--system_instruction", "Answer briefly.",
    "--seed", 7, "--limit", 3,
)  # fmt: skip
CHAT_TASKS = ["pk_several_tokens", "pk_prefixed", "pk_several_targets", "pk_last_word"]
SAMPLE_DOCUMENTS, OWN_SAMPLE = 6, 6


@dataclass(frozen=True)
class Sample:
    """What both said of a sample of tasks; evalcore's answers lie in ``results``."""

    said: dict[str, Any]
    in_chat: dict[str, Any]
    results: Path
    printed: str
    own: dict[str, str]
    models: Models
    include: Path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """One process of lm-eval and one of evalcore's hf engine, for a base and an adapter."""
    folder = tmp_path_factory.mktemp("lm-eval")
    models = make_models(folder)
    include = write_tasks(folder, SAMPLE_DOCUMENTS)
    own = {write_own_task(include, name, OWN_SAMPLE): name for name in OWN}
    jobs = [
        job(models, [*SAMPLE, *own], include),
        job(models, CHAT_TASKS, include, **CHAT),
    ]
    said, in_chat = run_lm_eval(jobs, folder / "said.json")
    printed = run_score(
        folder / "results", models, "-t", f"{selection([*SAMPLE, 'pk_group'])},{','.join(OWN)}",
        "--include_path", include, "--engine", "hf", "--limit", f"first:{OWN_SAMPLE}",
    )  # fmt: skip
    return Sample(said, in_chat, folder / "results", printed, own, models, include)


@pytest.mark.slow
def test_a_sample_of_tasks(sample: Sample) -> None:
    """Base and adapter; evalcore's own tasks written as lm-eval's are among them."""
    found = compare_all(sample.said, sample.results, sample.own)
    assert len(found) == 2 * (len(SAMPLE) + len(OWN))
    for (model, task), comparison in found.items():
        comparison.check(f"{model}, {task}")
    # Own tasks: evalcore's rendering, encoding and metrics, without lm-eval's text.
    assert found["lora", "own_pocket_nli"].values == 3 * OWN_SAMPLE
    assert found["lora", "own_pocket_facts"].compared == ["acc", "acc_norm", "acc_bytes"]


@pytest.mark.slow
def test_what_is_kept_of_lm_evals_metrics(sample: Sample) -> None:
    assert "lm-eval:pk_letters, step-00100, lm-eval:shots=2: acc " in sample.printed
    groups = [record for record in read_outcomes(sample.results) if "group" in record]
    assert len(groups) == 2
    parts = [
        sample.said["lora"]["results"][task]["acc,none"] for task in GROUPS["pk_group"]["task"]
    ]
    wanted = sum(parts) / len(parts)  # tasks of equal size
    (group,) = [g for g in groups if "lora" in g["label"]]
    assert group["metrics"]["acc,none"] == pytest.approx(wanted, abs=1e-9)
    values = read_values(sample.results).to_pylist()
    letters = [v["value"] for v in values if v["metric"] == "acc_norm" and v["filter"] == "none"]
    assert set(letters) <= {0.0, 1.0}
    assert {v["filter"] for v in values} >= {"strict", "flexible"}


@pytest.mark.slow
def test_a_chat_with_shots_and_system(sample: Sample, tmp_path: Path) -> None:
    run_score(
        tmp_path / "results", sample.models, "-t", selection(CHAT_TASKS),
        "--include_path", sample.include, "--engine", "hf", *CHAT_OPTIONS,
    )  # fmt: skip
    found = compare_all(sample.in_chat, tmp_path / "results")
    assert len(found) == 2 * len(CHAT_TASKS)
    for (model, task), comparison in found.items():
        assert comparison.documents == 3
        comparison.check(f"{model}, {task}")


@pytest.mark.slow
def test_the_comparison_notices_what_is_wrong(sample: Sample) -> None:
    """A proof that cannot fail proves nothing: one number off, another text, another flag."""

    def broken(task: str, change: Callable[[list[dict[str, Any]]], None]) -> str:
        copy = json.loads(json.dumps({"lora": sample.said["lora"]}))
        change(copy["lora"]["samples"][task])
        with pytest.raises(AssertionError) as caught:
            compare_all(copy, sample.results, sample.own)["lora", task].check(task)
        return str(caught.value)

    def shift(samples: list[dict[str, Any]]) -> None:
        samples[1]["resps"][2][0][0] += 3e-4

    def rewrite(samples: list[dict[str, Any]]) -> None:
        samples[0]["resps"][0][0] += "x"

    def flip(samples: list[dict[str, Any]]) -> None:
        samples[2]["resps"][0][0][1] = not samples[2]["resps"][0][0][1]

    assert "off by" in broken("pk_several_tokens", shift)
    assert "other texts" in broken("pk_stops", rewrite)
    assert "greedy" in broken("pk_several_tokens", flip)


@pytest.mark.proof
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no-bos"])
def test_every_task(bos: bool, tmp_path: Path) -> None:
    """Every task on both engines, with a tokenizer that begins texts with BOS and without."""
    models = make_models(tmp_path, bos=bos)
    include = write_tasks(tmp_path)
    (said,) = run_lm_eval([job(models, EVERYTHING, include)], tmp_path / "said.json")
    for engine in ("hf", "vllm"):
        results = tmp_path / engine
        run_score(
            results, models, "-t", selection(EVERYTHING), "--include_path", include,
            "--allow-code", "--engine", engine,
        )  # fmt: skip
        _check_all(compare_all(said, results), 2 * len(EVERYTHING))


@pytest.mark.proof
@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_tasks_that_come_with_lm_eval(engine: str, tmp_path: Path) -> None:
    """Installed task files and their functions, on rows of their columns."""
    models = make_models(tmp_path)
    root = write_rows(tmp_path / "root")
    shots = {"num_fewshot": 2, "limit": 6}
    asked = Job(models.peer_models(), INSTALLED, None, shots, data_root=str(root))
    (said,) = run_lm_eval([asked], tmp_path / "said.json")
    run_score(
        tmp_path / "results", models, "-t", selection(INSTALLED), "--data-root", root,
        "--num_fewshot", 2, "--limit", 6, "--engine", engine,
    )  # fmt: skip
    _check_all(compare_all(said, tmp_path / "results"), 2 * len(INSTALLED))


@pytest.mark.proof
def test_a_model_that_learnt_something(tmp_path: Path) -> None:
    """The pocket model: lm-eval's tasks, and evalcore's own ones written as lm-eval's."""
    from tests.e2e.conftest import MINI_STUDY, run_evalcore

    (tmp_path / "study.yaml").write_text(MINI_STUDY)
    done = run_evalcore("run", tmp_path / "study.yaml")
    assert done.status == 0, done.err + done.out
    adapter = min((tmp_path / "adapters").glob("**/adapter_config.json")).parent
    base = Path(json.loads((adapter / "provenance.json").read_text())["base"]["path"])
    models = Models((base,), ((adapter, base),))
    include = write_tasks(tmp_path)
    own = {write_own_task(include, name, count): name for name, count in OWN.items()}
    (said,) = run_lm_eval([job(models, [*SAMPLE, *own], include)], tmp_path / "said.json")
    for engine in ("hf", "vllm"):
        results = tmp_path / engine
        for tasks, options in (
            (selection(SAMPLE), ("--include_path", include)),
            *((name, ("--limit", f"first:{count}")) for name, count in OWN.items()),
        ):
            run_score(results, models, "-t", tasks, "--engine", engine, *options)
        _check_all(compare_all(said, results, own), 2 * (len(SAMPLE) + len(own)))


def _check_all(found: dict[tuple[str, str], Comparison], wanted: int) -> None:
    assert len(found) == wanted
    for (model, task), comparison in found.items():
        comparison.check(f"{model}, {task}")
