"""One vLLM engine over many subjects: start, swap, merge or attach adapters, prove, stop."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evalcore.engines.canary import CanaryBook, canary_batch
from evalcore.engines.protocol import (
    EngineSpec,
    LoadKind,
    LoadReport,
    numerics_class,
    resolve_adapters,
)
from evalcore.engines.vllm.adapters import AdapterSlots, reason_to_merge
from evalcore.engines.vllm.environment import engine_arguments, prepare
from evalcore.engines.vllm.linear import sum_in_parts
from evalcore.engines.vllm.requests import Work, first_line, reset_cache
from evalcore.engines.vllm.strategies import PlainScorer, Scorer, choose_scorer
from evalcore.engines.vllm.worker import call
from evalcore.errors import EngineError, EvalcoreError, InputError, ProofError
from evalcore.identity import (
    NumericsClass,
    numeric_config,
    tokenizer_fingerprint,
    weight_layout,
)
from evalcore.types import Adapter, Checkpoint, Subject

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

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._device = prepare(spec)
        self._llm: Any = None
        self._shape: _Shape | None = None
        self._facts: dict[str, Any] = {}
        self._trusted: set[str] = set()  # tensors the proof could see right after the start
        self._in_place: Subject | None = None
        self._report: LoadReport | None = None  # of the last load
        self._weights: Subject | None = None  # whose weights are in place
        self._slots: AdapterSlots | None = None
        self._lora: Any = None  # the adapter beside them, as vLLM names it
        self._canaries = CanaryBook(spec.dtype)
        self._scorer: Scorer = PlainScorer()
        self._stats: dict[str, float] = dict.fromkeys(
            (
                "starts", "swaps", "start_s", "swap_s", "proof_s", "score_s", "generate_s",
                "computed_tokens", "cached_tokens", "canary_tokens", "fallbacks", "steps",
            ),
            0.0,
        )  # fmt: skip

    @property
    def numerics(self) -> NumericsClass:
        return numerics_class(self._spec, self._device)

    def load(self, subject: Subject) -> LoadReport:
        """Puts a subject in place: starts, swaps or merges, then proves it.

        Raises:
            IncompatibleError: Checkpoint or adapter cannot be run as asked.
            ProofError: The weights in place are not the wanted ones.
            EngineError: vLLM could not start.
        """
        if self._in_place is not None and self._in_place.weights == subject.weights:
            assert self._report is not None
            self._in_place = subject  # perhaps asked through another tokenizer
            return replace(self._report, kind="none", load_s=0.0, proof_s=0.0)
        self._in_place = self._lora = None  # until proven
        shape = _Shape.of(subject.checkpoint)
        details: dict[str, str] = {}
        attach = self._can_attach(subject, details)
        load_s = proof_s = 0.0
        if self._llm is None or shape != self._shape:
            kind: LoadKind = "start"
            load_s, proof_s = self._start(subject.checkpoint, shape, details)
        elif (
            self._weights is None
            or self._weights.checkpoint.fingerprint != subject.checkpoint.fingerprint
        ):
            kind = "swap"
        elif attach:
            kind = "attach"
        else:
            kind = "none" if self._weights.weights == subject.weights else "merge"
        begin, before = time.perf_counter(), proof_s
        proof_s += self._put(Subject(subject.checkpoint) if attach else subject, details)
        beside = attach and self._attach(subject.adapter, details)
        if attach and not beside:
            proof_s += self._put(subject, details)
        load_s += time.perf_counter() - begin - (proof_s - before)
        begin = time.perf_counter()
        known = self._slots.proven if beside and self._slots is not None else set()
        if subject.adapter is not None and subject.adapter.fingerprint in known:
            # Once more would only empty the prefix cache.
            details["canary"] = "compared when it was loaded"
        else:
            try:
                details["canary"] = self._canaries.check(subject, self._score_canary())
            except EvalcoreError:
                self._weights = None  # the next load is a full one
                raise
            if subject.adapter is not None:
                known.add(subject.adapter.fingerprint)
        proof_s += time.perf_counter() - begin
        self._in_place = subject
        self._stats["proof_s"] += proof_s
        proven = bool(self._trusted) and not details.get("unproven")
        way = "" if subject.adapter is None else "batched" if beside else "merged"
        self._report = LoadReport(
            kind,
            load_s,
            proof_s,
            proven,
            details,
            proven_share=float(proven),
            compared=details["canary"],
            strategy=self._scorer.name,
            adapter=way,
        )
        return self._report

    def _put(self, wanted: Subject, details: dict[str, str]) -> float:
        """Makes the weights in place those of a subject; seconds of proof."""
        if self._weights is not None and self._weights.weights == wanted.weights:
            return 0.0
        proof_s = self._swap(wanted, details)[1]
        self._weights = wanted
        return proof_s

    def _can_attach(self, subject: Subject, details: dict[str, str]) -> bool:
        """Whether a subject's adapter is to be applied beside the weights.

        Raises:
            IncompatibleError: The adapter does not fit the checkpoint.
        """
        if subject.adapter is None or resolve_adapters(self._spec) != "batched":
            return False
        layout = weight_layout(subject.checkpoint.path)
        reason = reason_to_merge(subject.adapter, layout, self._spec.max_lora_rank)
        if reason is not None:
            details["adapter"] = f"merged: {reason}"
        return reason is None

    def _attach(self, adapter: Adapter | None, details: dict[str, str]) -> bool:
        """Loads an adapter beside the weights; False where vLLM refuses it."""
        assert adapter is not None
        assert self._slots is not None
        try:
            self._lora = self._slots.attach(adapter)
        except ValueError as error:
            details["adapter"] = f"merged: vllm refuses it ({first_line(error)})"
            return False
        details["adapter"] = "batched"
        return True

    # -- start ---------------------------------------------------------------------------------

    def _start(
        self, checkpoint: Checkpoint, shape: _Shape, details: dict[str, str]
    ) -> tuple[float, float]:
        """Starts vLLM on a checkpoint; (seconds to start, seconds of proof)."""
        begin = time.perf_counter()
        self._stop()
        arguments = engine_arguments(
            self._spec, checkpoint.path, self._device, self._max_length(checkpoint)
        )
        try:
            from vllm import LLM

            if self._device == "cpu" and self._spec.dtype == "float32":
                sum_in_parts()
            self._llm = LLM(**arguments)
            self._facts = call(self._llm, "evalcore_describe")
        except EvalcoreError:
            raise
        except Exception as error:  # vLLM raises whatever a model's code raises
            self._stop()
            raise EngineError(
                f"vllm could not start on {checkpoint.path}: {first_line(error)}"
            ) from error
        self._shape, self._weights = shape, Subject(checkpoint)
        self._slots = AdapterSlots(self._llm)
        start_s = time.perf_counter() - begin
        self._stats["starts"] += 1
        self._stats["start_s"] += start_s
        self._prove_start(checkpoint, details)
        self._choose_strategy(details)
        # The bare checkpoint's canaries, for the adapters that come after.
        self._canaries.check(Subject(checkpoint), self._score_canary())
        return start_s, time.perf_counter() - begin - start_s

    def _max_length(self, checkpoint: Checkpoint) -> int:
        """One more than the model may read: a sequence's last token is predicted, not read."""
        config = json.loads((Path(checkpoint.path) / "config.json").read_text("utf-8"))
        own = config.get("max_position_embeddings") or config.get("n_positions")
        return min(self._spec.max_length, own or self._spec.max_length) + 1

    def _prove_start(self, checkpoint: Checkpoint, details: dict[str, str]) -> None:
        """Finds out which tensors the proof can see; vLLM's own loader is trusted here."""
        verdict = call(self._llm, "evalcore_prove_start", checkpoint.path)
        self._trusted = set() if verdict is None else set(verdict.proven)
        if verdict is None:
            details["unproven"] = "all (tensor parallel: canaries only)"
            return
        details["proven"] = f"{len(verdict.proven)} tensors"
        hidden = sorted({*verdict.unmapped, *verdict.wrong})
        if hidden:
            details["unproven"] = ", ".join(hidden[:5]) + (" ..." if len(hidden) > 5 else "")
            _log.warning(
                "%d tensors of %s cannot be probed in vllm's %s; only canaries watch them: %s",
                len(hidden), checkpoint.path, self._facts["model_class"], details["unproven"],
            )  # fmt: skip

    def _choose_strategy(self, details: dict[str, str]) -> None:
        """Takes the cheapest way to score that agrees with the plain one on this machine."""
        self._scorer = choose_scorer(
            self._llm,
            self._facts,
            self._spec.strategy,
            self._score_canary,
            batched=resolve_adapters(self._spec) == "batched",
            tolerance=_STRATEGY_TOLERANCE_TF32
            if self._device == "cuda" and self._spec.dtype == "float32"
            else _STRATEGY_TOLERANCE[self._spec.dtype],
        )
        details["strategy"] = self._scorer.name

    # -- swap ----------------------------------------------------------------------------------

    def _swap(
        self, subject: Subject, details: dict[str, str], *, remedy: bool = True
    ) -> tuple[float, float]:
        """Streams a subject's weights in; (seconds to load, seconds of proof)."""
        begin = time.perf_counter()
        adapter = subject.adapter
        self._weights = None
        try:
            path = adapter.path if adapter else None
            answer = call(self._llm, "evalcore_load", subject.checkpoint.path, path, remedy)
        except (InputError, ProofError):
            raise  # nothing was changed, or all was loaded and is wrong: the next load mends it
        except Exception as error:
            self._stop()  # half loaded: the next load starts a new engine
            raise EngineError(f"{subject.label}: swap failed: {first_line(error)}") from error
        finally:
            if self._llm is not None:
                reset_cache(self._llm)
            if self._slots is not None:
                self._slots.forget()  # a reload drops all adapters
        if adapter is not None:
            changed = int(answer["changed_weights"])
            details["changed_weights"] = str(changed)
            if not changed and not adapter.untrained:
                raise ProofError(
                    f"{subject.label}: merging changes no weight although the adapter's delta is "
                    f"not zero; it vanishes in {self._spec.dtype}"
                )
        verdict = answer["verdict"]
        if verdict is not None:
            verdict.require(self._trusted, subject.label)
            details["proven"] = f"{len(verdict.proven)} tensors, error <= {verdict.seen:.1e}"
        hidden = len(weight_layout(subject.checkpoint.path)) - len(self._trusted)
        if verdict is None or (hidden and {*verdict.unmapped, *verdict.wrong}):
            details["unproven"] = f"{hidden} tensors: canaries only"
        swap_s = time.perf_counter() - begin - answer["proof_s"]
        self._stats["swaps"] += 1
        self._stats["swap_s"] += swap_s
        return swap_s, answer["proof_s"]

    def _score_canary(self, scorer: Scorer | None = None) -> Any:
        """float64 [T] of the canary batch, cold, by the strategy in use."""
        scorer = scorer or self._scorer
        batch = canary_batch(self._facts["vocab_size"])
        reset_cache(self._llm)
        result = scorer.score(self._llm, [Work(batch, "canary", self._lora)])[0]
        reset_cache(self._llm)
        self._stats["canary_tokens"] += float(result.computed_tokens.sum())
        return result.token_logprobs

    def _stop(self) -> None:
        """Shuts the running engine down so that another can start in this process."""
        self._in_place = self._weights = self._shape = None
        self._slots = self._lora = None
        self._trusted = set()
        if self._llm is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        llm, self._llm = self._llm, None
        core: Any = getattr(llm.llm_engine, "engine_core", None)
        if hasattr(core, "shutdown"):
            core.shutdown()
        del llm, core
        cleanup_dist_env_and_memory()  # collects garbage, too
