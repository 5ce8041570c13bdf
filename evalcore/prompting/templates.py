"""Templates of prompt files: a small, safe part of Jinja with bounded size and time.

A template may print expressions, choose (``if``) and repeat (``for``), with a fixed list of
filters and text methods. It cannot reach Python's internals, other files, or more memory or
time than a prompt needs: whatever the file says, filling it ends soon with text or one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache, wraps
from types import BuiltinMethodType
from typing import Any, cast

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evalcore.prompting.faults import PromptFault

MAX_TEXT = 1_000_000
"""Characters a filled template, or any text on the way to it, may have."""
MAX_STEPS = 20_000
"""Steps of work one filling may take: one for each turn of a loop, and one for every
:data:`STEP_CHARS` characters (or list items) a filter or method is given."""
STEP_CHARS = 100
_MAX_FACTOR = 10**9

_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "first", "float", "int", "join", "last",
    "length", "list", "lower", "max", "min", "replace", "reverse", "round", "sort", "title",
    "trim", "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
_METHODS = {
    "capitalize", "count", "endswith", "find", "get", "index", "items", "keys", "lower", "lstrip",
    "replace", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper", "values",
}  # fmt: skip
_STATEMENTS = (nodes.Output, nodes.TemplateData, nodes.If, nodes.For)
_EXPRESSIONS = (
    nodes.Name, nodes.NSRef, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair,
    nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getattr,
    nodes.Getitem, nodes.Slice, nodes.Concat, nodes.Compare, nodes.Operand, nodes.And, nodes.Or,
    nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv,
    nodes.Mod,
)  # fmt: skip
_OTHER_FILES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)


class TemplateFault(Exception):
    """A template is wrong; the caller knows the file and key and says so."""

    def __init__(self, fault: PromptFault, message: str) -> None:
        self.fault = fault
        super().__init__(message)


_steps_left: ContextVar[list[int]] = ContextVar("steps_left")


def _pay(steps: int) -> None:
    left = _steps_left.get()
    left[0] -= steps
    if left[0] < 0:
        raise TemplateFault(
            PromptFault.TOO_MANY_STEPS,
            f"takes more than {MAX_STEPS:,} steps; loop over less or over shorter texts",
        )


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """The loop's items, each step paid from the budget of this filling."""
    for item in items:
        _pay(1)
        yield item


def _fits(length: int) -> None:
    if length > MAX_TEXT:
        raise TemplateFault(
            PromptFault.TOO_LARGE, f"a text is too large: more than {MAX_TEXT:,} characters"
        )


def _sized(length: int) -> None:
    """Pays for a text about to be made, if it may be made at all."""
    _fits(length)
    _pay(length // STEP_CHARS)


def _weigh(values: Iterable[Any]) -> None:
    _pay(sum(len(v) for v in values if isinstance(v, (str, list, tuple, range))) // STEP_CHARS)


def _weighed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for the length of what it is given."""

    @wraps(function)  # also keeps Jinja's mark of filters that want the environment
    def paid(*args: Any, **kwargs: Any) -> Any:
        _weigh(args)
        return function(*args, **kwargs)

    return paid


def _text(value: Any) -> str:
    """What is written for a value: text and numbers as they are, nothing else."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, StrictUndefined):
        return str(value)  # raises, naming the variable
    kind = "nothing (null)" if value is None else f"a {type(value).__name__}"
    raise TemplateFault(
        PromptFault.NOT_TEXT,
        f"writes {kind} where text is expected; a list is written with | join(', ')",
    )


def _concatenated(parts: Iterable[Any]) -> str:
    texts = [_text(part) for part in parts]
    _sized(sum(map(len, texts)))
    return "".join(texts)


def _join(value: Iterable[Any], d: str = "") -> str:
    texts = [_text(part) for part in value]
    _sized(sum(map(len, texts)) + len(d) * len(texts))
    return d.join(texts)


def _replace(value: Any, old: str, new: str, count: int = -1) -> str:
    text = _text(value)
    times = text.count(old) if count < 0 else min(text.count(old), count)
    _sized(len(text) + times * len(new))
    return text.replace(old, new, count)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, where products and sums of texts are also bounded."""

    intercepted_binops = frozenset(["*", "+", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "%" and not numbers:
            raise TemplateFault(PromptFault.RUNTIME, "% is for numbers; join texts with ~")
        if operator == "*":
            factors = [side for side in (left, right) if isinstance(side, (int, float))]
            if any(abs(factor) > _MAX_FACTOR for factor in factors):
                raise TemplateFault(PromptFault.TOO_LARGE, "a factor is too large")
            for one, other in ((left, right), (right, left)):
                if isinstance(one, int) and hasattr(other, "__len__"):
                    _sized(one * len(other))
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _sized(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(__obj, BuiltinMethodType):
            _weigh([__obj.__self__, *args])
            if __obj.__name__ == "replace":
                return _replace(__obj.__self__, *args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _make_environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, autoescape=False, finalize=_text)
    offered = {name: _weighed(environment.filters[name]) for name in _FILTERS}
    environment.filters = {
        **offered, "join": _join, "replace": _replace,
        " counted": _counted, " concatenated": _concatenated,
    }  # fmt: skip
    environment.globals = {"range": environment.globals["range"]}
    return environment


_ENVIRONMENT = _make_environment()


def fill(text: str, values: Mapping[str, Any]) -> str:
    """Fills a template.

    Args:
        text: The template.
        values: Its variables.

    Raises:
        TemplateFault: If the template is wrong or cannot be filled with these values.
    """
    token = _steps_left.set([MAX_STEPS])
    try:
        template = _compiled(text)
        pieces: list[str] = []
        size = 0
        for piece in template.generate(values):
            size += len(piece)
            _pay(len(piece) // STEP_CHARS)
            _fits(size)
            pieces.append(piece)
        return "".join(pieces)
    except TemplateFault:
        raise
    except UndefinedError as error:
        given = ", ".join(sorted(values))
        raise TemplateFault(
            PromptFault.UNDEFINED_VARIABLE, f"{error.message}; there are {given}"
        ) from None
    except SecurityError as error:
        raise TemplateFault(PromptFault.UNSAFE_ATTRIBUTE, str(error)) from None
    except Exception as error:  # a template can raise whatever its expressions raise
        line = str(error).strip().splitlines() or [""]
        raise TemplateFault(PromptFault.RUNTIME, f"{type(error).__name__}: {line[0]}") from None
    finally:
        _steps_left.reset(token)


def check_template(text: str) -> None:
    """Checks a template without filling it.

    Raises:
        TemplateFault: If it is not a template, or uses what is not offered.
    """
    _compiled(text)


@lru_cache(maxsize=4096)
def variables(text: str) -> frozenset[str]:
    """Names of the variables a template asks for; none where it is no template."""
    try:
        return frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(text)))
    except (TemplateSyntaxError, RecursionError):
        return frozenset()


@lru_cache(maxsize=4096)
def _compiled(text: str) -> Template:
    try:
        tree = _ENVIRONMENT.parse(text)
        _check(tree)
        _bound(tree)
        return Template.from_code(
            _ENVIRONMENT, _ENVIRONMENT.compile(tree), dict(_ENVIRONMENT.globals)
        )
    except TemplateSyntaxError as error:
        raise TemplateFault(
            PromptFault.SYNTAX, f"line {error.lineno}: {error.message or 'not a template'}"
        ) from None
    except (RecursionError, MemoryError):
        raise TemplateFault(PromptFault.TOO_LARGE, "is nested too deeply") from None
    except SyntaxError as error:  # Python's own limits on nested loops, odd names
        raise TemplateFault(PromptFault.SYNTAX, f"cannot be compiled: {error.msg}") from None


def _check(tree: nodes.Template) -> None:
    for node in tree.find_all(nodes.Node):
        where = f"line {node.lineno}: "
        if isinstance(node, _OTHER_FILES):
            raise TemplateFault(
                PromptFault.OTHER_TEMPLATE,
                f"{where}{_word(node)} is not offered: a prompt is one file, there is no other "
                "template to load (so no include cycle either); write the text here",
            )
        if isinstance(node, nodes.Stmt) and not isinstance(node, _STATEMENTS):
            raise TemplateFault(
                PromptFault.STATEMENT,
                f"{where}the statement {_word(node)} is not offered; there are if and for",
            )
        if isinstance(node, nodes.For) and node.recursive:
            raise TemplateFault(PromptFault.STATEMENT, f"{where}recursive loops are not offered")
        if isinstance(node, nodes.Expr) and not isinstance(node, (*_EXPRESSIONS, *_STATEMENTS)):
            raise TemplateFault(
                PromptFault.STATEMENT, f"{where}the operation {_word(node)} is not offered"
            )
        if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
            raise TemplateFault(
                PromptFault.UNKNOWN_FILTER,
                f"{where}no filter named {node.name!r}; there are {', '.join(_FILTERS)}",
            )
        if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
            raise TemplateFault(
                PromptFault.UNSAFE_ATTRIBUTE, f"{where}access to {node.attr!r} is unsafe"
            )
        if isinstance(node, nodes.Call):
            _check_call(node, where)


def _check_call(node: nodes.Call, where: str) -> None:
    called = node.node
    if isinstance(called, nodes.Name) and called.name == "range":
        return
    if isinstance(called, nodes.Getattr) and called.attr in _METHODS:
        return
    name = getattr(called, "attr", None) or getattr(called, "name", None) or "this"
    raise TemplateFault(
        PromptFault.UNKNOWN_CALL,
        f"{where}{name}(...) cannot be called; there are range and the text methods "
        f"{', '.join(sorted(_METHODS))}",
    )


def _bound(tree: nodes.Template) -> None:
    """Sends every loop and every ``~`` through the functions that bound them."""
    for loop in tree.find_all(nodes.For):
        loop.iter = _through(" counted", loop.iter)
    for node in list(tree.find_all(nodes.Node)):
        for name, value in list(node.iter_fields()):
            if isinstance(value, nodes.Concat):
                setattr(node, name, _whole(value))
            elif isinstance(value, list):
                # In place: a list may already be shared with what replaced its node.
                value[:] = [_whole(i) if isinstance(i, nodes.Concat) else i for i in value]


def _whole(node: nodes.Concat) -> nodes.Filter:
    return _through(" concatenated", nodes.List(node.nodes, lineno=node.lineno))


def _through(name: str, value: nodes.Node) -> nodes.Filter:
    # A name with a space cannot be written in a template.
    return nodes.Filter(cast(nodes.Expr, value), name, [], [], None, None, lineno=value.lineno)


def _word(node: nodes.Node) -> str:
    names = {"FromImport": "import", "Assign": "set", "AssignBlock": "set", "CallBlock": "call"}
    return names.get(type(node).__name__, type(node).__name__.lower())
