"""What is relied on of vLLM's inside: read in its source, and told when it changes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import contract as table
from evalcore.engines.vllm import compat, objects
from evalcore.engines.vllm.contract import (
    Finding,
    installed,
    read,
    read_installed,
    source_of,
    verdicts,
)
from evalcore.engines.vllm.names import CAPABILITIES, NAMES, Name

ENGINE = Path(compat.__file__).parent
ROOT = installed()

needs_vllm = pytest.mark.skipif(ROOT is None, reason="vllm is not installed")


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder of links to the files of the installed vLLM that hold a name."""
    assert ROOT is not None
    for file in {finding.where.partition(":")[0] for finding in read_installed()}:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).symlink_to(ROOT / file)
    return tmp_path


def spoilt(folder: Path, file: str, old: str, new: str) -> list[Finding]:
    """What is found of a file's names once it reads otherwise."""
    text = (folder / file).read_text()
    assert old in text
    (folder / file).unlink()
    (folder / file).write_text(text.replace(old, new))
    names = [f.name for f in read_installed() if f.where.startswith(f"{file}:")]
    return [finding for finding in read(folder, names) if finding.state != "present"]


@needs_vllm
def test_the_installed_version_is_as_known() -> None:
    assert ROOT is not None
    findings = read_installed()
    assert [f for f in findings if f.state != "present"] == []
    assert verdicts(findings) == dict.fromkeys(CAPABILITIES, "")
    assert all(f.where for f in findings)
    assert compat.unverified(compat.vllm_version()) is None


CACHE, RUNNER = "v1/core/kv_cache_manager.py", "v1/worker/gpu_model_runner.py"
LINEAR = "model_executor/layers/linear.py"
BLOCKS = "KVCacheManager.create_kv_cache_blocks"
METADATA = ("    num_reqs: int\n", "    num_reqs: int\n    new_thing: int\n")
PRODUCT = "    dnnl_handler: CPUDNNLGEMMHandler,\n    x: torch.Tensor,\n    bias"


@needs_vllm
@pytest.mark.parametrize(
    ("file", "old", "new", "name", "state", "capability", "said"),
    [
        (CACHE, "def create_kv_cache_blocks", "def make_blocks",
         BLOCKS, "missing", "cap", "has no create_kv_cache_blocks"),
        (CACHE, "-> tuple[KVCacheBlocks, int, int]", "-> KVCacheBlocks",
         "KVCacheManager.get_computed_blocks", "changed", "cap", "returns KVCacheBlocks"),
        (RUNNER, "weights_iterator", "tensors",
         "GPUModelRunner.reload_weights", "changed", "reload", "takes no weights_iterator"),
        ("v1/attention/backend.py", *METADATA,
         "CommonAttentionMetadata", "changed", "packed", "needs new_thing"),
        ("lora/model_manager.py", "self.lora_index_to_id", "self.lora_slots_to_id",
         "LoRAModelManager.lora_index_to_id", "missing", "batched", "has no lora_index_to_id"),
        (LINEAR, "class UnquantizedLinearMethod", "class PlainMethod",
         "UnquantizedLinearMethod", "missing", "proof", "not in vllm.model_executor.layers.linear"),
        ("_custom_ops.py", PRODUCT, PRODUCT.replace("x:", "scale: float,\n    x:"),
         "onednn_mm", "changed", "sums", "it needs bias"),
        ("sampling_params.py", "flat_logprobs", "flat",
         "SamplingParams.flat_logprobs", "missing", "engine", "has no flat_logprobs"),
    ],
)  # fmt: skip
def test_a_change_is_told_with_what_it_touches(
    linked: Path, file: str, old: str, new: str, name: str, state: str, capability: Any, said: str
) -> None:
    found = {f.name.name: f for f in spoilt(linked, file, old, new)}
    assert found[name].state == state
    assert said in found[name].detail
    assert verdicts(list(found.values()))[capability]
    shown = "\n".join(table.lines(list(found.values()), set()))
    assert name in shown
    assert f"{state} " in shown
    assert f" {capability} " in shown


@needs_vllm
def test_a_name_that_moved_is_told_with_where_it_is(linked: Path) -> None:
    home = linked / "lora" / "request.py"
    (linked / "lora" / "asking.py").write_text(home.read_text())
    moved = spoilt(linked, "lora/request.py", home.read_text(), "")
    assert {f.name.name for f in moved} == {"LoRARequest", "LoRARequest.lora_int_id"}
    assert {f.state for f in moved} == {"moved"}
    assert all("lora/asking.py:" in f.where for f in moved)


@needs_vllm
def test_a_function_that_reads_otherwise_is_seen(linked: Path) -> None:
    assert ROOT is not None
    names = {name.name: name for name in NAMES}
    step = names["LLMEngine.step"]
    assert source_of(linked, step) == source_of(ROOT, step)
    spoilt(linked, "v1/engine/llm_engine.py", "def step(self)", "def step(self, more=1)")
    assert source_of(linked, step) != source_of(ROOT, step)
    other = names["LLMEngine.add_lora"]
    assert source_of(linked, other) == source_of(ROOT, other)


@needs_vllm
def test_bloom_is_still_computed_with_another_gelu() -> None:
    """When this fails, vLLM takes BLOOM's own GELU: ``compat.mend`` can go."""
    assert ROOT is not None
    assert 'get_act_fn("gelu")' in (ROOT / "model_executor" / "models" / "bloom.py").read_text()


def test_only_one_module_imports_vllm() -> None:
    for path in ENGINE.glob("*.py"):
        if path.name == "compat.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "vllm" for name in found), path


def test_every_attribute_of_vllms_objects_has_its_place_among_the_names() -> None:
    known = {name.name.partition(".")[2] for name in NAMES}
    for shape in vars(objects).values():
        if not (inspect.isclass(shape) and shape.__module__ == objects.__name__):
            continue
        own = {
            *shape.__annotations__,
            *(n for n, f in vars(shape).items() if inspect.isfunction(f)),
        }
        missing = {n for n in own if not n.startswith(("__", "_no_init", "_is_"))} - known
        assert missing == set(), shape


def test_names_are_said_once() -> None:
    said = [(name.module, name.name) for name in NAMES]
    assert len(said) == len(set(said))


@pytest.mark.parametrize(
    ("function", "call", "reason"),
    [
        (lambda self, a, b: 0, "_, b=", ""),
        (lambda self, a: 0, "_, _", "it takes 1 values by place, 2 are given"),
        (lambda self, a, *, c: 0, "_", "it needs c"),
        (lambda self, a, **more: 0, "_, b=", ""),
        (lambda self, *rest: 0, "_, _, _", ""),
        (lambda self, a=1, b=2: 0, "c=", "it takes no c"),
    ],
)
def test_live_signatures_are_held_to_the_same_calls(
    function: Callable[..., Any], call: str, reason: str
) -> None:
    assert compat._misfit(function, Name("", "X.y", "engine", call), method=True) == reason


def test_versions_are_compared_by_their_parts() -> None:
    assert compat.unverified("0.32.0") is None
    assert compat.unverified("0.32.1+cpu") is None
    assert compat.unverified("not installed") is None
    for other in ("0.320.0", "0.33.0", "1.0.32", "unknown"):
        assert other in (compat.unverified(other) or "")
