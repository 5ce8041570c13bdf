"""The order of the modules: an import goes up the list, never down."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = [
    "shown", "errors", "types", "machine", "deadline", "reading", "files", "checked", "library",
    "identity",
    "tasks", "prompting", "config", "store", "lm_eval", "planning", "cluster", "engines", "scoring",
    "metrics", "analysis", "exports", "report", "app", "benchmark", "cli", "api",
]  # fmt: skip
FINETUNE_MAY_IMPORT = {
    "files",
    "shown",
    "errors",
    "types",
    "deadline",
    "machine",
    "reading",
    "identity",
    "tasks",
    "prompting",
    "config",
    "lm_eval",
    "cluster",
}
HEAVY = {
    "torch", "transformers", "vllm", "ray", "datasets", "peft", "scipy", "altair", "pandas",
    "trl",
}  # fmt: skip
LIGHT_MODULES = [name for name in ORDER if name not in {"engines"}]


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(tree: ast.AST, *, top_level_only: bool = False) -> Iterator[str]:
    """Full dotted names a module imports; ``if TYPE_CHECKING`` blocks are left out."""
    todo = list(ast.iter_child_nodes(tree))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            todo += ast.iter_child_nodes(node)


def part(dotted: str) -> str:
    """``evalcore.store.schema`` -> ``store``."""
    pieces = dotted.split(".")
    return pieces[1] if len(pieces) > 1 else ""


def home(path: Path) -> str:
    return path.relative_to(ROOT / "evalcore").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", python_files("evalcore"), ids=lambda p: str(p.relative_to(ROOT)))
def test_evalcore_imports_go_up(path: Path) -> None:
    here = home(path)
    if here == "__init__":
        return
    assert here in ORDER or here == "__main__", f"{here} has no place in the order of modules"
    tree = ast.parse(path.read_text())
    for name in imports(tree):
        top = name.split(".")[0]
        if top == "finetune":
            assert here == "app", f"only app may import finetune, not {here}"
        if top == "vllm":
            assert path.is_relative_to(ROOT / "evalcore/engines/vllm"), "only engines/vllm may"
        if top == "evalcore" and part(name) in ORDER and here in ORDER:
            assert ORDER.index(part(name)) <= ORDER.index(here), f"{here} imports {name}"


@pytest.mark.parametrize("path", python_files("finetune"), ids=lambda p: str(p.relative_to(ROOT)))
def test_finetune_imports_only_what_it_may(path: Path) -> None:
    for name in imports(ast.parse(path.read_text())):
        if name.split(".")[0] == "evalcore" and part(name) in ORDER:
            assert part(name) in FINETUNE_MAY_IMPORT, name


def test_light_modules_import_nothing_heavy() -> None:
    for path in python_files("evalcore"):
        if home(path) not in LIGHT_MODULES:
            continue
        for name in imports(ast.parse(path.read_text()), top_level_only=True):
            assert name.split(".")[0] not in HEAVY, f"{path.name} imports {name} at its top"


def test_planning_never_loads_torch_or_vllm() -> None:
    code = (
        "import sys, evalcore.planning; "
        "print(sorted({'torch', 'vllm', 'ray', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_help_answers_in_under_a_second() -> None:
    """The best of three, so that a busy machine does not fail a tool that is quick."""
    command = [sys.executable, "-m", "evalcore", "--help"]
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - begin)
        assert "score" in out.stdout
        assert "demo" in out.stdout
    assert min(times) < 1.0


def dotted(path: Path) -> str:
    """The module a file is."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def test_no_circle_of_files() -> None:
    """Not even by imports inside functions; what only a type checker reads does not count."""
    modules = {dotted(p): p for folder in ("evalcore", "finetune") for p in python_files(folder)}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = set(imports(ast.parse(path.read_text())))
        targets = {full if full in modules else full.rpartition(".")[0] for full in found}
        graph[name] = (targets & set(modules)) - {name}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them
    assert set(order) == set(modules)


WITHOUT_A_MODULE = {
    "analysis/test_odd.py",  # whole analyses of odd results
    "analysis/test_uneven.py",  # whole analyses of uneven designs and of losses
    "finetune/test_published_study.py",  # studies/, which is data
    "metrics/test_examples_lm_eval.py",  # against lm-eval's own code
    "prompting/test_encoding_lm_eval.py",
    "prompting/test_golden.py",  # tests/data/prompts
    "prompting/test_product.py",  # every task under every prompt
    "report/test_odd.py",  # page and exports of odd results
    "scoring/test_commits.py",  # worker, pool and store together
    "scoring/test_failures.py",
    "test_layers.py",
}
"""Unit tests that are of no one module."""


def test_unit_tests_lie_where_their_modules_lie() -> None:
    """``tests/unit/<room>/test_<module>.py``; ``test_<room>.py`` is for the room as a whole."""
    unit = ROOT / "tests" / "unit"
    without = []
    for path in sorted(unit.rglob("test_*.py")):
        own = path.relative_to(unit)
        room, name = own.parent, path.stem.removeprefix("test_")
        roots = [ROOT] if room.parts[:1] == ("finetune",) else [ROOT / "evalcore", ROOT]
        if not any(
            list((root / room).glob(f"{name}.*"))
            or (root / room / name).is_dir()
            or (name == room.name and (root / room / "__init__.py").exists())
            for root in roots
        ):
            without.append(str(own))
    assert set(without) == WITHOUT_A_MODULE


def test_no_test_file_imports_another() -> None:
    """What tests share lies in tests/toys, a conftest, or a module beside them."""
    for path in python_files("tests"):
        for name in imports(ast.parse(path.read_text())):
            assert not any(piece.startswith("test_") for piece in name.split(".")[:-1]), (
                f"{path.relative_to(ROOT)} imports {name}"
            )
