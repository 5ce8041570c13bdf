"""Tuning and scoring at the same time, where there are devices for both.

Tuning runs in a thread of this process (its work is in worker processes); this thread scores, in
rounds: first the bases, then whatever was tuned meanwhile, last everything that is left. Results
are resumable and scored once, so that the rounds together are one ordinary scoring run: nothing
that is stored depends on whether the stages overlapped.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from evalcore.app.outcome import ScoreOutcome
from evalcore.app.score import score
from evalcore.app.tuning import Every, plan_tuning, tune, tuned_models
from evalcore.cluster import Stop, StopSignals
from evalcore.cluster.ray_session import shared
from evalcore.config import ScoreConfig
from evalcore.errors import InputError
from evalcore.machine import cores, visible_gpus

if TYPE_CHECKING:
    from evalcore.app.study import StudyOptions, StudyProgress
    from finetune import Study, TuneEvent, TunePlan, TuneSummary

POLL_S = 0.5
SAY_EVERY_S = 10.0


def wants_overlap(options: StudyOptions) -> bool:
    """Whether both stages run at once: as asked, else where there are two GPUs or more."""
    if options.overlap is not None:
        return options.overlap
    return options.scoring.cluster.device != "cpu" and len(visible_gpus()) >= 2


def split_gpus(names: list[str], job: int, engine: int) -> tuple[list[str], list[str]]:
    """(for tuning, for scoring), never one for both: halves, but what each needs.

    An engine takes nearly all memory of its GPUs: beside a training, one of the two would die.

    Args:
        names: The GPUs there are.
        job: GPUs of the largest training.
        engine: GPUs of one engine.

    Returns:
        All for tuning and none for scoring where there are too few for both.
    """
    if job + engine > len(names):
        return names, []
    tuning = min(max(job, (len(names) + 1) // 2), len(names) - engine)
    return names[:tuning], names[tuning:]


def tune_and_score(
    spec: Study,
    options: StudyOptions,
    progress: StudyProgress,
    scoring: Callable[[], ScoreConfig],
    signals: StopSignals,
) -> tuple[TuneSummary, ScoreOutcome]:
    """Tunes what is missing and scores what is there, both at once.

    Args:
        spec: The study.
        options: Where it runs.
        progress: Told of both stages.
        scoring: Gives the configuration of scoring for what is tuned by now.
        signals: What may stop tuning, entered already.

    Raises:
        InputError: Both at once were asked for, and there are too few GPUs.
        EvalcoreError: As either stage alone.
    """
    plan = plan_tuning(spec, options, progress)
    most = max((job.method.devices for job in plan.jobs), default=1)
    on_cpu = options.scoring.cluster.device == "cpu"
    names = [] if on_cpu else visible_gpus()[: options.scoring.cluster.num_gpus]
    each = options.scoring.cluster.tensor_parallel
    for_tuning, for_scoring = split_gpus(names, most, each)
    held = len(for_scoring)
    if names and not held and options.overlap:
        raise InputError(
            f"--overlap: a training takes {most} GPUs, an engine {each}, and there are "
            f"{len(names)}; leave --overlap out: scoring then begins when tuning has ended"
        )

    def beside() -> ScoreConfig:
        """Configuration of a round that has the GPUs tuning leaves."""
        given = scoring()
        workers = given.cluster.workers and min(given.cluster.workers, held // each)
        return given.changed(num_gpus=None, workers=workers) if held else given

    outcome, rounds = None, 0
    with _shared_ray(options):
        tuning = _TuningThread(plan, options, for_tuning, signals, progress)
        tuning.start()
        try:
            if held or not names:  # CPUs are shared
                with _visible(for_scoring or None):
                    outcome, rounds = _rounds(options, tuning, progress, beside)
            else:
                tuning.join()
        except BaseException:
            signals.request("scoring failed")
            tuning.join()
            raise
        if outcome is None or outcome.summary.stopped is None:
            outcome = score(scoring(), progress)  # with all devices
            rounds += 1
        else:
            signals.request(outcome.summary.stopped)
        summary = tuning.result()
    if rounds > 1:
        outcome.notes.insert(0, f"scored in {rounds} rounds beside tuning; figures of the last")
    return summary, outcome


def _rounds(
    options: StudyOptions,
    tuning: _TuningThread,
    progress: StudyProgress,
    scoring: Callable[[], ScoreConfig],
) -> tuple[ScoreOutcome | None, int]:
    """Scores while tuning is alive: again whenever something new is finished."""
    outcome: ScoreOutcome | None = None
    scored: object = None
    rounds = 0
    while tuning.is_alive():
        found = tuned_models(options.output)
        if found == scored:
            time.sleep(POLL_S)
            continue
        begin = time.perf_counter()
        outcome, scored, rounds = score(scoring(), progress), found, rounds + 1
        progress.stage_done(f"score, round {rounds}", time.perf_counter() - begin, None)
        if outcome.summary.stopped is not None:
            break
    return outcome, rounds


class _TuningThread(threading.Thread):
    """Tuning in the background; what it raises comes out of :meth:`result`."""

    def __init__(
        self,
        plan: TunePlan,
        options: StudyOptions,
        gpus: list[str],
        signals: Callable[[], Stop],
        progress: StudyProgress,
    ) -> None:
        super().__init__(name="evalcore-tuning", daemon=True)
        self._plan, self._options, self._gpus = plan, options, gpus
        self._signals, self._progress, self._say = signals, progress, Every(SAY_EVERY_S)
        self._summary: TuneSummary | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._summary = tune(
                self._plan, self._options, self._on_event,
                gpus=self._gpus, should_stop=self._signals,
            )  # fmt: skip
        except BaseException as error:
            self._error = error

    def result(self) -> TuneSummary:
        """Waits for the end."""
        self.join()
        if self._error is not None:
            raise self._error
        assert self._summary is not None
        return self._summary

    def _on_event(self, event: TuneEvent) -> None:
        # The bar belongs to scoring: tuning says a line now and then.
        if event.failure is not None:
            self._progress.failure(event.failure.job_id, str(event.failure.error))
        if event.done == event.total or self._say():
            self._progress.stage("finetune", f"{event.done} of {event.total} trained")


@contextlib.contextmanager
def _visible(gpus: list[str] | None) -> Iterator[None]:
    """Shows this process, and the engines it starts, some of the GPUs; None: all, as before."""
    if gpus is None:
        yield
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextlib.contextmanager
def _shared_ray(options: StudyOptions) -> Iterator[None]:
    """One Ray for both stages: each alone would stop the one it started under the other."""
    if options.scoring.cluster.backend != "ray":
        yield
        return
    # Workers of both stages may share cores.
    with shared(options.scoring.cluster.ray_address, 2 * cores()):
        yield
