"""The worker of the tuning stage: one model after another, on bases kept in memory.

A base is read once by a worker as long as jobs of one checkpoint follow one another. Several
workers of a node each have their own copy in memory; the files are memory-mapped safetensors, so
that the disk is read once per node and the page cache serves the others.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalcore.errors import (
    EngineError,
    EvalcoreError,
    IncompatibleError,
    InputError,
    TrainingError,
)
from evalcore.prompting import load_tokenizer
from evalcore.types import Checkpoint
from finetune import distributed
from finetune.data import TrainingSet, batch_order
from finetune.encoded import training_set
from finetune.jobs import TuneJob
from finetune.method import MethodSpec
from finetune.provenance import TrainingReport, commit, working_folder
from finetune.results import TuneConfig, TuneResult
from finetune.resume import Keeper
from finetune.selection import choose_learning_rate
from finetune.tuners import FullTuner, LoraTuner, Tuner, weights_checksum

DEFAULT_EPOCHS = 3.0
DEFAULT_MAX_LENGTH = 2048
OnStep = Callable[[int, int, float], None]


@dataclass(slots=True)
class _Base:
    """A base in memory: its weights are only ever read."""

    key: tuple[str, str, str | None]
    model: Any
    tokenizer: Any
    checksum: int
    names: frozenset[str]
    max_length: int | None


class TuneWorker:
    """Trains one model per ``run``; made inside a worker process by the job pool.

    Args:
        config: Threads and device.
        worker_index: Number of the worker in its pool.
    """

    def __init__(self, config: TuneConfig, worker_index: int = 0) -> None:
        import torch

        self._quiet_libraries()
        distributed.stay_alone()
        if config.threads:
            torch.set_num_threads(config.threads)
        wants_gpu = config.device == "cuda" or (
            config.device == "auto" and torch.cuda.is_available()
        )
        if wants_gpu and not torch.cuda.is_available():
            raise InputError("device cuda was asked for, but torch sees no GPU")
        self._config = config
        self._device = (
            torch.device("cuda", distributed.local_rank()) if wants_gpu else (torch.device("cpu"))
        )
        self._base: _Base | None = None
        self._stale = False  # whether a dropped base may still hold memory

    def run(self, job: TuneJob, on_step: OnStep | None = None) -> TuneResult:
        """Trains and publishes one model.

        Raises:
            EvalcoreError: If data, base or training are not as they should be; the worker can go
                on with other jobs.
        """
        try:
            if job.method.devices > 1 and not distributed.is_member():
                self._drop_base()  # its memory is wanted by the processes that train
                self._free_memory()
                return distributed.train(job, self._config, TuneResult)
            return self._run(job, on_step)
        except EngineError:
            self._drop_base()
            raise
        except EvalcoreError as error:
            if isinstance(error, TrainingError) and distributed.rank() == 0:
                # Going on from a training checkpoint would go wrong again.
                shutil.rmtree(working_folder(job.directory), ignore_errors=True)
            if not distributed.is_member():  # else the process that started them says which job
                error.args = (f"{job.id}: {error}",)
            raise

    def flush(self) -> None:
        """Nothing waits: what was trained is durable when ``run`` returns."""

    def close(self) -> None:
        self._drop_base()
        self._free_memory()

    def _run(self, job: TuneJob, on_step: OnStep | None) -> TuneResult:
        import torch

        start = time.perf_counter()
        base = self._load(job.checkpoint, job.method)
        load_s = time.perf_counter() - start
        start = time.perf_counter()
        rows = training_set(job, base.tokenizer, _max_length(job, base))
        del base  # full tuning reads it anew for every candidate: one copy at a time
        method, selection = self._select(job, rows)
        selection_s = selection["wall_s"] if selection is not None else 0.0
        with self._trained(job, method, rows, "run", on_step) as (tuner, model, result):
            begin = time.perf_counter() - start - selection_s
            report = TrainingReport(
                losses=tuple(result.record.losses),
                learning_rates=tuple(result.record.learning_rates),
                completion_tokens=tuple(result.record.completion_tokens),
                tokens=rows_tokens(rows, method, len(result.record.losses), job.seed),
                wall_s=begin + result.earlier_s,
                device=self._device_name(),
                threads=torch.get_num_threads(),
                dtype=self._dtype(method),
                method=method,
                resumed_at=result.resumed_at,
                selection=selection,
            )
            if distributed.rank() > 0:
                return _result(job, rows, report, load_s, {})
            record = commit(job, tuner, model, rows, report)
        shutil.rmtree(working_folder(job.directory), ignore_errors=True)
        return _result(job, rows, report, load_s, record)

    def _select(self, job: TuneJob, rows: TrainingSet) -> tuple[MethodSpec, dict[str, Any] | None]:
        """The method with its learning rate, and how that was chosen."""
        if job.selection is None:
            return job.method, None
        from finetune.loop import held_out_loss

        def train(rate: float, learned: TrainingSet, held_out: TrainingSet) -> float:
            method = job.method.merged({"learning_rate": rate})
            with self._trained(job, method, learned, f"candidate-{rate!r}", None) as (_, model, _):
                return held_out_loss(
                    model, held_out, method.batch_size, autocast_bf16=self._autocast(method)
                )

        rate, record = choose_learning_rate(
            job.selection, rows, job.seed, working_folder(job.directory),
            job.settings(), train, writes=distributed.rank() == 0,
        )  # fmt: skip
        return job.method.merged({"learning_rate": rate}), record

    @contextlib.contextmanager
    def _trained(
        self, job: TuneJob, method: MethodSpec, rows: TrainingSet, part: str, on_step: OnStep | None
    ) -> Iterator[tuple[Tuner, Any, Any]]:
        """(tuner, trained model, result of the loop); the base is as before afterwards, or gone."""
        from finetune.loop import LoopOptions, train_model

        base = self._load(job.checkpoint, method)
        tuner = make_tuner(job, method)
        options = LoopOptions(
            steps=num_steps(method, len(rows)),
            seed=job.seed,
            use_cpu=self._device.type == "cpu",
            autocast_bf16=self._autocast(method),
            on_step=on_step,
        )
        identity = [job.settings(), method.settings(), rows.fingerprint, options.steps]
        keeper = Keeper(
            working_folder(job.directory) / part, identity, method.save_every,
            writes=distributed.rank() == 0,
        )  # fmt: skip
        try:
            with tuner.applied(base.model, job.checkpoint.name) as model:
                result = train_model(model, rows, method, options, keeper)
                if method.kind == "lora":
                    self._check_unchanged(base, model.get_base_model())
                yield tuner, model, result
        finally:
            if method.kind == "full" or frozenset(base.model.state_dict()) != base.names:
                self._drop_base()

    def _load(self, checkpoint: Checkpoint, method: MethodSpec) -> _Base:
        """The base of a job; read once as long as jobs of one checkpoint follow one another."""
        import torch
        from transformers import AutoModelForCausalLM

        # All weights are trained in float32: steps of full tuning are lost in bfloat16's rounding.
        dtype = "float32" if method.kind == "full" else self._dtype(method)
        attention = self._attention(method)
        key = (checkpoint.path, dtype, attention)
        if self._base is not None and self._base.key == key:
            return self._base
        self._drop_base()
        self._free_memory()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint.path, dtype=getattr(torch, dtype), local_files_only=True,
                use_safetensors=True, trust_remote_code=False, attn_implementation=attention,
            )  # fmt: skip
        except Exception as error:  # a broken folder raises a dozen kinds, safetensors' own too
            first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(f"base {checkpoint.path} cannot be loaded: {first_line}") from None
        model.to(self._device)
        model.requires_grad_(False)
        self._base = _Base(
            key=key,
            model=model,
            tokenizer=load_tokenizer(checkpoint.path),
            checksum=weights_checksum(model),
            names=frozenset(model.state_dict()),
            max_length=getattr(model.config, "max_position_embeddings", None),
        )
        return self._base

    def _attention(self, method: MethodSpec) -> str | None:
        """Attention to load a base with; None leaves the choice to transformers.

        Packed rows are kept apart by a mask anywhere; flash attention, where it is installed, does
        it without one.
        """
        if not (method.packing and self._device.type == "cuda" and self._autocast(method)):
            return None
        from transformers.utils import is_flash_attn_2_available

        return "flash_attention_2" if is_flash_attn_2_available() else None

    def _check_unchanged(self, base: _Base, model: Any) -> None:
        """Training an adapter must not have touched the base it will be scored on."""
        if weights_checksum(model) != base.checksum:
            raise EngineError(f"the weights of {base.key[0]} changed while an adapter was trained")

    def _drop_base(self) -> None:
        self._stale = self._stale or self._base is not None
        self._base = None

    def _free_memory(self) -> None:
        """Gives back what dropped bases held; takes a while, so only before it is needed."""
        if not self._stale:
            return
        self._stale = False
        gc.collect()
        if self._device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _device_name(self) -> str:
        if self._device.type == "cpu":
            return "cpu"
        import torch

        return str(torch.cuda.get_device_name(self._device))

    def _autocast(self, method: MethodSpec) -> bool:
        return self._device.type != "cpu" and self._dtype(method) == "bfloat16"

    def _dtype(self, method: MethodSpec) -> str:
        if method.dtype != "auto":
            return method.dtype
        return "float32" if self._device.type == "cpu" else "bfloat16"

    @staticmethod
    def _quiet_libraries() -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        # The mask and the cache are left out on purpose (see finetune.loop).
        warnings.filterwarnings("ignore", message=".*pin_memory.*")


def num_steps(method: MethodSpec, rows: int) -> int:
    """Optimizer steps of a job: as given, else enough for the epochs."""
    if method.steps is not None:
        return method.steps
    per_step = method.batch_size * method.gradient_accumulation
    return max(1, math.ceil((method.epochs or DEFAULT_EPOCHS) * rows / per_step))


def rows_tokens(rows: TrainingSet, method: MethodSpec, steps: int, seed: int) -> int:
    """Tokens of all rows learned, repeats included, padding left out."""
    lengths = [len(p) + len(c) for p, c in zip(rows.prompts, rows.completions, strict=True)]
    order = batch_order(
        lengths, method.batch_size, steps * method.gradient_accumulation, seed,
        group_by_length=method.group_by_length,
    )  # fmt: skip
    return sum(lengths[i] for i in order)


def make_tuner(job: TuneJob, method: MethodSpec) -> Tuner:
    """What trains and writes models of this method."""
    if method.kind == "full":
        return FullTuner(Path(job.checkpoint.path))
    return LoraTuner(method, job.seed)


def _max_length(job: TuneJob, base: _Base) -> int:
    """Longest row: as asked, within what the base can do.

    Raises:
        IncompatibleError: If more was asked for than the base has positions.
    """
    asked, limit = job.method.max_length, base.max_length
    if asked is not None and limit is not None and asked > limit:
        raise IncompatibleError(
            f"method.max_length is {asked}, but {job.checkpoint.name} has {limit} positions"
        )
    return asked or min(DEFAULT_MAX_LENGTH, limit or DEFAULT_MAX_LENGTH)


def _result(
    job: TuneJob, rows: TrainingSet, report: TrainingReport, load_s: float, record: dict[str, Any]
) -> TuneResult:
    last = report.losses[-10:]
    return TuneResult(
        job_id=job.id,
        directory=job.directory,
        examples=len(rows),
        left_out=rows.counts,
        steps=len(report.losses),
        tokens=report.tokens,
        first_loss=report.losses[0],
        final_loss=sum(last) / len(last),
        load_s=load_s,
        wall_s=report.wall_s,
        moved_share=record.get("training", {}).get("moved_share", 1.0),
        learning_rate=report.method.learning_rate,
        resumed_at=report.resumed_at,
    )
