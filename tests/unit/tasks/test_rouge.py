"""rouge-score without the rest of nltk: the same scores, and nltk whole for who asks for it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from evalcore.tasks.rouge import _WITHOUT_SPACES, UnicodeWords

TEXTS = (
    "the running dogs were happily jumping\nover lazy relational ponies", "The dog RAN; and jumped",
    "caresses flies dying denied agreed owned humbled sized meeting stating", "é ü 12 3.5 naïve",
    "skies sky sties news innings proceed succeed\nhowe", "a b c", "generalizations oscillators",
)  # fmt: skip
CODE = """
import json, sys
texts = json.loads(sys.argv[1])
pairs = [(a, b) for a in texts for b in texts]
if sys.argv[2] == "ours":
    from evalcore.metrics.text import rouge_pair
    own = [{**rouge_pair(a, b), **rouge_pair(a, b, by_line=True)} for a, b in pairs]
    before = [m for m in sys.modules if m.split(".")[0] in ("nltk", "scipy")]
    import nltk
    from rouge_score import rouge_scorer
    try:
        rouge_scorer.RougeScorer(["rougeLsum"], split_summaries=True).score("a. b.", "a.")
    except LookupError:  # nltk is whole again; its data for sentences may be missing
        pass
    print(json.dumps([own, before, nltk.stem.porter.PorterStemmer().stem("running")]))
else:
    from rouge_score.rouge_scorer import RougeScorer
    kinds = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL",
             "rouge_lsum": "rougeLsum"}
    scorer = RougeScorer(list(kinds.values()), use_stemmer=True)
    found = [scorer.score(b, a) for a, b in pairs]
    print(json.dumps([{k: float(f[n].fmeasure) for k, n in kinds.items()} for f in found]))
"""


def test_scores_are_those_of_rouge_score_and_nothing_else_is_loaded() -> None:
    made = [
        subprocess.run([sys.executable, "-c", CODE, json.dumps(TEXTS), who],
                       capture_output=True, text=True, check=True).stdout
        for who in ("ours", "theirs")
    ]  # fmt: skip
    ours, before, stem = json.loads(made[0])
    assert ours == json.loads(made[1])
    assert len(ours) == len(TEXTS) ** 2
    assert any(0 < pair["rouge_l"] < 1 for pair in ours)
    assert before == []
    assert stem == "run"


def _words_char_by_char(text: str) -> list[str]:
    kept = "".join(
        char if unicodedata.category(char)[0] in "LMN" else " "
        for char in unicodedata.normalize("NFKC", text).casefold()
    )
    return re.sub(_WITHOUT_SPACES, lambda found: f" {found.group()} ", kept).split()


@given(st.text() | st.text(st.characters(codec="ascii")))
def test_words_of_every_script_are_those_found_char_by_char(text: str) -> None:
    assert UnicodeWords().tokenize(text) == _words_char_by_char(text)
