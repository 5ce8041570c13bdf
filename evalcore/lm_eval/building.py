"""From lm-eval's documents and requests to evalcore's: its text, its shots, its stops."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalcore.errors import DefinitionError, InputError
from evalcore.identity import document_id, text_fingerprint
from evalcore.identity.hashing import canonical_json
from evalcore.lm_eval import harness
from evalcore.lm_eval.loading import LoadedTask
from evalcore.lm_eval.names import PREFIX
from evalcore.types import (
    TEMPLATE_DATE,
    Document,
    GenerationSettings,
    OutputType,
    Prebuilt,
    Task,
    Variant,
)

GROUP = "lm-eval"
_BUILD_VERSION = 1
_DEFAULT_MAX_TOKENS = 256
_MAX_TOKEN_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# Without effect on greedy generation.
_GREEDY_NAMES = {"until", "do_sample", "temperature", "top_p", "top_k", "min_p", "seed", "n",
                 "use_cache", *_MAX_TOKEN_NAMES}  # fmt: skip
# lm-eval's metric -> evalcore's metric of the same meaning, by output type. Of generated text
# evalcore measures what the model wrote, lm-eval what its filters leave of it.
_METRICS: dict[str, dict[str, str]] = {
    "multiple_choice": {
        "acc": "acc", "acc_norm": "acc_norm", "acc_bytes": "acc_bytes", "f1": "f1", "mcc": "mcc",
        "acc_mutual_info": "acc_mutual_info", "brier_score": "brier", "exact_match": "greedy_match",
    },
    "loglikelihood": {"acc": "acc", "perplexity": "perplexity"},
    "loglikelihood_rolling": {
        "word_perplexity": "word_perplexity", "byte_perplexity": "byte_perplexity",
        "bits_per_byte": "bits_per_byte",
    },
    "generate_until": {"exact_match": "exact_match_verbatim"},
}  # fmt: skip
_ALWAYS: dict[str, tuple[str, ...]] = {
    "multiple_choice": ("acc", "gold_prob"),
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "generate_until": ("exact_match_verbatim", "token_f1"),
}
# Where a task measures in a way of its own, no metric of evalcore may bear the same name.
_OWN_WAY: dict[str, tuple[str, ...]] = {
    "multiple_choice": ("gold_prob", "gold_logprob"),
    "loglikelihood": ("gold_bits_per_byte", "greedy_match"),
    "loglikelihood_rolling": ("gold_bits_per_byte",),
    "generate_until": ("token_f1",),
}


@dataclass(frozen=True)
class Asked:
    """How lm-eval's text is made; names follow its command line.

    Attributes:
        num_fewshot: Shots; None: as the task says. A task that says 0 keeps 0.
        seed: Seed of the shots; None: lm-eval's own.
        system: System instruction, with or without a chat.
        chat: Writes a chat's messages as text, if a chat template is applied.
        chat_args: Arguments of the chat template, canonical JSON.
        chat_date: Day the chat template may write.
        multiturn: Whether shots are turns of the chat.
        limit: The first so many documents.
    """

    num_fewshot: int | None = None
    seed: int | None = None
    system: str | None = None
    chat: Callable[..., str] | None = None
    chat_args: str = ""
    chat_date: str = TEMPLATE_DATE
    multiturn: bool = True
    limit: int | None = None


@dataclass(frozen=True)
class Built:
    """A task of lm-eval as evalcore scores it.

    Attributes:
        task: evalcore's task.
        variant: The one variant: lm-eval makes the text.
        documents: With ``prebuilt`` text, in lm-eval's order.
        loaded: lm-eval's side.
        instances: lm-eval's requests of each document, aligned with ``documents``.
    """

    task: Task
    variant: Variant
    documents: list[Document]
    loaded: LoadedTask
    instances: list[list[Any]]


def build(loaded: LoadedTask, asked: Asked) -> Built:
    """Lets lm-eval write the requests of a task and takes them over.

    Raises:
        InputError: The task asks for what evalcore does not do (sampling, mixed requests).
        DefinitionError: A template or function of the task fails.
    """
    own, where = loaded.own, f"lm-eval task {loaded.name}"
    shots = _shots(own, asked)
    seed = harness.FEWSHOT_SEED if asked.seed is None else asked.seed
    with (
        harness.quiet(),
        harness.one_line(where),
        harness.seeded(loaded.random_state),
        harness.sandboxed(loaded.sandboxed),
    ):
        own.set_config(key="num_fewshot", value=shots)
        own.set_fewshot_seed(seed=seed)
        own.build_all_requests(
            limit=asked.limit,
            system_instruction=asked.system,
            apply_chat_template=asked.chat is not None,
            fewshot_as_multiturn=asked.multiturn and asked.chat is not None,
            chat_template=asked.chat,
        )
        grouped = _by_document(own.instances)
        kind = _output_type(own, grouped, where)
        documents = _documents(own, grouped, kind, where)
        data = _data_fingerprint(own, shots)
    variant = _variant(shots, seed, asked)
    task = _task(loaded, kind, grouped, data, where)
    return Built(task, variant, documents, loaded, grouped)


def _shots(own: Any, asked: Asked) -> int:
    """lm-eval's rule: a task that says 0 shots keeps 0, else what is asked, else what it says."""
    says = own.get_config("num_fewshot")
    if asked.num_fewshot is None or says == 0:
        return int(says or 0)
    return asked.num_fewshot


def _by_document(instances: Sequence[Any]) -> list[list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for instance in instances:
        groups.setdefault(instance.doc_id, []).append(instance)
    return [sorted(group, key=lambda instance: instance.idx) for group in groups.values()]


def _output_type(own: Any, grouped: Sequence[Sequence[Any]], where: str) -> OutputType:
    kinds = {instance.request_type for group in grouped for instance in group}
    if len(kinds) != 1:
        raise InputError(f"{where}: asks for {' and '.join(sorted(kinds))} of each document; "
                         f"evalcore scores tasks of one kind of request")  # fmt: skip
    kind = kinds.pop()
    if kind == "loglikelihood":
        single = str(own.OUTPUT_TYPE) == kind and all(len(group) == 1 for group in grouped)
        return "loglikelihood" if single else "multiple_choice"
    if any(len(group) > 1 for group in grouped):
        raise InputError(f"{where}: asks for several {kind} of one document; evalcore asks for one")
    if kind in ("generate_until", "loglikelihood_rolling"):
        return kind  # type: ignore[no-any-return]
    raise InputError(f"{where}: request {kind} is not known to evalcore")


def _documents(
    own: Any, grouped: Sequence[Sequence[Any]], kind: OutputType, where: str
) -> list[Document]:
    copies: Counter[str] = Counter()
    documents = []
    for index, group in enumerate(grouped):
        doc = group[0].doc
        choices, golds, references, text = _contents(own, doc, group, kind, f"{where}, row {index}")
        fields = {"doc": canonical_json(doc)}
        gold = golds[0] if golds else -1
        first = document_id(fields, choices, gold, references, 0)
        ordinal = copies[first]
        copies[first] += 1
        own_id = first if not ordinal else document_id(fields, choices, gold, references, ordinal)
        several = tuple(golds) if len(golds) > 1 else ()
        documents.append(Document(own_id, index, fields, choices, gold, references, text, several))
    return documents


def _contents(
    own: Any, doc: Any, group: Sequence[Any], kind: OutputType, where: str
) -> tuple[tuple[str, ...], list[int], tuple[str, ...], Prebuilt]:
    """(choices, right choices, references, text) of a document."""
    arguments = [instance.args for instance in group]
    if kind == "multiple_choice":
        return _choice_contents(own, doc, arguments, where)
    if kind == "loglikelihood_rolling":
        text = _string(arguments[0][0], where)
        return (), [], (text,), Prebuilt((), (text,), (text,))
    context = _string(arguments[0][0], where)
    if kind == "loglikelihood":
        target = _string(arguments[0][1], where)
        return (), [], (target,), Prebuilt((context,), (target,), (target,))
    return (), [], _references(own, doc), Prebuilt((context,))


def _choice_contents(
    own: Any, doc: Any, arguments: Sequence[Any], where: str
) -> tuple[tuple[str, ...], list[int], tuple[str, ...], Prebuilt]:
    pairs = [(_string(a[0], where), _string(a[1], where)) for a in arguments]
    shown = _shown_choices(own, doc)
    half = len(pairs) // 2
    mutual = "acc_mutual_info" in getattr(own, "_metric_fn_list", {})
    split = mutual and len(pairs) == 2 * half and len(shown) == half
    asked, alone = (pairs[:half], pairs[half:]) if split else (pairs, [])
    if any(context for context, _ in alone):
        raise InputError(f"{where}: a choice without context has one; evalcore cannot score it")
    continuations = tuple(text for _, text in asked)
    contexts = tuple(context for context, _ in asked)
    targets = shown if len(shown) == len(asked) else tuple(t.lstrip() for t in continuations)
    text = Prebuilt(
        contexts[:1] if len(set(contexts)) == 1 else contexts,
        continuations,
        targets,
        tuple(text for _, text in alone),
    )
    return targets, _golds(own, doc, targets), (), text


def _shown_choices(own: Any, doc: Any) -> tuple[str, ...]:
    if getattr(own.config, "doc_to_choice", None) is None:
        return ()
    choices = own.doc_to_choice(doc)
    return tuple(str(choice) for choice in choices) if isinstance(choices, (list, tuple)) else ()


def _golds(own: Any, doc: Any, choices: Sequence[str]) -> list[int]:
    """Right choices, by lm-eval's reading of a target; the number of choices if none is right.

    To lm-eval a target outside the choices makes every answer wrong, so it does here.
    """
    if hasattr(own, "multiple_input"):
        gold = own.doc_to_text(doc) if own.multiple_input else own.doc_to_target(doc)
    else:  # a task written in Python: its document says it, if anything does
        gold = doc.get("gold") if isinstance(doc, Mapping) else None
    if gold is None:
        return []
    found = []
    for value in gold if isinstance(gold, (list, tuple)) else [gold]:
        if isinstance(value, str):
            value = list(choices).index(value) if value in choices else -1
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, (bool, int)) and 0 <= value < len(choices):
            found.append(int(value))
    return found or [len(choices)]


def _references(own: Any, doc: Any) -> tuple[str, ...]:
    gold = own.doc_to_target(doc)
    if getattr(own.config, "doc_to_choice", None) is not None and isinstance(gold, int):
        choices = own.doc_to_choice(doc)
        gold = choices[gold] if 0 <= gold < len(choices) else None
    values = gold if isinstance(gold, (list, tuple)) else [gold]
    return tuple(str(value) for value in values if value is not None)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise DefinitionError(f"{where}: expected text, got {type(value).__name__} ({value!r:.60})")
    return value


def _data_fingerprint(own: Any, shots: int) -> str:
    """32 hex digits over all rows that are scored and, with shots, all that shots come from.

    lm-eval draws shots document after document from one stream, so a changed row changes the
    text of all that follow.
    """
    state = hashlib.blake2b(digest_size=16)
    pools = [own.eval_docs]
    if shots:
        sampler = getattr(own, "sampler", None)
        pools.append(sampler.df if sampler is not None else own.fewshot_docs() or [])
    for pool in pools:
        state.update(b"pool")
        for doc in pool:
            state.update(canonical_json(doc).encode("utf-8", "surrogatepass") + b"\n")
    return state.hexdigest()


def _variant(shots: int, seed: int, asked: Asked) -> Variant:
    chat = asked.chat is not None
    multiturn = asked.multiturn and chat
    name = f"{GROUP}:shots={shots}"
    name += f",seed={seed}" if shots and seed != harness.FEWSHOT_SEED else ""
    name += ",chat=1" if chat else ""
    name += ",turns=0" if chat and shots and not multiturn else ""
    if asked.system:
        name += f",system={hashlib.blake2b(asked.system.encode(), digest_size=4).hexdigest()}"
    if chat and asked.chat_args:
        name += f",args={hashlib.blake2b(asked.chat_args.encode(), digest_size=4).hexdigest()}"
    content = {
        "lm_eval": harness.VERSION,
        "build": _BUILD_VERSION,
        "shots": shots,
        "seed": seed if shots else 0,
        "chat": chat,
        "multiturn": multiturn,
        "system": asked.system,
    }
    if chat and asked.chat_args:
        content["chat_args"] = asked.chat_args
    return Variant(
        name=name,
        group=GROUP,
        template="",
        delimiter="",
        shots=shots,
        shots_seed=seed if shots else 0,
        chat=chat,
        chat_shots="turns" if multiturn else "text",
        system=asked.system,
        chat_args=asked.chat_args if chat else "",
        chat_date=asked.chat_date if chat else TEMPLATE_DATE,
        fingerprint=text_fingerprint(content),
    )


def _task(
    loaded: LoadedTask,
    kind: OutputType,
    grouped: Sequence[Sequence[Any]],
    data: str,
    where: str,
) -> Task:
    metrics, primary = _metrics(loaded.own, kind)
    source = {"lm_eval": {"name": loaded.name, "definition": loaded.fingerprint, "data": data}}
    spec: dict[str, Any] = {"source": source, "splits": {"score": "lm-eval"}}
    generation = GenerationSettings()
    if kind == "generate_until":
        settings = {canonical_json(group[0].args[1]): group[0].args[1] for group in grouped}
        if len(settings) > 1:
            raise InputError(f"{where}: documents differ in generation_kwargs; evalcore takes one")
        generation = generation_settings(next(iter(settings.values())), where)
        spec["generation"] = {"max_tokens": generation.max_tokens, "stops": [*generation.stops]}
    return Task(
        name=f"{PREFIX}{loaded.name}",
        version=_version(loaded.own.VERSION),
        group=GROUP,
        output_type=kind,
        metrics=metrics,
        primary=primary,
        generation=generation,
        description=f"lm-evaluation-harness {harness.VERSION}: {loaded.name}",
        fingerprint=text_fingerprint(["lm-eval task", source]),
        spec=spec,
    )


def _metrics(own: Any, kind: OutputType) -> tuple[tuple[str, ...], str]:
    """(evalcore's metrics that mean the same as the task's, the first of them as primary)."""
    from lm_eval.api.task import ConfigurableTask

    usual = type(own).process_results is ConfigurableTask.process_results
    if not usual or callable(own.config.process_results):
        return _OWN_WAY[kind], _OWN_WAY[kind][0]
    mapped = [_METRICS[kind][name] for name in own._metric_fn_list if name in _METRICS[kind]]
    if kind == "multiple_choice" and "acc" in mapped:
        mapped.insert(0, "acc")
    metrics = tuple(dict.fromkeys([*mapped, *_ALWAYS[kind]]))
    return metrics, metrics[0]


def _version(value: Any) -> int:
    try:
        return int(float(value))
    except (TypeError, ValueError):
        return 0


def generation_settings(kwargs: Mapping[str, Any], where: str) -> GenerationSettings:
    """Greedy settings from lm-eval's ``generation_kwargs``.

    Raises:
        InputError: It asks for sampling or for something that changes greedy text.
    """
    temperature = float(kwargs.get("temperature") or 0.0)
    sampling = kwargs.get("do_sample")
    if sampling or (sampling is None and temperature > 0):
        raise InputError(
            f"{where}: generation_kwargs ask for sampling (do_sample={sampling}, temperature="
            f"{temperature:g}); evalcore generates greedily: set do_sample: false"
        )
    for key, value in kwargs.items():
        if key in _GREEDY_NAMES or value is None or (key, value) in (
            ("num_beams", 1), ("repetition_penalty", 1.0), ("length_penalty", 1.0),
        ):  # fmt: skip
            continue
        raise InputError(
            f"{where}: key generation_kwargs.{key}: evalcore does not know {value!r:.60} there; "
            f"expected until, max_gen_toks, do_sample: false"
        )
    until = kwargs.get("until")
    stops = [until] if isinstance(until, str) else list(until or [])
    tokens = next((kwargs[n] for n in _MAX_TOKEN_NAMES if kwargs.get(n) is not None), None)
    most = _DEFAULT_MAX_TOKENS if tokens is None else int(tokens)
    if most < 1 or any(stop is not None and not isinstance(stop, str) for stop in stops):
        raise InputError(f"{where}: generation_kwargs: until should be texts, max_gen_toks >= 1")
    if "" in stops:
        most = 1  # an empty text stands in everything: lm-eval stops after the first token
    return GenerationSettings(most, tuple(dict.fromkeys(stop for stop in stops if stop)))
