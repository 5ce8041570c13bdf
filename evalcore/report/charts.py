"""Charts as Vega-Lite specifications: one for the page and for the picture beside it.

A specification names its data ``rows`` and holds none: the page and :mod:`evalcore.report.pictures`
give it the rows of one figure (``evalcore.report.rows``). Charts of several tasks share one: it is
not changed. What a mark says when pointed at stands in ``usermeta``: ``tips``, (column, title)
pairs that the page looks up then; as an expression of each mark they took half of a drawing's time.
Colours are told apart with any common
colour blindness and stand out from a white and from a dark page by 3:1 or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

Spec = dict[str, Any]

BASE_COLOUR = "#7a7a7a"
# Okabe and Ito's hues, the light ones darkened for a white page.
PALETTE = ("#0a7cbd", "#d55e00", "#00936b", "#b8639a", "#a87800", "#3f8fc5", "#8a6fd1", "#6f8a1d")
SHAPES = ("circle", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "square")
UNTUNED, CONTROL = "untuned", " (control)"
JOBS = ("tuned", "control", "all parameters")
"""Of losses, in the order of their strokes: the first is solid."""
POINTED = {"content": "data"}
_ORDER = "pre-training step (evenly spaced)"


@dataclass(frozen=True)
class Tunings:
    """Names of tunings in a chart, with colours and marks that are the same in all charts.

    Attributes:
        every: All of a report, controls included (``NAME (control)``, in the colour of NAME).
        shown: Those of this chart.
    """

    every: tuple[str, ...]
    shown: tuple[str, ...]

    def colour(self) -> Any:
        import altair as alt

        plain = list(dict.fromkeys(_without_control(name) for name in self.every))
        return alt.Scale(domain=list(self.shown), range=[
            BASE_COLOUR if name == UNTUNED
            else PALETTE[plain.index(_without_control(name)) % len(PALETTE)]
            for name in self.shown
        ])  # fmt: skip

    def shape(self) -> Any:
        import altair as alt

        return alt.Scale(domain=list(self.shown), range=[
            "square" if name == UNTUNED else SHAPES[self.every.index(name) % len(SHAPES)]
            for name in self.shown
        ])  # fmt: skip


def _without_control(name: str) -> str:
    return name.removesuffix(CONTROL)


@lru_cache(maxsize=64)
def curve(tunings: Tunings, metric: str, *, by_step: bool = False) -> Spec:
    """Score over pre-training (or over the steps of a tuning): dashed base, solid tuned models.

    Bands and bars: 95 % intervals of base and models tuned on the task; thin lines and small marks:
    single seeds.
    """
    import altair as alt

    colour, shape = tunings.colour(), tunings.shape()
    x = _step_axis() if by_step else _checkpoint_axis()
    y = alt.Y("score:Q", title=metric, scale=alt.Scale(zero=False))
    own = "datum.kind == 'own' || datum.kind == 'base'"
    detail = ["series:N", "at:N"] if by_step else ["series:N"]
    base = alt.Chart(alt.NamedData("rows")).encode(x=x, detail=detail)
    tint = alt.Color("tuning:N", scale=colour, title=None, legend=_legend(len(tunings.shown)))
    known = base.transform_filter(f"({own}) && datum.level == 'mean' && isValid(datum.score_low)")
    ends = {"y": alt.Y("score_low:Q", title=metric), "y2": "score_high:Q", "color": tint}
    band = known.mark_area(opacity=0.16).encode(**ends)
    bar = known.mark_rule(opacity=0.5, strokeWidth=1).encode(**ends)  # a single point has no band
    line = base.mark_line().encode(
        y=y, color=tint,
        strokeDash=alt.condition("datum.tuning == 'untuned'", alt.value([6, 4]), alt.value([1, 0])),
        strokeWidth=alt.StrokeWidth("weight:Q", scale=alt.Scale(domain=[0, 2], range=[0.7, 2.4]),
                                    legend=None),
    )  # fmt: skip
    kind = alt.Shape("tuning:N", scale=shape, title=None)
    marks = [
        base.transform_filter(f"datum.level {sign} 'seed'")
        .mark_point(filled=True, size=size, opacity=1, tooltip=POINTED)
        .encode(y=y, color=tint, shape=kind)
        for sign, size in (("==", 14), ("!=", 55))
    ]
    floor = (
        alt.Chart(alt.NamedData("rows"))
        .transform_aggregate(floor="mean(floor)")
        .mark_rule(strokeDash=[2, 3], color="#8a8a8a", strokeWidth=1.5, tooltip=POINTED)
        .encode(y="floor:Q")
    )
    return _spec(alt.layer(band, floor, bar, line, *marks), 230, _tips("score"))


@lru_cache(maxsize=64)
def gains(tunings: Tunings, metric: str) -> Spec:
    """Gain over the base per checkpoint with 95 % intervals; controls are open marks."""
    import altair as alt

    colour, shape = tunings.colour(), tunings.shape()
    tint = alt.Color("tuning:N", scale=colour, title=None, legend=_legend(len(tunings.shown)))
    base = alt.Chart(alt.NamedData("rows")).encode(
        x=_checkpoint_axis(), xOffset=alt.XOffset("series:N"), color=tint
    )
    title = f"gain in {metric}"
    bar = base.transform_filter("isValid(datum.gain_low)")
    bar = bar.mark_rule(strokeWidth=1.8, tooltip=POINTED).encode(
        y=alt.Y("gain_low:Q", title=title), y2="gain_high:Q"
    )
    kind = alt.Shape("tuning:N", scale=shape, title=None)
    y = alt.Y("gain:Q", title=title)
    solid = base.transform_filter("datum.kind != 'control'").mark_point(
        filled=True, size=60, tooltip=POINTED
    )
    hollow = base.transform_filter("datum.kind == 'control'").mark_point(
        filled=False, size=60, strokeWidth=2, tooltip=POINTED
    )
    zero = alt.Chart(alt.NamedData("rows")).mark_rule(color="#8a8a8a").encode(y=alt.datum(0))
    layers = [mark.encode(y=y, shape=kind, opacity=alt.value(1)) for mark in (solid, hollow)]
    return _spec(alt.layer(zero, bar, *layers), 230, _tips("gain"))


@lru_cache(maxsize=64)
def prompt_map(metric: str) -> Spec:
    """Score under each prompt (rows) at each checkpoint (columns)."""
    import altair as alt

    base = _cells()
    cells = base.mark_rect(tooltip=POINTED).encode(
        color=alt.Color("score:Q", title=metric, scale=alt.Scale(scheme="viridis"),
                        legend=alt.Legend(orient="top", gradientLength=140)),
    )  # fmt: skip
    text = base.mark_text(fontSize=10, opacity=_where_it_fits(), tooltip=POINTED).encode(
        text=alt.Text("score:Q", format=".2f"), color=_readable("score")
    )
    return _spec(alt.layer(cells, text), alt.Step(24), _tips("score"))


@lru_cache(maxsize=64)
def transfer(limit: float) -> Spec:
    """Gain on every task (rows) at each checkpoint (columns) of one tuning; colours to ``limit``.

    Grey: nothing to lose there, the untuned checkpoint is not credibly above the trivial answer.
    """
    import altair as alt

    base = _cells()
    scale = alt.Scale(scheme="purpleorange", reverse=True, domain=[-limit, limit], clamp=True)
    legend = alt.Legend(orient="top", gradientLength=140)
    known = base.transform_filter("datum.measurable")
    cells = known.mark_rect(tooltip=POINTED).encode(
        color=alt.Color("gain:Q", scale=scale, title="gain", legend=legend)
    )
    nothing = base.transform_filter("!datum.measurable").mark_rect(
        color="#8a8a8a40", tooltip=POINTED
    )
    text = known.mark_text(fontSize=10, opacity=_where_it_fits(), tooltip=POINTED).encode(
        text=alt.Text("gain:Q", format="+.2f"), color=_readable("gain")
    )
    return _spec(alt.layer(nothing, cells, text), alt.Step(24), _tips("gain"))


@lru_cache(maxsize=64)
def losses() -> Spec:
    """Training loss against optimizer step; a colour a checkpoint, controls dashed."""
    import altair as alt

    line = alt.Chart(alt.NamedData("rows")).mark_line(strokeWidth=1.6, tooltip=POINTED).encode(
        x=alt.X("step:Q", title="optimizer step"),
        y=alt.Y("loss:Q", title="loss (nats per completion token)", scale=alt.Scale(zero=False)),
        color=alt.Color("checkpoint:N", sort=None, title=None, scale=alt.Scale(range=list(PALETTE)),
                        legend=alt.Legend(orient="top", columns=3, symbolType="stroke")),
        strokeDash=alt.StrokeDash("job:N", title=None, sort=list(JOBS),
                                  legend=alt.Legend(orient="top", symbolType="stroke")),
        detail="series:N",
    )  # fmt: skip
    return _spec(line, 230, [(name, name) for name in ("checkpoint", "job", "seed")])


@lru_cache(maxsize=64)
def cost() -> Spec:
    """Tokens per task: computed, and taken from a cache."""
    import altair as alt

    bars = alt.Chart(alt.NamedData("rows")).mark_bar(tooltip=POINTED).encode(
        x=alt.X("tokens:Q", title="prompt tokens", axis=alt.Axis(format="~s")),
        y=alt.Y("task:N", title=None, axis=alt.Axis(labelLimit=190)),
        color=alt.Color("kind:N", title=None, legend=alt.Legend(orient="top"),
                        scale=alt.Scale(domain=["computed", "taken from cache"],
                                        range=[PALETTE[0], BASE_COLOUR])),
    )  # fmt: skip
    return _spec(bars, alt.Step(26), [(name, name) for name in ("task", "kind", "tokens")])


def _cells() -> Any:
    """A heat map's places: checkpoints by rows, a gap between them."""
    import altair as alt

    gap = alt.Scale(paddingInner=0.04, paddingOuter=0)
    axis = alt.Axis(labelLimit=190, domain=False, ticks=False)
    return alt.Chart(alt.NamedData("rows")).encode(
        x=_checkpoint_axis(gap), y=alt.Y("row:N", title=None, axis=axis, scale=gap)
    )


def _checkpoint_axis(scale: Any = None) -> alt.X:
    import altair as alt

    order = alt.EncodingSortField("place", op="min")
    axis = alt.Axis(labelAngle=-40, labelOverlap=True, labelLimit=90, grid=False)
    return alt.X("at:O", sort=order, title=_ORDER, axis=axis, scale=scale or alt.Scale())


def _step_axis() -> alt.X:
    import altair as alt

    return alt.X("tuning_step:Q", title="step of the tuning")


def _where_it_fits() -> Any:
    """Numbers are seen in cells that are wide enough for them."""
    import altair as alt

    return alt.expr("bandwidth('x') < 26 ? 0 : 1")


def _readable(field: str) -> Any:
    """Black or white, whichever is read on the colour below it."""
    import altair as alt

    bright = f"luminance(scale('color', datum.{field})) > 0.3"
    return alt.condition(bright, alt.value("#101010"), alt.value("#ffffff"))


def _legend(tunings: int) -> alt.Legend | None:
    import altair as alt

    return alt.Legend(orient="top", columns=2, labelLimit=190) if tunings < 16 else None


def _tips(what: str) -> list[tuple[str, str]]:
    """What a mark says when pointed at; texts are made where rows are."""
    shown = [("checkpoint", "checkpoint"), ("who", "model"), ("task", "task"), ("asked", "prompt")]
    number = ("score_text", "score [95 %]") if what == "score" else ("gain_text", "gain [95 %]")
    return [*shown, number, ("claim", "interval about"), ("n", "documents")]


def _spec(chart: Any, height: Any, tips: Sequence[tuple[str, str]]) -> Spec:
    """``tips``: columns of a row and what they are called, for who points at its mark."""
    spec: Spec = chart.properties(width="container", height=height).to_dict(validate=False)
    spec.pop("$schema", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec["background"] = None
    spec["usermeta"] = {"tips": [list(pair) for pair in tips]}
    lines = {"gridColor": "#88888840", "domainColor": "#888888", "tickColor": "#888888"}
    spec["config"] = {
        "font": "system-ui, sans-serif", "view": {"stroke": None}, "axis": lines,
        "aria": False,  # the figure's words are its label; marks would be read one by one
        "legend": {"symbolOpacity": 1, "titleFontWeight": "normal"},
    }  # fmt: skip
    return spec
