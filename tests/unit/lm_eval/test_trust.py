"""Code named by files outside lm-eval is found before anything of it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalcore.errors import DefinitionError, InputError
from evalcore.lm_eval.trust import Known, dangers, refuse_code, with_includes

KNOWN = Known(
    metrics={"acc", "exact_match"}, filters={"regex", "take_first"}, builders={"json", "pandas"}
)
PLAIN = """\
task: fine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: {class: "a", metric: "b"}
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
filter_list: [{name: none, filter: [{function: take_first}]}]
metadata: {version: 1.0, class: not a class}
"""


def write(folder: Path, text: str, name: str = "task.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def found(folder: Path, text: str) -> list[str]:
    return [danger.key for danger in dangers(write(folder, text), KNOWN)]


def test_a_file_without_code_passes(tmp_path: Path) -> None:
    assert found(tmp_path, PLAIN) == []
    refuse_code([tmp_path / "task.yaml"], tmp_path / "elsewhere", KNOWN)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("process_docs: !function utils.load", "process_docs"),
        ("doc_to_text: !function utils.text", "doc_to_text"),
        ("custom_dataset: !function utils.rows", "custom_dataset"),
        ("class: !function task.Mine", "class"),
        ("class: task.Mine", "class"),
        ("unsafe_code: true", "unsafe_code"),
        ("metric_list: [{metric: !function utils.score}]", "metric_list[0].metric"),
        ("metric_list: [{metric: ./score.py}]", "metric_list[0].metric"),
        ("metric_list: [{metric: acc}, {metric: rouge}]", "metric_list[1].metric"),
        ("metric_list: [{metric: acc, hf_evaluate: true}]", "metric_list[0].hf_evaluate"),
        (
            "metric_list: [{metric: acc, aggregation: !function utils.mean}]",
            "metric_list[0].aggregation",
        ),
        (
            "filter_list: [{name: a, filter: [{function: custom, filter_fn: !function u.f}]}]",
            "filter_list[0].filter[0].filter_fn",
        ),
        (
            "filter_list: [{name: a, filter: [{function: mine}]}]",
            "filter_list[0].filter[0].function",
        ),
        ("fewshot_config: {sampler: !function utils.Sampler}", "fewshot_config.sampler"),
        ("dataset_path: script.py", "dataset_path"),
        ("dataset_path: pandas", "dataset_path"),
        ("dataset_kwargs: {trust_remote_code: true}", "dataset_kwargs.trust_remote_code"),
        ("use_prompt: promptsource:all", "use_prompt"),
        ("task: [{task: a, process_docs: !function utils.f}]", "task[0].process_docs"),
        ("task: [{group: b, task: [{task: c, class: x.Y}]}]", "task[0].task[0].class"),
        ("doc_to_text: !!python/object/apply:os.system [id]", "doc_to_text"),
        ("x: &a {class: k.L}\n<<: *a", "class"),
        ("? !function utils.key\n: value", "utils.key"),
    ],
)
def test_every_way_to_name_code_is_found(tmp_path: Path, line: str, key: str) -> None:
    assert key in found(tmp_path, line)


def test_a_loading_script_beside_the_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text("raise SystemExit")
    assert found(tmp_path, "dataset_path: data") == ["dataset_path"]


def test_the_line_names_file_key_and_remedy(tmp_path: Path) -> None:
    file = write(tmp_path, "process_docs: !function utils.load")
    with pytest.raises(InputError) as caught:
        refuse_code([file], tmp_path / "elsewhere", KNOWN)
    line = str(caught.value)
    assert "\n" not in line
    for part in (str(file), "process_docs", "utils.load", "--allow-code"):
        assert part in line


def test_includes_are_read_by_lm_evals_rule(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path, "doc_to_text: !function utils.text", "deep/base.yaml")
    write(tmp_path, "include: base.yaml\ntask: between", "deep/between.yaml")
    top = write(tmp_path, "include: [deep/between.yaml]\ntask: top")
    names = [file.name for file in with_includes([top])]
    assert names == ["task.yaml", "between.yaml", "base.yaml"]
    with pytest.raises(InputError, match=r"base\.yaml: key doc_to_text"):
        refuse_code([top], tmp_path / "elsewhere", KNOWN)


def test_code_of_a_trusted_folder_is_not_asked_about(tmp_path: Path) -> None:
    trusted = tmp_path / "installed"
    trusted.mkdir()
    base = write(trusted, "process_docs: !function utils.load", "base.yaml")
    own = write(tmp_path, f"include: {base}\ntask: mine")
    refuse_code([own], trusted, KNOWN)
    link = tmp_path / "link.yaml"
    link.symlink_to(base)
    refuse_code([link], trusted, KNOWN)  # the file itself counts, not the way to it
    escaped = trusted / "escaped.yaml"
    escaped.symlink_to(write(tmp_path, "process_docs: !function evil.run", "evil.yaml"))
    with pytest.raises(InputError, match=r"evil\.yaml"):
        refuse_code([escaped], trusted, KNOWN)


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "", "\x00", "a: &x [*x, {b: *y}]"])
def test_broken_files_are_one_line(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(DefinitionError) as caught:
        refuse_code([file], tmp_path / "elsewhere", KNOWN)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_include_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "include: nowhere.yaml")
    with pytest.raises(DefinitionError, match=r"nowhere\.yaml"):
        with_includes([file])


def test_files_that_refer_to_themselves_end(tmp_path: Path) -> None:
    write(tmp_path, "include: task.yaml\ntask: a", "other.yaml")
    file = write(tmp_path, "include: other.yaml\nlist: &x [1, *x]")
    assert len(with_includes([file])) == 2
    assert list(dangers(file, KNOWN)) == []
