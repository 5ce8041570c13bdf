"""``evalcore import``: the published table by command line alone, and tables that are wrong."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from evalcore.analysis.tabled import ScoreTable
from evalcore.app.outside import import_scores
from evalcore.cli import cli
from evalcore.errors import InputError, UnknownNameError

PUBLISHED = Path(__file__).parents[2] / "data" / "olmo1b_scores.csv"
STEPS = ("1000", "18000", "342000", "424000", "505000", "592000", "738000", "main")
PRE = "pre=hellaswag@tulu,arc_challenge@tulu,arc_easy@tulu,openbookqa@tulu" + (
    ",sciq@tulu/ranked_choice" * 2
)
FINE = (
    "fine=mnli_matched@mnli,mnli_mismatched@mnli,paws@paws,xsum@xsum,xlsum@xsum,"
    "socialiqa@socialiqa,boolq@tulu/ranked_choice"
)
# Table 6 of the paper (its script counts SciQ twice), and largest minus smallest over its formats.
TABLE_6 = {
    "pre": (".048", ".048", ".004", ".010", ".030", ".027", ".021", "-.005"),
    "fine": (".062", ".149", ".286", ".297", ".304", ".297", ".264", ".290"),
}
ONCE = {"main": "-.002"}
SENSITIVITY = {
    "mnli: mnli_matched": (".009", ".201", ".358", ".365", ".264", ".335", ".240", ".181"),
    "socialiqa: socialiqa": (".337", ".390", ".510", ".145", ".187", ".134", ".155", ".173"),
    "paws: paws": (".022", ".210", ".065", ".099", ".119", ".030", ".147", ".017"),
    "xsum: xsum": (".089", ".131", ".074", ".039", ".137", ".090", ".103", ".092"),
}


def run(*arguments: str) -> str:
    done = CliRunner().invoke(
        cli, ["import", *arguments], catch_exceptions=False, standalone_mode=False
    )
    assert done.return_value == 0
    return done.output


def plain(text: str) -> str:
    """As the paper prints numbers: no leading zero, a hyphen for minus."""
    return text.replace("−", "-").replace("+", "").replace("0.", ".")


@pytest.fixture(scope="module")
def printed() -> str:
    return run(
        str(PUBLISHED), "-g", PRE, "-g", FINE, "--prompt", "default", "--shots", "4",
        "--size", "rte=277",
    )  # fmt: skip


def test_table_6_to_the_printed_digit(printed: str) -> None:
    found: dict[str, dict[str, str]] = {"pre": {}, "fine": {}, "once": {}}
    for line in printed.splitlines():
        match = re.match(r"(\S+) +(pre|fine)(, sciq counted twice)?: base \S+, gain (\S+)", line)
        if match:
            step, group, twice, gain = match.groups()
            found["once" if group == "pre" and not twice else group][step] = plain(gain)
    for group, published in TABLE_6.items():
        assert tuple(found[group][s] for s in STEPS) == published
    assert found["once"]["main"] == ONCE["main"]
    assert len(found["once"]) == len(STEPS)


def test_the_32_sensitivity_figures_to_the_printed_digit(printed: str) -> None:
    for name, published in SENSITIVITY.items():
        (line,) = (x for x in printed.splitlines() if x.startswith(f"{name}, "))
        numbers = re.findall(r"\d\.\d{3}", line)
        assert tuple(map(plain, numbers)) == published


def test_what_is_odd_about_the_published_scores_is_named(printed: str) -> None:
    flags = [line for line in printed.splitlines() if line.startswith("! ")]
    suspects = [line for line in flags if "single-class suspect" in line]
    assert [line.split()[1] for line in suspects] == ["qqp", "stsb"]
    (doubled,) = (line for line in flags if "values for one key" in line)
    assert "main, mnli, rte" in doubled
    assert "0.649 (olmo1b_scores.csv, line 709), 0.429" in doubled
    assert any("rte" in x and "stderr implies another n: about 2,490 documents, not 277" in x
               for x in flags)  # fmt: skip
    assert any("sciq: counted more than once" in line for line in flags)
    assert "boolq without stderr or n" in printed
    assert "has no documents" in printed


def test_what_else_the_study_says_of_these_scores(tmp_path: Path) -> None:
    """Numbers that follow from the table and stand in the study's description, as printed there."""
    forgotten = "forgotten=xsum@paws,mnli_matched@paws,socialiqa@paws"
    text = run(str(PUBLISHED), "-g", forgotten, "--prompt", "default", "--shots", "4",
               "-o", str(tmp_path))  # fmt: skip
    assert "755 scores of 8 checkpoints" in text.splitlines()
    rows = list(csv.DictReader((tmp_path / "gains.csv").open()))
    assert (
        sum("llmbar" in r["task"].lower() for r in csv.DictReader(published_rows(tmp_path))) == 46
    )

    def gain(step: str, tuned: str, task: str) -> dict[str, str]:
        (row,) = [r for r in rows if (r["checkpoint"], r["tuned_on"], r["task"], r["prompt"],
                  r["shots"]) == (step, tuned, task, "default", "4")]  # fmt: skip
        return row

    format_only = gain("1000", "socialiqa", "socialiqa")
    before, after = (f"{float(format_only[k]):.3f}" for k in ("base_score", "own_score"))
    assert (before, after) == ("0.018", "0.380")
    paws = [f"{float(gain(s, 'paws', 'paws')['base_score']):.3f}" for s in STEPS]
    assert paws.count("0.558") == 5, "the majority class at most checkpoints"
    mnli = [float(gain(s, "mnli", "mnli_matched")["base_score"]) for s in STEPS]
    assert all(0.325 <= score < 0.355 for score in mnli), ".33 to .35"
    assert f"{float(gain('424000', 'paws', 'xsum')['base_score']):.3f}" == "0.019"
    # One base near 0 makes a mean ratio of change worthless: it is named, and the median stands by.
    (line,) = [x for x in text.splitlines() if x.startswith("424000") and "forgotten" in x]
    assert "over the base +1.285 (median \N{MINUS SIGN}0.057, base near 0: xsum)" in line


def published_rows(out: Path) -> list[str]:
    return (out / "scores.csv").read_text().splitlines()


def imported(tmp_path: Path, *rows: str, head: str = "score,n") -> str:
    path = tmp_path / "scores.csv"
    path.write_text("\n".join([f"model,tuned_on,task,metric,prompt,{head}", *rows]))
    return run(str(path), "-o", str(tmp_path / "out"))


def test_percent_and_two_scales_are_told_and_not_subtracted(tmp_path: Path) -> None:
    text = imported(tmp_path, "A,,nli,acc,p,50,100", "A,t,nli,acc,p,65,100", "A,t,nli,acc,q,60,100")
    assert "! acc: 3 of 3 scores are not between 0 and 1, as 65 (scores.csv, line 3)" in text
    assert "percent? divide by 100" in text
    assert "gain +15.000\n" in text, "no interval"
    (spread,) = csv.DictReader((tmp_path / "out" / "sensitivity.csv").open())
    assert (spread["range"], spread["sat"], spread["cps"]) == ("5.0", "", "")
    text = imported(tmp_path, "A,,nli,acc,p,.5,100", "A,t,nli,acc,p,65,100")
    assert "gains between the two scales are left out" in text
    assert "64.5" not in text
    text = imported(tmp_path, "A,,nli,acc,p,-.5,100", "A,t,nli,acc,p,.65,100")
    assert "1 of 2 scores are not between 0 and 1, as -0.5" in text
    assert "1.15" not in text
    text = imported(tmp_path, "A,,w,perplexity,p,20,9", "A,t,w,perplexity,p,15,9")
    assert "not between" not in text
    assert "gain \N{MINUS SIGN}5.000" in text


def test_an_error_of_nothing_makes_no_interval_of_a_difference(tmp_path: Path) -> None:
    text = imported(tmp_path, "A,,nli,acc,p,0,0", "A,t,nli,acc,p,.5,.05", head="score,stderr")
    assert "scores with an error of 0" in text
    assert "gain +0.500\n" in text
    text = imported(tmp_path, "A,,nli,acc,p,.5,3", "A,t,nli,acc,p,.6,3", head="score,stderr")
    assert "stderr of 3 (scores.csv, line 2) is more than a share can have" in text
    text = imported(tmp_path, "A,,nli,acc,p,0,1", "A,t,nli,acc,p,1,1")
    assert "gain +1.000\n" in text, "one document has no interval"
    text = imported(tmp_path, "A,,nli,acc,p,.5,.05,1000", "A,t,nli,acc,p,.6,.05,1000",
                    head="score,stderr,n")  # fmt: skip
    assert "stderr implies another n: about 98 documents, not 1,000" in text


@pytest.mark.parametrize(
    ("name", "step"),
    [("OLMo-1B-0724-step1000-tokens4B", 1000), ("checkpoint-500", 500), ("step_1,000", 1000),
     ("18000", 18000), ("1,000.0", 1000), ("main", None), ("OLMo-1B", None), ("llama-2", None),
     ("1B", None)],
)  # fmt: skip
def test_a_step_is_what_a_name_calls_one(tmp_path: Path, name: str, step: int | None) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(f'model,task,score\n"{name}",nli,.5\n')
    assert import_scores([path]).table.rows[0].step == step


def test_losses_are_named_and_not_averaged_with_scores(tmp_path: Path) -> None:
    rows = [
        "A,,w,word_perplexity,p,.8,9", "A,t,w,word_perplexity,p,.6,9",
        "A,t,w,word_perplexity,q,.7,9", "A,,nli,acc,p,.5,100", "A,t,nli,acc,p,.6,100",
    ]  # fmt: skip
    text = imported(tmp_path, *rows)
    assert "w, word_perplexity (less is better), 0 shots" in text
    (spread,) = csv.DictReader((tmp_path / "out" / "sensitivity.csv").open())
    assert (spread["max_p"], spread["cps"]) == ("", ""), "the largest is the worst"
    text = run(str(tmp_path / "scores.csv"), "--group", "all=w,nli")
    assert "gain +0.100" in text
    assert "(1 tasks; without w" in text
    assert "all: w: less is better there; not averaged with the others" in text


def test_an_error_of_nothing_is_no_error_of_a_spread(tmp_path: Path) -> None:
    rows = ["A,,nli,acc,p,.5,0", "A,,nli,acc,q,.6,0"]
    imported(tmp_path, *rows, head="score,stderr")
    (spread,) = csv.DictReader((tmp_path / "out" / "sensitivity.csv").open())
    assert (spread["range_noise"], spread["sd_beyond_noise"]) == ("", "")


def test_names_that_turn_text_round_are_shown(tmp_path: Path) -> None:
    text = imported(tmp_path, "Å\u202ex,,naïve,acc,p,.5,100", "Å\u202ex,t,naïve,acc,p,.6,100")
    assert "\u202e" not in text
    assert "Å⟨U+202E⟩x + t, naïve" in text


def test_groups_and_spreads_against_plain_loops() -> None:
    rows = list(csv.DictReader(PUBLISHED.open()))
    score = {
        (r["checkpoint_step"], r["tuned_on"], r["eval_dataset"], r["prompt_format"], r["suite"]):
            float(r["score"])
        for r in rows if r["num_fewshot"] == "4"
    }  # fmt: skip
    made = import_scores([PUBLISHED], groups=[FINE, PRE], prompt="default", shots=4)
    members = [("mnli", "mnli_matched"), ("mnli", "mnli_mismatched"), ("paws", "paws"),
               ("xsum", "xsum"), ("xsum", "xlsum"), ("socialiqa", "socialiqa")]  # fmt: skip
    for mean in (m for m in made.means if m.group.name == "fine"):
        gaps = [
            score[(mean.model, on, task, "default", "prompted")]
            - score[(mean.model, "", task, "default", "prompted")]
            for on, task in members
        ]
        gaps.append(score[(mean.model, "tulu", "boolq", "default", "ranked_choice")]
                    - score[(mean.model, "", "boolq", "default", "ranked_choice")])  # fmt: skip
        assert mean.gain.value == pytest.approx(sum(gaps) / 7)
    for spread in made.table.sensitivity():
        values = [r.score for r in spread.rows]
        middle = sum(values) / len(values)
        sat = 1 - (max(values) - middle)
        assert spread.choice is not None
        assert (spread.choice.saturation, spread.choice.combined) == pytest.approx(
            (sat, sat * max(values))
        )
    gain = next(g for g in made.table.gains() if g.own.stderr > 0 and g.base.stderr > 0)
    error = math.hypot(gain.own.stderr, gain.base.stderr)
    assert gain.gain.low95 == pytest.approx(gain.gain.value - 1.959964 * error, abs=1e-6)


def test_columns_are_mapped_and_tables_written(tmp_path: Path) -> None:
    source = tmp_path / "mine.csv"
    source.write_text(
        "who,ft,on,how,points,docs\nA1,,nli,p,0.5,100\nA1,t,nli,p,0.75,100\nA1,t,nli,q,0.5,100\n"
    )
    columns = ("model=who", "tuned=ft", "task=on", "prompt=how", "score=points", "n=docs")
    options = [x for c in columns for x in ("-c", c)]
    text = run(str(source), *options, "-o", str(tmp_path / "out"), "-c", "metric=on")
    assert "A1 + t" in text
    run(str(source), *options, "-o", str(tmp_path / "out"))
    (gain,) = csv.DictReader((tmp_path / "out" / "gains.csv").open())
    assert (float(gain["gain"]), gain["gain_stderr"]) == (0.25, "")  # no metric: no share, no error
    (spread,) = csv.DictReader((tmp_path / "out" / "sensitivity.csv").open())
    assert (spread["range"], spread["sat"]) == ("0.25", "0.875")
    named = tmp_path / "acc.csv"
    named.write_text("model,tuned_on,task,metric,score,n\nA,,nli,acc,.5,101\nA,t,nli,acc,.6,101\n")
    (found,) = import_scores([named]).table.gains()
    assert found.gain.stderr == pytest.approx(math.sqrt(0.25 / 100 + 0.24 / 100))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task,score\nnli,high\n", "line 2: score is 'high'; expected a number"),
        ("task,score,stderr\nnli,.5,-1\n", "line 2: stderr is -1.0; expected 0 or more"),
        ("task,score,n\nnli,.5,1.5\n", "line 2: n is 1.5; expected a whole number"),
        ("task,score,shots\nnli,.5,-4\n", "line 2: shots is -4.0"),
        ("task,score\nnli,inf\n", "line 2: score is 'inf'; expected a finite number"),
        ("task,points\nnli,.5\n", "no column for score among task, points; say which: --column"),
        ("task,score\nnli,.5,7,8\n", "line 2: more cells than the 2 columns"),
        ("task,score\n", "no scores there"),
        ("", "no column for task and score among none"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        import_scores([path])


@pytest.mark.parametrize(
    "options",
    [
        {"columns": ["scores=score"]},
        {"columns": ["score=points"]},
        {"groups": ["g=nlli"]},
        {"sizes": ["nlli=3"]},
    ],
)
def test_unknown_names_are_told_apart(tmp_path: Path, options: dict[str, list[str]]) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("task,score\nnli,.5\n")
    with pytest.raises(UnknownNameError):
        import_scores([path], **options)  # type: ignore[arg-type]
    for wrong in ({"columns": ["score"]}, {"groups": ["nli"]}, {"sizes": ["nli=many"]}):
        with pytest.raises(InputError, match="expected"):
            import_scores([path], **wrong)  # type: ignore[arg-type]


def test_lm_eval_results(tmp_path: Path) -> None:
    path = tmp_path / "results_2026.json"
    path.write_text(json.dumps({
        "results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.6, "acc_stderr,none": 0.01,
                                 "acc_norm,none": 0.55, "acc_norm_stderr,none": "N/A"}},
        "n-shot": {"arc_easy": 4}, "n-samples": {"arc_easy": {"original": 2376, "effective": 100}},
        "model_name": "olmo@step1000",
    }))  # fmt: skip
    rows = import_scores([path]).table.rows
    assert [(r.metric, r.score, r.shots, r.n, r.step) for r in rows] == [
        ("acc", 0.6, 4, 100, 1000), ("acc_norm", 0.55, 4, 100, 1000)
    ]  # fmt: skip
    assert rows[1].stderr == pytest.approx(math.sqrt(0.55 * 0.45 / 99))
    assert {f.kind for f in ScoreTable(rows).flags()} == {"size"}  # .01 is that of 2,400 documents
    for wrong in ({"results": 3}, {"results": {"arc": 1}}, {}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="results"):
            import_scores([path])
