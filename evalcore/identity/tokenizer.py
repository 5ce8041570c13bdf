"""Tokenizers as published: loading them, what they do, and where generated text ends.

A tokenizer is known by what it does to text, not by how its files are saved. The ids are those of
``tokenizer.json``: transformers 5 takes the class that ``tokenizer_config.json`` or the model type
names and installs that class's own pre-tokenizer over the file's (huggingface/transformers #45488,
#45812), so that a byte-level file under ``LlamaTokenizerFast`` loses every blank. Where the two
differ, the file is followed and that is said.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.cache import cached_fact
from evalcore.identity.hashing import text_fingerprint
from evalcore.identity.templates import chat_template, turn_end, writes_the_date
from evalcore.identity.tokenizer_files import tokenizer_state
from evalcore.identity.trial import require_end
from evalcore.library import library
from evalcore.reading import MAX_TABLE_BYTES, is_there, read_json, read_text
from evalcore.shown import one_line

# Raise it when the same tokenizer would get another fingerprint.
_VERSION = 3
_FACTS = 4  # raised when other facts are remembered
_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")
_PARTS = ("normalizer", "pre_tokenizer", "model", "decoder")
THINK_END = "</think>"
"""What closes the thinking part of the chat templates that know one."""

# Digits in groups, blanks of every kind, contractions, signs, scripts, composed and decomposed
# letters, emoji of several code points: where pre-tokenizers and normalizers part ways.
_PROBES = (
    "hello 2023 world\n\n650841823", "1234567 3.14159 1,000,000 0x1F", " leading", "trailing ",
    "a  b   c    d", "\tone\n two\r\n\r\n  three\n\n\n", "It's I'LL we've he'd don't O'Neil",
    "HTTPServer camelCase snake_case kebab-case", "def f(x):\n    return x**2  # why?",
    "\u00e9 e\u0301 \ufb01 \u00c5 \u212b \u00df \u0130 \u0131",
    "\u00a0nbsp\u200bzero\u3000wide\u2028line",
    "日本語のテキスト。中文字符", "Привет, мир! नमस्ते", "שלום עולם مرحبا",
    "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd", "...!!!???---***###",
    "", " ", "\n",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What is known of a tokenizer without having it at hand.

    Attributes:
        fingerprint: 32 hex digits over what decides token ids and text of ids.
        template: 32 hex digits over the chat template; empty if there is none.
        dated: Whether the chat template writes the date.
        think_end: What closes a thinking part in the chat template; empty if it knows none.
        ends: Ids that end a generation, sorted.
        turn_end: Id with which the chat template closes an answer's turn; None if there is none.
        specials: Texts of the control tokens, sorted.
        note: How the library would have changed the ids of ``tokenizer.json``; else empty.
    """

    fingerprint: str
    template: str
    dated: bool
    think_end: str
    ends: tuple[int, ...]
    turn_end: int | None
    specials: tuple[str, ...]
    note: str


def tokenizer_facts(path: str | Path) -> TokenizerFacts:
    """Facts about the tokenizer in a directory; remembered by the content of its files.

    Raises:
        InputError: If there is none, or it cannot be read.
    """
    directory = Path(path)
    state = tokenizer_state(directory)
    found = cached_fact(
        f"tokenizer-{_VERSION}.{_FACTS}", state, lambda: asdict(_facts(directory, state))
    )
    lists = {name: tuple(found[name]) for name in ("ends", "specials")}
    return TokenizerFacts(**{**found, **lists})


def tokenizer_fingerprint(path: str | Path) -> str:
    """32 hex digits over what decides token ids and the text of ids.

    Chat templates and end tokens are no part of it: they count where they are used (see
    :func:`evalcore.identity.cell_key`).

    Raises:
        InputError: If the directory has no tokenizer, or it cannot be loaded.
    """
    return tokenizer_facts(path).fingerprint


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a local directory, with the ids of its tokenizer.json (cached by content).

    Raises:
        InputError: If there is none, or it cannot be read.
    """
    return _load(_Place(str(path)), tokenizer_state(Path(path)))[0]


def end_token_ids(path: str | Path, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a generation: the tokenizer's EOS and those of both configuration files.

    Raises:
        InputError: If a file is not readable JSON, or an id is not a number.
    """
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        file = Path(path) / name
        if not is_there(file):
            continue
        config = read_json(file, "checkpoint")
        value = config.get("eos_token_id")
        if value is None and isinstance(config.get("text_config"), dict):
            value = config["text_config"].get("eos_token_id")  # of a model of several parts
        for each in value if isinstance(value, list) else [value]:
            if each is None:
                continue
            if not isinstance(each, int) or isinstance(each, bool):
                raise InputError(f"{file}: key eos_token_id should hold token ids, not {each!r}")
            if each >= 0:
                found.add(each)
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    return tuple(sorted(found))


class _Place:
    """A directory; all are equal where a tokenizer is remembered by what its files hold."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=16)
def _load(place: _Place, state: str) -> tuple[Any, str]:
    """(tokenizer, note) by state; copies of one tokenizer beside many adapters are read once."""
    require_end(Path(place.path), state)
    return _load_now(place.path)


def load_untried(path: str) -> Any:
    """Like :func:`load_tokenizer`, in a process that is ended where it does not end."""
    return _load_now(path)[0]


def _load_now(path: str) -> tuple[Any, str]:
    try:
        tokenizer, note = _read(path)
        # transformers (5.19) asks for the id of the unknown token for the id of the unknown token.
        for name in ("unk_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            getattr(tokenizer, name, None)
        for special in (False, True):
            _ids(tokenizer, _PROBES[0], special=special)
    except RecursionError:
        raise InputError(
            f"tokenizer in {path}: a special token, the unknown one first, is not in its "
            f"vocabulary; mend tokenizer_config.json or special_tokens_map.json"
        ) from None
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        raise InputError(
            f"tokenizer in {path} cannot encode text: {one_line(str(error))}; its tokenizer.json "
            f"or tokenizer_config.json contradicts itself"
        ) from None
    return tokenizer, note


def _is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library gave up; its panics are no ``Exception``."""
    return type(error).__name__ == "PanicException"


def _read(path: str) -> tuple[Any, str]:
    published = _published(Path(path))
    failed = ""
    tokenizer = None
    try:
        tokenizer = library().AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises many kinds for a broken tokenizer
        failed = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if published is None:
        if tokenizer is None:
            raise InputError(f"tokenizer in {path} cannot be loaded: {failed}")
        return tokenizer, ""
    if tokenizer is not None:
        if _follows(tokenizer, published, path):
            return tokenizer, ""
        spaced = _with_prefix_space(Path(path), published)
        if spaced is not None and _same_ids(tokenizer, spaced):
            published = spaced
    ours = _from_file(path, published, tokenizer, failed)
    if tokenizer is None:
        return ours, f"tokenizer.json is read by itself, since its class cannot be loaded: {failed}"
    changed = [text for text in _PROBES if _ids(tokenizer, text) != _ids(ours, text)]
    if not changed:
        return ours, ""
    lost = "" if _text(tokenizer, _PROBES[0]) == _text(ours, _PROBES[0]) else ", even their text"
    return ours, (
        f"ids are those of tokenizer.json; transformers' {type(tokenizer).__name__} would change "
        f"them in {len(changed)} of {len(_PROBES)} probe texts{lost}"
    )


def _published(directory: Path) -> Any:
    """tokenizer.json as the tokenizers library reads it, without what its last user left behind."""
    file = directory / "tokenizer.json"
    if not is_there(file):
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(read_text(file, "tokenizer", MAX_TABLE_BYTES))
    except InputError:
        raise
    except Exception as error:  # of Rust: no class of its own
        raise InputError(f"tokenizer {file} cannot be loaded: {one_line(str(error))}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _settings(directory: Path) -> dict[str, Any]:
    file = directory / "tokenizer_config.json"
    return read_json(file, "tokenizer") if is_there(file) else {}


def _with_prefix_space(directory: Path, published: Any) -> Any:
    """The file as tokenizer_config.json overrules it in one property of byte-level files; None
    where it says nothing of it. Some classes of the library go by it, others do not."""
    wanted, step = _settings(directory).get("add_prefix_space"), published.pre_tokenizer
    if not isinstance(wanted, bool) or type(step).__name__ != "ByteLevel":
        return None
    made = type(published).from_str(published.to_str())
    step = made.pre_tokenizer
    step.add_prefix_space = wanted
    made.pre_tokenizer = step
    return made


def _follows(tokenizer: Any, published: Any, path: str) -> bool:
    """Whether a loaded tokenizer has the file's parts, and no token that no file names."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _same_ids(tokenizer, published)
    # The general class takes the model as it is in the file, which takes long to compare.
    general = type(tokenizer).__name__ in ("TokenizersBackend", "PreTrainedTokenizerFast")
    parts = [name for name in _PARTS if not (general and name == "model")]
    if any(_part(backend, name) != _part(published, name) for name in parts):
        return False
    if backend.get_vocab_size() == published.get_vocab_size():
        return True
    named = _named_tokens(Path(path))
    return not set(backend.get_vocab()) - set(published.get_vocab()) - named


def _same_ids(tokenizer: Any, published: Any) -> bool:
    return all(
        _ids(tokenizer, text) == published.encode(text, add_special_tokens=False).ids
        for text in _PROBES
    )


def _part(tokenizer: Any, name: str) -> Any:
    part = getattr(tokenizer, name)
    return part and part.__getstate__()


def _named_tokens(directory: Path) -> set[str]:
    """Tokens that the files beside tokenizer.json name."""
    found: set[str] = set()
    todo: list[Any] = [_settings(directory)]
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if is_there(directory / name):
            data = read_json(directory / name, "tokenizer", MAX_TABLE_BYTES)
            found.update(data)
            todo.append(data)
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            found.add(item)
        elif isinstance(item, (dict, list)):
            todo += item.values() if isinstance(item, dict) else item
    return found


def _from_file(path: str, published: Any, guess: Any, failed: str) -> Any:
    """A tokenizer whose core is the file's, special tokens by its configuration.

    Args:
        path: The directory.
        published: tokenizer.json.
        guess: What the library makes of it, if it could: knows defaults of its class.
        failed: Why it could not.
    """
    try:
        made: Any = library().PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    except Exception as error:  # as above
        reason = failed or str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(f"tokenizer in {path} cannot be loaded: {reason}") from None
    backend = made.backend_tokenizer
    for name in _PARTS:
        if _part(backend, name) != _part(published, name):
            setattr(backend, name, getattr(published, name))
    vocabulary = backend.get_vocab()
    for name in _SPECIALS if guess is not None else ():
        default = getattr(guess, name, None)
        if getattr(made, name) is None and default in vocabulary:
            setattr(made, name, default)
    wrong = [
        text
        for text in _PROBES
        if _ids(made, text) != published.encode(text, add_special_tokens=False).ids
    ]
    if wrong:
        raise InputError(
            f"tokenizer in {path}: {type(made).__name__} gives other ids than its tokenizer.json "
            f"for {wrong[0]!r}; tokenizer_config.json and tokenizer.json contradict each other"
        )
    return made


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _text(tokenizer: Any, text: str) -> str:
    return str(tokenizer.decode(_ids(tokenizer, text)))


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Control tokens by their text: those that are not written where special tokens are skipped."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {str(token): int(i) for i, token in added.items() if token.special}
    texts = getattr(tokenizer, "all_special_tokens", ())
    named = zip(texts, getattr(tokenizer, "all_special_ids", ()), strict=True)
    return {**found, **{str(token): int(i) for token, i in named}}


def _facts(directory: Path, state: str) -> TokenizerFacts:
    tokenizer, note = _load(_Place(str(directory)), state)
    template, specials = chat_template(tokenizer), special_tokens(tokenizer)
    return TokenizerFacts(
        fingerprint=_fingerprint(tokenizer),
        template=text_fingerprint(["template", template]) if template else "",
        dated=writes_the_date(template),
        think_end=THINK_END if THINK_END in template else "",
        ends=end_token_ids(directory, tokenizer),
        turn_end=turn_end(tokenizer, specials) if template else None,
        specials=tuple(sorted(specials)),
        note=note,
    )


def _fingerprint(tokenizer: Any) -> str:
    """Over the parts of the core, special tokens, and the ids of probe texts.

    How special tokens are put around a text is seen by the probes alone: it is written in several
    ways that do the same.
    """
    specials = {name: [getattr(tokenizer, name, None), getattr(tokenizer, f"{name}_id", None)]
                for name in _SPECIALS[:3]}  # fmt: skip
    marks = sorted(set(map(str, tokenizer.all_special_tokens)))
    probes = [*_PROBES, *(f"a {mark} b{mark}c" for mark in marks)]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        core: Any = [type(tokenizer).__name__, tokenizer.get_vocab()]
    else:
        data = json.loads(backend.to_str())
        core = {name: _plain(data.get(name)) for name in (*_PARTS, "added_tokens")}
    digest = hashlib.blake2b(
        json.dumps(core, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"),
        digest_size=16,
    )
    seen = [[_ids(tokenizer, text), _ids(tokenizer, text, special=True)] for text in probes]
    return text_fingerprint(["tokenizer", _VERSION, digest.hexdigest(), specials, seen])


def _plain(part: Any) -> Any:
    """Without what is off or absent: versions of the library write more or fewer defaults."""
    if not isinstance(part, dict):
        return part
    return {
        key: [_plain(each) for each in value] if isinstance(value, list) else _plain(value)
        for key, value in part.items()
        if value is not None and value is not False
    }
