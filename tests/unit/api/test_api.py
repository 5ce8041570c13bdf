"""The names users import, what importing them loads, and frames."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import evalcore as ec
from evalcore.api.words import in_python
from evalcore.errors import InputError, UnknownNameError

FUNCTIONS = {
    "score": "adapters tasks prompts output checkpoints limit num_fewshot chat data_root task_path "
    "prompt_path base_map assume_base parent_map tuned_on name_pattern engine cluster workers "
    "strict progress more",
    "open": "path",
    "tasks": "task_path",
    "prompts": "tasks task_path prompt_path",
    "finetune": "study output progress more",
    "run": "study output progress more",
}
METHODS = {
    "cells": "", "status": "", "scores": "by", "gains": "by", "metrics": "",
    "prompt_scores": "", "findings": "name", "documents": "task",
    "report": "output title beside",
    "examples": "task model checkpoint adapter prompt columns", "flips": "a b task prompt model",
    "export": "output format", "label": "tuned_on labels name_pattern parent_map",
}  # fmt: skip
PROPERTIES = {"models", "tasks", "problems"}
WITHOUT_TORCH = """
import sys
from pathlib import Path

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
NOT_IN_A_BASE_INSTALLATION = {
    "accelerate", "datasets", "huggingface_hub", "peft", "ray", "safetensors", "tokenizers",
    "torch", "transformers", "vllm",
}  # fmt: skip


def parameters(function: object) -> str:
    names = inspect.signature(function).parameters  # type: ignore[arg-type]
    return " ".join(name for name in names if name != "self")


def test_exported_names() -> None:
    """A name that goes or changes breaks users: say so in CHANGELOG.md, then mend this."""
    assert set(ec.__all__) == {
        *FUNCTIONS, "EvalcoreError", "EvalcoreWarning", "Frame", "Results", "__version__"
    }  # fmt: skip
    assert set(ec.__all__) <= set(dir(ec))
    from evalcore import api

    for name, expected in FUNCTIONS.items():
        assert parameters(getattr(api, name)) == expected, name
        assert getattr(api, name).__doc__
    public = {n for n in vars(ec.Results) if not n.startswith("_")}
    assert public == {*METHODS, *PROPERTIES}
    for name, expected in METHODS.items():
        assert parameters(getattr(ec.Results, name)) == expected, name
        assert getattr(ec.Results, name).__doc__


def loaded_by(command: list[str]) -> set[str]:
    """Modules that a Python process loads."""
    out = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True
    )
    lines = [line for line in out.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines}


def test_importing_loads_nothing_and_help_stays_quick() -> None:
    """Of evalcore only what is named here, and nothing else that takes a millisecond."""
    bare = loaded_by(["-c", "pass"])
    front = loaded_by(["-c", "import evalcore"]) - bare
    assert not front & {"typing", "re", "json", "logging", "pathlib", "numpy", "click"}
    assert {name for name in front if name.startswith("evalcore")} == {"evalcore"}
    shown = loaded_by(["-m", "evalcore", "--help"]) - loaded_by(["-c", "import click"])
    assert not shown & {"json", "logging", "difflib", "numpy", "pydantic", "evalcore.config"}


def test_tasks_is_a_package_and_a_function() -> None:
    import evalcore.tasks
    from evalcore.tasks import load_task

    assert load_task("pocket_nli").name in ec.tasks()["task"]
    assert evalcore.tasks.list_tasks is not None  # type: ignore[attr-defined]
    assert len(ec.tasks()) == len(evalcore.tasks.list_tasks())  # type: ignore[attr-defined]


def test_prompts_are_of_the_tasks_asked_for() -> None:
    frame = ec.prompts("pocket_nli,pocket_nli_ood")
    assert set(frame["group"]) == {"pocket_nli"}
    assert frame["tasks"][0] == ["pocket_nli", "pocket_nli_ood"]
    with pytest.raises(UnknownNameError, match="pocket_nli"):
        ec.prompts("pocket_nly")
    with pytest.raises(InputError, match="give at least one name"):
        ec.score(tasks=[], output="nowhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "give --base-map GLOB=PATH or --assume-base PATH",
            "give base_map GLOB=PATH or assume_",
        ),
        ("one of -m, -t and -p", "one of checkpoints, tasks and prompts"),
        ("`evalcore score -o`: no --no-bases-here", "`evalcore score -o`: no --no-bases-here"),
        ("well-o, x--strict", "well-o, x--strict"),
    ],
)
def test_errors_name_arguments(text: str, said: str) -> None:
    assert in_python(text).startswith(said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dtype": "float33"}, "dtype 'float33': expected"),
        ({"shard": "1/2"}, "shard '1/2': expected"),
        ({"shard": (2, 1)}, "shard 2/1: expected"),
        ({"promts": "default"}, "unknown argument 'promts'; nearest: prompts"),
        ({"grid": 1}, "unknown argument 'grid'"),
    ],
)
def test_wrong_arguments_are_one_line(given: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ec.EvalcoreError, match=f"^(?:{said})"):
        ec.score("nowhere", tasks="pocket_nli", output=tmp_path / "results", **given)
    assert not (tmp_path / "results").exists()


def test_reading_and_reporting_need_no_torch(tmp_path: object) -> None:
    """A base installation: what only scoring needs cannot be imported."""
    code = WITHOUT_TORCH.replace("{names}", repr(NOT_IN_A_BASE_INSTALLATION)) + (
        "import evalcore as ec\n"
        "import evalcore.report, evalcore.analysis, evalcore.store, evalcore.app.labels\n"
        "print(len(ec.tasks()) > 20, len(ec.prompts('pocket_nli')) > 3)\n"
        "try:\n"
        "    ec.open('nowhere')\n"
        "except ec.EvalcoreError as error:\n"
        "    print(error)\n"
        "import importlib\n"
        "try:\n"
        "    with importlib.import_module('evalcore.api.words').called_from_python():\n"
        "        import transformers\n"
        "except ec.EvalcoreError as error:\n"
        "    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, opened, extra = out.stdout.splitlines()
    assert told == "True True"
    assert "no results there" in opened
    assert "pip install 'evalcore[cpu]'" in extra


def test_frames_show_little_and_hold_all() -> None:
    table = pa.table({"model": [f"m{i}" for i in range(30)], "x": [0.25] * 30, "y": [None] * 30})
    frame = ec.Frame(table, ["model", "x"])
    text = repr(frame)
    assert "30 rows (the first 20 shown), 1 more columns" in text
    assert "m19" in text
    assert "m20" not in text
    assert frame["y"] == [None] * 30
    assert sum(1 for _ in frame) == len(frame) == 30
    assert frame._repr_html_().count("<tr>") == 21
    hostile = ec.Frame(pa.table({"a": ["<script>\x1b[31m\u202e"]}))
    assert "<script>" not in hostile._repr_html_()
    assert "\x1b" not in repr(hostile)
    assert "0 rows" in repr(ec.Frame(table.slice(0, 0)))


def test_the_version_is_said_in_one_way() -> None:
    root = Path(__file__).resolve().parents[3]
    assert f"\nversion: {ec.__version__}\n" in (root / "CITATION.cff").read_text("utf-8")
    assert f"\n## {ec.__version__}\n" in (root / "CHANGELOG.md").read_text("utf-8")
