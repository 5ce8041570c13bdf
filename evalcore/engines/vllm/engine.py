"""Life cycle of one vLLM engine over many subjects: start, swap, merge, prove, close."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.engines.canary import CanaryBook, canary_batch
from evalcore.engines.protocol import EngineSpec, LoadKind, LoadReport, numerics_class
from evalcore.engines.text import checkpoint_tokenizer, end_token_ids
from evalcore.engines.vllm.environment import engine_arguments, prepare
from evalcore.engines.vllm.strategies import PackedScorer, PlainScorer, generate, reset_cache
from evalcore.errors import EngineError, EvalcoreError, InputError, ProofError
from evalcore.identity import NumericsClass, numeric_config, weight_layout
from evalcore.types import (
    Checkpoint,
    GenerateBatch,
    GenerateResult,
    ScoreBatch,
    ScoreResult,
    Subject,
)

_log = logging.getLogger("evalcore")
# Packed against plain on the canary batch, once per engine start; nats.
_STRATEGY_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.03}


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
            # The engine's detokenizer finds stop strings while it generates.
            checkpoint.tokenizer_fingerprint,
        )


class VLLMEngine:
    """vLLM behind the Engine protocol; see the module's docstring."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._device = prepare(spec)
        self._llm: Any = None
        self._shape: _Shape | None = None
        self._facts: dict[str, Any] = {}
        self._trusted: set[str] = set()  # tensors the proof could see right after the start
        self._in_place: Subject | None = None
        self._checkpoint_in_place: str | None = None
        self._canaries = CanaryBook(spec.dtype)
        self._scorer: PackedScorer | PlainScorer = PlainScorer()
        self._tokenizer: tuple[str, Any] | None = None
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
        if self._in_place is not None and self._in_place.id == subject.id:
            return LoadReport("none", 0.0, 0.0, True)
        self._in_place = None  # until proven; a failed load is always followed by a full one
        shape = _Shape.of(subject.checkpoint)
        details: dict[str, str] = {}
        kind: LoadKind = "merge"
        load_s = proof_s = 0.0
        if self._llm is None or shape != self._shape:
            kind = "start"
            load_s, proof_s = self._start(subject.checkpoint, shape, details)
        elif self._checkpoint_in_place != subject.checkpoint.fingerprint:
            kind = "swap"
        if kind != "start" or subject.adapter is not None:
            swap_s, probe_s = self._swap(subject, details)
            load_s, proof_s = load_s + swap_s, proof_s + probe_s
        begin = time.perf_counter()
        details["canary"] = self._canaries.check(subject, self._score_canary())
        proof_s += time.perf_counter() - begin
        self._in_place = subject
        self._checkpoint_in_place = subject.checkpoint.fingerprint
        self._stats["proof_s"] += proof_s
        proven = bool(self._trusted) and not details.get("unproven")
        return LoadReport(kind, load_s, proof_s, proven, details)

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

            self._llm = LLM(**arguments)
            self._facts = self._llm.collective_rpc("evalcore_describe")[0]
        except EvalcoreError:
            raise
        except Exception as error:  # vLLM raises whatever a model's code raises
            self._stop()
            raise EngineError(
                f"vllm could not start on {checkpoint.path}: {_line(error)}"
            ) from error
        self._shape = shape
        start_s = time.perf_counter() - begin
        self._stats["starts"] += 1
        self._stats["start_s"] += start_s
        self._prove_start(checkpoint, details)
        self._choose_strategy(details)
        # The bare checkpoint's canaries, for the adapters that come after.
        self._canaries.check(Subject(checkpoint), self._score_canary())
        return start_s, time.perf_counter() - begin - start_s

    def _max_length(self, checkpoint: Checkpoint) -> int:
        """One more than asked for (plain scoring samples a token), within the model's own limit."""
        config = json.loads((Path(checkpoint.path) / "config.json").read_text("utf-8"))
        own = config.get("max_position_embeddings") or config.get("n_positions")
        return min(self._spec.max_length + 1, own) if own else self._spec.max_length + 1

    def _prove_start(self, checkpoint: Checkpoint, details: dict[str, str]) -> None:
        """Finds out which tensors the proof can see; vLLM's own loader is trusted here."""
        verdict = self._llm.collective_rpc("evalcore_prove_start", args=(checkpoint.path,))[0]
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
        """Packed if asked for or possible, and only if it agrees with plain on this machine."""
        self._scorer = PlainScorer()
        obstacle = self._facts["packed_obstacle"]
        asked = self._spec.strategy
        if asked == "plain":
            return
        if obstacle is None:
            plain, packed = self._score_canary(), PackedScorer()
            try:
                gap = float(np.abs(self._score_canary(packed) - plain).max())
            except EvalcoreError:
                raise
            except Exception as error:  # kernels and metadata differ between vLLM versions
                obstacle = f"it failed ({_line(error)})"
            else:
                if gap <= _STRATEGY_TOLERANCE[self._spec.dtype]:
                    self._scorer = packed
                else:
                    obstacle = f"it differs from plain by {gap:.2g} nats"
        if obstacle is not None:
            if asked == "packed":
                raise EngineError(f"strategy packed is not possible here: {obstacle}")
            _log.warning("scoring plainly, not packed: %s", obstacle)
        details["strategy"] = self._scorer.name

    # -- swap ----------------------------------------------------------------------------------

    def _swap(
        self, subject: Subject, details: dict[str, str], *, remedy: bool = True
    ) -> tuple[float, float]:
        """Streams a subject's weights in; (seconds to load, seconds of proof)."""
        begin = time.perf_counter()
        adapter = subject.adapter
        self._checkpoint_in_place = None
        try:
            answers = self._llm.collective_rpc(
                "evalcore_load",
                args=(subject.checkpoint.path, adapter.path if adapter else None, remedy),
            )
        except (InputError, ProofError):
            raise  # nothing was changed, or all was loaded and is wrong: the next load mends it
        except Exception as error:
            self._stop()  # half loaded: the next load starts a new engine
            raise EngineError(f"{subject.label}: swap failed: {_line(error)}") from error
        finally:
            if self._llm is not None:
                reset_cache(self._llm)
        answer = answers[0]
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

    def _score_canary(self, scorer: PackedScorer | PlainScorer | None = None) -> Any:
        """float64 [T] of the canary batch, cold, by the strategy in use."""
        scorer = scorer or self._scorer
        batch = canary_batch(self._facts["vocab_size"])
        reset_cache(self._llm)
        result = scorer.score(self._llm, batch, "canary")
        reset_cache(self._llm)
        self._stats["canary_tokens"] += float(result.computed_tokens.sum())
        return result.token_logprobs

    # -- work ----------------------------------------------------------------------------------

    def score(self, batch: ScoreBatch) -> ScoreResult:
        """Log-probabilities of continuations under the loaded subject.

        Raises:
            InputError: A token id outside the vocabulary, or a sequence that is too long.
            EngineError: No subject is loaded, or the numbers are not finite.
        """
        salt = self._salt()
        owner = batch.continuation_context
        total = np.diff(batch.context_offsets)[owner] + np.diff(batch.continuation_offsets)
        self._check(batch.context_tokens, total)
        self._check(batch.continuation_tokens, total)
        begin = time.perf_counter()
        result = self._scorer.score(self._llm, batch, salt)
        self._stats["score_s"] += time.perf_counter() - begin
        self._stats["fallbacks"] += result.fallbacks
        self._stats["steps"] = float(getattr(self._scorer, "steps", 0))
        self._count(result)
        return result

    def generate(self, batch: GenerateBatch) -> GenerateResult:
        """Greedy continuations under the loaded subject.

        Raises:
            InputError: The checkpoint has no tokenizer, or a context is too long.
            EngineError: No subject is loaded.
        """
        salt = self._salt()
        assert self._in_place is not None
        path = self._in_place.checkpoint.path
        if self._tokenizer is None or self._tokenizer[0] != path:
            self._tokenizer = (path, checkpoint_tokenizer(path))
        tokenizer = self._tokenizer[1]
        self._check(batch.context_tokens, np.diff(batch.context_offsets) + 1)
        begin = time.perf_counter()
        result = generate(self._llm, batch, tokenizer, end_token_ids(path, tokenizer), salt)
        self._stats["generate_s"] += time.perf_counter() - begin
        self._count(result)
        return result

    def _count(self, result: ScoreResult | GenerateResult) -> None:
        self._stats["computed_tokens"] += float(result.computed_tokens.sum())
        self._stats["cached_tokens"] += float(result.cached_tokens.sum())

    def _salt(self) -> str:
        """Keys the prefix cache by the weights in place, so that a stale hit cannot happen."""
        if self._in_place is None or self._llm is None:
            raise EngineError("engine vllm: load a subject before asking for scores")
        return hashlib.blake2b(self._in_place.id.encode(), digest_size=16).hexdigest()

    def _check(self, tokens: Any, totals: Any) -> None:
        if len(tokens) and (
            int(tokens.max()) >= self._facts["vocab_size"] or int(tokens.min()) < 0
        ):
            raise InputError(
                f"token id {int(tokens.max())} is outside the model's vocabulary of "
                f"{self._facts['vocab_size']}; tokenizer and checkpoint do not fit"
            )
        if len(totals) and int(totals.max()) > self._facts["max_length"]:
            raise InputError(
                f"a sequence of {int(totals.max())} tokens is longer than the engine's "
                f"{self._facts['max_length']}; raise max_length or shorten prompts"
            )

    def stats(self) -> dict[str, float]:
        return dict(self._stats)

    def close(self) -> None:
        self._stop()

    def _stop(self) -> None:
        """Shuts the running engine down so that another can start in this process."""
        self._in_place, self._checkpoint_in_place, self._shape = None, None, None
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


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
