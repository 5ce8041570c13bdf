"""The worker of the tuning stage: many adapters, one after another, on bases kept in memory."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evalcore.errors import EngineError, EvalcoreError, IncompatibleError, InputError
from evalcore.prompting import load_tokenizer
from evalcore.types import Checkpoint
from finetune.data import batch_order, build_training_set
from finetune.plan import TuneJob
from finetune.provenance import TrainingReport, commit_adapter
from finetune.study import MethodSpec

DEFAULT_EPOCHS = 3.0
DEFAULT_MAX_LENGTH = 2048
OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """What all jobs of a worker have in common.

    Attributes:
        threads: CPU threads of torch; 0 leaves torch's own choice.
        device: ``auto`` takes a GPU if there is one.
    """

    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, slots=True)
class TuneResult:
    """One adapter that was trained.

    Attributes:
        job_id: Id of its job.
        directory: Where it is.
        examples: Rows learned.
        left_out: Rows left out, by reason.
        steps: Optimizer steps.
        tokens: Tokens run through the model, without padding.
        first_loss: Loss of the first step, nats per completion token.
        final_loss: Mean loss of the last 10 steps.
        load_s: Seconds to read the base (0 when it was in memory).
        wall_s: Seconds of the job, reading the base left out.
        untrained: Whether every delta is zero.
    """

    job_id: str
    directory: str
    examples: int
    left_out: dict[str, int]
    steps: int
    tokens: int
    first_loss: float
    final_loss: float
    load_s: float
    wall_s: float
    untrained: bool


@dataclass(slots=True)
class _Base:
    """A base in memory: its weights are only ever read."""

    key: tuple[str, str]
    model: Any
    tokenizer: Any
    checksum: int
    names: frozenset[str]
    max_length: int | None
    dtype: str


class TuneWorker:
    """Trains one adapter per ``run``; made inside a worker process by the job pool.

    Args:
        config: Threads and device.
        worker_index: Number of the worker in its pool.
    """

    def __init__(self, config: TuneConfig, worker_index: int = 0) -> None:
        import torch

        self._quiet_libraries()
        if config.threads:
            torch.set_num_threads(config.threads)
        wants_gpu = config.device == "cuda" or (
            config.device == "auto" and torch.cuda.is_available()
        )
        if wants_gpu and not torch.cuda.is_available():
            raise InputError("device cuda was asked for, but torch sees no GPU")
        self._device = torch.device("cuda" if wants_gpu else "cpu")
        self._base: _Base | None = None

    def run(
        self, job: TuneJob, on_step: Callable[[int, int, float], None] | None = None
    ) -> TuneResult:
        """Trains and publishes one adapter.

        Raises:
            EvalcoreError: If data, base or training are not as they should be; the worker can go
                on with other jobs.
        """
        try:
            return self._run(job, on_step)
        except EngineError:
            self._drop_base()
            raise
        except EvalcoreError as error:
            error.args = (f"{job.id}: {error}",)
            raise

    def flush(self) -> None:
        """Nothing waits: an adapter is durable when ``run`` returns."""

    def close(self) -> None:
        self._drop_base()

    def _run(self, job: TuneJob, on_step: OnStep | None) -> TuneResult:
        import torch

        from finetune.loop import train_adapter

        load_start = time.perf_counter()
        base = self._load(job.checkpoint, self._dtype(job.method))
        start = time.perf_counter()
        rows = build_training_set(job, base.tokenizer, _max_length(job, base))
        steps = num_steps(job.method, len(rows))
        with self._adapter(base, job) as model:
            on_cpu = self._device.type == "cpu"
            record = train_adapter(
                model, rows, job.method, steps=steps, seed=job.seed,
                use_cpu=on_cpu, autocast_bf16=not on_cpu and base.dtype == "bfloat16",
                on_step=on_step,
            )  # fmt: skip
            self._check_unchanged(base, model.get_base_model())
            report = TrainingReport(
                losses=tuple(record.losses),
                learning_rates=tuple(record.learning_rates),
                completion_tokens=tuple(record.completion_tokens),
                tokens=rows_tokens(rows.prompts, rows.completions, job.method, steps, job.seed),
                wall_s=time.perf_counter() - start,
                device="cpu" if on_cpu else torch.cuda.get_device_name(self._device),
                threads=torch.get_num_threads(),
                dtype=base.dtype,
            )
            written = commit_adapter(job, lambda path: _save(model, path), rows, report)
        return TuneResult(
            job_id=job.id,
            directory=job.directory,
            examples=len(rows),
            left_out=rows.counts,
            steps=steps,
            tokens=report.tokens,
            first_loss=written["training"]["first_loss"],
            final_loss=written["training"]["final_loss"],
            load_s=start - load_start,
            wall_s=time.perf_counter() - start,
            untrained=written["training"]["untrained"],
        )

    @contextlib.contextmanager
    def _adapter(self, base: _Base, job: TuneJob) -> Iterator[Any]:
        """A fresh LoRA on the base; taken off again whatever happens."""
        import torch
        from peft import LoraConfig, get_peft_model

        method = job.method
        config = LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            target_modules=method.targets,
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(job.seed)  # decides the initialisation
        try:
            model = get_peft_model(base.model, config)
        except ValueError as error:  # peft: no module has such a name
            first_line = str(error).splitlines()[0]
            raise IncompatibleError(
                f"method.targets {method.targets!r} do not fit {base.key[0]}: {first_line}"
            ) from None
        try:
            yield model
        finally:
            model.unload()
            if frozenset(base.model.state_dict()) != base.names:
                self._drop_base()

    def _load(self, checkpoint: Checkpoint, dtype: str) -> _Base:
        """The base of a job; read once as long as jobs of one checkpoint follow one another."""
        import torch
        from transformers import AutoModelForCausalLM

        key = (checkpoint.path, dtype)
        if self._base is not None and self._base.key == key:
            return self._base
        self._drop_base()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint.path, dtype=getattr(torch, dtype), local_files_only=True,
                use_safetensors=True, trust_remote_code=False,
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
            dtype=dtype,
        )
        return self._base

    def _check_unchanged(self, base: _Base, model: Any) -> None:
        """Training an adapter must not have touched the base it will be scored on."""
        if weights_checksum(model) != base.checksum:
            raise EngineError(f"the weights of {base.key[0]} changed while an adapter was trained")

    def _drop_base(self) -> None:
        if self._base is None:
            return
        self._base = None
        gc.collect()
        if self._device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

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


def weights_checksum(model: Any) -> int:
    """Sum of all weights of the base read as integers: cheap, and any single change shows.

    Weights that PEFT added are left out; a wrapped layer counts as the layer.
    """
    import torch

    views = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            as_integers = weight.detach().view(views[weight.element_size()])
            total += int(as_integers.sum(dtype=torch.int64))
    return total


def num_steps(method: MethodSpec, rows: int) -> int:
    """Optimizer steps of a job: as given, else enough for the epochs."""
    if method.steps is not None:
        return method.steps
    per_step = method.batch_size * method.gradient_accumulation
    return max(1, math.ceil((method.epochs or DEFAULT_EPOCHS) * rows / per_step))


def rows_tokens(
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    method: MethodSpec,
    steps: int,
    seed: int,
) -> int:
    """Tokens of all rows learned, repeats included, padding left out."""
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    order = batch_order(
        lengths, method.batch_size, steps * method.gradient_accumulation, seed,
        group_by_length=method.group_by_length,
    )  # fmt: skip
    return sum(lengths[i] for i in order)


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


def _save(model: Any, directory: Path) -> None:
    # "auto" would look the base up on the hub to see whether its vocabulary has grown.
    model.save_pretrained(str(directory), save_embedding_layers=False)
