"""Scores every adapter below a folder, and its base, and prints scores and gains.

python score_adapters.py RUNS RESULTS [--tasks pocket_nli] [--prompts default] [--engine vllm]
"""

import argparse

import evalcore as ec

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("runs")
parser.add_argument("results")
parser.add_argument("--tasks", default="pocket_nli")
parser.add_argument("--prompts", default="default")
parser.add_argument("--limit", type=int)
parser.add_argument("--engine", default="vllm")
args = parser.parse_args()

results = ec.score(
    args.runs, tasks=args.tasks, prompts=args.prompts, output=args.results, limit=args.limit,
    engine=args.engine,
)  # fmt: skip
print(results)
print(results.scores())
print(results.gains())
