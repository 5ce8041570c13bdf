"""Draws score against the step of the tuning, from the checkpoint-N folders a trainer left.

python tuning_curve.py RESULTS OUT.png
"""

import sys

import matplotlib
import matplotlib.pyplot as plt

import evalcore as ec

matplotlib.use("Agg")
results = ec.open(sys.argv[1])
rows = [row for row in results.scores() if row["tuning_step"] is not None]
figure, axes = plt.subplots()
for line in sorted({(row["task"], row["tuning"], row["way"]) for row in rows}):
    points = [row for row in rows if (row["task"], row["tuning"], row["way"]) == line]
    points.sort(key=lambda row: row["tuning_step"])
    steps = [row["tuning_step"] for row in points]
    axes.errorbar(steps, [row["score"] for row in points], [row["stderr"] for row in points],
                  marker="o", capsize=3, label=" ".join(line))  # fmt: skip
    print(*line, {row["tuning_step"]: round(row["score"], 3) for row in points})
axes.set(xlabel="step of the tuning", ylabel="score")
axes.legend()
figure.savefig(sys.argv[2])
