"""Chats: shots as turns or text, system texts, and exactly one BOS, with several templates."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evalcore.errors import InputError
from evalcore.identity import (
    NumericsClass,
    cell_key,
    parse_template_args,
    parse_template_date,
    tokenizer_facts,
)
from evalcore.prompting import (
    PromptError,
    PromptFault,
    cached_requests,
    encode_task,
    encode_training,
    example,
    load_tokenizer,
    load_variants,
    render,
    with_options,
)
from evalcore.tasks import load_documents, load_task
from evalcore.types import Checkpoint, Document, EncodingSettings, Subject, Task, Variant

# Written for these tests: what common families of templates do, not their text.
LIKE_CHATML = (
    "{% for m in messages %}<|im|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im|>assistant\n{% endif %}"
)
LIKE_LLAMA = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} [/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role\nnot supported') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}|{% endif %}{% endfor %}"
)
ONE_TURN = (
    "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    "{{ messages[0].content }}"
)
TWO_BOS = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Path]) -> Any:
    """A tokenizer with a chat template, with or without a BOS of its own."""

    def tokenizer(template: str, *, bos: bool = True) -> Any:
        folder = make_tokenizer(tmp_path_factory.mktemp("chat"), bos=bos)
        config = folder / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
        return load_tokenizer(folder)

    return tokenizer


TASK = load_task("pocket_nli")
DOCUMENTS = load_documents(TASK, "score", limit=2)
POOL = load_documents(TASK, "shots")
SHOTS = POOL[:2]


def chat(selection: str = "default:chat=1", system: str | None = None) -> Any:
    (variant,) = load_variants(TASK.group, selection, system=system)
    return variant


def test_shots_as_turns_and_as_text(make: Any) -> None:
    tokenizer = make(LIKE_CHATML)
    plain = render(TASK, chat("default:shots=2"), DOCUMENTS[0], SHOTS).context
    turns = render(
        TASK, chat("default:shots=2,chat=1", "Be brief."), DOCUMENTS[0], SHOTS, tokenizer
    )
    assert turns.context.startswith("<|im|>system\nBe brief.<|end|>\n<|im|>user\n### Input_1")
    assert turns.context.count("<|im|>user") == 3
    assert turns.context.count("<|im|>assistant\n") == 3
    assert turns.context.endswith("<|im|>assistant\n")
    assert turns.continuations == turns.targets == TASK.choices  # the template ends its header
    text = render(
        TASK, chat("default:shots=2,chat=1,chat_shots=text"), DOCUMENTS[0], SHOTS, tokenizer
    )
    assert text.context == f"<|im|>user\n{plain}<|end|>\n<|im|>assistant\n"
    assert text.shots == 2


@pytest.mark.parametrize("template", [LIKE_CHATML, LIKE_LLAMA])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("selection", ["turns", "text"])
def test_exactly_one_bos(make: Any, template: str, bos: bool, selection: str) -> None:
    tokenizer = make(template, bos=bos)
    variant = chat(f"default:shots=2,chat=1,chat_shots={selection}", "Be brief.")
    table = encode_task(TASK, variant, DOCUMENTS, POOL, tokenizer, EncodingSettings())
    writes = template == LIKE_LLAMA
    for contexts in table["contexts"].to_pylist():
        for ids in contexts:
            assert ids.count(tokenizer.bos_token_id) == int(bos or writes)
            assert (ids[0] == tokenizer.bos_token_id) == (bos or writes)


def test_two_bos_are_refused(make: Any) -> None:
    tokenizer = make(TWO_BOS)
    with pytest.raises(InputError, match="holds 2 beginning-of-text tokens, not one"):
        encode_task(TASK, chat(), DOCUMENTS, [], tokenizer, EncodingSettings())
    with pytest.raises(InputError, match="holds 2 beginning-of-text tokens, not one"):
        example(TASK, chat(), tokenizer)


@pytest.mark.parametrize(
    ("template", "selection", "system", "fault", "words"),
    [
        (
            NO_SYSTEM, "default:chat=1", "Be brief.", PromptFault.SYSTEM_REFUSED,
            r"takes no system text \(System role not supported\); leave it out",
        ),
        (
            DROPS_SYSTEM, "default:chat=1", "Be brief.", PromptFault.SYSTEM_DROPPED,
            "leaves out the system text",
        ),
        (
            ONE_TURN, "default:chat=1,shots=2", None, PromptFault.CHAT_REFUSED,
            "the chat template refuses it: one turn only",
        ),
        (
            "{{ nothing.at.all }}", "default:chat=1", None, PromptFault.CHAT_REFUSED,
            "refuses it: 'nothing' is undefined",
        ),
    ],
)  # fmt: skip
def test_templates_that_refuse(
    make: Any, template: str, selection: str, system: str | None, fault: PromptFault, words: str
) -> None:
    tokenizer = make(template)
    with pytest.raises(PromptError, match=words) as caught:
        render(TASK, chat(selection, system), DOCUMENTS[0], SHOTS, tokenizer)
    assert caught.value.fault is fault
    assert "\n" not in str(caught.value)
    if system:  # without it the same template is fine
        assert render(TASK, chat(selection), DOCUMENTS[0], SHOTS, tokenizer).context
    else:  # and with shots as text one turn is enough
        one = chat("default:shots=2,chat=1,chat_shots=text")
        if template == ONE_TURN:
            assert render(TASK, one, DOCUMENTS[0], SHOTS, tokenizer).context


def test_a_chat_needs_a_template(make: Any) -> None:
    with pytest.raises(InputError, match="chat=1 needs a tokenizer with a chat template"):
        render(TASK, chat(), DOCUMENTS[0])
    tokenizer = copy.deepcopy(make(LIKE_CHATML))  # equal ones are shared
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="chat=1 needs a tokenizer with a chat template"):
        render(TASK, chat(), DOCUMENTS[0], [], tokenizer)


# --- what a template is given beside the messages -------------------------------------------------

DATED = "Today is {{ strftime_now('%d %b %Y') }}. {{ messages[0].content }}"
THINKS = (
    "{{ messages[0].content }}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% else %}<think>{% endif %}"
)


def chat_with(**options: Any) -> Any:
    return load_variants(TASK.group, "default:chat=1", **options)[0]


def shown(tokenizer: Any, variant: Any) -> str:
    return str(render(TASK, variant, DOCUMENTS[0], (), tokenizer).context)


def test_the_date_of_a_template_is_pinned(make: Any) -> None:
    tokenizer = make(DATED)
    plain, later = chat_with(), chat_with(chat_date="2030-01-31")
    assert shown(tokenizer, plain).startswith("Today is 26 Jul 2024.")
    assert shown(tokenizer, later).startswith("Today is 31 Jan 2030.")
    assert plain.fingerprint == later.fingerprint  # it counts in the key, where a template asks


def test_the_date_counts_where_a_template_writes_it(tmp_path: Path, make: Any) -> None:
    document = Document("0" * 32, 0, {"text": "a"}, ("yes", "no"), 0)
    task = Task("t", 1, "g", "multiple_choice", ("acc",), "acc")
    numerics = NumericsClass("hf", "float32", "float32", "cpu")
    for template, counts in ((DATED, True), (LIKE_CHATML, False)):
        folder = make(template).name_or_path
        facts = tokenizer_facts(folder)
        checkpoint = Checkpoint("c", folder, "0" * 32, facts.fingerprint,
                                template_fingerprint=facts.template,
                                template_dated=facts.dated)  # fmt: skip
        files, keys = [], []
        for date in ("2024-07-26", "2024-07-27"):
            variant = with_options(Variant("v", "g", "{{ text }}"), chat=True, chat_date=date)
            files.append(
                cached_requests(tmp_path, task, variant, [document], [], folder, EncodingSettings())
            )
            keys.append(cell_key(Subject(checkpoint), task, variant, EncodingSettings(), numerics))
        assert (len(set(files)), len(set(keys))) == ((2, 2) if counts else (1, 1))


def test_arguments_of_a_template_are_part_of_the_variant(make: Any) -> None:
    tokenizer = make(THINKS)
    plain = chat_with()
    off = chat_with(chat_args=parse_template_args('{"enable_thinking": false}'))
    assert shown(tokenizer, plain).endswith("<assistant><think>")
    assert shown(tokenizer, off).endswith("<assistant><think></think>")
    assert plain.fingerprint != off.fingerprint
    assert off.name.startswith("default:chat=1,args=")
    bare = load_variants(TASK.group, "default", chat_args=off.chat_args)[0]
    assert bare == load_variants(TASK.group, "default")[0]  # no chat: no effect


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "should be a JSON object"),
        ('{"messages": []}', "not for you"),
        ('{"a": ' + "[" * 20_000 + "]" * 20_000 + "}", "is nested too deeply"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "is nested too deeply"),
    ],
)
def test_wrong_arguments_are_one_line(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_template_args(text)
    with pytest.raises(InputError, match="expected YYYY-MM-DD"):
        parse_template_date("31.1.2030")


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}<unk>\n{% endfor %}", "<unk>"),
        ("{% for m in messages %}{{ m.content }}</s>{% endfor %}", "</s>"),
        (LIKE_LLAMA, None),  # closes with letters
        (ONE_TURN, None),  # takes no answer
    ],
)
def test_an_answer_ends_as_the_template_closes_it(
    make: Any, template: str, end: str | None
) -> None:
    tokenizer = make(template)
    number = tokenizer.convert_tokens_to_ids(end) if end else None
    assert tokenizer_facts(tokenizer.name_or_path).turn_end == number
    learned = encode_training(tokenizer, "Q", " yes", EncodingSettings(), chat=True)[1]
    assert learned[-1] == (tokenizer.eos_token_id if number is None else number)
    assert encode_training(tokenizer, "Q", " yes", EncodingSettings())[1][-1] == 1
