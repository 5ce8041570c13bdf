"""lm-eval's tasks through its own loader: documents, settings, errors."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalcore.errors import DataError, DefinitionError, InputError, UnknownNameError
from evalcore.lm_eval import (
    Asked,
    Built,
    build,
    chat_renderer,
    evaluate,
    generation_settings,
    load,
    split_selection,
)
from evalcore.lm_eval.building import _ALWAYS, _METRICS, _OWN_WAY
from evalcore.metrics import METRICS
from evalcore.metrics.registry import check_metrics

ROWS = [
    {
        "q": "one?",
        "options": ["a", "bb"],
        "gold": 0,
        "golds": [0, 1],
        "word": "x",
        "deep": {"k": 1},
    },
    {"q": "two?", "options": ["bb", "a"], "gold": 1, "golds": [1], "word": "y", "deep": {"k": 2}},
    {"q": "six?", "options": ["a", "cc"], "gold": 5, "golds": [7], "word": "z", "deep": {"k": 3}},
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "options",
    "doc_to_target": "gold",
}

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a task with local rows; gives the folder for ``include_path``."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def write(name: str = "mine", file: str | None = None, **keys: Any) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        source = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
        }
        text = yaml.safe_dump({"task": name, **source, **keys}, sort_keys=False)
        (folder / (file or f"{name}.yaml")).write_text(text)
        return folder

    return write


def built(folder: Path, name: str = "mine", **asked: Any) -> Built:
    return build(load([name], [folder]).tasks[name], Asked(**asked))


def test_selections_are_split() -> None:
    assert split_selection("pocket_nli, lm-eval:arc_easy,lm-eval:x") == (
        "pocket_nli",
        ["arc_easy", "x"],
    )
    with pytest.raises(InputError, match="needs a name"):
        split_selection("lm-eval:")


def test_documents_hold_what_lm_eval_would_send(make: Make) -> None:
    task = built(make(**CHOICE, num_fewshot=1, target_delimiter=" -> "))
    first, second, third = task.documents
    assert first.prebuilt is not None
    (context,) = first.prebuilt.contexts
    assert context.endswith("\n\none?")
    assert first.prebuilt.continuations == (" -> a", " -> bb")
    assert first.prebuilt.targets == first.choices == ("a", "bb")
    assert (first.gold, second.gold) == (0, 1)
    assert third.gold == 2  # outside the choices: whatever is chosen is wrong
    assert len({document.id for document in task.documents}) == 3
    assert task.task.name == "lm-eval:mine"
    assert task.variant.name == "lm-eval:shots=1"
    assert (task.task.metrics[0], task.task.primary) == ("acc", "acc")
    check_metrics(task.task)


def test_several_right_choices(make: Make) -> None:
    task = built(make(**(CHOICE | {"doc_to_target": "golds"})))
    assert [(d.gold, d.golds) for d in task.documents] == [(0, (0, 1)), (1, ()), (2, ())]


def test_all_mapped_metrics_exist() -> None:
    for kind, names in _METRICS.items():
        for name in (*names.values(), *_ALWAYS[kind], *_OWN_WAY[kind]):
            assert METRICS[name].fits_cell(kind, "choices"), (kind, name)


def test_shots_follow_the_task_then_what_is_asked(make: Make) -> None:
    keys = CHOICE | {"doc_to_target": 0}
    folder = make("says_two", **keys, num_fewshot=2)
    make("says_none", **keys, num_fewshot=0)
    make("says_nothing", **keys)
    found = [built(folder, name, num_fewshot=1).variant.shots
             for name in ("says_two", "says_none", "says_nothing")]  # fmt: skip
    assert found == [1, 0, 1]
    assert built(folder, "says_two").variant.shots == 2
    again = built(folder, "says_two", seed=7)
    assert again.variant.name == "lm-eval:shots=2,seed=7"
    assert again.variant.fingerprint != built(folder, "says_two").variant.fingerprint


def test_a_limit_gives_a_prefix(make: Make) -> None:
    folder = make(**CHOICE, num_fewshot=1)
    whole, part = built(folder).documents, built(folder, limit=2).documents
    assert part == whole[:2]
    assert built(folder).task.fingerprint == built(folder, limit=2).task.fingerprint


def test_identity_follows_definition_and_rows(make: Make, tmp_path: Path) -> None:
    folder = make(**CHOICE)
    before = built(folder).task
    assert built(folder).task.fingerprint == before.fingerprint
    make(**CHOICE, description="Read.")
    described = built(folder).task
    assert described.fingerprint != before.fingerprint
    rows = [*ROWS[:2], ROWS[2] | {"q": "seven?"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert built(folder, limit=1).task.fingerprint != described.fingerprint


def test_the_callers_random_numbers_are_left_alone(make: Make) -> None:
    folder = make(**CHOICE, num_fewshot=1)
    random.seed(3)
    state = random.getstate()
    built(folder)
    assert random.getstate() == state


def test_names_groups_tags_and_files(make: Make) -> None:
    folder = make("one", **CHOICE, tag="mine_tag")
    make("two", include="one.yaml")
    (folder / "group.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["one", "two"]}))
    assert list(load(["both"], [folder]).tasks) == ["one", "two"]
    assert set(load(["mine_tag"], [folder]).tasks) == {"one", "two"}
    assert list(load([str(folder / "one.yaml")]).tasks) == ["one"]
    assert list(load(["two", "both"], [folder]).tasks) == ["two", "one"]


@pytest.mark.slow
def test_unknown_names_give_the_nearest(make: Make) -> None:
    with pytest.raises(UnknownNameError, match="arc_easy"):
        load(["arc_eesy"], [make(**CHOICE)])


def test_a_broken_file_is_named_when_a_name_is_missing(make: Make) -> None:
    folder = make(**CHOICE)
    (folder / "broken.yaml").write_text("task: [")
    with pytest.raises(DefinitionError, match=r"broken\.yaml"):
        load(["wanted"], [folder])


def test_nothing_of_a_refused_file_runs(make: Make, tmp_path: Path) -> None:
    """In the folder: a function, a class, a metric and a template that would all leave a trace."""
    trace = tmp_path / "it-ran"
    code = f"from pathlib import Path\nPath({str(trace)!r}).write_text('x')\ndef f(d): return d\n"
    folder = make("plain", **CHOICE)
    (folder / "evil.py").write_text(code)
    (folder / "metric.py").write_text(code)
    for number, line in enumerate(
        (
            "process_docs: !function evil.f",
            "class: !function evil.f",
            "metric_list: [{metric: ./metric.py}]",
            "unsafe_code: true",
        )
    ):
        text = (folder / "plain.yaml").read_text().replace("task: plain", f"task: bad{number}")
        (folder / f"bad{number}.yaml").write_text(text + line + "\n")
        with pytest.raises(InputError, match="--allow-code"):
            load([f"bad{number}"], [folder])
        with pytest.raises(InputError, match="--allow-code"):
            load([str(folder / f"bad{number}.yaml")])
    (folder / "all.yaml").write_text(yaml.safe_dump({"group": "all", "task": ["plain", "bad0"]}))
    with pytest.raises(InputError, match=r"bad0\.yaml: key process_docs"):
        load(["all"], [folder])
    load(["plain"], [folder])  # its neighbours do not matter
    assert not trace.exists()
    assert "evil" not in "".join(sys.modules)
    load(["bad0"], [folder], allow_code=True)
    assert trace.exists()


def test_templates_of_foreign_files_run_in_a_sandbox(make: Make) -> None:
    escape = "{{ q.__class__.__mro__[1].__subclasses__() }}"
    folder = make(**(CHOICE | {"doc_to_text": escape}))
    with pytest.raises(DefinitionError, match="unsafe"):
        load(["mine"], [folder])
    assert "mine" in load(["mine"], [folder], allow_code=True).tasks


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"doc_to_text": "{{nothing}}"}, "nothing"),
        ({"doc_to_text": "{{ q"}, "TemplateSyntaxError"),
        ({"output_type": "greedy"}, "output_type"),
        ({"test_split": "absent"}, "absent"),
        ({"metric_list": [{"aggregation": "mean"}]}, "metric"),
        ({"unknown_key": 1}, "unknown_key"),
        ({"doc_to_choice": "{{q}}"}, "lm-eval task mine"),
    ],
)
def test_broken_tasks_are_one_line(make: Make, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        built(make(**(CHOICE | keys)))
    assert "\n" not in str(caught.value)
    assert "mine" in str(caught.value)


def test_a_hub_data_set_that_is_not_there(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = make(**CHOICE | {"dataset_path": "nobody/nothing", "dataset_kwargs": {}})
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set") as caught:
        load(["mine"], [folder])
    assert "--data-root" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_root_stands_for_the_hub(make: Make, tmp_path: Path) -> None:
    place = tmp_path / "root" / "nobody" / "nothing" / "small"
    place.mkdir(parents=True)
    (place / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    hub = {"dataset_path": "nobody/nothing", "dataset_name": "small", "dataset_kwargs": {}}
    folder = make(**CHOICE | hub)
    task = load(["mine"], [folder], data_root=tmp_path / "root").tasks["mine"]
    assert len(build(task, Asked()).documents) == 3


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({"until": "\n", "max_gen_toks": 5}, (5, ("\n",))),
        ({"until": ["a", "b", "a"], "do_sample": False, "temperature": 0.7}, (256, ("a", "b"))),
        ({"until": None, "max_new_tokens": 7}, (7, ())),
        ({"until": [""], "max_gen_toks": 9}, (1, ())),
        ({"until": [], "max_tokens": 3, "top_p": 0.9, "num_beams": 1}, (3, ())),
    ],
)
def test_greedy_settings(kwargs: dict[str, Any], wanted: tuple[int, tuple[str, ...]]) -> None:
    settings = generation_settings(kwargs, "here")
    assert (settings.max_tokens, settings.stops) == wanted


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": True},
        {"temperature": 0.5},
        {"num_beams": 4},
        {"repetition_penalty": 1.2},
        {"until": [3]},
        {"max_gen_toks": 0},
    ],
)
def test_what_is_not_greedy_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^here: .*generation_kwargs"):
        generation_settings(kwargs, "here")


def test_lm_evals_metrics_of_stored_rows(make: Make) -> None:
    task = built(make(**CHOICE))
    rows = {
        document.id: {
            "choice_logprobs": [-1.0, -3.0],
            "is_greedy": [True, False],
            "flags": [],
        }
        for document in task.documents
    }
    outcome = evaluate(task, rows)
    assert outcome.metrics["acc,none"] == pytest.approx(1 / 3)
    assert outcome.metrics["acc_norm,none"] == pytest.approx(1 / 3)
    assert outcome.n == 3
    assert [v.value for v in outcome.values if v.metric == "acc"] == [1.0, 0.0, 0.0]
    last = task.documents[-1].id
    rows[last]["flags"] = ["overflow"]
    part = evaluate(task, rows)
    assert (part.n, part.missing) == (2, 1)
    assert part.metrics["acc,none"] == 0.5
    assert evaluate(task, {}).n == 0


def test_filters_come_before_metrics(make: Make) -> None:
    keys = {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{word}}",
        "generation_kwargs": {"until": ["\n"]},
        "filter_list": [
            {"name": "last", "filter": [
                {"function": "regex", "regex_pattern": "is (.)"}, {"function": "take_first"},
            ]},
        ],
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
        ],
    }  # fmt: skip
    task = built(make(**keys))
    texts = ["it is x", "it is q", "it is z"]
    rows = {d.id: {"text": t, "flags": []} for d, t in zip(task.documents, texts, strict=True)}
    outcome = evaluate(task, rows)
    assert outcome.metrics["exact_match,last"] == pytest.approx(2 / 3)
    assert outcome.metrics["exact_match_stderr,last"] == pytest.approx(1 / 3)


def test_a_chat_without_a_template_is_refused(make: Make) -> None:
    class Bare:
        chat_template = None

    task = load(["mine"], [make(**CHOICE)]).tasks["mine"]
    with pytest.raises(InputError, match="no chat template"):
        build(task, Asked(chat=chat_renderer(Bare(), {})))


def test_lm_eval_is_only_imported_when_asked_for() -> None:
    import subprocess

    code = "import sys, evalcore.app, evalcore.lm_eval; print('lm_eval' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'evalcore\[lm-eval\]'"):
        load(["anything"])
