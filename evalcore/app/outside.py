"""``import_scores()``: score tables that others wrote, into the same kind of analysis."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from evalcore.errors import InputError, UnknownNameError
from evalcore.reading import MAX_TABLE_BYTES, read_json, read_text

if TYPE_CHECKING:
    from evalcore.analysis import Flag
    from evalcore.analysis.tabled import ScoreTable, TableScore
    from evalcore.analysis.tabled_groups import TableGroup, TableMean

NAMES: dict[str, tuple[str, ...]] = {
    "model": ("model", "checkpoint", "checkpoint_step", "step", "subject"),
    "step": ("step", "checkpoint_step"),
    "tuned": ("tuned_on", "tuning", "adapter"),
    "task": ("task", "eval_dataset", "dataset"),
    "metric": ("metric", "primary_metric"),
    "prompt": ("prompt", "prompt_format", "variant", "template"),
    "way": ("way", "suite", "protocol"),
    "shots": ("shots", "num_fewshot", "fewshot", "n_shot"),
    "score": ("score", "value", "acc", "accuracy"),
    "stderr": ("stderr", "se", "score_stderr"),
    "n": ("n", "documents", "num_documents"),
}
"""What a column may be for -> names by which it is found without being told."""
_NEEDED = ("task", "score")
_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter)[^\d\s]{0,2}(\d[\d_,]*)", re.IGNORECASE)
_ALONE = re.compile(r"(\d[\d_,]*)(?:\.0*)?(?![\w.])")


@dataclass(frozen=True)
class Imported:
    """A score table and what can be said of it.

    Attributes:
        table: Its rows.
        columns: What was taken from which column of CSV files.
        means: Mean gains by checkpoint and group.
        flags: What a reader must know.
    """

    table: ScoreTable
    columns: Mapping[str, str]
    means: Sequence[TableMean] = ()
    flags: Sequence[Flag] = field(default_factory=list)


def import_scores(
    files: Sequence[Path],
    *,
    columns: Sequence[str] = (),
    groups: Sequence[str] = (),
    sizes: Sequence[str] = (),
    prompt: str = "",
    shots: int | None = None,
) -> Imported:
    """Reads score tables and analyses them.

    Args:
        files: CSV files, or lm-eval's ``results_*.json``.
        columns: ``WHAT=COLUMN``: which column of a CSV file is what (``NAMES``).
        groups: ``NAME=TASK[@TUNING][/WAY],...``: tasks whose gains are averaged.
        sizes: ``TASK=N``: how many documents a task has, to check errors against.
        prompt, shots: Groups take scores under this prompt, with so many shots, only.

    Raises:
        InputError: A file cannot be read, lacks a column or holds no scores; an option is wrong.
        UnknownNameError: A column or task that there is not.
    """
    from evalcore.analysis.tabled import ScoreTable
    from evalcore.analysis.tabled_groups import group_means

    wanted = _pairs(columns, "--column", "WHAT=COLUMN")
    for what in wanted:
        if what not in NAMES:
            raise UnknownNameError("use of a column", what, NAMES, "--column WHAT=COLUMN")
    rows: list[TableScore] = []
    found: dict[str, str] = {}
    for path in files:
        if path.suffix.lower() == ".json":
            rows += read_lm_eval_results(path)
        else:
            own, used = read_score_csv(path, wanted)
            rows += own
            found |= used
    if not rows:
        raise InputError(f"{', '.join(map(str, files))}: no scores there")
    known_sizes = _sizes(sizes, rows)
    rows = [_with_error(row, known_sizes.get(row.task)) for row in rows]
    table = ScoreTable(rows, known_sizes)
    known = {row.task for row in rows}
    chosen = [_group(text, prompt, shots, known) for text in groups]
    means, flags = group_means(table, chosen)
    return Imported(table, found, means, [*table.flags(), *flags])


def read_score_csv(
    path: Path, wanted: Mapping[str, str]
) -> tuple[list[TableScore], dict[str, str]]:
    """(rows, what was taken from which column) of a CSV file; empty scores are left out.

    Raises:
        InputError: It cannot be read, lacks a column, or a number is none.
        UnknownNameError: A wanted column that it does not have.
    """
    text = read_text(path, "score table", MAX_TABLE_BYTES)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = [name for name in reader.fieldnames or () if name]
        columns = _columns(path, names, wanted)
        rows = []
        for record in reader:
            where = f"{path.name}, line {reader.line_num}"
            if None in record:
                raise InputError(f"{where}: more cells than the {len(names)} columns of its head")
            row = _row({w: (record[c] or "").strip() for w, c in columns.items()}, where)
            rows += [row] if row is not None else []
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not readable CSV ({error})") from None
    return rows, columns


def _columns(path: Path, names: Sequence[str], wanted: Mapping[str, str]) -> dict[str, str]:
    columns = {}
    for what, known in NAMES.items():
        given = wanted.get(what)
        if given is not None and given not in names:
            raise UnknownNameError("column", given, names, f"{path}, --column {what}=...")
        found = given or next((name for name in known if name in names), None)
        if found is not None:
            columns[what] = found
    lost = [what for what in _NEEDED if what not in columns]
    if lost:
        raise InputError(
            f"{path}: no column for {' and '.join(lost)} among {', '.join(names) or 'none'}; say "
            f"which: --column {lost[0]}=COLUMN"
        )
    return columns


def _row(cells: Mapping[str, str], where: str) -> TableScore | None:
    from evalcore.analysis.tabled import TableScore

    if not cells["score"]:
        return None
    score = _number(cells["score"], where, "score")
    stderr = _number(cells.get("stderr", ""), where, "stderr")
    if stderr < 0:
        raise InputError(f"{where}: stderr is {stderr}; expected 0 or more")
    n = _number(cells.get("n", ""), where, "n")
    if n == n and (n < 1 or n != int(n)):
        raise InputError(f"{where}: n is {n}; expected a whole number of documents")
    metric = cells.get("metric") or "score"
    model = cells.get("model") or "model"
    return TableScore(
        model=model, step=_step(cells.get("step") or model),
        tuned_on=cells.get("tuned", ""), task=cells["task"], metric=metric,
        prompt=cells.get("prompt", ""), way=cells.get("way", ""), shots=_shots(cells, where),
        score=score, stderr=stderr, n=None if n != n else int(n), where=where,
    )  # fmt: skip


def _with_error(row: TableScore, size: int | None = None) -> TableScore:
    """The error of a share of right answers follows from its number of documents."""
    n = row.n or size
    if (
        row.stderr == row.stderr
        or n is None
        or n < 2
        or not row.is_share
        or not 0 <= row.score <= 1
    ):
        return row
    return replace(row, stderr=math.sqrt(row.score * (1 - row.score) / (n - 1)))


def _shots(cells: Mapping[str, str], where: str) -> int:
    shots = _number(cells.get("shots", ""), where, "shots")
    if shots != shots:
        return 0
    if shots < 0 or shots != int(shots):
        raise InputError(f"{where}: shots is {shots}; expected a whole number")
    return int(shots)


def _number(text: str, where: str, what: str) -> float:
    if text.lower() in ("", "na", "nan", "n/a", "none", "null", "-"):
        if what == "score":
            raise InputError(
                f"{where}: score is {text!r}; leave the cell empty where there is none"
            )
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{where}: {what} is {text!r}; expected a number") from None
    if not math.isfinite(value):
        raise InputError(f"{where}: {what} is {text!r}; expected a finite number")
    return value


def _step(text: str) -> int | None:
    """The step that a name says (``OLMo-1B-step1000-tokens4B``, ``checkpoint-500``, ``1,000``).

    None where it says none (``main``, ``OLMo-1B``).
    """
    found = _STEP.search(text) or _ALONE.match(text.strip())
    return int(re.sub("[_,]", "", found[1])) if found else None


def read_lm_eval_results(path: Path) -> list[TableScore]:
    """Rows of lm-eval's ``results_*.json``: one per task and metric that is no error.

    Raises:
        InputError: It is no such file.
    """
    from evalcore.analysis.tabled import TableScore

    data = read_json(path, "lm-eval results", MAX_TABLE_BYTES)
    results = data.get("results")
    if not isinstance(results, dict):
        raise InputError(f"{path}: no lm-eval results (no key results); give results_*.json")
    config = data.get("config") if isinstance(data.get("config"), dict) else {}
    named = data.get("model_name") or (config or {}).get("model_args") or path.parent.name
    model = named if isinstance(named, str) else path.parent.name
    rows = []
    for task, metrics in results.items():
        if not isinstance(metrics, dict):
            raise InputError(f"{path}, results, {task}: expected its metrics, not {metrics!r}")
        n = _of(data, "n-samples", task)
        n = n.get("effective") if isinstance(n, dict) else n
        shots = _of(data, "n-shot", task)
        for name, value in metrics.items():
            metric, _, way = str(name).partition(",")
            if metric.endswith("_stderr") or not _is_number(value) or not way:
                continue
            error = metrics.get(f"{metric}_stderr,{way}")
            row = TableScore(
                model=model, step=_step(model), tuned_on="", task=str(task), metric=metric,
                prompt="", way="" if way == "none" else way,
                shots=int(shots) if _is_number(shots) and shots >= 0 else 0,
                score=float(value), stderr=float(error) if _is_number(error) else math.nan,
                n=int(n) if _is_number(n) and n >= 1 else None,
                where=f"{path.name}, {task}, {name}",
            )  # fmt: skip
            rows.append(row)
    return rows


def _of(data: Mapping[str, Any], key: str, task: str) -> Any:
    found = data.get(key)
    return found.get(task) if isinstance(found, dict) else None


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _pairs(texts: Sequence[str], option: str, form: str) -> dict[str, str]:
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip() or not value.strip():
            raise InputError(f"{option} {text!r}: expected {form}")
        found[name.strip()] = value.strip()
    return found


def _sizes(texts: Sequence[str], rows: Sequence[TableScore]) -> dict[str, int]:
    known = {row.task for row in rows}
    sizes = {}
    for task, text in _pairs(texts, "--size", "TASK=DOCUMENTS").items():
        if task not in known:
            raise UnknownNameError("task", task, known, "--size")
        if not text.isdecimal() or int(text) < 1:
            raise InputError(f"--size {task}={text}: expected a whole number of documents")
        sizes[task] = int(text)
    return sizes


def _group(text: str, prompt: str, shots: int | None, known: set[str]) -> TableGroup:
    from evalcore.analysis.tabled_groups import Member, TableGroup

    name, sign, listed = text.partition("=")
    members = []
    for part in listed.split(","):
        rest, _, way = part.strip().partition("/")
        task, _, tuned_on = rest.partition("@")
        if not sign or not name.strip() or not task:
            raise InputError(f"--group {text!r}: expected NAME=TASK[@TUNING][/WAY],...")
        if task not in known:
            raise UnknownNameError("task", task, known, f"--group {name.strip()}")
        members.append(Member(task, tuned_on, way))
    return TableGroup(name.strip(), tuple(members), prompt, shots)
