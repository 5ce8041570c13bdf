"""``evalcore label``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from evalcore.cli.output import echo

if TYPE_CHECKING:
    from evalcore.app.labels import ModelLabels

SHOWN_MODELS = 40


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--tuned-on", multiple=True, metavar="GLOB=TASK[,seed=N,control=KIND,...]",
    help="What the models whose name or path fits were tuned on (repeatable, the last wins). "
    "Further keys: tuning, method, step, tuning_step; KEY=- takes a label away.",
)  # fmt: skip
@click.option(
    "--labels", type=click.Path(path_type=Path), metavar="FILE",
    help="The same for many, as YAML (GLOB: {tuned_on: TASK, seed: 1}) or CSV (column path).",
)  # fmt: skip
@click.option(
    "--name-pattern", metavar="PATTERN",
    help="Labels inside the paths, for example '{step}/{tuning}-seed{seed}'.",
)  # fmt: skip
@click.option(
    "--parent-map", multiple=True, metavar="GLOB=CHECKPOINT",
    help="Scored checkpoints whose name fits were fully tuned from CHECKPOINT (repeatable).",
)  # fmt: skip
@click.option("--all", "show_all", is_flag=True, help="List every model.")
def label(
    results: Path,
    tuned_on: tuple[str, ...],
    labels: Path | None,
    name_pattern: str | None,
    parent_map: tuple[str, ...],
    show_all: bool,
) -> int:
    """Says or mends what scored models were tuned on; nothing is scored again.

    Without options the labels are listed, with where each comes from. GLOB is matched with
    CHECKPOINT/ADAPTER, ADAPTER and the adapter's path.

    \b
    Examples:
      evalcore label results --tuned-on 'nli-*=pocket_nli'
      evalcore label results --tuned-on '*shuffled*=pocket_nli,control=shuffled_labels'
      evalcore label results --name-pattern '{tuning}-seed{seed}'
    """
    from evalcore.app.labels import label as run
    from evalcore.app.labels import not_scored_lines

    models = run(
        results, tuned_on=tuned_on, labels=labels, name_pattern=name_pattern, parent_map=parent_map
    )
    for line in _lines(models, None if show_all else SHOWN_MODELS):
        echo(line)
    if tuned_on or labels or name_pattern or parent_map:
        changed = [m for m in models if m.changed]
        echo(f"{len(changed):,} models labelled ({sum(m.cells for m in changed):,} cells)")
        for line in not_scored_lines(results, models):
            echo(line)
    return 0


def _lines(models: list[ModelLabels], most: int | None) -> list[str]:
    if not models:
        return ["no tuned models in these results"]
    shown = sorted(models, key=lambda m: (not m.changed, not m.otherwise))[:most]
    width = min(48, max(len(m.model) for m in shown))
    lines = []
    for model in shown:
        about = model.labels
        known = [about.tuned_on or (f"run {about.tuning}" if about.tuning else "not known")]
        for key in ("tuning", "seed", "control", "method", "step", "tuning_step"):
            value = getattr(about, key)
            said = key == "tuning" and known[0] in (value, f"run {value}")
            if value is not None and not said:
                known.append(f"{key} {value}")
        source = f"  [{model.said_by}]" if model.said_by else ""
        lines.append(f"{model.model:<{width}}  {', '.join(known)}{source}{_otherwise(model)}")
    if len(shown) < len(models):
        lines.append(f"... {len(models) - len(shown):,} more (--all)")
    return lines


def _otherwise(model: ModelLabels) -> str:
    """What is said of a model whose cells disagree."""
    if not model.otherwise:
        return ""
    return f"  {model.otherwise:,} of {model.cells:,} cells say otherwise: label it again"
