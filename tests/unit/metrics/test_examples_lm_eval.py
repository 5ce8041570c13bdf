"""Our metrics, fed with the answers lm-evaluation-harness's own code is fed with, equal its."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evalcore.metrics import cell_scores
from evalcore.store import CELL_SCHEMA, EXAMPLE_SCHEMA
from evalcore.store.schema import joined_name

pytest.importorskip("lm_eval", reason="the peers extra is not installed")

WORDS = ["mill", "harbour", "é", "猫", "a", "the quiet", "Gorse.", "12"]
JOINED = pa.schema(
    [
        *EXAMPLE_SCHEMA,
        *(f.with_name(joined_name(f.name)) for f in CELL_SCHEMA if f.name != "cell"),
    ]
)


def peer(output_type: str, metrics: list[str], *, several: bool = False) -> Any:
    """A task of lm-eval that values results by its own ``process_results``; no data set behind."""
    from lm_eval.api.registry import get_metric, get_metric_aggregation
    from lm_eval.api.task import ConfigurableTask

    class Fed(ConfigurableTask):
        def __init__(self) -> None:
            self._config = SimpleNamespace(process_results=None, doc_to_choice=None)
            self.OUTPUT_TYPE = output_type
            self.multiple_input, self.multiple_target = False, several
            self._metric_fn_list = {name: get_metric(name) for name in metrics}
            self._metric_fn_kwargs = {name: {} for name in metrics}
            self._aggregation_list = {name: get_metric_aggregation(name) for name in metrics}
            self._higher_is_better = {}

        def doc_to_choice(self, doc: Any) -> Any:
            return doc["choices"]

        def doc_to_target(self, doc: Any) -> Any:
            return doc["target"]

    return Fed()


def peer_scores(task: Any, fed: list[tuple[dict, list]]) -> dict[str, float]:
    """lm-eval's aggregated value of each metric."""
    values: dict[str, list] = {}
    for doc, results in fed:
        for name, value in task.process_results(doc, results).items():
            values.setdefault(name, []).append(value)
    return {name: float(task.aggregation()[name](items)) for name, items in values.items()}


def ours(rows: list[dict], output_type: str, metrics: list[str]) -> dict[str, dict]:
    """Our row of cell scores by metric."""
    shared = {"cell": "c", "output_type": output_type, "flags": [], "answer": "choices"}
    table = pa.Table.from_pylist(
        [{"doc_id": str(i), **shared, **row} for i, row in enumerate(rows)], schema=JOINED
    )
    return {row["metric"]: row for row in cell_scores(table, metrics).to_pylist()}


@pytest.mark.parametrize("choices", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_multiple_choice(choices: int, seed: int) -> None:
    rng = np.random.default_rng([seed, choices])
    names = {"acc": "acc", "acc_norm": "acc_norm", "acc_bytes": "acc_bytes", "mcc": "mcc",
             "acc_mutual_info": "acc_mutual_info", "brier_score": "brier",
             "exact_match": "greedy_match"}  # fmt: skip
    if choices == 2:
        names["f1"] = "f1"
    fed, rows = [], []
    for _ in range(200):
        texts = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(choices)]
        # One decimal, so that choices tie now and then.
        values = np.round(rng.normal(-9, 2, choices), 1)
        bare = np.round(rng.normal(-12, 3, choices), 1)
        greedy = rng.random(choices) < 0.2
        gold = int(rng.integers(choices))
        results = [(float(v), bool(g)) for v, g in zip(values, greedy, strict=True)]
        results += [(float(v), False) for v in bare]
        fed.append(({"choices": texts, "target": gold}, results))
        rows.append(
            {
                "gold": gold,
                "choice_logprobs": values.tolist(),
                "unconditional_logprobs": bare.tolist(),
                "choice_chars": [len(t) for t in texts],
                "choice_bytes": [len(t.encode()) for t in texts],
                "is_greedy": greedy.tolist(),
            }
        )
    task = peer("multiple_choice", list(names))
    expected = peer_scores(task, fed)
    found = ours(rows, "multiple_choice", list(names.values()))
    assert set(expected) == set(names)
    for theirs, mine in names.items():
        assert found[mine]["value"] == pytest.approx(expected[theirs], abs=1e-9), theirs
    check_mean_errors(task, fed, found, ["acc", "acc_norm", "acc_bytes"])


def check_mean_errors(
    task: Any, fed: list[tuple[dict, list]], found: dict[str, dict], names: list[str]
) -> None:
    """Standard errors of means are lm-eval's as well."""
    from lm_eval.api.metrics import mean_stderr

    for name in names:
        values = [task.process_results(doc, results)[name] for doc, results in fed]
        assert found[name]["stderr"] == pytest.approx(mean_stderr(values), abs=1e-9)
        assert found[name]["stderr_method"] == "analytic"


def test_several_right_choices() -> None:
    rng = np.random.default_rng(3)
    fed, rows = [], []
    for _ in range(80):
        values = rng.normal(-5, 1, 4)
        golds = sorted(rng.choice(4, 2, replace=False).tolist())
        fed.append(
            ({"choices": list("abcd"), "target": golds}, [(float(v), False) for v in values])
        )
        rows.append({"gold": golds[0], "golds": golds, "choice_logprobs": values.tolist(),
                     "choice_chars": [1] * 4})  # fmt: skip
    expected = peer_scores(peer("multiple_choice", ["acc", "acc_norm"], several=True), fed)
    found = ours(rows, "multiple_choice", ["acc", "acc_norm"])
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-9)
    assert 0.3 < expected["acc"] < 0.8


def test_loglikelihood() -> None:
    rng = np.random.default_rng(4)
    nats, greedy = rng.normal(-4, 2, 150), rng.random(150) < 0.3
    fed: list[tuple[dict, list]] = [
        ({"target": "x"}, [(float(v), bool(g))]) for v, g in zip(nats, greedy, strict=True)
    ]
    rows = [
        {"gold": -1, "choice_logprobs": [float(v)], "is_greedy": [bool(g)],
         "references": ["x"], "choice_bytes": [1]}
        for v, g in zip(nats, greedy, strict=True)
    ]  # fmt: skip
    expected = peer_scores(peer("loglikelihood", ["perplexity", "acc"]), fed)
    found = ours(rows, "loglikelihood", ["perplexity", "acc", "greedy_match"])
    assert found["perplexity"]["value"] == pytest.approx(expected["perplexity"], rel=1e-9)
    assert found["acc"]["value"] == pytest.approx(expected["acc"], abs=1e-9)
    assert found["greedy_match"]["value"] == found["acc"]["value"]


def test_rolling() -> None:
    rng = np.random.default_rng(5)
    names = ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    fed, rows = [], []
    for _ in range(60):
        text = "".join(
            str(rng.choice(WORDS)) + str(rng.choice([" ", "\n", "  "]))
            for _ in range(rng.integers(1, 40))
        )
        windows = rng.normal(-30, 9, rng.integers(1, 4)).tolist()
        fed.append(({"target": text}, [sum(windows)]))
        rest = [0] * (len(windows) - 1)
        rows.append(
            {"gold": -1, "choice_logprobs": windows, "references": [text],
             "choice_bytes": [len(text.encode()), *rest], "choice_chars": [len(text), *rest]}
        )  # fmt: skip
    expected = peer_scores(peer("loglikelihood_rolling", names), fed)
    found = ours(rows, "loglikelihood_rolling", [*names, "gold_bits_per_byte"])
    for name in names:
        assert found[name]["value"] == pytest.approx(expected[name], rel=1e-9), name
        assert found[name]["stderr_method"] == "delta"
    bits = [
        -sum(r["choice_logprobs"]) / math.log(2) / r["choice_bytes"][0]  # type: ignore[call-overload]
        for r in rows
    ]
    assert found["gold_bits_per_byte"]["value"] == pytest.approx(np.mean(bits), rel=1e-9)


def test_generated_text_verbatim() -> None:
    rng = np.random.default_rng(6)
    texts = [str(rng.choice([" mill", "mill", "Mill", "猫"])) for _ in range(90)]
    wanted = [str(rng.choice(["mill", "猫"])) for _ in range(90)]
    fed: list[tuple[dict, list]] = [
        ({"target": w}, [t]) for t, w in zip(texts, wanted, strict=True)
    ]
    rows = [
        {"gold": -1, "text": t, "references": [w], "choice_logprobs": []}
        for t, w in zip(texts, wanted, strict=True)
    ]
    expected = peer_scores(peer("generate_until", ["exact_match"]), fed)["exact_match"]
    found = ours(rows, "generate_until", ["exact_match_verbatim", "exact_match"])
    assert found["exact_match_verbatim"]["value"] == pytest.approx(expected, abs=1e-9)
    # White space at the ends does not count in ours for our own tasks.
    assert found["exact_match"]["value"] > expected
