"""What is asked of an engine for each output type and way of answering, and what is cut."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.errors import InputError, ResultsError
from evalcore.prompting import (
    REQUEST_SCHEMA,
    cached_requests,
    encode_pair,
    encode_task,
    load_tokenizer,
    request_costs,
)
from evalcore.types import (
    FREE_ANSWER,
    Document,
    EncodingSettings,
    GenerationSettings,
    Prebuilt,
    Task,
    Variant,
    generation_of,
)

LABELS = Task("labels", 1, "g", "multiple_choice", ("acc",), "acc", choices=("yes", "no"))
WRITER = Task("writer", 1, "g", "generate_until", ("rouge_l",), "rouge_l",
              generation=GenerationSettings(6))  # fmt: skip
ROLLED = Task("rolled", 1, "g", "loglikelihood_rolling", ("bits_per_byte",), "bits_per_byte")
SENTENCE = Task("sentence", 1, "g", "loglikelihood", ("perplexity",), "perplexity")
PLAIN = Variant("default", "g", "{{ text }}\nAnswer:")
SETTINGS = EncodingSettings()
LEFT = EncodingSettings(overflow="truncate_left")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path) -> Any:
    return load_tokenizer(tiny_tokenizer_dir)


def labelled(number: int, text: str = "the old mill", gold: int = 0, **more: Any) -> Document:
    return Document(f"{number:032x}", number, {"text": text}, ("yes", "no"), gold, **more)


def written(number: int, *references: str, text: str = "the old mill") -> Document:
    return Document(f"{number:032x}", number, {"text": text}, references=references)


def ready(number: int, prebuilt: Prebuilt, **more: Any) -> Document:
    return Document(f"{number:032x}", number, {}, prebuilt=prebuilt, **more)


def rows_of(
    task: Task,
    documents: list[Document],
    tokenizer: Any,
    variant: Variant = PLAIN,
    limits: EncodingSettings = SETTINGS,
    pool: tuple[Document, ...] = (),
    **more: Any,
) -> list[dict[str, Any]]:
    table = encode_task(task, variant, documents, pool, tokenizer, limits, **more)
    assert table.schema == REQUEST_SCHEMA
    everything = [
        sum(map(len, row["contexts"] + row["continuations"] + row["unconditional"]))
        for row in table.to_pylist()
    ]
    assert request_costs(table).tolist() == everything
    return table.to_pylist()


# --- text made elsewhere ------------------------------------------------------------------------


def test_prebuilt_text_is_taken_as_it_is(tokenizer: Any) -> None:
    shared = Prebuilt(("Is it so? ",), (" yes", " no"), ("yes", "no"))
    own = Prebuilt(("It is. ", "It is not. "), (" so", " so"), ("so", "so"))
    several = ready(2, own, choices=("a", "b"), gold=1, golds=(1, 0))
    one, two = rows_of(
        LABELS, [ready(1, shared, choices=("yes", "no")), several], tokenizer,
        replace(PLAIN, shots=3),
    )  # fmt: skip
    pairs = [encode_pair(tokenizer, "Is it so? ", t, SETTINGS) for t in (" yes", " no")]
    assert one["contexts"] == [pairs[0][0]]
    assert one["continuations"] == [tokens for _, tokens in pairs]
    assert (one["choices"], one["choice_chars"], one["shots"]) == (["yes", "no"], [3, 2], 3)
    pairs = [encode_pair(tokenizer, c, " so", SETTINGS) for c in own.contexts]
    assert two["contexts"] == [context for context, _ in pairs]
    assert two["continuations"] == [tokens for _, tokens in pairs]
    assert (two["gold"], two["golds"]) == (1, [1, 0])


def test_prebuilt_generation_and_sentences(tokenizer: Any) -> None:
    context = "Write a line:\n"
    (row,) = rows_of(WRITER, [ready(1, Prebuilt((context,)), references=("x",))], tokenizer)
    assert row["prompt"] == tokenizer(context)["input_ids"]
    assert (row["contexts"], row["continuations"]) == ([row["prompt"]], [])
    assert (row["flags"], row["choice_chars"], row["references"]) == ([], [], ["x"])
    text = Prebuilt(("",), (" mill é",), ("mill é",))
    (row,) = rows_of(SENTENCE, [ready(1, text)], tokenizer)
    assert row["contexts"] == [[tokenizer.bos_token_id]]
    assert row["continuations"] == [tokenizer(" mill é", add_special_tokens=False)["input_ids"]]
    assert (row["choice_chars"], row["choice_bytes"]) == ([6], [7])


def test_an_empty_context_is_generated_from_bos(tokenizer: Any) -> None:
    (row,) = rows_of(WRITER, [ready(1, Prebuilt(("",)))], tokenizer)
    assert row["prompt"] == [tokenizer.bos_token_id]


# --- mutual information -------------------------------------------------------------------------


def test_unconditional_requests_only_where_asked_for(tokenizer: Any) -> None:
    (row,) = rows_of(LABELS, [labelled(1)], tokenizer)
    assert row["unconditional"] == row["unconditional_context"] == []
    (row,) = rows_of(LABELS, [labelled(1)], tokenizer, unconditional=True)
    pairs = [encode_pair(tokenizer, "", text, SETTINGS) for text in (" yes", " no")]
    assert row["unconditional_context"] == pairs[0][0] == [tokenizer.bos_token_id]
    assert row["unconditional"] == [tokens for _, tokens in pairs]
    made = Prebuilt(("Q:",), (" yes",), ("yes",), unconditional=(" maybe",))
    (row,) = rows_of(LABELS, [ready(1, made)], tokenizer)
    assert row["unconditional"] == [encode_pair(tokenizer, "", " maybe", SETTINGS)[1]]


# --- ways of answering --------------------------------------------------------------------------


def test_first_tokens(tokenizer: Any) -> None:
    variant = replace(PLAIN, answer="first_token")
    task = replace(LABELS, choices=("entailment", "neutral"))
    document = replace(labelled(1), choices=("entailment", "neutral"))
    (row,) = rows_of(task, [document], tokenizer, variant)
    (whole,) = rows_of(task, [document], tokenizer)
    assert row["continuations"] == [tokens[:1] for tokens in whole["continuations"]]
    assert max(len(tokens) for tokens in whole["continuations"]) > 1
    assert row["prompt"] is None
    assert row["choice_chars"] == [len("entailment"), len("neutral")]


def test_labels_that_share_a_first_token_are_named(tokenizer: Any) -> None:
    task = replace(LABELS, choices=("mill", "mild"))
    document = replace(labelled(4), choices=("mill", "mild"))
    variant = replace(PLAIN, answer="first_token", delimiter="")
    with pytest.raises(InputError) as caught:
        rows_of(task, [document], tokenizer, variant)
    message = str(caught.value)
    for part in ("task labels", "prompt default", "'mill'", "'mild'", "document 4", "'m'"):
        assert part in message
    assert "\n" not in message
    assert rows_of(task, [document], tokenizer)[0]["flags"] == []


def test_white_space_at_the_end_is_not_the_first_token(tokenizer: Any) -> None:
    """The split rule gives it to the continuations, where it would be everybody's first token."""
    # Jinja drops one line break at the end.
    variant = replace(PLAIN, template="{{ text }}\nAnswer:\n\n", delimiter="", answer="first_token")
    (row,) = rows_of(LABELS, [labelled(1)], tokenizer, variant)
    assert tokenizer.decode(row["contexts"][0], skip_special_tokens=True).endswith("Answer:\n")
    first = [tokenizer.convert_ids_to_tokens(tokens) for tokens in row["continuations"]]
    assert first == [["yes"], ["n"]]


def test_free_answers_are_generated_and_scored(tokenizer: Any) -> None:
    variant = replace(PLAIN, template="{{ text }}\nAnswer:\n\n", delimiter="", answer="free")
    (row,) = rows_of(LABELS, [labelled(1)], tokenizer, variant)
    # What is generated from keeps its last line break; what is scored gives it away.
    assert row["prompt"] == tokenizer("the old mill\nAnswer:\n")["input_ids"]
    assert row["contexts"] == [tokenizer("the old mill\nAnswer:")["input_ids"]]
    assert len(row["continuations"]) == 2
    assert generation_of(LABELS, variant) == FREE_ANSWER
    told = replace(LABELS, generation=GenerationSettings(9), spec={"generation": {}})
    assert generation_of(told, variant) == FREE_ANSWER
    told = replace(told, spec={"generation": {"max_tokens": 9}})
    assert generation_of(told, variant) == GenerationSettings(9)
    assert generation_of(LABELS, PLAIN) is None
    assert generation_of(WRITER, PLAIN) == WRITER.generation
    need = len(row["prompt"]) + FREE_ANSWER.max_tokens
    for length, flags in ((need, []), (need - 1, ["overflow"])):
        limits = EncodingSettings(max_length=length)
        assert rows_of(LABELS, [labelled(1)], tokenizer, variant, limits)[0]["flags"] == flags


def test_constrained_answers_need_one_context(tokenizer: Any) -> None:
    variant = replace(PLAIN, answer="constrained")
    assert rows_of(LABELS, [labelled(1)], tokenizer, variant) == rows_of(
        LABELS, [labelled(1)], tokenizer
    )
    own = Prebuilt(("It is. ", "It is not. "), (" so", " so"), ("so", "so"))
    with pytest.raises(InputError, match="needs one context for all choices"):
        rows_of(LABELS, [ready(1, own)], tokenizer, variant)


# --- whole texts --------------------------------------------------------------------------------


def test_rolling_windows_cover_the_text(tokenizer: Any) -> None:
    text = "the old mill stands behind the quiet harbour é"
    limits = EncodingSettings(max_length=7)
    made = Prebuilt((), (text,), (text,))
    rows = rows_of(
        ROLLED, [written(1, text), ready(2, made), written(3, "")], tokenizer, limits=limits
    )
    ids = tokenizer(text)["input_ids"]
    for row in rows[:2]:
        assert [t for tokens in row["continuations"] for t in tokens] == ids
        assert len(row["contexts"]) == len(row["continuations"]) > 2
        assert row["contexts"][0] == [tokenizer.bos_token_id]
        rest = [0] * (len(row["contexts"]) - 1)
        assert row["choice_bytes"] == [len(text.encode()), *rest]
        assert row["choice_chars"] == [len(text), *rest]
        assert (row["references"], row["flags"]) == ([text], [])
    assert rows[2]["choice_bytes"] == [0]  # only the BOS the tokenizer writes


def test_a_text_without_tokens_is_left_out_visibly(
    tmp_path: Path, make_tokenizer: Callable[..., Path]
) -> None:
    bare = load_tokenizer(make_tokenizer(tmp_path, bos=False))
    (row,) = rows_of(ROLLED, [written(1, "")], bare)
    assert row["flags"] == ["no_tokens", "overflow"]


# --- what does not fit --------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(words=st.integers(1, 30), length=st.integers(15, 40), two=st.booleans())
def test_left_truncation_follows_the_published_rule(
    tokenizer: Any, words: int, length: int, two: bool
) -> None:
    contexts = ("mill " * words + "Q:", "the " * words + "Q:")[: 2 if two else 1]
    made = Prebuilt(contexts, (" yes", " contradiction"), ("yes", "contradiction"))
    limits = replace(LEFT, max_length=length)
    (row,) = rows_of(LABELS, [ready(1, made)], tokenizer, limits=limits)
    lost = []
    for i, text in enumerate(made.continuations):
        context, tokens = encode_pair(tokenizer, contexts[i if two else 0], text, SETTINGS)
        # lm-evaluation-harness reads (context + continuation)[-(max_length + 1):] but the last.
        kept = (context + tokens)[-(length + 1) :]
        lost.append(len(context) + len(tokens) - len(kept))
        found = row["contexts"][i if len(row["contexts"]) > 1 else 0]
        assert found + row["continuations"][i] == kept
        assert row["continuations"][i] == tokens
    assert row["truncated_tokens"] == max(lost)
    assert row["flags"] == (["truncated"] if max(lost) else [])


def test_left_truncation_of_prompts(tokenizer: Any) -> None:
    document = ready(1, Prebuilt(("the old mill " * 20,)))
    whole = tokenizer("the old mill " * 20)["input_ids"]
    limits = replace(LEFT, max_length=26)
    (row,) = rows_of(WRITER, [document], tokenizer, limits=limits)
    assert row["prompt"] == whole[-20:]
    assert (row["truncated_tokens"], row["flags"]) == (len(whole) - 20, ["truncated"])
    (row,) = rows_of(WRITER, [document], tokenizer, limits=replace(LEFT, max_length=6))
    assert row["flags"] == ["overflow"]  # no room for a prompt at all


def test_a_continuation_longer_than_the_model_is_left_out(tokenizer: Any) -> None:
    made = Prebuilt(("Q:",), (" contradiction neutral",), ("x",))
    (row,) = rows_of(LABELS, [ready(1, made)], tokenizer, limits=replace(LEFT, max_length=3))
    assert row["flags"] == ["overflow"]
    assert row["truncated_tokens"] == 0


def test_constrained_choices_are_cut_alike(tokenizer: Any) -> None:
    document = replace(labelled(1, "mill " * 30), choices=("yes", "contradiction"))
    task = replace(LABELS, choices=document.choices)
    limits = replace(LEFT, max_length=20)
    (apart,) = rows_of(task, [document], tokenizer, limits=limits)
    assert len(apart["contexts"]) == 2
    variant = replace(PLAIN, answer="constrained")
    (together,) = rows_of(task, [document], tokenizer, variant, limits)
    assert together["contexts"] == [min(apart["contexts"], key=len)]


def test_left_truncation_keeps_all_shots(tokenizer: Any) -> None:
    pool = tuple(labelled(50 + i, f"shot {i}", i % 2) for i in range(4))
    variant = replace(PLAIN, shots=3)
    limits = replace(LEFT, max_length=30)
    (row,) = rows_of(LABELS, [labelled(1)], tokenizer, variant, limits, pool)
    assert (row["shots"], row["shots_dropped"], row["flags"]) == (3, 0, ["truncated"])
    (full,) = rows_of(LABELS, [labelled(1)], tokenizer, variant, SETTINGS, pool)
    short = row["contexts"][0]
    assert full["contexts"][0][-len(short) :] == short
    (dropped,) = rows_of(
        LABELS, [labelled(1)], tokenizer, variant, EncodingSettings(max_length=30), pool
    )
    assert dropped["flags"] == ["shots_dropped"]
    assert dropped["truncated_tokens"] == 0


# --- files --------------------------------------------------------------------------------------


def test_requests_depend_on_all_that_decides_them(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    def ask(
        task: Task = LABELS,
        variant: Variant = PLAIN,
        limits: EncodingSettings = SETTINGS,
        made: Prebuilt | None = None,
        unconditional: bool = False,
    ) -> Path:
        documents = [replace(labelled(1), prebuilt=made)]
        return cached_requests(
            tmp_path, task, variant, documents, [], tiny_tokenizer_dir, limits,
            unconditional=unconditional,
        )  # fmt: skip

    text = Prebuilt(("Q:",), (" yes",), ("yes",))
    free = replace(PLAIN, answer="free", fingerprint="free")
    longer = replace(LABELS, generation=GenerationSettings(9), spec={"generation": {"x": 1}})
    paths = [
        ask(),
        ask(unconditional=True),
        ask(limits=LEFT),
        ask(made=text),
        ask(made=replace(text, unconditional=(" yes",))),
        ask(variant=free),
        ask(longer, free),
    ]
    assert len(set(paths)) == len(paths)
    assert ask(replace(LABELS, metrics=("acc", "mcc"))) == paths[0]


def test_costs_of_several_batches(tokenizer: Any) -> None:
    documents = [labelled(i, "mill " * (i % 7)) for i in range(2100)]
    table = encode_task(LABELS, PLAIN, documents, [], tokenizer, SETTINGS)
    assert table["contexts"].num_chunks > 1
    costs = request_costs(table)
    rows = table.slice(1990, 20).to_pylist()
    expected = [sum(map(len, row["contexts"] + row["continuations"])) for row in rows]
    assert costs[1990:2010].tolist() == expected
    np.testing.assert_array_equal(request_costs(table.slice(1990, 20)), expected)


def test_answers_that_share_a_token_with_their_prompt_are_flagged(tokenizer: Any) -> None:
    """They are scored by the published rule, as ids that spell neither text."""
    word = "contradiction"
    ids = {cut: tokenizer(word[:cut], add_special_tokens=False)["input_ids"]
           for cut in range(2, len(word))}  # fmt: skip
    whole = tokenizer(word, add_special_tokens=False)["input_ids"]
    cut = next(cut for cut, own in ids.items() if whole[: len(own)] != own)
    task = replace(LABELS, choices=(word[cut:], "yes"))
    bare = Variant("bare", "g", "{{ text }}", delimiter="")
    documents = [
        replace(labelled(number, text), choices=task.choices)
        for number, text in enumerate((word[:cut], f"{word[:cut]}:"))
    ]
    found = rows_of(task, documents, tokenizer, bare)
    assert [row["flags"] for row in found] == [["border_merged"], []]
    spaced = rows_of(task, documents, tokenizer, replace(bare, delimiter=" "))
    assert [row["flags"] for row in spaced] == [[], []]


def test_a_full_disk_is_the_results_fault(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(ResultsError, match="cannot write requests") as refused:
            cached_requests(
                tmp_path, LABELS, PLAIN, [labelled(1)], [], tiny_tokenizer_dir, SETTINGS
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in str(refused.value)
    assert refused.value.exit_status == 74
    assert list(tmp_path.iterdir()) == []
