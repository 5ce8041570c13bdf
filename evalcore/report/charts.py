"""Charts as Vega-Lite specifications: one for the page and for the picture beside it.

A specification names its data ``rows`` and holds none: the page and :mod:`evalcore.report.pictures`
give it the rows of one figure (``evalcore.report.rows``). Charts of several tasks share one: it is
not changed. Colours are told apart with any common
colour blindness and stand out from a white and from a dark page by 3:1 or more.
"""

from __future__ import annotations

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
_ORDER = "pre-training step (in order, not to scale)"


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

    Bands: 95 % intervals of base and models tuned on the task; thin lines: single seeds.
    """
    import altair as alt

    colour, shape = tunings.colour(), tunings.shape()
    x = _step_axis() if by_step else _checkpoint_axis()
    y = alt.Y("score:Q", title=metric, scale=alt.Scale(zero=False))
    own = "datum.kind == 'own' || datum.kind == 'base'"
    base = alt.Chart(alt.NamedData("rows")).encode(x=x, detail="series:N")
    tint = alt.Color("tuning:N", scale=colour, title=None, legend=_legend(len(tunings.shown)))
    band = (
        base.transform_filter(f"({own}) && datum.level == 'mean' && isValid(datum.score_low)")
        .mark_area(opacity=0.16)
        .encode(y=alt.Y("score_low:Q", title=metric), y2="score_high:Q", color=tint)
    )
    line = base.mark_line().encode(
        y=y, color=tint, tooltip=_tips("score"),
        strokeDash=alt.condition("datum.tuning == 'untuned'", alt.value([6, 4]), alt.value([1, 0])),
        strokeWidth=alt.StrokeWidth("weight:Q", scale=alt.Scale(domain=[0, 2], range=[0.7, 2.4]),
                                    legend=None),
    )  # fmt: skip
    marks = (
        base.transform_filter("datum.level != 'seed'")
        .mark_point(filled=True, size=55, opacity=1)
        .encode(y=y, color=tint, shape=alt.Shape("tuning:N", scale=shape, title=None),
                tooltip=_tips("score"))
    )  # fmt: skip
    floor = (
        alt.Chart(alt.NamedData("rows"))
        .transform_aggregate(floor="mean(floor)")
        .mark_rule(strokeDash=[2, 3], color="#8a8a8a", strokeWidth=1.5)
        .encode(y="floor:Q", tooltip=[alt.Tooltip("floor:Q", title="trivial answer", format=".3f")])
    )
    return _spec(alt.layer(band, floor, line, marks), height=230)


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
    bar = base.transform_filter("isValid(datum.gain_low)").mark_rule(strokeWidth=1.8).encode(
        y=alt.Y("gain_low:Q", title=title), y2="gain_high:Q", tooltip=_tips("gain")
    )  # fmt: skip
    kind = alt.Shape("tuning:N", scale=shape, title=None)
    y = alt.Y("gain:Q", title=title)
    solid = base.transform_filter("datum.kind != 'control'").mark_point(filled=True, size=60)
    hollow = base.transform_filter("datum.kind == 'control'").mark_point(
        filled=False, size=60, strokeWidth=2
    )
    zero = alt.Chart(alt.NamedData("rows")).mark_rule(color="#8a8a8a").encode(y=alt.datum(0))
    layers = [mark.encode(y=y, shape=kind, tooltip=_tips("gain"), opacity=alt.value(1))
              for mark in (solid, hollow)]  # fmt: skip
    return _spec(alt.layer(zero, bar, *layers), height=230)


@lru_cache(maxsize=64)
def prompt_map(metric: str) -> Spec:
    """Score under each prompt (rows) at each checkpoint (columns)."""
    import altair as alt

    base = alt.Chart(alt.NamedData("rows")).encode(
        x=_checkpoint_axis(),
        y=alt.Y("row:N", title=None, axis=alt.Axis(labelLimit=190, domain=False, ticks=False)),
    )
    cells = base.mark_rect(stroke="white", strokeWidth=1).encode(
        color=alt.Color("score:Q", title=metric, scale=alt.Scale(scheme="viridis"),
                        legend=alt.Legend(orient="top", gradientLength=140)),
        tooltip=_tips("score"),
    )  # fmt: skip
    text = base.mark_text(fontSize=10, opacity=_where_it_fits()).encode(
        text=alt.Text("score:Q", format=".2f"), color=_readable("score"), tooltip=_tips("score")
    )
    return _spec(alt.layer(cells, text), height=alt.Step(24))


@lru_cache(maxsize=64)
def transfer(limit: float) -> Spec:
    """Gain on every task (rows) at each checkpoint (columns) of one tuning; colours to ``limit``.

    Grey: nothing to lose there, the untuned checkpoint is not credibly above the trivial answer.
    """
    import altair as alt

    base = alt.Chart(alt.NamedData("rows")).encode(
        x=_checkpoint_axis(),
        y=alt.Y("row:N", title=None, axis=alt.Axis(labelLimit=190, domain=False, ticks=False)),
    )
    scale = alt.Scale(scheme="purpleorange", domain=[limit, -limit], clamp=True)
    legend = alt.Legend(orient="top", gradientLength=140)
    known = base.transform_filter("datum.measurable")
    cells = known.mark_rect(stroke="white", strokeWidth=1).encode(
        color=alt.Color("gain:Q", scale=scale, title="gain", legend=legend), tooltip=_tips("gain")
    )
    nothing = base.transform_filter("!datum.measurable").mark_rect(
        stroke="white", strokeWidth=1, color="#dddddd"
    )
    text = known.mark_text(fontSize=10, opacity=_where_it_fits()).encode(
        text=alt.Text("gain:Q", format="+.2f"), color=_readable("gain"), tooltip=_tips("gain")
    )
    layers = (nothing.encode(tooltip=_tips("gain")), cells, text)
    return _spec(alt.layer(*layers), height=alt.Step(24))


@lru_cache(maxsize=64)
def losses() -> Spec:
    """Training loss against optimizer step; later checkpoints darker, controls dotted."""
    import altair as alt

    line = alt.Chart(alt.NamedData("rows")).mark_line(strokeWidth=1.6).encode(
        x=alt.X("step:Q", title="optimizer step"),
        y=alt.Y("loss:Q", title="loss (nats per completion token)", scale=alt.Scale(zero=False)),
        color=alt.Color("checkpoint:N", sort=None, title=None, scale=alt.Scale(range=list(PALETTE)),
                        legend=alt.Legend(orient="top", columns=3, symbolType="stroke")),
        strokeDash=alt.StrokeDash("job:N", title=None,
                                  legend=alt.Legend(orient="top", symbolType="stroke")),
        detail="series:N",
        tooltip=[alt.Tooltip("checkpoint:N"), alt.Tooltip("job:N"), alt.Tooltip("step:Q"),
                 alt.Tooltip("loss:Q", format=".4f")],
    )  # fmt: skip
    return _spec(line, height=230)


@lru_cache(maxsize=64)
def cost() -> Spec:
    """Tokens per task: computed, and taken from a cache."""
    import altair as alt

    bars = alt.Chart(alt.NamedData("rows")).mark_bar().encode(
        x=alt.X("tokens:Q", title="prompt tokens", axis=alt.Axis(format="~s")),
        y=alt.Y("task:N", title=None, axis=alt.Axis(labelLimit=190)),
        color=alt.Color("kind:N", title=None, legend=alt.Legend(orient="top"),
                        scale=alt.Scale(domain=["computed", "taken from cache"],
                                        range=[PALETTE[0], BASE_COLOUR])),
        tooltip=[alt.Tooltip("task:N"), alt.Tooltip("kind:N"),
                 alt.Tooltip("tokens:Q", format=",")],
    )  # fmt: skip
    return _spec(bars, height=alt.Step(26))


def _checkpoint_axis() -> alt.X:
    import altair as alt

    order = alt.EncodingSortField("place", op="min")
    axis = alt.Axis(labelAngle=-40, labelOverlap=True, labelLimit=90, grid=False)
    return alt.X("at:O", sort=order, title=_ORDER, axis=axis)


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


def _tips(what: str) -> list[alt.Tooltip]:
    """What a mark says when pointed at; texts are made where rows are."""
    import altair as alt

    shown = [("checkpoint", "checkpoint"), ("who", "model"), ("task", "task"), ("asked", "prompt")]
    number = ("score_text", "score [95 %]") if what == "score" else ("gain_text", "gain [95 %]")
    shown += [number, ("claim", "interval about"), ("n", "documents")]
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in shown]


def _spec(chart: Any, height: Any) -> Spec:
    spec: Spec = chart.properties(width="container", height=height).to_dict(validate=False)
    spec.pop("$schema", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec["background"] = None
    lines = {"gridColor": "#88888840", "domainColor": "#888888", "tickColor": "#888888"}
    spec["config"] = {
        "font": "system-ui, sans-serif", "view": {"stroke": None}, "axis": lines,
        "legend": {"symbolOpacity": 1, "titleFontWeight": "normal"},
    }  # fmt: skip
    return spec
