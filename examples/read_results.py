"""Reads results: scores in pandas, examples in polars. Needs no GPU and no torch.

python read_results.py RESULTS
"""

import sys

import polars as pl

import evalcore as ec

results = ec.open(sys.argv[1])

scores = results.scores().to_pandas()
wide = scores.pivot_table("score", index=["checkpoint", "adapter"], columns=["task", "way"])
print(wide.round(3))

rows = pl.DataFrame(results.examples(task=results.tasks[-1]))
print(
    rows.group_by("checkpoint", "adapter", "variant").agg(pl.len(), pl.col("prompt_tokens").sum())
)
