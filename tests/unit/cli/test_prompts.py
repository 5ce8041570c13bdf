"""``evalcore prompts list | show | check``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from evalcore.app.show import prompt_lines
from evalcore.cli.prompts import prompts
from evalcore.errors import InputError

DATA = Path(__file__).resolve().parents[2] / "data" / "root"


def run(*arguments: str) -> tuple[str, object]:
    result = CliRunner().invoke(prompts, list(arguments), standalone_mode=False)
    assert result.exception is None, result.exception
    return result.output, result.return_value


def test_list() -> None:
    output, _ = run("list", "rte,xsum")
    lines = output.splitlines()
    assert lines[0] == "nli (rte): 20 prompts"
    assert any(line.startswith("  default ") and "### Input_1" in line for line in lines)
    assert any("grammar:n=N  2,808 formats, 421,200 with listing=letters" in li for li in lines)
    assert any(line.startswith("summarization (xsum): 15") for line in lines)


def test_show_with_shots_and_tokens(tiny_tokenizer_dir: Path) -> None:
    output, _ = run("show", "pocket_nli", "default:shots=2", "-m", str(tiny_tokenizer_dir))
    lines = output.splitlines()
    assert lines[0].startswith("task pocket_nli, document 0 (")
    assert "prompt default:shots=2 (" in lines[0]
    assert sum(line.startswith("--- shot ") for line in lines) == 2
    assert sum(line.startswith("### Inference:") for line in lines) == 3
    assert "--- question" in lines
    (right,) = [line for line in lines if line.startswith("* ")]
    assert right.endswith((" token", " tokens"))
    assert any(line.endswith("tokens of context; ids at the border:") for line in lines)
    assert "|" in lines[-1]


def test_show_several_and_a_chat(tiny_tokenizer_dir: Path) -> None:
    output, _ = run("show", "rte", "paper", "--data-root", str(DATA), "--index", "1")
    assert output.count("task rte, document 1 (") == 3
    chat = "default:shots=2,chat=1"
    output, _ = run("show", "pocket_nli", chat, "-m", str(tiny_tokenizer_dir))
    assert "2 shots inside the chat: rows " in output
    output, _ = run("show", "tulu_v2", "--data-root", str(DATA))  # tuned on, never scored
    assert "--- reference" in output
    with pytest.raises(InputError, match="there is no 999999"):
        prompt_lines("pocket_nli", "default", None, 999_999)


def test_check(tmp_path: Path) -> None:
    good = {"name": "mine", "group": "nli", "template": "{{ premise }} {{ hypothesis }}"}
    files = {
        "good": good,
        "variable": {**good, "template": "{{ premisse }}"},
        "labels": {**good, "label_words": {"entailment": "yes", "not_entailment": "no"}},
        "group": {**good, "group": "nil"},
        "nothing": {**good, "template": "Answer:"},
        "alike": {**good, "template": "{{ premise[:0] }}Answer:"},
    }
    for name, keys in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(keys))
    output, status = run("check", str(tmp_path / "good.yaml"))
    assert status == 0
    assert "nli/mine renders made-up text for gpt3nli, mnli_matched" in output
    output, status = run("check", str(tmp_path / "good.yaml"), "--data-root", str(DATA))
    assert "renders rows of gpt3nli, mnli_matched, mnli_mismatched, rte" in output
    assert "does not show" not in output
    paths = [str(tmp_path / f"{name}.yaml") for name in files]
    output, status = run("check", *paths, "nowhere", "--data-root", str(DATA))
    lines = output.splitlines()
    assert status == 2
    assert len(lines) == 7
    for line, words in zip(
        lines[1:],
        (
            "key template: 'premisse' is undefined; there are choices, hypothesis",
            "no words for label 'neutral' of task gpt3nli",
            "no task has the group 'nil'; there are",
            "key template: shows nothing of a document",
            "3 documents of task gpt3nli are asked the same; its fields are hypothesis, premise",
            "is missing",
        ),
        strict=True,
    ):
        assert ": wrong: " in line
        assert words in line
    half = tmp_path / "half.yaml"
    half.write_text(yaml.safe_dump({**good, "name": "half", "template": "{{ premise }}"}))
    output, status = run("check", str(half))
    assert status == 0
    assert output.rstrip().endswith("and does not show hypothesis")


def test_built_in_files_pass_their_own_check() -> None:
    root = Path(__file__).resolve().parents[3] / "prompts"
    files = [str(file) for file in sorted(root.glob("*/*.yaml"))]
    output, status = run("check", *files, "--data-root", str(DATA))
    assert status == 0, output
    assert len(output.splitlines()) == len(files) >= 150


@pytest.mark.slow
def test_show_a_task_of_lm_eval(tmp_path: Path) -> None:
    """Its text comes ready; `datasets` and lm-eval take seconds to import."""
    pytest.importorskip("lm_eval")
    rows = [("up?", "yes"), ("down?", "no"), ("left?", "no")]
    data = tmp_path / "toy.jsonl"
    data.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in rows))
    definition = {
        "task": "toy", "dataset_path": "json", "test_split": "test", "fewshot_split": "train",
        "dataset_kwargs": {"data_files": {"test": str(data), "train": str(data)}},
        "output_type": "multiple_choice", "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_choice": ["yes", "no"], "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(definition))
    folder = ("--include-path", str(tmp_path))
    output, _ = run("show", "lm-eval:toy", "default:shots=1", "--index", "1", *folder)
    lines = output.splitlines()
    assert lines[0].startswith("task lm-eval:toy, document 1 (")
    assert lines[-5:] == [
        "Q: down?",
        "A:",
        "--- continuations (* the right one)",
        "  ' yes'",
        "* ' no'",
    ]
    assert output.count("\nQ: ") == 2
