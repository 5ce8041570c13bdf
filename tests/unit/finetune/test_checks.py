"""Rows looked at before training: each finding has its code, its line and its weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalcore.cli import main
from evalcore.errors import DataError
from evalcore.prompting import (
    MergedBorderError,
    encode_training,
    load_tokenizer,
    training_pair,
)
from evalcore.tasks import load_task
from evalcore.types import EncodingSettings
from finetune import (
    DataFault,
    TuneJob,
    TuningDataError,
    check_data,
    parse_study,
    plan_jobs,
)
from finetune.checks import check_rows
from finetune.data import build_training_set
from finetune.faults import StudyError, StudyFault
from finetune.jobs import MixPart, training_variants
from finetune.rows import choose_rows

STUDY = """
name: small
checkpoints: {paths: ["step-*"]}
method: {steps: 5}
tunings:
  - {name: nli, task: pocket_nli, examples: 40, variants: [default, io]}
  - {name: describe, task: pocket_describe, examples: 40}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_checkpoint(folder / "step-00002", seed=2)
    return folder


@pytest.fixture(scope="module")
def jobs(out: Path) -> dict[str, TuneJob]:
    return {job.tuning: job for job in plan_jobs(parse_study(STUDY, out / "s.yaml"), out).jobs}


def local(job: TuneJob, **method: Any) -> TuneJob:
    return replace(job, method=job.method.merged(method))


def test_clean_rows_find_nothing_and_tokens_are_those_encoded(jobs: dict[str, TuneJob]) -> None:
    job = jobs["nli"]
    report = check_rows(job)
    assert (report.rows, report.checked, report.findings) == (40, 40, ())
    assert report.by_tokenizer
    tokenizer, task = load_tokenizer(job.checkpoint.path), load_task("pocket_nli")
    chosen = choose_rows(job.tasks[0], 0, job.held_out, None).documents
    variants = training_variants(task, job.variants)
    total = 0
    for i, document in enumerate(chosen):
        pair = training_pair(task, variants[i % 2], document, [], tokenizer)
        total += sum(map(len, encode_training(tokenizer, *pair, EncodingSettings())))
    assert report.tokens_per_row == pytest.approx(total / 40)


def test_without_the_base_tokens_are_guessed_from_characters(jobs: dict[str, TuneJob]) -> None:
    job = jobs["nli"]
    away = replace(job.checkpoint, path="", fingerprint="", tokenizer_fingerprint="")
    report = check_rows(replace(job, checkpoint=away))
    assert report.rows == 40
    assert not report.by_tokenizer
    assert report.tokens_per_row is not None
    assert 5 < report.tokens_per_row < 100


def test_rows_that_do_not_fit(jobs: dict[str, TuneJob]) -> None:
    job = jobs["describe"]
    tokenizer, task = load_tokenizer(job.checkpoint.path), load_task("pocket_describe")
    (variant,) = training_variants(task, job.variants)
    lengths, answers = [], []

    for document in choose_rows(job.tasks[0], 0, job.held_out, None).documents:
        pair = training_pair(task, variant, document, [], tokenizer)
        prompt, completion = encode_training(tokenizer, *pair, EncodingSettings())
        lengths.append(len(prompt) + len(completion))
        answers.append(len(completion))
    middle = sorted(lengths)[20]
    longer = sum(length > middle for length in lengths)
    assert max(answers) < middle
    found = codes(check_rows(local(job, max_length=middle)))
    assert found[DataFault.LEFT_OUT_TOO_LONG] == (longer, False)
    found = codes(check_rows(local(job, max_length=middle, overlong="truncate")))
    assert found[DataFault.PROMPTS_CUT] == (longer, False)
    found = codes(check_rows(local(job, max_length=max(answers) + 1)))
    assert found[DataFault.NOTHING_FITS] == (40, True)
    found = codes(check_rows(local(job, max_length=min(8, min(answers)), overlong="truncate")))
    assert found[DataFault.TRUNCATED_COMPLETION] == (40, True)


def codes(report: Any) -> dict[DataFault, tuple[int, bool]]:
    return {finding.code: (finding.count, finding.fatal) for finding in report.findings}


def test_rows_of_the_evaluation_set_are_counted_or_refused(jobs: dict[str, TuneJob]) -> None:
    scored = ("pocket_nli", "pocket_nli_ood", "pocket_paraphrase")
    job = replace(jobs["nli"], tasks=(MixPart("pocket_paraphrase", None),), held_out=scored)
    alone, strict = check_rows(job), check_rows(job, strict=True)
    assert codes(alone)[DataFault.EVALUATION_ROWS] == (2, False)
    assert codes(strict)[DataFault.EVALUATION_ROWS] == (2, True)
    with pytest.raises(TuningDataError) as caught:
        check_data([job], strict=True)
    assert caught.value.codes == (DataFault.EVALUATION_ROWS,)
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)


def test_jobs_with_the_same_rows_share_one_look(jobs: dict[str, TuneJob]) -> None:
    first, other = jobs["nli"], replace(jobs["nli"], seed=3, directory="/elsewhere/nli-seed3")
    reports = check_data([first, other, jobs["describe"]])
    assert reports[first.id] is reports[other.id]
    assert reports[first.id] is not reports[jobs["describe"].id]


def write_task(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Puts rows where the sciq tasks look for the train split, and as many to score."""
    data = folder / "data" / "allenai" / "sciq"
    data.mkdir(parents=True)
    for split in ("train", "test", "validation"):
        own = rows if split == "train" else [_asked_in(split, row) for row in rows]
        text = "\n".join(json.dumps(row) for row in own)
        (data / f"{split}.jsonl").write_text(text)
    return folder / "data"


def _asked_in(split: str, row: dict[str, Any]) -> dict[str, Any]:
    """Another question: the same one would be found in what is learned."""
    return {**row, "support": split, "question": f"{split} {row['question']} ({split})"}


def row(i: int, **changes: str) -> dict[str, str]:
    texts = {"question": f"Which one is it, number {i}?", "correct_answer": f"thing {i}"}
    wrong = {f"distractor{k}": f"no {k} {i}" for k in (1, 2, 3)}
    return {**texts, **wrong, "support": f"Thing {i} is the one.", **changes}


SCIQ = """
name: s
checkpoints: {paths: ["step-*"]}
method: {steps: 2}
tunings: [{name: qg, task: sciq_qg, examples: 5}]
"""


@pytest.mark.parametrize(
    ("code", "rows", "examples"),
    [
        (DataFault.TOO_FEW_ROWS, [row(i) for i in range(5)], 6),
        (DataFault.STOP_IN_COMPLETION, [row(i, question="a\nb?") for i in range(5)], 5),
        (DataFault.BEYOND_MAX_TOKENS, [row(i, question="why " * 90) for i in range(5)], 5),
        (DataFault.MISSING_DATA, [], 5),
    ],
)
def test_faults_of_local_data(
    out: Path, tmp_path: Path, code: DataFault, rows: list[dict[str, Any]], examples: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    root = write_task(tmp_path, rows) if rows else tmp_path
    text = SCIQ.replace("examples: 5", f"examples: {examples}")
    study = parse_study(text, out / "s.yaml")
    (job,) = plan_jobs(study, out, data_root=root).jobs
    found = codes(check_rows(job))
    assert found[code][1] == (code in (DataFault.TOO_FEW_ROWS, DataFault.MISSING_DATA))
    if code is DataFault.MISSING_DATA:
        assert not codes(check_rows(job, required=False))[code][1]


def test_rows_that_are_asked_alike_and_rows_without_a_value(out: Path, tmp_path: Path) -> None:
    """A prompt that shows nothing of its row teaches the answers' shares and no more."""
    folder = tmp_path / "prompts" / "question_generation"
    folder.mkdir(parents=True)
    for name, shown in (("cut", "{{ context[:0] }}"), ("half", "{{ answer }}")):
        text = f"name: {name}\ngroup: question_generation\ntemplate: '{shown} ask:'\n"
        (folder / f"{name}.yaml").write_text(text)
    rows = [{"support": f"s{i}", "question": f"q{i}?", "correct_answer": f"a{i // 2}"}
            for i in range(6)]  # fmt: skip
    root = write_task(tmp_path, [*rows, {**rows[0], "question": None}])

    def look(variant: str) -> dict[DataFault, tuple[int, bool]]:
        text = SCIQ.replace("examples: 5", f"examples: null, variants: [{variant}]")
        study = parse_study(f"prompt_path: [{tmp_path / 'prompts'}]\n{text}", out / "s.yaml")
        (job,) = plan_jobs(study, out, data_root=root).jobs
        found = codes(check_rows(job))
        return {code: said for code, said in found.items() if code != DataFault.SHOTS_TRAINED}

    lacking = {DataFault.UNUSABLE_ROWS: (1, False)}
    assert look("default") == lacking
    assert look("half") == {**lacking, DataFault.CONTRADICTORY_ROWS: (3, False)}
    assert look("cut") == {**lacking, DataFault.SAME_PROMPT: (5, True)}


def test_rows_that_all_have_one_label(jobs: dict[str, TuneJob], tmp_path: Path) -> None:
    """The first rows of a file that is ordered by label."""
    folder = tmp_path / "nyu-mll" / "glue" / "mnli"
    folder.mkdir(parents=True)
    for labels, found in (([2] * 12, {DataFault.ONE_ANSWER: (12, False)}), ([0, 1] * 6, {})):
        for split in ("train", "validation_matched"):
            rows = [{"premise": f"{split} {i} p", "hypothesis": f"h {i}", "label": label}
                    for i, label in enumerate(labels)]  # fmt: skip
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        job = replace(jobs["nli"], tasks=(MixPart("mnli_matched", None),), variants=("default",),
                      held_out=(), data_root=str(tmp_path))  # fmt: skip
        choose_rows.cache_clear()
        said = codes(check_rows(job))
        assert {c: n for c, n in said.items() if c != DataFault.SHOTS_TRAINED} == found


def test_prompts_that_do_not_fit_are_refused_before_anything_is_trained(
    out: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pocket_nli"
    folder.mkdir()
    (folder / "bare.yaml").write_text("name: bare\ngroup: pocket_nli\ntemplate: 'Answer:'\n")
    text = f"prompt_path: [{tmp_path}]\n{STUDY}"
    for changed, where in (
        (text.replace("[default, io]", "[bare]"), "tuning nli: prompt pocket_nli/bare"),
        (f"{text}evaluation: {{tasks: [pocket_nli], prompts: 'default,bare'}}\n", "evaluation: pr"),
    ):
        with pytest.raises(StudyError, match="shows nothing of a document") as caught:
            plan_jobs(parse_study(changed, out / "s.yaml"), out)
        assert caught.value.codes == (StudyFault.UNFIT_VARIANT,)
        assert where in str(caught.value)


def test_answers_that_melt_into_their_prompt_are_not_learned(
    jobs: dict[str, TuneJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    import finetune.fitting

    def encoded(*_: Any, **__: Any) -> Any:
        raise MergedBorderError("a token in common")

    whole = finetune.fitting.encode_turns  # type: ignore[attr-defined]
    asked = iter(range(100))
    monkeypatch.setattr(
        finetune.fitting, "encode_turns",
        lambda *a, **k: encoded() if next(asked) < 3 else whole(*a, **k),
    )  # fmt: skip
    assert codes(check_rows(jobs["nli"]))[DataFault.MERGED_BORDER] == (3, False)
    monkeypatch.setattr(finetune.fitting, "encode_turns", encoded)
    with pytest.raises(TuningDataError, match=r"40 of 40 rows .* shares a token with the end"):
        check_data([jobs["nli"]])
    tokenizer = load_tokenizer(jobs["nli"].checkpoint.path)
    with pytest.raises(DataError, match="answers of 40 share a token with the end of their prom"):
        build_training_set(jobs["nli"], tokenizer, 512)


def test_an_empty_completion_is_refused(
    jobs: dict[str, TuneJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shipped template can make one: rows with empty answers are left out while loading."""
    import finetune.fitting

    monkeypatch.setattr(finetune.fitting, "training_turns", lambda *_: [("prompt", " ")])
    with pytest.raises(TuningDataError, match=r"40 of 40 rows .* empty completion") as caught:
        check_data([jobs["nli"]])
    assert caught.value.codes == (DataFault.EMPTY_COMPLETION,)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("steps: 5", "steps: 5, kind: full, learning_rate: 1e-6, rank: 2", "lora-key-with-full"),
        ("task: pocket_nli", "task: pocket_nil", "unknown-task"),
        ("examples: 40", "examples: 4000000", "too-few-rows"),
        ("examples: 40", "select: {learning_rate: [1e-3, 1e-4]}", "select-without-held-out"),
    ],
)
def test_the_command_line_ends_with_status_2_and_one_line(
    out: Path, old: str, new: str, code: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = out / f"{code}.yaml"
    file.write_text(STUDY.replace(old, new, 1))
    monkeypatch.setattr("sys.argv", ["evalcore", "finetune", str(file), "-o", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("evalcore: ")
    assert line.endswith(f"[{code}]")
