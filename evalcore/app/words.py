"""Plans and summaries in words, for people."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from evalcore.app.flops import mfu
from evalcore.errors import EvalcoreError
from evalcore.scoring import RunSummary
from evalcore.scoring.witnessed import LONGER
from evalcore.store import ResultStore

if TYPE_CHECKING:
    from evalcore.app.outcome import ScoreOutcome

MOST_CELLS = 5_000
"""Cells whose scores a run works out at its end (some milliseconds each)."""


_MET = 8  # lines on what workers met
SHOWN_NAMES = 50
"""Subjects, tasks or prompts that a dry run names."""


def plan_lines(outcome: ScoreOutcome) -> list[str]:
    """The plan of a dry run: what is asked, what of it is missing, how long that may take."""
    plan, examples_per_s = outcome.plan, outcome.examples_per_s
    counts, limits = plan.counts, outcome.limits
    lines = [f"engines: {outcome.engines}"]
    for what, names in outcome.asked.items():
        more = f", and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
        lines.append(f"{what} ({len(names):,}): {', '.join(names[:SHOWN_NAMES])}{more}")
    lines += [
        f"{counts.examples_planned:,} examples to score in {counts.cells_planned:,} cells "
        f"({counts.examples_covered:,} examples are there already)",
    ]
    if plan.units:
        lines += [
            f"{counts.subjects:,} subjects on {counts.checkpoints:,} checkpoints, "
            f"{counts.units:,} units of work, {counts.model_loads:,} loads of weights",
            f"{counts.prompt_tokens:,} prompt tokens asked for, "
            f"{limits.get('token_limit', 0):,} distinct (the token limit)",
        ]
    if plan.units and examples_per_s:
        lines.append(
            f"about {counts.examples_planned / examples_per_s:,.0f} s after the start, at the last "
            f"run's {examples_per_s:,.0f} examples/s"
        )
    elif plan.units:
        lines.append(
            "time not known: nothing was scored into this folder yet (a run with --limit 20 tells)"
        )
    return lines


def adapter_lines(summary: RunSummary) -> list[str]:
    """How adapters were applied, and why some were not applied as the others."""
    counts = summary.adapter_counts()
    if not counts:
        return []
    ways = ", ".join(f"{n:,} {how}" for how, n in counts.most_common())
    return [f"adapters: {ways}"]


def proof_lines(summary: RunSummary) -> list[str]:
    """How much of the weights was proven, and what engines did otherwise than usual."""
    if summary.proven_share is None:
        return []
    least = summary.proven_share
    share = "all" if least >= 1 else f"at least {100 * least:.1f} %"
    lines = [f"proven: {share} of the parameters of every model in place"]
    lines += [
        f"an engine {why} ({units:,} unit{'s' if units > 1 else ''})"
        for why, units in summary.alone.items()
    ]
    lines += [
        f"{what} ({units:,} unit{'s' if units > 1 else ''})"
        for what, units in summary.without.items()
    ]
    return lines


def witness_lines(summary: RunSummary) -> list[str]:
    """What was compared with transformers, what was not and why, and what that cost."""
    seen = summary.witnessed
    counts = {
        "agree": seen.agreed,
        "do not and are refused": seen.disagreed,
        "were not compared, as others of their kind agree": seen.unasked,
    }
    said = [f"{count:,} {what}" for what, count in counts.items() if count]
    if not said and not seen.not_compared:
        return []
    lines = []
    if said:
        gap = f" (within {seen.gap:.2g} nats)" if seen.agreed else ""
        long = f"; so do texts of up to {seen.tokens:,} tokens" if seen.tokens else ""
        lines.append(f"witness: of subjects and transformers {', '.join(said)}{gap}{long}")
    if seen.rows:
        lines.append(f"witness: {seen.rows:,} sampled examples of these agree too")
    lines += [
        f"witness: NOT COMPARED with transformers: "
        f"{reason if reason.startswith(LONGER) else f'{count:,} subjects: {reason}'}"
        for reason, count in seen.not_compared.items()
    ]
    lines += [
        f"witness: no test of this version compares {name} on this device ({count:,} subjects)"
        for name, count in seen.unseen.items()
    ]
    working_s = max(summary.after_start_s, 1e-9)
    if seen.memory_bytes:
        lines.append(
            f"witness: {seen.cpu_s:.1f} s of a core ({100 * seen.cpu_s / working_s:.1f} % of the "
            f"time after the start), waited for {seen.wait_s:.1f} s; its start {seen.start_s:.1f} "
            f"s, {seen.memory_bytes / 2**30:.1f} GiB"
        )
    return lines


def effort_lines(outcome: ScoreOutcome) -> list[str]:
    """Operations of a run and, where the device's peak is known, the share of it."""
    if outcome.flops is None:
        return []
    working_s = outcome.summary.engine_s
    line = f"{outcome.flops / 1e12:,.3g} TFLOP in {working_s:.1f} s of engines"
    share = mfu(outcome.flops, working_s, outcome.peak_flops)
    return [line + ("" if share is None else f", {100 * share:.1f} % of the devices' peak (MFU)")]


def score_lines(outcome: ScoreOutcome) -> list[str]:
    """The scores of what was asked for, as far as it is scored."""
    from evalcore.app.pairs import prompt_scores
    from evalcore.app.report import scores
    from evalcore.report import SHOWN_LINES, prompt_score_lines, scores_text

    rest = f"evalcore scores {quoted(outcome.output)}"
    if len(outcome.cells) > MOST_CELLS:
        return [f"{len(outcome.cells):,} cells are scored; their table: {rest}", ""]
    try:
        store = ResultStore(outcome.output, read_only=True)
        rows = scores(store, cells=outcome.cells)
        estimated = prompt_score_lines(prompt_scores(store, cells=outcome.cells), most=SHOWN_LINES)
    except EvalcoreError as error:  # what was scored is committed all the same
        return [f"the scores cannot be shown: {error}", ""]
    lines = scores_text(rows, most=SHOWN_LINES, rest=rest)
    lines += [""] * bool(lines and estimated) + estimated
    return [*lines, ""] if lines else []


def next_lines(outcome: ScoreOutcome) -> list[str]:
    """How to go on from a results folder."""
    where = quoted(outcome.output)
    commands = {
        f"evalcore scores {where} --by prompt": "each prompt by itself",
        f"evalcore label {where} --tuned-on GLOB=TASK": "what models were tuned on",
        f"evalcore report {where}": "pictures and one page",
        f"evalcore export {where} -o rows.parquet": "every example",
    }
    width = max(map(len, commands))
    told = [f"  {command:<{width}}  # {what}" for command, what in commands.items()]
    return [f"results: {outcome.output}", *told, ""]


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def met_lines(summary: RunSummary) -> list[str]:
    """What workers met, each in a line: a lost process, a machine that does not see a path."""
    told = [
        f"met: {what[:300]}" + (f" ({count} times)" if count > 1 else "")
        for what, count in list(summary.met.items())[:_MET]
    ]
    more = len(summary.met) - len(told)
    return told + ([f"met: {more} more, see runs/ and logs/"] if more else [])


def summary_lines(outcome: ScoreOutcome) -> list[str]:
    """What a run did, with its figures."""
    s = outcome.summary
    if not s.planned:
        return [f"nothing to do: all {s.covered:,} examples are in {outcome.output}"]
    lines = [
        f"{s.examples:,} examples ({s.choices:,} continuations, {s.new_tokens:,} new tokens) in "
        f"{s.wall_s:.1f} s: {s.examples / max(s.wall_s, 1e-9):,.0f} examples/s; "
        f"{s.covered:,} were there already"
    ]
    if s.after_start_s:
        lines.append(
            f"after the start {s.examples / s.after_start_s:,.0f} examples/s and "
            f"{s.prompt_tokens / s.after_start_s:,.0f} prompt tokens/s a worker"
        )
    # Of a run that was stopped, as of one that goes on, the limits in proportion to what was asked.
    share = s.prompt_tokens / max(outcome.plan.counts.prompt_tokens, 1)
    limit, blocks = (outcome.limits.get(n, 0) * share for n in ("token_limit", "block_limit"))
    if limit and s.computed_tokens:
        about = "" if share == 1.0 else "about "
        lines.append(
            f"computed {s.computed_tokens:,} prompt tokens, {about}{s.computed_tokens / limit:.2f} "
            f"x the token limit ({s.computed_tokens / blocks:.2f} x the "
            f"block limit); {s.cached_tokens:,} shared or cached; {s.fallbacks:,} fall-backs"
        )
    lines += adapter_lines(s)
    lines += proof_lines(s)
    lines += witness_lines(s)
    lines += effort_lines(outcome)
    certified = f"certifying {s.certify_s:.1f} s, " if s.certify_s else ""
    lines.append(
        f"start {s.start_s:.1f} s; after it engine {s.engine_s:.1f} s, swaps {s.swap_s:.1f} s, "
        f"proofs {s.proof_s:.1f} s, {certified}idle {s.idle_s:.1f} s "
        f"({100 * s.idle_share:.1f} %; {s.wait_s:.1f} s of it waiting for units); "
        f"restarts {s.restarts}"
    )
    lines += met_lines(s)
    if s.certificate is not None:
        lines += s.certificate.lines()
    if s.stopped:
        lines.append(f"stopped ({s.stopped}): run the same command again to go on")
    return lines
