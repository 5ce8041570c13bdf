"""One vLLM engine over many subjects: start, swap, merge or attach adapters, prove, stop."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalcore.config.engine import Strategy
from evalcore.engines.canary import CanaryBook, canary_batch
from evalcore.engines.protocol import (
    EngineSpec,
    LoadKind,
    LoadReport,
    Settle,
    numerics_class,
    resolve_adapters,
)
from evalcore.engines.vllm import compat
from evalcore.engines.vllm.adapters import AdapterSlots, reason_to_merge
from evalcore.engines.vllm.environment import engine_arguments, prepare
from evalcore.engines.vllm.linear import sum_in_parts
from evalcore.engines.vllm.merging import merged_copy
from evalcore.engines.vllm.names import CAPABILITIES, Capability
from evalcore.engines.vllm.objects import LLM
from evalcore.engines.vllm.proof import Verdict
from evalcore.engines.vllm.requests import Work, first_line, reset_cache
from evalcore.engines.vllm.strategies import (
    PlainScorer,
    Scorer,
    choose_scorer,
    settled_scorer,
)
from evalcore.engines.vllm.worker import call, call_all
from evalcore.errors import EngineError, EvalcoreError, ProofError, SubjectError
from evalcore.identity import (
    NumericsClass,
    numeric_config,
    shares_embeddings,
    text_fingerprint,
    tokenizer_fingerprint,
    weight_files,
    weight_layout,
)
from evalcore.identity.verify import adapter_files, unchanged, verify_adapter
from evalcore.types import Checkpoint, FloatArray, Subject

_log = logging.getLogger("evalcore")
# Other strategies against plain on the canary batch, once per engine start; nats.
_STRATEGY_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.03}
# Attention in float32 on GPUs multiplies in TF32: 7e-4 on the canaries of a 1B model (H100).
_STRATEGY_TOLERANCE_TF32 = 5e-3


@dataclass(frozen=True)
class _Shape:
    """What a running engine is built for; checkpoints of equal shape are swapped."""

    config: Mapping[str, Any]
    layout: Mapping[str, tuple[str, tuple[int, ...]]]
    tokenizer: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Shape:
        return cls(
            numeric_config(checkpoint.path),
            weight_layout(checkpoint.path),
            # The engine's detokenizer, always the checkpoint's own, finds stop strings.
            tokenizer_fingerprint(checkpoint.path)
            if checkpoint.tokenizer_path
            else checkpoint.tokenizer_fingerprint,
        )


class Resident:
    """A vLLM engine and the subject that is in place in it."""

    needs_witness = True
    settle: Settle | None = None

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._device = prepare(spec)
        self._llm: LLM | None = None
        self._shape: _Shape | None = None  # of the running engine
        self._facts: dict[str, Any] = {}
        self._trusted: set[str] = set()  # tensors the proof could see right after the start
        self._verdict = Verdict()  # of the weights in place
        self._alone: tuple[_Shape, str] | None = None  # what cannot be swapped or merged, and why
        self._in_place: Subject | None = None
        self._report: LoadReport | None = None  # of the last load
        self._weights: Subject | None = None  # whose weights are in place, proven
        self._slots: AdapterSlots | None = None
        self._lora: Any = None  # the adapter beside them, as vLLM names it
        self._canaries = CanaryBook(spec.dtype)
        self._canary: FloatArray | None = None  # of the last load, if they were scored for it
        self._scorer: Scorer = PlainScorer()
        self._chosen = False  # whether the strategy is
        self._stats: dict[str, float] = dict.fromkeys(
            (
                "starts", "swaps", "start_s", "swap_s", "proof_s", "score_s", "generate_s",
                "computed_tokens", "cached_tokens", "canary_tokens", "fallbacks", "steps",
            ),
            0.0,
        )  # fmt: skip

    @property
    def _running(self) -> LLM:
        assert self._llm is not None
        return self._llm

    @property
    def numerics(self) -> NumericsClass:
        return numerics_class(self._spec, self._device)

    def load(self, subject: Subject) -> LoadReport:
        """Puts a subject in place: starts, swaps, merges or attaches, then proves it.

        Where this model's weights cannot be proven after a swap or a merge in a living engine, a
        new engine is started on the subject's own files (see ``EngineSpec.min_proven``).

        Raises:
            IncompatibleError: Checkpoint or adapter cannot be run as asked.
            SubjectError: Weights that are no numbers, or an adapter without effect in this dtype.
            NodeError: Other bytes were read than planned.
            ProofError: The weights in place are not the wanted ones.
            EngineError: vLLM could not start.
        """
        if self._in_place is not None and self._in_place.weights == subject.weights:
            assert self._report is not None
            self._in_place = subject  # perhaps asked through another tokenizer
            return replace(self._report, kind="none", load_s=0.0, proof_s=0.0)
        self._in_place = self._lora = None  # until proven
        begin, proof_before = time.perf_counter(), self._stats["proof_s"]
        details: dict[str, str] = {}
        shape = _Shape.of(subject.checkpoint)
        attach = self._can_attach(subject, details)
        kind, starts = self._kind(subject, shape, attach), self._stats["starts"]
        self._bring(Subject(subject.checkpoint) if attach else subject, shape, details)
        beside = attach and self._attach(subject, details)
        if attach and not beside:
            self._bring(subject, shape, details)
        self._choose_strategy(details)
        self._compare(subject, beside, details)
        self._in_place = subject
        proof_s = self._stats["proof_s"] - proof_before
        self._report = LoadReport(
            "start" if self._stats["starts"] > starts else kind,
            time.perf_counter() - begin - proof_s,
            proof_s,
            self._verdict.share >= 1.0,
            details,
            proven_share=self._verdict.share,
            canaries=details["canary"],
            strategy=self._scorer.name,
            adapter="" if subject.adapter is None else "batched" if beside else "merged",
            canary=self._canary,
            vocab_size=self._facts["vocab_size"],
        )
        return self._report

    def _kind(self, subject: Subject, shape: _Shape, attach: bool) -> LoadKind:
        """How a subject will come into place, unless a new engine has to be started."""
        if self._llm is None or shape != self._shape:
            return "start"
        fingerprint = subject.checkpoint.fingerprint
        if self._weights is None or self._weights.checkpoint.fingerprint != fingerprint:
            return "swap"
        if attach:
            return "attach"
        return "none" if self._weights.weights == subject.weights else "merge"

    def _bring(self, wanted: Subject, shape: _Shape, details: dict[str, str]) -> None:
        """Makes the weights in place those of a subject, in this engine or in a new one."""
        if self._weights is not None and self._weights.weights == wanted.weights:
            return
        if not self._is_alone(shape) and (self._llm is None or shape != self._shape):
            # Without an adapter first: it shows what can be proven of this model.
            self._start(Subject(wanted.checkpoint), shape, details)
            if wanted.adapter is None:
                return
        if not self._is_alone(shape):
            try:
                self._swap(wanted, details)
                return
            except EngineError as error:
                self._alone = (shape, first_line(error))
                _log.warning("%s; a new engine is started for each subject of this shape", error)
        assert self._alone is not None
        details["engine"] = f"started for this subject: {self._alone[1]}"
        self._start(wanted, shape, details)

    def _is_alone(self, shape: _Shape) -> bool:
        """Whether subjects of a shape need engines of their own."""
        return self._alone is not None and self._alone[0] == shape

    def _can_attach(self, subject: Subject, details: dict[str, str]) -> bool:
        """Whether a subject's adapter is to be applied beside the weights.

        Raises:
            IncompatibleError: The adapter does not fit the checkpoint.
            SubjectError: It would have to be merged, in 16-bit.
        """
        if subject.adapter is None or resolve_adapters(self._spec) != "batched":
            return False
        base = subject.checkpoint.path
        reason = reason_to_merge(
            subject.adapter, weight_layout(base), self._spec.max_lora_rank, self._device, base=base
        )
        if reason is None:
            lacks = self._facts["lacks"] if self._facts else compat.probe()
            reason = lacks["batched"] or None
        if reason is not None:
            self._may_merge(subject, reason, details)
        return reason is None

    def _may_merge(self, subject: Subject, reason: str, details: dict[str, str]) -> None:
        """Notes why an adapter is merged although adapters go beside the weights.

        Raises:
            SubjectError: In 16-bit merged weights give other numbers than the run's class says.
        """
        if self._spec.dtype != "float32":
            raise SubjectError(
                f"{subject.label}: it cannot be applied beside the weights: {reason}; merged, it "
                f"would give other numbers in {self._spec.dtype} than batched adapters do: score "
                f"it with --adapters merged, in a results folder of its own"
            )
        details["adapter"] = f"merged: {reason}"

    def _attach(self, subject: Subject, details: dict[str, str]) -> bool:
        """Loads an adapter beside the weights and proves it; False where vLLM refuses it.

        Raises:
            NodeError: The adapter's files are not the planned ones.
            SubjectError: They hold numbers that are none, or vLLM refuses them in 16-bit.
            ProofError: vLLM holds other numbers than they.
        """
        adapter = subject.adapter
        assert adapter is not None
        assert self._slots is not None
        known = self._slots.holds(adapter)
        try:
            with unchanged([] if known else adapter_files(adapter)):
                if not known:
                    verify_adapter(adapter)
                self._lora = self._slots.attach(adapter)
                if not known:
                    begin = time.perf_counter()
                    number = self._lora.lora_int_id
                    unasked = call(self._running, "evalcore_slot", subject, number)
                    self._stats["proof_s"] += time.perf_counter() - begin
                    if unasked:
                        self._slots.drop(adapter)
                        self._lora = None
                        raise ValueError(f"its slot cannot be proven: {unasked}")
        except ValueError as error:
            self._may_merge(subject, f"vllm refuses it ({first_line(error)})", details)
            return False
        except EvalcoreError:
            self._slots.drop(adapter)
            raise
        details["adapter"] = "batched"
        return True

    def _compare(self, subject: Subject, beside: bool, details: dict[str, str]) -> None:
        """Compares the canaries with what is known of them."""
        begin = time.perf_counter()
        self._canary = None
        known = self._slots.proven if beside and self._slots is not None else set()
        if subject.adapter is not None and subject.adapter.fingerprint in known:
            # Once more would only empty the prefix cache.
            details["canary"] = "compared when it was loaded"
            return
        try:
            self._canary = self._score_canary()
            details["canary"] = self._canaries.check(subject, self._canary)
        except EvalcoreError:
            self._weights = None  # the next load is a full one
            raise
        finally:
            self._stats["proof_s"] += time.perf_counter() - begin
        if subject.adapter is not None:
            known.add(subject.adapter.fingerprint)

    # -- start ---------------------------------------------------------------------------------

    def _start(self, subject: Subject, shape: _Shape, details: dict[str, str]) -> None:
        """Starts vLLM on a subject's files: the checkpoint's, or a copy with the adapter merged."""
        begin = time.perf_counter()
        self._stop()
        path = subject.checkpoint.path
        files = [Path(path) / "config.json", *weight_files(Path(path))]
        with unchanged(files), self._folder(subject, details) as folder:
            self._launch(folder)
            self._shape, self._slots = shape, AdapterSlots(self._running)
            self._stats["starts"] += 1
            self._stats["start_s"] += time.perf_counter() - begin
            begin = time.perf_counter()
            answers = call_all(self._running, "evalcore_prove_start", subject)
        self._accept(subject, answers, "the start", details)
        self._trusted = set(self._verdict.proven)
        self._weights = subject
        why = self._shortfall() if self._verdict.share < self._spec.min_proven else ""
        why = why or self._lacking("reload")
        if why and not self._is_alone(shape):
            self._alone = (shape, why)
            _log.warning("%s: a new engine for each subject: %s", path, why)
        self._stats["proof_s"] += time.perf_counter() - begin
        if subject.adapter is None:
            self._choose_strategy(details)
            # The bare checkpoint's canaries, for the adapters that come after.
            self._compare(subject, False, details)

    @contextmanager
    def _folder(self, subject: Subject, details: dict[str, str]) -> Iterator[str]:
        """The folder vLLM loads a subject from."""
        path = subject.checkpoint.path
        if subject.adapter is None:
            yield path
            return
        details["adapter"] = "merged into a copy of the checkpoint"
        tied = shares_embeddings(numeric_config(path), weight_layout(path))
        spec = self._spec
        with merged_copy(subject, spec.dtype, tied=tied, budget=spec.merge_disk_bytes) as folder:
            yield folder

    def _launch(self, path: str) -> None:
        """Starts vLLM on a folder."""
        arguments = engine_arguments(self._spec, path, self._device, self._max_length(path))
        try:
            lacks = compat.probe()
            if lacks["engine"]:
                raise EngineError(compat.unusable(lacks["engine"]))
            if self._device == "cpu" and self._spec.dtype == "float32" and not lacks["sums"]:
                sum_in_parts()
            compat.mend(str(numeric_config(path).get("model_type")))
            self._llm = compat.start(arguments)
            self._facts = call(self._running, "evalcore_describe")
        except EvalcoreError:
            raise
        except Exception as error:  # vLLM raises whatever a model's code raises
            self._stop()
            raise EngineError(f"vllm could not start on {path}: {first_line(error)}") from error

    def _max_length(self, path: str) -> int:
        """One more than the model may read: a sequence's last token is predicted, not read."""
        config = json.loads((Path(path) / "config.json").read_text("utf-8"))
        own = config.get("max_position_embeddings") or config.get("n_positions")
        return min(self._spec.max_length, own or self._spec.max_length) + 1

    def _accept(
        self, subject: Subject, answers: list[dict[str, Any]], when: str, details: dict[str, str]
    ) -> None:
        """Combines what the ranks found.

        Raises:
            ProofError: A tensor is wrong on some rank.
        """
        self._verdict = verdict = Verdict.of_ranks([answer["verdict"] for answer in answers])
        details["proven"] = (
            f"{verdict.share:.1%} of the parameters, {len(verdict.proven)} tensors, "
            f"error <= {verdict.seen:.1e}"
        )
        details.pop("unproven", None)
        if verdict.share < 1:
            details["unproven"] = self._shortfall()
        if verdict.wrong:
            name = sorted(verdict.wrong)[0]
            count = len(verdict.proven) + len(verdict.unproven) + len(verdict.wrong)
            raise ProofError(
                f"{subject.label}: the running model does not hold {name} of the files "
                f"(relative error {verdict.wrong[name]:.2g}); {len(verdict.wrong)} of {count} "
                f"tensors are wrong after {when}"
            )

    def _shortfall(self) -> str:
        """How much is proven, and what is not."""
        verdict = self._verdict
        return (
            f"{verdict.share:.1%} of the parameters of vllm's {self._facts['model_class']} can be "
            f"proven, not {verdict.hidden()}"
        )

    def _lacking(self, capability: Capability) -> str:
        """Why this vLLM cannot do what evalcore does with its inside; ``""`` if it can."""
        lacks: str = self._facts["lacks"][capability]
        return lacks and f"vllm {compat.vllm_version()} without {capability}: {lacks}"

    def _choose_strategy(self, details: dict[str, str]) -> None:
        """Takes the cheapest way to score that agrees with the plain one on this machine."""
        if not self._chosen:
            begin = time.perf_counter()
            self._scorer = settled_scorer(
                self._choose, self._spec.strategy, self._settle, self.numerics.label
            )
            self._chosen = True
            self._stats["proof_s"] += time.perf_counter() - begin
        details["strategy"] = self._scorer.name
        details["without"] = "; ".join(filter(None, map(self._lacking, CAPABILITIES)))

    def _choose(self, asked: Strategy) -> Scorer:
        """The strategy asked for, or the cheapest one that can be used."""
        return choose_scorer(
            self._running,
            self._facts,
            asked,
            self._score_canary,
            batched=resolve_adapters(self._spec) == "batched",
            tolerance=_STRATEGY_TOLERANCE_TF32
            if self._device == "cuda" and self._spec.dtype == "float32"
            else _STRATEGY_TOLERANCE[self._spec.dtype],
        )

    def _settle(self, chosen: str = "") -> str:
        """What is settled for engines like this one, on models of this configuration."""
        alike = self._device == "cpu" and self._spec.dtype == "float32"  # whatever the strategy
        if self.settle is None or alike:
            return chosen
        assert self._shape is not None
        kind = text_fingerprint([self.numerics.label, dict(self._shape.config)])
        return self.settle(kind, chosen)

    # -- swap ----------------------------------------------------------------------------------

    def _swap(self, subject: Subject, details: dict[str, str], *, remedy: bool = True) -> None:
        """Streams a subject's weights in and proves them.

        Raises:
            SubjectError, NodeError, IncompatibleError: See ``load``; the next load mends it.
            EngineError: The engine must not go on, or it is not proven that it may.
        """
        begin = time.perf_counter()
        self._weights = None
        try:
            answers = call_all(self._running, "evalcore_load", subject, remedy)
        except EvalcoreError:
            raise
        except Exception as error:
            raise EngineError(f"{subject.label}: swap failed: {first_line(error)}") from error
        finally:
            reset_cache(self._running)
            if self._slots is not None:
                self._slots.forget()  # a reload drops all adapters
        adapter, changed = subject.adapter, max(answer["changed_weights"] for answer in answers)
        if adapter is not None:
            details["changed_weights"] = str(changed)
            if not changed and not adapter.untrained:
                raise SubjectError(
                    f"{subject.label}: merging changes no weight although the adapter's delta is "
                    f"not zero; it vanishes in {self._spec.dtype}"
                )
        proof_s = max(answer["proof_s"] for answer in answers)
        self._stats["swaps"] += 1
        self._stats["swap_s"] += time.perf_counter() - begin - proof_s
        self._stats["proof_s"] += proof_s
        self._accept(subject, answers, "the swap", details)
        lost = sorted(self._trusted - self._verdict.proven)
        if lost or self._verdict.share < self._spec.min_proven:
            why = f"{lost[0]} is not proven any more" if lost else self._shortfall()
            raise ProofError(f"{subject.label}: {why} after the swap")
        self._weights = subject

    def _score_canary(self, scorer: Scorer | None = None) -> Any:
        """float64 [T] of the canary batch, cold, by the strategy in use."""
        scorer = scorer or self._scorer
        batch = canary_batch(self._facts["vocab_size"])
        reset_cache(self._running)
        try:
            result = scorer.score(self._running, [Work(batch, "canary", self._lora)])[0]
        except EvalcoreError:
            raise
        except Exception as error:  # a kernel that this build does not have, or that fails
            self._weights = None
            raise EngineError(
                f"vllm cannot score {self._facts['model_class']} here: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        reset_cache(self._running)
        self._stats["canary_tokens"] += float(result.computed_tokens.sum())
        return result.token_logprobs

    def _stop(self) -> None:
        """Shuts the running engine down so that another can start in this process."""
        self._in_place = self._weights = self._shape = None
        self._slots = self._lora = None
        self._trusted, self._chosen, self._scorer = set(), False, PlainScorer()
        if self._llm is None:
            return
        llm, self._llm = self._llm, None
        compat.stop(llm)
