"""Shows the documents of a task that came out differently in a tuned model and its base.

python flips.py RESULTS TASK
"""

import sys
from collections import Counter

import evalcore as ec

results = ec.open(sys.argv[1])
task = sys.argv[2]
gain = max(results.gains(), key=lambda row: (row["task"] == task, row["gain"]))
changed = results.flips(gain["base"], gain["model"], task=task)
print(f"{gain['base']} -> {gain['model']} on {task}: {dict(Counter(changed['change']))}")
print(changed)
