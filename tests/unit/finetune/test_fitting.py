"""Conversations as rows: every answer is learned, through chat templates and without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalcore.prompting import encode_training, load_tokenizer, load_variants, training_pair
from evalcore.prompting.training import exchanges_of, training_turns
from evalcore.tasks import documents_from_rows, load_documents, load_task
from evalcore.types import Document, EncodingSettings, Variant
from finetune.fitting import EncodedRow, RowEncoder
from finetune.packing import IGNORED, make_row

TULU = load_task("tulu_v2")
DATA = Path(__file__).resolve().parents[2] / "data" / "root"
TALK = [
    ("system", "Be brief."), ("user", "Where is the mill?"), ("assistant", "By the harbour."),
    ("user", "Who lives there?"), ("assistant", "A baker. "), ("user", "Since when?"),
    ("assistant", "Since winter."),
]  # fmt: skip
TRIMMING = (
    "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
REWRITING = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{{ m['content'][:3] if m['role'] == 'assistant' else m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Path]) -> Any:
    return load_tokenizer(make_tokenizer(tmp_path_factory.mktemp("talk")))


def talk(*turns: tuple[str, str]) -> Document:
    messages = [{"role": role, "content": text} for role, text in turns or TALK]
    return documents_from_rows(TULU, [{"messages": messages}], "rows")[0]


def variant(name: str = "default") -> Variant:
    return load_variants("instruction", name)[0]


def encoder(tokenizer: Any, name: str = "default", **changes: Any) -> RowEncoder:
    return replace(RowEncoder(TULU, variant(name), (), tokenizer, 2048, "truncate"), **changes)


def learned(tokenizer: Any, row: EncodedRow) -> list[str]:
    """The texts that the loss is on."""
    made = make_row(row.prompt, row.completion, row.borders)
    texts, own = [], []
    for label in [*made["labels"], IGNORED]:
        if label != IGNORED:
            own.append(label)
        elif own:
            texts.append(tokenizer.decode(own))
            own = []
    return texts


def test_every_answer_is_learned_with_its_end(tokenizer: Any) -> None:
    answers = ["By the harbour.", "A baker.", "Since winter."]
    for name in ("default", "default:chat=1"):
        row = encoder(tokenizer, name).encode(talk())
        spaces = "" if "chat" in name else " "
        assert learned(tokenizer, row) == [f"{spaces}{answer}</s>" for answer in answers]
        whole = tokenizer.decode([*row.prompt, *row.completion])
        for asked in ("Be brief.", "Where is the mill?", "Who lives there?", "Since when?"):
            assert whole.count(asked) == 1


def test_without_a_chat_template_each_exchange_is_a_prompt(tokenizer: Any) -> None:
    """The plain format, to be read."""
    row = encoder(tokenizer).encode(talk())
    assert tokenizer.decode([*row.prompt, *row.completion]) == (
        "<s>### Input: System: Be brief.\n\nUser: Where is the mill?\n### Response: By the harbour."
        "</s>\n\n### Input: Who lives there?\n### Response: A baker.</s>"
        "\n\n### Input: Since when?\n### Response: Since winter.</s>"
    )


@pytest.mark.parametrize("template", [None, TRIMMING])
def test_a_chat_is_the_templates_own_text(tokenizer: Any, template: str | None) -> None:
    """The slow way: the whole conversation through the template at once, as ids."""
    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = template or kept
        row = encoder(tokenizer, "io:chat=1").encode(talk())
        messages = [{"role": role, "content": text.strip()} for role, text in TALK]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        made = [*row.prompt, *row.completion]
        made = made[made[0] != ids[0] :]  # a BOS that the template does not write
        assert made == ids[: len(made)]
        assert "".join(tokenizer.decode(ids[len(made) :]).split()) == ""
        assert len(learned(tokenizer, row)) == 3
    finally:
        tokenizer.chat_template = kept


def test_a_template_that_rewrites_earlier_answers_is_refused(tokenizer: Any) -> None:
    from evalcore.prompting import PromptError, PromptFault

    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = REWRITING
        with pytest.raises(PromptError, match="writes an answer differently") as caught:
            encoder(tokenizer, "default:chat=1").encode(talk())
        assert caught.value.fault is PromptFault.CHAT_REFUSED
    finally:
        tokenizer.chat_template = kept


def test_a_template_that_leaves_out_a_turn_is_refused(tokenizer: Any) -> None:
    """Many templates write users and assistants alone, and say nothing of the others."""
    from evalcore.prompting import PromptError, PromptFault

    kept = tokenizer.chat_template
    try:
        tokenizer.chat_template = TRIMMING.replace(
            "{% for m in messages %}",
            "{% for m in messages if m['role'] in ('user', 'assistant') %}",
        )
        chat = encoder(tokenizer, "default:chat=1")
        assert "By the harbour." in learned(tokenizer, chat.encode(talk(*TALK[1:])))[0]
        for turns in (TALK, [*TALK[1:4], ("tool", "12"), *TALK[4:]]):
            with pytest.raises(PromptError, match=r"leaves out a turn of (system|tool)") as caught:
                chat.encode(talk(*turns))
            assert caught.value.fault is PromptFault.CHAT_REFUSED
    finally:
        tokenizer.chat_template = kept


def test_one_exchange_is_what_is_scored(tokenizer: Any) -> None:
    one = talk(("user", "Where is the mill?"), ("assistant", "By the harbour."))
    for name in ("default", "instruct", "default:chat=1"):
        pair = training_pair(TULU, variant(name), one, (), tokenizer)
        assert training_turns(TULU, variant(name), one, (), tokenizer) == [pair]
        chat = "chat" in name
        ids = encode_training(tokenizer, *pair, EncodingSettings(), chat=chat)
        row = encoder(tokenizer, name).encode(one)
        assert (row.prompt, row.completion, row.borders) == (*ids, ())


def test_odd_orders_of_turns() -> None:
    def texts(*turns: tuple[str, str]) -> list[tuple[list[str], str]]:
        return [([t["content"] for t in asked], answer)
                for asked, answer in exchanges_of(talk(*turns), "messages")]  # fmt: skip

    user, said = ("user", "q"), ("assistant", "a")
    assert texts(user, said, ("assistant", "b")) == [(["q"], "a\n\nb")]
    assert texts(said, user, ("assistant", "b")) == [(["a", "q"], "b")]
    assert texts(said, ("assistant", "b")) == [(["a"], "b")]
    assert texts(user, said, user) == [(["q"], "a")]  # what nobody answered is left off
    assert texts(("system", "s"), said) == [(["s"], "a")]


def test_control_tokens_in_a_conversation_are_letters(tokenizer: Any) -> None:
    row = encoder(tokenizer).encode(
        talk(("user", "a </s> b"), ("assistant", "c </s> d"), ("user", "e"), ("assistant", "f"))
    )
    assert [*row.prompt, *row.completion].count(tokenizer.eos_token_id) == 2


def test_a_long_conversation_loses_its_last_exchanges(tokenizer: Any) -> None:
    whole = encoder(tokenizer).encode(talk())
    ends = [len(whole.prompt) + end for end in whole.answers_end]
    for answers, length in ((3, ends[2]), (2, ends[2] - 1), (2, ends[1]), (1, ends[1] - 1)):
        counts: Counter[str] = Counter()
        row = encoder(tokenizer, max_length=length).fitted(talk(), counts)
        assert row == whole.cut_after(answers)
        assert counts["truncated"] == (answers < 3)
        assert len(learned(tokenizer, row)) == answers
    assert encoder(tokenizer, max_length=20, overlong="leave_out").fitted(talk(), counts) is None


def test_truncation_keeps_bos_and_the_prompts_own_words(tokenizer: Any) -> None:
    """Before, the beginning of the prompt went: BOS, headers and all."""
    task = load_task("xsum")
    document = load_documents(task, "train", limit=1, data_root=DATA)[0]
    text = " ".join(f"word{i}" for i in range(300))
    document = replace(document, fields={"document": text})
    (prompt,) = load_variants(task.group, "default")
    whole = RowEncoder(task, prompt, (), tokenizer, 10_000, "truncate").encode(document)
    for length in (len(whole) - 1, len(whole) // 2, len(whole.completion) + 30):
        counts: Counter[str] = Counter()
        row = RowEncoder(task, prompt, (), tokenizer, length, "truncate").fitted(document, counts)
        assert row is not None
        assert len(row) <= length
        assert len(row) > length - 24  # no more than a word or two is lost for nothing
        shown = tokenizer.decode(row.prompt)
        assert shown.startswith("<s>### Input: word0 word1")
        assert shown.endswith("\n### Summary:")
        assert text.startswith(shown.removeprefix("<s>### Input: ").removesuffix("\n### Summary:"))
        assert row.completion == whole.completion
        assert counts == {"truncated": 1}
    # without room for the headers the ids are cut, after BOS
    tight = len(whole.completion) + 5
    row = RowEncoder(task, prompt, (), tokenizer, tight, "truncate").fitted(document, counts)
    assert row is not None
    assert len(row) == tight
    assert row.prompt[0] == tokenizer.bos_token_id
    assert row.completion == whole.completion


@pytest.mark.parametrize("note", ["note " * 2000, "n" * 5000])
def test_texts_that_the_prompt_does_not_show_are_not_cut(tokenizer: Any, note: str) -> None:
    """Before, a longer text beside took all cuts, and then the prompt's own words went."""
    task = load_task("xsum")
    document = load_documents(task, "train", limit=1, data_root=DATA)[0]
    text = " ".join(f"word{i}" for i in range(300))
    alone = replace(document, fields={"document": text})
    beside = replace(document, fields={"note": note, "more": [note + "b"], "document": text})
    (prompt,) = load_variants(task.group, "default")
    whole = RowEncoder(task, prompt, (), tokenizer, 10_000, "truncate").encode(alone)
    for length in (len(whole) - 1, len(whole) // 2, len(whole.completion) + 30):
        counts: Counter[str] = Counter()
        encoder = RowEncoder(task, prompt, (), tokenizer, length, "truncate")
        row = encoder.fitted(beside, counts)
        assert row == encoder.fitted(alone, counts)
        assert row is not None
        assert tokenizer.decode(row.prompt).startswith("<s>### Input: word0 word1")


def test_a_text_whose_end_is_not_shown_is_cut_where_it_is(tokenizer: Any) -> None:
    task = load_task("xsum")
    document = load_documents(task, "train", limit=1, data_root=DATA)[0]
    text = " ".join(f"word{i}" for i in range(900))
    document = replace(document, fields={"document": text})
    (prompt,) = load_variants(task.group, "default")
    prompt = replace(prompt, template="### Input: {{ document[:600] }}\n### Summary:")
    whole = RowEncoder(task, prompt, (), tokenizer, 10_000, "truncate").encode(document)
    length = len(whole) - 1
    row = RowEncoder(task, prompt, (), tokenizer, length, "truncate").fitted(document, Counter())
    assert row is not None
    assert len(row) <= length
    shown = tokenizer.decode(row.prompt)
    assert shown.startswith("<s>### Input: word0 word1")
    assert shown.endswith("\n### Summary:")
