"""Draws score against the step of the tuning, from the checkpoint-N folders a trainer left.

python tuning_curve.py RESULTS OUT.png
"""

import sys

import altair as alt

import evalcore as ec

results = ec.open(sys.argv[1])
rows = [
    {**row, "line": " ".join((row["task"], row["tuning"], row["way"]))}
    for row in results.scores() if row["tuning_step"] is not None
]  # fmt: skip
for line in sorted({row["line"] for row in rows}):
    points = sorted((r["tuning_step"], round(r["score"], 3)) for r in rows if r["line"] == line)
    print(line, dict(points))
step = alt.X("tuning_step:Q", title="step of the tuning")
base = alt.Chart(alt.Data(values=rows)).encode(x=step, color=alt.Color("line:N", title=None))
band = base.mark_area(opacity=0.2).encode(y=alt.Y("low95:Q", title="score"), y2="high95:Q")
(band + base.mark_line(point=True).encode(y="score:Q")).save(sys.argv[2])
