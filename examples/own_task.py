"""Writes a task, its data and two prompts, and scores a checkpoint on it if one is given.

python own_task.py FOLDER [CHECKPOINT]
"""

import json
import sys
from pathlib import Path

import evalcore as ec

TASK = """
name: capitals
version: 1
group: capitals
output_type: multiple_choice
source: {path: capitals}
splits: {score: test}
fields: {country: country}
choices: {column: options}
gold: {column: answer}
metrics: [acc]
primary: acc
"""
PROMPTS = {
    "plain": "The capital of {{ country }} is",
    "question": "Question: what is the capital of {{ country }}?\\nAnswer:",
}
ROWS = [
    {"country": "France", "options": ["Lyon", "Paris", "Nice"], "answer": 1},
    {"country": "Italy", "options": ["Rome", "Milan", "Turin"], "answer": 0},
    {"country": "Spain", "options": ["Seville", "Toledo", "Madrid"], "answer": 2},
]

folder = Path(sys.argv[1])
for place in ("tasks", "data/capitals", "prompts/capitals"):
    (folder / place).mkdir(parents=True, exist_ok=True)
(folder / "tasks/capitals.yaml").write_text(TASK)
(folder / "data/capitals/test.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n")
for name, template in PROMPTS.items():
    text = f'name: {name}\ngroup: capitals\ntemplate: "{template}"\n'
    (folder / f"prompts/capitals/{name}.yaml").write_text(text)

own = {"task_path": folder / "tasks", "prompt_path": folder / "prompts"}
print(ec.prompts("capitals", **own))
if len(sys.argv) > 2:
    results = ec.score(
        checkpoints=sys.argv[2], tasks="capitals", prompts="plain,question", engine="hf",
        data_root=folder / "data", output=folder / "results", **own,
    )  # fmt: skip
    print(results.scores("prompt"))
