"""What is settled before a run: where engines are, which models, which engine, which cells."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc

from evalcore.app.adapters import AdapterPlan, check_way, plan_adapters
from evalcore.app.cells import Grid
from evalcore.app.engines import hf_spec
from evalcore.app.grid import GridMaker, Selected
from evalcore.app.labels import labelled_subjects
from evalcore.app.lengths import encoding_settings
from evalcore.app.manifest import agreed, grid_name
from evalcore.app.place import Place, changed_device, find_place, mixed_kinds
from evalcore.app.survey import Survey
from evalcore.config import GridConfig, ScoreConfig
from evalcore.engines.protocol import EngineSpec, numerics_class
from evalcore.errors import InputError
from evalcore.identity import CELL_KEY_VERSION, Applied, NumericsClass, numeric_config
from evalcore.identity.resolve import WARNED
from evalcore.shown import one_line
from evalcore.store import ResultStore, aside_lines
from evalcore.types import Subject, generation_of

log = logging.getLogger("evalcore")

CHECKED_AT_START_BYTES = 4 << 30
"""Results up to this size are read and checked from end to end when a run starts."""


@dataclass(frozen=True)
class Settled:
    """What is the same for all cells of a run.

    Attributes:
        maker: Of cells.
        survey: Who is asked how much.
        spec: The engine.
        adapters: How they are applied.
        apart: Fingerprint of a checkpoint that engine hf scores beside ``spec``'s -> its class.
    """

    maker: GridMaker
    survey: Survey
    spec: EngineSpec
    adapters: AdapterPlan
    apart: Mapping[str, NumericsClass]

    @property
    def numerics(self) -> NumericsClass:
        """The class of all other scores."""
        return numerics_class(self.spec)


def settle_place(config: ScoreConfig, store: ResultStore | None) -> tuple[Place, list[str]]:
    """(where the engines are, lines where results are of another device, or GPUs of many kinds)."""
    labels = set() if store is None else set(store.cells()["numerics"].to_pylist())
    scored_on = {parts[3] for label in labels if label and len(parts := label.split("/")) > 3}
    place = find_place(config.cluster, scored_on)
    return place, [*changed_device(place, scored_on, str(config.run.output)), *mixed_kinds(place)]


def settle_subjects(
    config: ScoreConfig, place: Place, store: ResultStore
) -> tuple[list[Subject], list[tuple[str, str]], list[str]]:
    """(subjects, problems, notes); a hub base's resolved commit is among the notes."""
    applied = "either" if config.engine.kind == "auto" else applied_by(config, place)
    resolved = labelled_subjects(
        config.subjects, store, applied, config.cluster.disk_budget, config.grid.task_path
    )
    problems = [(problem.path, problem.message) for problem in resolved.problems]
    subjects = _supported(config, place, resolved.subjects, problems)
    part = config.run.shard is not None and not config.run.dry_run
    if part and subjects and (name := grid_name()) is not None:
        store.create()
        subjects, gone = agreed(store.path, subjects, name)
        what = "part of this array job's grid, but not found by this part: scored by the next run"
        problems += [(f"subject {subject_id[:12]}", what) for subject_id in gone]
    if not subjects:
        raise _nobody(problems, told=min(len(resolved.problems), WARNED))
    return subjects, problems, list(resolved.notes)


def _nobody(problems: Sequence[tuple[str, str]], told: int) -> InputError:
    """The error of a run without subjects; names those reasons that were not told before."""
    if len(problems) < 2:
        first = f": {problems[0][1]}" if problems else ""
        return InputError(f"no subject can be scored{first}")
    for _, reason in problems[told:]:
        log.warning("%s", one_line(reason))
    return InputError(f"no subject can be scored, for the {len(problems)} reasons above")


def _supported(
    config: ScoreConfig,
    place: Place,
    subjects: Sequence[Subject],
    problems: list[tuple[str, str]],
) -> list[Subject]:
    """The subjects whose checkpoint the engine can run; the others become problems."""
    if config.engine.kind != "vllm":
        return list(subjects)
    from evalcore.engines.vllm.bases import LONGEST, refused, unsupported

    longest = config.grid.max_length or LONGEST
    # Nodes of a cluster may have another vLLM, code from a checkpoint is not vLLM's.
    elsewhere = config.cluster.backend == "ray" or config.engine.trust_remote_code
    ask = unsupported if elsewhere else refused
    reasons = {
        path: ask(path, numeric_config(path), place.device, longest)
        for path in {subject.checkpoint.path for subject in subjects}
    }
    problems += [
        (path, f"checkpoint {path}: {reason}; engine hf may score it (--engine hf)")
        for path, reason in sorted(reasons.items())
        if reason is not None
    ]
    return [subject for subject in subjects if reasons[subject.checkpoint.path] is None]


def applied_by(config: ScoreConfig, place: Place) -> Applied:
    """What the engine does with adapters, in so far as it decides which it can apply."""
    if config.engine.kind == "hf":
        return "unmerged"
    if config.engine.adapters == "auto":
        return "batched" if place.device == "cuda" else "merged"
    return config.engine.adapters


def settle_spec(config: ScoreConfig, place: Place, subjects: Sequence[Subject]) -> EngineSpec:
    """The engine of a run, but for the way of its adapters; vllm where that is not settled."""
    asked = config.grid.max_length
    checkpoints = {id(subject.checkpoint): subject.checkpoint for subject in subjects}.values()
    return EngineSpec.of(
        config.engine,
        kind="vllm" if config.engine.kind == "auto" else config.engine.kind,
        dtype=config.engine.dtype_on(place.device),
        max_length=max(encoding_settings(each, asked).max_length for each in checkpoints),
        device=place.device,
        threads=place.threads,
        tensor_parallel=config.cluster.tensor_parallel,
    )


def settle_ways(
    config: GridConfig,
    asked: Selected,
    spec: EngineSpec,
    subjects: Sequence[Subject],
    store: ResultStore,
    cache: Path,
    slow: Collection[str] = (),
) -> Settled:
    """What hangs on the whole grid: who is asked what, and how adapters are applied.

    In 16-bit the way of the adapters is part of every cell's key, and the rule needs to know how
    much is asked of each.

    Args:
        asked: Tasks and variants.
        slow: Fingerprints of the checkpoints that engine hf scores beside ``spec``'s.
    """
    check_way(spec)
    maker = GridMaker(config, cache, asked)
    apart = dict.fromkeys(slow, numerics_class(hf_spec(spec)))
    survey = Survey(maker, subjects, numerics_class(spec), apart)
    adapters = plan_adapters(spec, store, survey.subjects_asked(slow), survey.tokens_of)
    generates = any(generation_of(each.task, each.variant) for each in survey.questions())
    spec = replace(adapters.fitted(spec), cuda_graphs=generates)  # scoring replays none
    return Settled(maker, survey, spec, adapters, apart)


def set_aside(store: ResultStore) -> list[str]:
    """What of the results is damaged is scored again: lines about it.

    Large results are not read from end to end by every run: `evalcore verify` does that.
    """
    earlier = aside_lines(store.path)
    if store.num_bytes > CHECKED_AT_START_BYTES:
        return earlier
    report = store.verify()
    return earlier if report.sound else [*report.lines(), *earlier]


class OldKeys:
    """Cells that were scored under keys of an earlier version."""

    _NAMES = ("checkpoint_fingerprint", "adapter_fingerprint", "task", "variant")

    def __init__(self, store: ResultStore) -> None:
        table = store.cells().select([*self._NAMES, "key_version"])
        known = pc.fill_null(table["key_version"], 0)
        table = table.filter(pc.less(known, CELL_KEY_VERSION)).select(list(self._NAMES))
        self._path = store.path
        self._there = Counter(tuple(row.values()) for row in table.to_pylist())
        self._count = 0

    def look(self, grid: Grid) -> None:
        """Counts those that some cells are asked for anew."""
        if self._there:
            columns = (grid.rows.column(name).to_pylist() for name in self._NAMES)
            self._count += sum(self._there[asked] for asked in set(zip(*columns, strict=True)))

    def lines(self) -> list[str]:
        """One line where there are any."""
        if not self._count:
            return []
        return [
            f"{self._count:,} cells of {self._path} have keys of an earlier evalcore: since "
            f"version {CELL_KEY_VERSION} of the keys data counts by its rows, chat templates and "
            "end tokens too (docs/identity.md); they are scored anew, and what was there can still "
            "be read"
        ]
