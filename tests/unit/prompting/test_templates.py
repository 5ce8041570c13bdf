"""Templates and prompt files that are wrong or hostile: one line each, soon, nothing executed."""

from __future__ import annotations

import pickle
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalcore.errors import EvalcoreError
from evalcore.prompting import (
    PromptError,
    PromptFault,
    check_unlike,
    check_variant,
    list_prompts,
    read_prompt,
    render,
    with_options,
)
from evalcore.prompting.templates import MAX_TEXT, TemplateFault, fill
from evalcore.tasks import FileFault, TaskDefinition, task_from_definition
from evalcore.types import Document, Task, Variant

VALUES: dict[str, Any] = {
    "premise": "A mill.", "choices": ["yes", "no"], "nested": {"a": "b"}, "number": 3,
}  # fmt: skip
GROWTH = "".join(
    f"{{% for {new} in [{' ~ '.join([old] * 9)}] %}}"
    for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def made_task(labels: list[str], **changes: Any) -> Task:
    keys = {
        "name": "t", "version": 1, "group": "g", "output_type": "multiple_choice",
        "source": {"path": "t"}, "splits": {"score": "test"}, "fields": {"premise": "premise"},
        "choices": {"labels": labels}, "gold": {"column": "label"}, "metrics": ["acc"],
        "primary": "acc", **changes,
    }  # fmt: skip
    return task_from_definition(TaskDefinition.model_validate(keys))


TASK = made_task(["entailment", "not_entailment"])
DOCUMENT = Document("0" * 32, 0, {"premise": "A mill."}, TASK.choices, 0)
WRITER = replace(TASK, output_type="generate_until", choices=())
PLAIN = with_options(Variant("default", "g", "{{ premise }}:"))

TEMPLATES = [
    ("{{ premise", PromptFault.SYNTAX, "line 1"),
    ("{% for %}", PromptFault.SYNTAX, "line 1"),
    ("a\n{{ premise is nosuch }}", PromptFault.SYNTAX, "line 2: No test named 'nosuch'"),
    ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, PromptFault.SYNTAX, "nested"),
    ("{% include '/etc/passwd' %}", PromptFault.OTHER_TEMPLATE, "include is not offered"),
    ("{% include 'mine.yaml' %}", PromptFault.OTHER_TEMPLATE, "no include cycle"),
    ("{% import 'x' as y %}", PromptFault.OTHER_TEMPLATE, "import is not offered"),
    ("{% from 'x' import y %}", PromptFault.OTHER_TEMPLATE, "import is not offered"),
    ("{% extends 'x' %}", PromptFault.OTHER_TEMPLATE, "extends is not offered"),
    ("{% block a %}{% endblock %}", PromptFault.OTHER_TEMPLATE, "block is not offered"),
    ("{% set a = 1 %}", PromptFault.STATEMENT, "the statement set"),
    ("{% macro f() %}{% endmacro %}", PromptFault.STATEMENT, "the statement macro"),
    ("{{ 9 ** 99999999 }}", PromptFault.STATEMENT, "the operation pow"),
    ("{% for a in nested recursive %}{% endfor %}", PromptFault.STATEMENT, "recursive"),
    ("{{ premise | attr('__class__') }}", PromptFault.UNKNOWN_FILTER, "no filter named 'attr'"),
    ("{{ 'a' | center(1000000000) }}", PromptFault.UNKNOWN_FILTER, "there are abs, capitalize"),
    ("{{ lipsum(n=99999) }}", PromptFault.UNKNOWN_CALL, "lipsum"),
    ("{{ '{:>999999999}'.format(1) }}", PromptFault.UNKNOWN_CALL, "format"),
    ("{{ premise.ljust(999999999) }}", PromptFault.UNKNOWN_CALL, "ljust"),
    ("{{ premise.__class__.__mro__ }}", PromptFault.UNSAFE_ATTRIBUTE, "unsafe"),
    ("{{ ''['__class__'] }}", PromptFault.UNSAFE_ATTRIBUTE, "unsafe"),
    ("{{ choices | sort(attribute='__class__') | first }}", PromptFault.UNSAFE_ATTRIBUTE, "unsafe"),
    ("{{ premisse }}", PromptFault.UNDEFINED_VARIABLE, "'premisse' is undefined; there are cho"),
    ("{{ nested.b }}", PromptFault.UNDEFINED_VARIABLE, "no attribute 'b'"),
    ("{{ premise ~ premisse }}", PromptFault.UNDEFINED_VARIABLE, "premisse"),
    ("{{ choices }}", PromptFault.NOT_TEXT, "writes a list .* join"),
    ("{{ premise ~ nested }}", PromptFault.NOT_TEXT, "a dict"),
    ("{{ none }}", PromptFault.NOT_TEXT, "null"),
    ("{{ premise.upper }}", PromptFault.NOT_TEXT, "function"),
    ("{{ premise + 1 }}", PromptFault.RUNTIME, "TypeError"),
    ("{{ 1 / 0 }}", PromptFault.RUNTIME, "ZeroDivisionError"),
    ("{{ '%999999999d' % 1 }}", PromptFault.RUNTIME, "% is for numbers"),
    ("{% for i in range(999999999) %}{% endfor %}", PromptFault.RUNTIME, "[Rr]ange"),
    ("{{ 'a' * 1000000000 }}", PromptFault.TOO_LARGE, "too large"),
    ("{{ 9999999999 * 2 }}", PromptFault.TOO_LARGE, "too large"),
    ("{{ ('a' * 90000).replace('a', 'b' * 90000) }}", PromptFault.TOO_LARGE, "too large"),
    ("{{ ('a' * 90000) | replace('a', 'b' * 90000) }}", PromptFault.TOO_LARGE, "too large"),
    ("{{ ('a' * 9000) | list | join('b' * 9000) }}", PromptFault.TOO_LARGE, "too large"),
    ("{% for a in ['xx'] %}" + GROWTH + "{% endfor %}" * 12, PromptFault.TOO_LARGE, "too large"),
    ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", PromptFault.TOO_LARGE, "nested too deeply"),
    ("{{ " + "+".join(["1"] * 9000) + " }}", PromptFault.TOO_LARGE, "nested too deeply"),
    (
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        PromptFault.TOO_MANY_STEPS, "steps",
    ),
    (
        "{% for b in ['a' * 900000] %}{% for i in range(9000) %}{{ b | upper | length }}"
        "{% endfor %}{% endfor %}",
        PromptFault.TOO_MANY_STEPS, "steps",
    ),
    ("{% for i in range(19000) %}{{ 'a' * 90 }}{% endfor %}", PromptFault.TOO_LARGE, "too large"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "fault", "words"), TEMPLATES)
def test_wrong_and_hostile_templates(template: str, fault: PromptFault, words: str) -> None:
    begin = time.perf_counter()
    with pytest.raises(TemplateFault, match=words) as caught:
        fill(template, VALUES)
    assert caught.value.fault is fault
    assert time.perf_counter() - begin < 5
    with pytest.raises(PromptError) as seen:  # the same through a prompt: file, key, task
        render(TASK, with_options(replace(PLAIN, template=template)), DOCUMENT)
    assert str(seen.value).startswith("prompt g/default, key template: ")
    assert "\n" not in str(seen.value)
    assert len(str(seen.value)) < 500


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ premise }}|{{ number + 1 }}|{{ nested.a }}", "A mill.|4|b"),
        ("{{ choices | join(', ') }} {{ choices | first ~ (number ~ '!') }}", "yes, no yes3!"),
        ("{% for c in choices %}{{ loop.index }}{{ c | upper }}{% endfor %}", "1YES2NO"),
        ("{% if premise.startswith('A') %}{{ premise.replace('A', 'O') }}{% endif %}", "O mill."),
        ("{{ missing | default('x') }}{% if missing is defined %}y{% endif %}", "x"),
        ("{% raw %}{{ premise }}{% endraw %}", "{{ premise }}"),
        ("{{ premise.split() | last | trim('.') }}", "mill"),
        ("{% for k, v in nested.items() %}{{ k }}={{ v }}{% endfor %}", "a=b"),
    ],
)
def test_what_templates_offer(template: str, text: str) -> None:
    assert fill(template, VALUES) == text


def test_long_documents_have_room() -> None:
    long = "word " * 100_000
    assert fill("{{ document | trim | lower }}!", {"document": long}) == long.strip() + "!"
    assert len(long) < MAX_TEXT


def test_documents_are_not_templates() -> None:
    document = replace(DOCUMENT, fields={"premise": "{{ 7 * 7 }} {% raw %}"})
    assert render(TASK, PLAIN, document).context == "{{ 7 * 7 }} {% raw %}:"


# --- files --------------------------------------------------------------------------------------

GOOD = {"name": "mine", "group": "g", "template": "{{ premise }}"}


def fault_of(path: Path, text: str | bytes) -> Any:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EvalcoreError) as caught:
        read_prompt(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return caught.value.fault  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("keys", "fault", "words"),
    [
        ({"colour": 1}, FileFault.UNKNOWN_KEY, "key colour"),
        ({"template": None}, FileFault.WRONG_TYPE, "key template"),
        ({"template": 3}, FileFault.WRONG_TYPE, "key template"),
        ({"delimiter": ["x"]}, FileFault.WRONG_TYPE, "key delimiter"),
        ({"label_words": "x"}, FileFault.WRONG_TYPE, "key label_words"),
        ({"label_words": {"yes": " "}}, FileFault.WRONG_VALUE, "may not be empty"),
        ({"label_words": {True: "x"}}, FileFault.WRONG_VALUE, "quote yes/no"),
        ({"listing": "bullets"}, FileFault.WRONG_VALUE, "key listing"),
        ({"answer": "guess"}, FileFault.WRONG_VALUE, "key answer"),
        ({"name": "a b"}, FileFault.WRONG_VALUE, "key name"),
        ({"name": "all"}, FileFault.WRONG_VALUE, "may not be called"),
        ({"template": "x" * 30_000}, FileFault.WRONG_VALUE, "20000 characters"),
        ({"template": "{{ premise"}, PromptFault.SYNTAX, "key template: line 1"),
        ({"target": "{{ choice.__class__ }}"}, PromptFault.UNSAFE_ATTRIBUTE, "key target"),
        ({"template": "{% include 'mine.yaml' %}"}, PromptFault.OTHER_TEMPLATE, "no include cycle"),
    ],
)
def test_wrong_keys(tmp_path: Path, keys: dict, fault: Any, words: str) -> None:
    path = tmp_path / "mine.yaml"
    assert fault_of(path, yaml.safe_dump({**GOOD, **keys})) is fault
    with pytest.raises(EvalcoreError, match=words):
        read_prompt(path)


def test_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    proof = tmp_path / "executed"
    tag = f"name: !!python/object/apply:os.system ['touch {proof}']\ngroup: g\ntemplate: x\n"
    assert fault_of(path, tag) is FileFault.YAML_TAG
    assert not proof.exists()
    assert fault_of(path, "name: a\nname: b\n") is FileFault.KEY_TWICE
    assert fault_of(path, "name: [") is FileFault.BROKEN_YAML
    assert fault_of(path, "- a") is FileFault.NOT_A_MAPPING
    assert fault_of(path, b"name: \xff\xfe") is FileFault.NOT_UTF8
    assert fault_of(path, "name: a\ngroup: g\n") is FileFault.MISSING_KEY
    path.unlink()
    with pytest.raises(EvalcoreError, match="is missing"):
        read_prompt(path)


def test_misplaced_files(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    (folder / "a.yaml").write_text(yaml.safe_dump(GOOD))
    (folder / "b.yaml").write_text(yaml.safe_dump(GOOD))
    with pytest.raises(PromptError, match="g/mine is defined twice") as caught:
        list_prompts("g", [tmp_path])
    assert caught.value.fault is PromptFault.DEFINED_TWICE
    (folder / "b.yaml").write_text(yaml.safe_dump({**GOOD, "group": "h"}))
    with pytest.raises(PromptError, match="its folder is 'g'") as caught:
        list_prompts("g", [tmp_path])
    assert caught.value.fault is PromptFault.WRONG_GROUP
    copy = pickle.loads(pickle.dumps(caught.value))  # errors cross processes
    assert (copy.fault, str(copy)) == (caught.value.fault, str(caught.value))


# --- a prompt and a task ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "task", "fault", "words"),
    [
        ({"group": "h"}, TASK, PromptFault.OTHER_GROUP, "is not of group g"),
        ({"listing": "letters"}, WRITER, PromptFault.NO_CHOICES, "letters needs choices"),
        ({"answer": "free"}, WRITER, PromptFault.NO_CHOICES, "free needs choices"),
        ({"label_words": (("a", "b"),)}, WRITER, PromptFault.NO_LABELS, "no labels"),
        ({"label_words": (("a", "b"),)}, TASK, PromptFault.UNKNOWN_LABEL, "none is a label"),
        (
            {"label_words": (("contradiction", "no"), ("entailment", "yes"))}, TASK,
            PromptFault.LABEL_WITHOUT_WORDS, "no words for label 'not_entailment'",
        ),
        (
            {"label_words": (("entailment", "yes"), ("not_entailment", "yes"))}, TASK,
            PromptFault.SAME_WORDS, "the same words",
        ),
    ],
)  # fmt: skip
def test_prompts_that_do_not_fit(changes: dict, task: Task, fault: PromptFault, words: str) -> None:
    with pytest.raises(PromptError, match=words) as caught:
        check_variant(task, replace(PLAIN, **changes))
    assert caught.value.fault is fault
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("listing", ["cloze", "letters"])
@pytest.mark.parametrize("target", ["same", "{{ choice[:0] }}x", "{{ premise }}"])
def test_targets_that_two_labels_have_are_refused(target: str, listing: Any) -> None:
    variant = with_options(replace(PLAIN, target=target, listing=listing))
    with pytest.raises(PromptError, match="'entailment' and 'not_entailment' of task t have") as no:
        render(TASK, variant, DOCUMENT)
    assert no.value.fault is PromptFault.SAME_WORDS
    assert "key target" in str(no.value)


def test_labels_that_free_answers_do_not_tell_apart_are_refused() -> None:
    task = made_task(["Yes", "yes", "C++", "C"])
    document = replace(DOCUMENT, choices=task.choices)
    assert len(render(task, PLAIN, document).targets) == 4
    with pytest.raises(PromptError, match="labels 'Yes' and 'yes' of task t") as no:
        render(task, with_options(replace(PLAIN, answer="free")), document)
    assert no.value.fault is PromptFault.SAME_WORDS
    told = replace(task, choices=task.choices[1:])
    free = with_options(replace(PLAIN, answer="free"))
    assert len(render(told, free, replace(document, choices=told.choices)).targets) == 3


def test_targets_that_may_be_alike() -> None:
    """Texts of one label, and choices that are the rows' own: those are a finding."""
    words = (("entailment", ("yes", "Yes")), ("not_entailment", "no"))
    variant = with_options(replace(PLAIN, target="{{ choice | lower }}", label_words=words))
    assert render(TASK, variant, DOCUMENT).targets == ("yes", "yes", "no")
    own = replace(DOCUMENT, choices=("neutral", "negative"))
    first = with_options(replace(PLAIN, target="{{ choice[:1] }}"))
    assert render(replace(TASK, choices=()), first, own).targets == ("n", "n")
    written = replace(DOCUMENT, choices=(), references=("a", "a"))
    assert render(WRITER, PLAIN, written).targets == ("a", "a")


def test_templates_that_show_nothing_of_a_document_are_refused() -> None:
    """All rows asked the same question, and nobody said so."""
    labels = replace(TASK, spec={"fields": {"premise": "p", "note": {"text": "n"}}})
    own = replace(labels, choices=())
    nothing = (
        "Answer:",
        "{{ note }}",
        "{{ listing }}",
        "{% for c in choices %}{{ c }}{% endfor %}",
    )
    for template in nothing:
        with pytest.raises(PromptError, match=r"shows nothing of a doc.*fields are premise$") as no:
            check_variant(labels, replace(PLAIN, template=template))
        assert no.value.fault is PromptFault.NO_FIELD
    for task, template in (
        (labels, "{{ premise }}"), (labels, "{% if premise %}a{% endif %}"), (own, "{{ listing }}"),
        (replace(labels, output_type="loglikelihood"), ""),
    ):  # fmt: skip
        check_variant(task, replace(PLAIN, template=template))
    with pytest.raises(PromptError, match="shows nothing"):
        check_variant(own, replace(PLAIN, template=""))


def test_documents_that_are_all_asked_the_same() -> None:
    other = replace(DOCUMENT, fields={**DOCUMENT.fields, "premise": "Another."})
    cut = replace(PLAIN, template="{{ premise[:0] }}Answer:")
    with pytest.raises(PromptError, match="2 documents of task t are asked the same") as caught:
        check_unlike(TASK, cut, [DOCUMENT, other])
    assert caught.value.fault is PromptFault.SAME_PROMPT
    for documents in ([DOCUMENT, DOCUMENT], [DOCUMENT], []):
        check_unlike(TASK, cut, documents)
    check_unlike(TASK, PLAIN, [DOCUMENT, other])


def test_label_words_may_serve_tasks_with_other_labels() -> None:
    words = (("contradiction", "no"), ("entailment", "yes"), ("not_entailment", "no"))
    variant = with_options(replace(PLAIN, label_words=words))
    check_variant(TASK, variant)
    assert render(TASK, variant, DOCUMENT).targets == ("yes", "no")


def test_letters() -> None:
    variant = with_options(replace(PLAIN, template="{{ listing }}\nAnswer:", listing="letters"))
    text = render(TASK, variant, DOCUMENT)
    assert text.context == "A. entailment\nB. not_entailment\nAnswer:"
    assert text.continuations == (" A", " B")
    many = replace(DOCUMENT, choices=tuple(f"c{i}" for i in range(27)))
    with pytest.raises(PromptError, match="has 27 choices, there are 26 letters") as caught:
        render(TASK, variant, many)
    assert caught.value.fault is PromptFault.TOO_MANY_CHOICES
    assert len(render(TASK, PLAIN, many).targets) == 27
    numbered = with_options(replace(variant, target="{{ index + 1 }}"))
    assert render(TASK, numbered, DOCUMENT).targets == ("1", "2")


def test_empty_targets_are_refused() -> None:
    with pytest.raises(PromptError, match="empty text") as caught:
        render(TASK, with_options(replace(PLAIN, target="{{ '' }}")), DOCUMENT)
    assert caught.value.fault is PromptFault.EMPTY_TARGET


def test_every_fault_has_a_test() -> None:
    """Each code is named in this file, or in the file that tests chats."""
    here = Path(__file__)
    text = here.read_text() + (here.parent / "test_chat.py").read_text()
    assert [f.name for f in PromptFault if f"PromptFault.{f.name}" not in text] == []


# --- fuzz ---------------------------------------------------------------------------------------

PIECES = [
    "{{", "}}", "{%", "%}", "{#", "#}", "for", "in", "if", "else", "endif", "endfor", "set",
    "include", "macro", "raw", "endraw", " ", "\n", "premise", "choices", "nested", "loop", ".",
    "__class__", "__mro__", "__subclasses__()", "[0]", "|", "join", "replace", "upper", "list",
    "('a','aa')", "*", "**", "~", "+", "%", "999999999", "'a'", "range(99999)", "self", "(", ")",
    "'x'*9999", "is", "not", "defined", "none", "os", "{{ premise }}", "{% for i in range(99) %}",
    "{% endfor %}", "é", "\x00",
]  # fmt: skip
YAML_PIECES = [
    "name: ", "group: ", "template: ", "target: ", "label_words: ", "mine\n", "g\n", "x\n", "- ",
    "{", "}", "[", "]", "&a ", "*a ", "<<: ", "!!python/name:os.system ", "!!binary ", "| \n  ",
    "'", '"', ": ", "yes", "1e9", "2020-99-99", "\t", "? ", "#", "%TAG", "---\n", "é", "\x00",
]  # fmt: skip


def fuzz(seconds: float, folder: Path, seed: int) -> int:
    """Random templates and files for so long; everything ends in text or in one line."""
    rng = random.Random(seed)
    path = folder / "fuzz.yaml"
    end = time.perf_counter() + seconds
    count = 0
    while time.perf_counter() < end:
        count += 1
        begin = time.perf_counter()
        try:
            if count % 3:
                template = "".join(rng.choices(PIECES, k=rng.randint(1, 14)))
                render(TASK, with_options(replace(PLAIN, template=template)), DOCUMENT)
            else:
                text = "".join(rng.choices(YAML_PIECES, k=rng.randint(1, 16)))
                if rng.random() < 0.5:
                    text = yaml.safe_dump(GOOD) + text
                path.write_text(text)
                read_prompt(path)
        except EvalcoreError as error:
            line = str(error)
        else:
            line = "prompt file"
        assert "\n" not in line
        assert line.startswith(("prompt g/default, key template: ", "prompt file"))
        assert time.perf_counter() - begin < 5
    return count


def test_fuzz_for_two_seconds(tmp_path: Path) -> None:
    assert fuzz(2.0, tmp_path, seed=0) > 100


@pytest.mark.proof
def test_fuzz_for_a_minute(tmp_path: Path) -> None:
    assert fuzz(60.0, tmp_path, seed=1) > 3000
