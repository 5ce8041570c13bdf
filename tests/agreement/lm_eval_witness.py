"""Asks lm-eval again about requests on which it and evalcore are apart.

Float32 does not decide every log-probability to 1e-4 nats. Where a model lets a token grow hidden
numbers in the ten thousands and cancels them again (SmolLM2 does on the token after a lone BOS),
rounding is multiplied so often that lm-eval differs from itself by more than that when only its
batch size changes. Such a value is recognised by asking lm-eval itself: in float64, which decides
it, and in float32 in other batches, by both of transformers' ways to attend.

A process of its own, as in lm_eval_peer: ``lm_eval_witness.py REQUEST OUT``, both JSON files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH_SIZES = (1, 2, 3, 8, 32)
"""Of lm-eval in float32; other requests fill the batches."""


@dataclass(frozen=True)
class Witness:
    """What lm-eval says of some requests.

    Attributes:
        exact: In float64, one by one.
        rounded: In float32, for each of ``BATCH_SIZES`` and each way to attend.
    """

    exact: list[float]
    rounded: list[list[float]]


def ask_again(
    model: Mapping[str, Any],
    requests: Sequence[Sequence[str]],
    company: Sequence[Sequence[str]],
    out: Path,
    timeout_s: float = 3600,
) -> Witness:
    """lm-eval's answers to (context, continuation) requests, from one other process.

    Args:
        model: Arguments of its hf model (pretrained, peft, max_length), without dtype.
        requests: Texts as its samples give them.
        company: Other requests, asked in the same batches.
        out: File for the answers.
        timeout_s: Seconds it may take.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    request = out.with_suffix(".request.json")
    texts = {"requests": [*map(list, requests)], "company": [*map(list, company)]}
    request.write_text(json.dumps({"model": dict(model), **texts}))
    done = subprocess.run(
        [sys.executable, __file__, str(request), str(out)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Witness(**json.loads(out.read_text("utf-8")))


def main(arguments: Sequence[str]) -> None:
    from lm_eval.models.huggingface import HFLM

    asked = json.loads(Path(arguments[0]).read_text("utf-8"))
    wanted = asked["requests"]

    def answers(lm: Any, texts: Sequence[Sequence[str]]) -> list[float]:
        return [value for value, _ in lm.loglikelihood(_instances(texts), True)][: len(wanted)]

    alone = {**asked["model"], "device": "cpu", "batch_size": 1}
    exact = answers(HFLM(**alone, dtype="float64"), wanted)
    rounded = []
    for way in ("sdpa", "eager"):
        lm = HFLM(**alone, dtype="float32", attn_implementation=way)
        for lm.batch_size_per_gpu in BATCH_SIZES:
            rounded.append(answers(lm, [*wanted, *asked["company"]]))
    Path(arguments[1]).write_text(json.dumps({"exact": exact, "rounded": rounded}), "utf-8")


def _instances(requests: Sequence[Sequence[str]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance("loglikelihood", {}, (context, continuation), i)
        for i, (context, continuation) in enumerate(requests)
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
