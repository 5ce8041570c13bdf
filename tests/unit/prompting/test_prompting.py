"""Variants, rendering, shots, and the request tables made of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.errors import DataError, DefinitionError, InputError, ResultsError, UnknownNameError
from evalcore.prompting import (
    REQUEST_SCHEMA,
    cached_requests,
    draw_shots,
    encode_pair,
    encode_task,
    encode_training,
    example,
    list_prompts,
    load_tokenizer,
    load_variants,
    read_prompt,
    read_requests,
    render,
    requests,
    training_pair,
    with_options,
)
from evalcore.prompting.published import PROMPT_SCHEMA_FILE, prompt_schema_text
from evalcore.tasks import TaskDefinition, list_tasks, task_from_definition
from evalcore.types import Document, EncodingSettings, Task, Variant

NLI = task_from_definition(
    TaskDefinition.model_validate(
        {
            "name": "nli",
            "version": 1,
            "group": "g",
            "output_type": "multiple_choice",
            "source": {"path": "nli"},
            "splits": {"score": "test"},
            "fields": {"premise": "premise", "hypothesis": "hypothesis"},
            "choices": {"labels": ["entailment", "neutral"]},
            "gold": {"column": "label"},
            "metrics": ["acc"],
            "primary": "acc",
        }
    )
)
WRITER = replace(
    NLI, name="writer", output_type="generate_until", choices=(), metrics=("rouge_l",),
    primary="rouge_l", generation=replace(NLI.generation, max_tokens=6),
)  # fmt: skip
PLAIN = with_options(
    Variant("default", "g", "{{ premise }}\n{{ hypothesis }}\nRelation:"),
)


def nli_document(number: int, gold: int = 0, premise: str | None = None) -> Document:
    fields = {"premise": premise or f"The mill {number}.", "hypothesis": f"The dog {number}."}
    return Document(f"{number:032x}", number, fields, ("entailment", "neutral"), gold)


def text_document(number: int, reference: str = "a mule") -> Document:
    fields = {"premise": f"Tavira {number}", "hypothesis": "keeps"}
    return Document(f"{number:032x}", number, fields, references=(reference, "another"))


POOL = [nli_document(100 + i, i % 2) for i in range(8)]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path) -> Any:
    return load_tokenizer(tiny_tokenizer_dir)


# --- variants -----------------------------------------------------------------------------------


def names(selection: str, **options: Any) -> list[str]:
    return [v.name for v in load_variants("pocket_nli", selection, **options)]


def test_selections() -> None:
    assert names("default,instruct") == ["default", "instruct"]
    assert names("default,instruct:shots=4,seed=1,io") == [
        "default",
        "instruct:shots=4,seed=1",
        "io",
    ]
    assert names("io:seed=1") == ["io"]  # a seed without shots changes nothing
    assert names("io:shots=0,chat=0, io") == ["io"]
    assert names("io:seed=2,shots=3,chat=1") == ["io:shots=3,seed=2,chat=1"]
    assert names("default,io:shots=1", num_fewshot=4, shots_seed=2) == [
        "default:shots=4,seed=2", "io:shots=1,seed=2",
    ]  # fmt: skip
    everything = names("all")
    assert everything[0] == "default"
    assert len(everything) >= 3
    assert names("all:shots=2") == [f"{name}:shots=2" for name in everything]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("defualt", "unknown prompt of group pocket_nli 'defualt'; nearest: default"),
        ("default:shot=1", "nearest: shots"),
        ("default:shots=many", "shots should be a whole number, not 'many'"),
        ("default:shots=-1", "whole number"),
        ("default:chat=2", "chat should be 0 or 1"),
        ("shots=4", "follows no prompt name"),
        ("", "no prompts given"),
        ("default:", "unknown key"),
    ],
)
def test_wrong_selections(selection: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        names(selection)
    assert "\n" not in str(caught.value)


def test_unknown_group_and_system_without_chat() -> None:
    with pytest.raises(UnknownNameError, match="nearest: pocket_nli"):
        load_variants("pocket_nil")
    with pytest.raises(InputError, match="needs the chat template"):
        load_variants("pocket_nli", "io", system="Be brief.")
    (variant,) = load_variants("pocket_nli", "io", chat=True, system="Be brief.")
    assert variant.system == "Be brief."
    assert variant.name.startswith("io:chat=1,system=")


def test_variant_fingerprint_is_of_what_decides_text() -> None:
    assert PLAIN.fingerprint == "3a34ca6f304ece7180a1d52f225793ab"
    assert with_options(replace(PLAIN, name="other")).fingerprint == PLAIN.fingerprint
    assert with_options(PLAIN, shots_seed=5).fingerprint == PLAIN.fingerprint
    assert with_options(replace(PLAIN, system="x")).fingerprint == PLAIN.fingerprint  # no chat
    changed = [
        with_options(replace(PLAIN, template="x")),
        with_options(replace(PLAIN, target="{{ choice }}.")),
        with_options(replace(PLAIN, delimiter="")),
        with_options(replace(PLAIN, separator="\n")),
        with_options(replace(PLAIN, label_words=(("neutral", "maybe"),))),
        with_options(replace(PLAIN, listing="letters")),
        with_options(PLAIN, answer="first_token"),
        with_options(PLAIN, space=0, shots=1),
        with_options(PLAIN, shots=2, shots_order=1),
        with_options(PLAIN, shots=1, shots_balance=True),
        with_options(PLAIN, shots=1, chat=True),
        with_options(PLAIN, shots=1, chat=True, chat_shots="text"),
        with_options(PLAIN, shots=1),
        with_options(PLAIN, shots=1, shots_seed=1),
        with_options(PLAIN, chat=True),
        with_options(PLAIN, chat=True, system="x"),
    ]
    assert len({PLAIN.fingerprint, *(v.fingerprint for v in changed)}) == len(changed) + 1
    assert with_options(with_options(PLAIN, shots=4), shots=4) == with_options(PLAIN, shots=4)


def test_prompt_files(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    file = tmp_path / "g/mine.yaml"

    def write(**keys: Any) -> None:
        file.write_text(yaml.safe_dump({"name": "mine", "group": "g", "template": "x", **keys}))

    write(label_words={"yes": "right"}, answer="first_token", listing="letters", separator=" ")
    (variant,) = load_variants("g", "mine", search=[tmp_path])
    assert variant.label_words == (("yes", "right"),)
    assert (variant.answer, variant.listing, variant.separator) == ("first_token", "letters", " ")
    (other,) = load_variants("g", "mine:answer=choices,space=0", search=[tmp_path])
    assert (other.name, other.answer) == ("mine:space=0,answer=choices", "choices")
    write(label_words={"yes": "right"})
    (variant,) = load_variants("g", "mine", search=[tmp_path])
    assert variant.delimiter == " "
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"colour": 1}, "key colour: is not a known key"),
        ({"group": "h"}, "its folder is 'g'"),
        ({"label_words": {"a": " "}}, "may not be empty"),
        ({"name": "paper"}, "may not be called"),
        ({"label_words": {True: "x"}}, "quote yes/no words"),
        ({"template": 3}, "key template"),
    ]
    for keys, expected in wrong:
        write(**keys)
        with pytest.raises(DefinitionError, match=expected) as caught:
            list_prompts("g", [tmp_path])
        assert "mine.yaml" in str(caught.value)
        assert "\n" not in str(caught.value)
    file.write_text("name: [")
    with pytest.raises(DefinitionError, match="broken YAML"):
        read_prompt(file)


# --- rendering ----------------------------------------------------------------------------------


def test_rendered_text() -> None:
    words = (("entailment", "yes"), ("neutral", "maybe"), ("of another task", "no"))
    variant = with_options(replace(PLAIN, label_words=words), shots=1)
    text = render(NLI, variant, nli_document(1), [nli_document(2, gold=0)])
    assert text.context == (
        "The mill 2.\nThe dog 2.\nRelation: yes\n\nThe mill 1.\nThe dog 1.\nRelation:"
    )
    assert text.continuations == (" yes", " maybe")
    assert text.targets == ("yes", "maybe")
    assert text.shots == 1
    listed = with_options(
        replace(variant, template="{{ choices | join('/') }}", target="({{ choice }})")
    )
    text = render(NLI, listed, nli_document(1))
    assert text.context == "yes/maybe"
    assert text.continuations[0] == " (yes)"
    written = render(WRITER, PLAIN, text_document(1))
    assert written.continuations == (" a mule", " another")


def test_documents_are_not_templates() -> None:
    document = nli_document(1, premise="{{ 7 * 7 }} {% raw %}")
    assert "{{ 7 * 7 }} {% raw %}" in render(NLI, PLAIN, document).context


def test_what_does_not_fit_is_refused(tokenizer: Any) -> None:
    empty = with_options(replace(PLAIN, target="{{ '' }}"))
    with pytest.raises(DefinitionError, match="empty text"):
        render(NLI, empty, nli_document(1))
    typo = with_options(replace(PLAIN, label_words=(("entailmant", "yes"),)))
    with pytest.raises(DefinitionError, match="'entailmant': none is a label of task nli"):
        encode_task(NLI, typo, [nli_document(1)], [], tokenizer, EncodingSettings())
    with pytest.raises(DefinitionError, match="is not of group"):
        encode_task(
            NLI, replace(PLAIN, group="h"), [nli_document(1)], [], tokenizer, EncodingSettings()
        )


# --- shots --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 5), seed=st.integers(0, 3), order=st.permutations(POOL),
    scored=st.lists(st.sampled_from(POOL[:3]), max_size=3),
)  # fmt: skip
def test_shots_are_seeded_apart_and_nested(
    count: int, seed: int, order: Sequence[Document], scored: Sequence[Document]
) -> None:
    variant = with_options(PLAIN, shots=count, shots_seed=seed)
    copies = [replace(doc, id="f" * 32) for doc in scored]  # same text under another id
    shots = draw_shots(NLI, variant, POOL, scored=copies)
    assert shots == draw_shots(NLI, variant, order, {doc.id for doc in scored})
    assert len(shots) == count == len({doc.id for doc in shots})
    assert not {doc.id for doc in shots} & {doc.id for doc in scored}
    more = with_options(PLAIN, shots=count + 1, shots_seed=seed) if count < 5 else variant
    assert draw_shots(NLI, more, POOL, scored=copies)[:count] == shots


def test_shots_depend_on_the_seed_and_never_repeat_a_text() -> None:
    drawn = {
        tuple(d.index for d in draw_shots(NLI, with_options(PLAIN, shots=4, shots_seed=s), POOL))
        for s in range(6)
    }
    assert len(drawn) > 3
    twins = [POOL[0], replace(POOL[0], id="e" * 32), replace(POOL[1], gold=-1)]
    with pytest.raises(DataError, match=r"wants 2 shots, the shots split has 1 usable of 3"):
        draw_shots(NLI, with_options(PLAIN, shots=2), twins)


# --- requests -----------------------------------------------------------------------------------


def slow_rows(
    task: Task,
    variant: Variant,
    documents: Sequence[Document],
    pool: Sequence[Document],
    tokenizer: Any,
    limits: EncodingSettings,
) -> list[dict[str, Any]]:
    """The slow twin of encode_task: one document, one continuation at a time."""
    shots = draw_shots(task, variant, pool, scored=documents)
    rows = []
    for document in documents:
        for kept in range(len(shots), -1, -1):
            text = render(task, variant, document, shots[:kept], tokenizer)
            many = len(text.continuations) if task.output_type == "multiple_choice" else 1
            pairs = [
                encode_pair(tokenizer, text.context, continuation, limits)
                for continuation in text.continuations[:many]
            ]
            new = max(len(continuation) for _, continuation in pairs)
            if task.output_type == "generate_until":
                new = max(new, task.generation.max_tokens)
            fits = len(pairs[0][0]) + new <= limits.max_length
            if fits:
                break
        dropped = len(shots) - kept
        targets = text.targets[:many]
        rows.append(
            {
                "doc_id": document.id,
                "doc_index": document.index,
                "gold": document.gold,
                "golds": list(document.golds),
                "contexts": [pairs[0][0]],
                "continuations": [ids for _, ids in pairs],
                "unconditional_context": [],
                "unconditional": [],
                # These contexts end without white space: the same ids go on to be generated from.
                "prompt": pairs[0][0] if task.output_type == "generate_until" else None,
                "choice_chars": [len(target) for target in targets],
                "choice_bytes": [len(target.encode()) for target in targets],
                "choices": list(targets) if task.output_type == "multiple_choice" else [],
                "choice_owners": list(text.owners) or None,
                "references": list(document.references),
                "shots": kept,
                "shots_dropped": dropped,
                "truncated_tokens": 0,
                "flags": ["shots_dropped"] * bool(dropped) + ["overflow"] * (not fits),
            }
        )
    return rows


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), max_size=6),
    shots=st.integers(0, 4),
    max_length=st.integers(10, 160),
    chat=st.booleans(),
    writes=st.booleans(),
)
def test_tables_equal_the_slow_twin(
    tokenizer: Any, lengths: list[int], shots: int, max_length: int, chat: bool, writes: bool
) -> None:
    task = WRITER if writes else NLI
    documents = [
        text_document(i, "é " * size) if writes else nli_document(i, i % 2, "mill " * size)
        for i, size in enumerate(lengths)
    ]
    pool = [text_document(100 + i) for i in range(6)] if writes else POOL
    variant = with_options(PLAIN, shots=shots, chat=chat)
    limits = EncodingSettings(max_length=max_length)
    table = encode_task(task, variant, documents, pool, tokenizer, limits)
    assert table.schema == REQUEST_SCHEMA
    assert table.to_pylist() == slow_rows(task, variant, documents, pool, tokenizer, limits)


def test_overflow_drops_whole_shots_and_is_counted(tokenizer: Any) -> None:
    documents = [nli_document(1), nli_document(2, premise="mill " * 40)]
    variant = with_options(PLAIN, shots=3)
    full = encode_task(NLI, variant, documents[:1], POOL, tokenizer, EncodingSettings())
    need = len(full["contexts"][0].as_py()[0]) + 30
    limits = EncodingSettings(max_length=need)
    rows = encode_task(NLI, variant, documents, POOL, tokenizer, limits).to_pylist()
    assert (rows[0]["shots"], rows[0]["shots_dropped"], rows[0]["flags"]) == (3, 0, [])
    assert 0 < rows[1]["shots"] < 3
    assert rows[1]["flags"] == ["shots_dropped"]
    assert rows[1]["shots"] + rows[1]["shots_dropped"] == 3
    tiny = encode_task(NLI, variant, documents, POOL, tokenizer, EncodingSettings(max_length=12))
    assert tiny["flags"].to_pylist() == [["shots_dropped", "overflow"]] * 2


def test_generation_leaves_room_for_its_tokens(tokenizer: Any) -> None:
    document = text_document(1)
    table = encode_task(WRITER, PLAIN, [document], [], tokenizer, EncodingSettings())
    context = len(table["contexts"][0].as_py()[0])
    for room, flags in ((WRITER.generation.max_tokens, []), (5, ["overflow"])):
        limits = EncodingSettings(max_length=context + room)
        table = encode_task(WRITER, PLAIN, [document], [], tokenizer, limits)
        assert table["flags"].to_pylist() == [flags]


def test_chat_holds_one_bos_and_shots_as_turns(tokenizer: Any) -> None:
    variant = with_options(PLAIN, shots=2, chat=True, system="Be brief.")
    shots = draw_shots(NLI, variant, POOL)
    text = render(NLI, variant, nli_document(1), shots, tokenizer)
    assert text.context.startswith("<s><system>Be brief.</s><user>")
    assert text.context.count("<user>") == 3
    assert text.context.endswith("<assistant>")
    assert text.continuations == ("entailment", "neutral")  # the template ends its own header
    table = encode_task(NLI, variant, [nli_document(1)], POOL, tokenizer, EncodingSettings())
    ids = table["contexts"][0].as_py()[0]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    with pytest.raises(InputError, match="chat=1 needs a tokenizer with a chat template"):
        render(NLI, variant, nli_document(1), shots)
    doubled = [nli_document(1, premise="<s> twice")]
    table = encode_task(NLI, variant, doubled, POOL, tokenizer, EncodingSettings())
    ids = table["contexts"][0].as_py()[0]
    assert ids.count(tokenizer.bos_token_id) == 2  # the second is the data's, and counted there


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("shots", [0, 2])
def test_what_is_trained_is_what_is_scored(tokenizer: Any, chat: bool, shots: int) -> None:
    limits = EncodingSettings()
    for task, document, pool in (
        (NLI, nli_document(1, gold=1), POOL),
        (WRITER, text_document(1), [text_document(50 + i) for i in range(5)]),
    ):
        variant = with_options(PLAIN, shots=shots, chat=chat)
        (row,) = encode_task(task, variant, [document], pool, tokenizer, limits).to_pylist()
        drawn = draw_shots(task, variant, pool, scored=[document])
        prompt, completion = training_pair(task, variant, document, drawn, tokenizer)
        prompt_ids, completion_ids = encode_training(tokenizer, prompt, completion, limits)
        right = max(document.gold, 0)
        assert prompt_ids == row["contexts"][0]
        assert completion_ids == [*row["continuations"][right], tokenizer.eos_token_id]


def test_a_prompt_file_is_read_again_when_it_changed(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    for text in ("{{ premise }} one", "{{ premise }} the other"):
        file.write_text(f"name: p\ngroup: nli\ntemplate: '{text}'\n")
        assert read_prompt(file).template == text
        assert read_prompt(file) is read_prompt(file)


def test_requests_are_cached_by_content(
    tmp_path: Path, tiny_tokenizer_dir: Path, make_tokenizer: Callable[..., Path]
) -> None:
    documents = [nli_document(i, i % 2) for i in range(5)]
    variant = with_options(PLAIN, shots=2)
    limits = EncodingSettings()

    def ask(**changes: Any) -> Path:
        inputs = {
            "task": NLI, "variant": variant, "documents": documents, "shots_pool": POOL,
            "tokenizer_path": tiny_tokenizer_dir, "settings": limits, **changes,
        }  # fmt: skip
        return cached_requests(tmp_path / "cache", **inputs)

    path = ask()
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    table = read_requests(path)
    assert table.equals(encode_task(NLI, variant, documents, POOL, tokenizer, limits))
    drawn = draw_shots(NLI, variant, POOL, scored=documents)
    given = cached_requests(
        tmp_path / "drawn", NLI, variant, documents, POOL, tiny_tokenizer_dir, limits, drawn=drawn
    )
    assert (given.name, given.read_bytes()) == (path.name, path.read_bytes())
    stamp = os.stat(path).st_mtime_ns
    assert ask() == path
    assert os.stat(path).st_mtime_ns == stamp
    others = {
        ask(documents=documents[:4]),
        ask(shots_pool=POOL[1:]),
        ask(variant=with_options(PLAIN, shots=1)),
        ask(settings=EncodingSettings(max_length=99)),
        ask(settings=EncodingSettings(add_bos="never")),
        ask(task=replace(NLI, version=2)),
        ask(tokenizer_path=make_tokenizer(tmp_path / "other", bos=False)),
    }
    assert len(others) == 7
    assert path not in others
    assert not list((tmp_path / "cache").glob(".*"))  # nothing half-written stays
    empty = ask(documents=[])
    assert read_requests(empty).num_rows == 0
    assert isinstance(read_requests(empty), pa.Table)


def test_of_several_that_ask_at_once_one_encodes(
    tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    whole = requests._batches

    def slow(*args: Any, **more: Any) -> Any:
        encoded.append(1)
        time.sleep(0.3)
        return whole(*args, **more)

    monkeypatch.setattr(requests, "_batches", slow)
    documents = [nli_document(i, i % 2) for i in range(5)]

    def ask(number: int) -> Path:
        return cached_requests(
            tmp_path, NLI, PLAIN, documents, POOL, tiny_tokenizer_dir, EncodingSettings()
        )

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert (len(set(found)), len(encoded)) == (1, 1)
    assert list(tmp_path.iterdir()) == found[:1]


def test_a_failed_request_file_leaves_nothing(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    wrong = with_options(replace(PLAIN, template="{{ nothing }}"))
    with pytest.raises(DefinitionError):
        cached_requests(
            tmp_path, NLI, wrong, [nli_document(1)], [], tiny_tokenizer_dir, EncodingSettings()
        )
    assert not list(tmp_path.iterdir())
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(ResultsError, match="cannot write requests"):
        cached_requests(
            blocked, NLI, PLAIN, [nli_document(1)], [], tiny_tokenizer_dir, EncodingSettings()
        )


def test_example_for_people(tokenizer: Any) -> None:
    task = next(task for task in list_tasks() if task.name == "pocket_nli")
    (variant,) = load_variants(task.group, "default:shots=2")
    shown = example(task, variant)
    assert shown.borders == ()
    assert len(shown.shots) == len(shown.shot_texts) == 2
    assert "".join(shown.shot_texts) + shown.question == shown.contexts[0]
    counted = example(task, variant, tokenizer, 1)
    assert len(counted.borders) == len(counted.continuations) == 3
    ids = tokenizer(counted.contexts[0] + counted.continuations[0])["input_ids"]
    border = counted.borders[0]
    assert border.context_tokens + border.continuation_tokens == len(ids)
    at = border.context_tokens
    assert [number for number, _ in border.before] == ids[at - 4 : at]
    assert [number for number, _ in border.after] == ids[at : at + 4]
    with pytest.raises(InputError, match="there is no 100000"):
        example(task, variant, index=100_000)


def test_the_published_schema_is_current() -> None:
    assert PROMPT_SCHEMA_FILE.read_text("utf-8") == prompt_schema_text(), (
        "run: python -m evalcore.prompting.published"
    )
