"""Two dozen folders as found in the wild in one command: scored as PEFT scores them, or named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from evalcore.cli import cli
from evalcore.store import ResultStore
from tests.conftest import write_checkpoint
from tests.e2e.found_folders import House, build

TASK = """
name: mill
version: 1
group: mini
description: made for this test
output_type: multiple_choice
source: {path: rows}
splits: {score: test}
fields: {q: q}
choices: {labels: ['yes', 'no']}
gold: {column: gold}
metrics: [acc]
primary: acc
"""


def by_peft(base: Path, adapter: Path | None, questions: list[str]) -> np.ndarray:
    """float64 [documents, 2]: summed log-probabilities of " yes" and " no" after each question."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = np.zeros((len(questions), 2))
    for i, question in enumerate(questions):
        start = len(tokenizer(question).input_ids)
        for k, choice in enumerate((" yes", " no")):
            ids = torch.tensor([tokenizer(question + choice).input_ids])
            with torch.inference_mode():
                rows = model.eval()(input_ids=ids).logits[0].double().log_softmax(-1)
            own = range(start, ids.shape[1])
            found[i, k] = sum(float(rows[at - 1, ids[0, at]]) for at in own)
    return found


def ask(root: Path, count: int = 3) -> list[str]:
    """Writes a task of a few questions; the questions."""
    questions = [f"is {i} the old mill?" for i in range(count)]
    for folder in ("tasks", "prompts/mini", "data/rows"):
        (root / folder).mkdir(parents=True)
    (root / "tasks/mill.yaml").write_text(TASK)
    prompt = 'name: default\ngroup: mini\ntemplate: "{{ q }}"\n'
    (root / "prompts/mini/default.yaml").write_text(prompt)
    rows = [json.dumps({"q": q, "gold": i % 2}) + "\n" for i, q in enumerate(questions)]
    (root / "data/rows/test.jsonl").write_text("".join(rows))
    return questions


def told(line: str, folder: Path) -> bool:
    return re.search(re.escape(str(folder)) + "[:/ ]", line) is not None


@pytest.mark.slow
def test_what_each_became(evalcore: Callable[..., Any], tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "bases" / "step-00100", seed=1)
    house = build(tmp_path, base, write_checkpoint(tmp_path / "other", seed=2))
    questions, output = ask(tmp_path), tmp_path / "results"
    command = (
        "score", house.runs, "-t", "mill", "-p", "default", "--engine", "hf", "-o", output,
        "--task-path", tmp_path / "tasks", "--prompt-path", tmp_path / "prompts",
        "--data-root", tmp_path / "data", "--base-map", f"*unsloth*={base}",
    )  # fmt: skip
    planned = CliRunner().invoke(cli, [*map(str, command), "--dry-run"])
    done = evalcore(*command)
    assert done.status == 1, done.err
    assert "Traceback" not in done.err + done.out
    became = table(house, output, done.out + done.err, questions)
    for folder, what in sorted(became.items()):
        print(f"{folder.relative_to(house.runs)}: {what}")
    assert len(became) >= 20
    for folder, says in house.refused.items():
        assert says in became[folder], became[folder]
        assert any(told(line, folder) and says in line for line in planned.output.splitlines())
    scored = [what for what in became.values() if what.startswith("scored")]
    assert len(scored) == len(house.plain)


def table(house: House, output: Path, said: str, questions: list[str]) -> dict[Path, str]:
    """Each folder's end: the difference to PEFT, whose copy it is, or its line."""
    rows = ResultStore(output, read_only=True).read().to_pylist()
    by_source: dict[Path, dict[int, list[float]]] = {}
    for row in rows:
        if row["adapter_source"]:
            own = by_source.setdefault(Path(row["adapter_source"]).resolve(), {})
            own[row["doc_index"]] = row["choice_logprobs"]
    became: dict[Path, str] = {}
    effects = []
    for folder, (base, plain) in house.plain.items():
        found = by_source.pop(folder.resolve())
        expected = by_peft(base, plain, questions)
        gap = np.abs(np.array([found[i] for i in range(len(questions))]) - expected).max()
        assert gap < 1e-4, f"{folder}: {gap}"
        effects.append(float(np.abs(expected - by_peft(base, None, questions)).max()))
        became[folder] = f"scored, {gap:.1e} from PEFT, {effects[-1]:.2f} from its base"
    assert min(effects) > 0.01, "every adapter changes something"
    assert not by_source, f"scored though nobody expected it: {list(by_source)}"
    lines = said.splitlines()
    for folder, of in house.copies.items():
        assert any(str(folder) in line and str(of) in line and "copy" in line for line in lines)
        became[folder] = f"a copy of {of.name}, scored once"
    for folder in house.refused:
        told_of = [line for line in lines if told(line, folder)]
        assert told_of, f"nothing is said of {folder}"
        became[folder] = told_of[-1]
    return became
