"""Where engines are: device, GPUs, threads, and what is refused before anything starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.app import place as module
from evalcore.app.early import worker_env
from evalcore.app.place import Place, changed_device, find_place, mixed_kinds
from evalcore.app.score import score
from evalcore.cluster.ray_session import Node, forwarded, require_room
from evalcore.config import ClusterConfig, ScoreConfig
from evalcore.errors import InputError
from evalcore.store import ResultStore

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets what this machine has."""

    def has(gpus: int | list[str], cores: int = 16) -> None:
        names = [str(i) for i in range(gpus)] if isinstance(gpus, int) else gpus
        monkeypatch.setattr(module, "visible_gpus", lambda: names)
        monkeypatch.setattr(module, "cores", lambda: cores)
        monkeypatch.setattr(module, "gpu_name", lambda: "NVIDIA H100")

    return has


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Callable[..., None]:
    """Sets what the nodes of a Ray have, driven from a machine without a GPU."""

    def has(*nodes: tuple[float, float] | tuple[float, float, str]) -> None:
        machine(0, cores=2)
        there = [Node(f"n{i}", *node) for i, node in enumerate(nodes)]
        monkeypatch.setattr(module, "is_connected", lambda: True)
        monkeypatch.setattr(module, "ray_nodes", lambda: there)

    return has


@pytest.mark.parametrize(
    ("gpus", "wanted", "expected"),
    [
        (0, ClusterConfig(), Place("cpu", 1, 16)),
        (0, ClusterConfig(workers=3), Place("cpu", 3, 5)),
        (0, ClusterConfig(workers=64), Place("cpu", 64, 1)),
        (0, ClusterConfig(threads=2), Place("cpu", 1, 2)),
        (2, ClusterConfig(device="cpu"), Place("cpu", 1, 16)),
        (2, ClusterConfig(num_gpus=0), Place("cpu", 1, 16)),
        (2, ClusterConfig(), Place("cuda", 2, 8, ("0", "1"), 1, "NVIDIA H100")),
        (2, ClusterConfig(num_gpus=1), Place("cuda", 1, 16, ("0",), 1, "NVIDIA H100")),
        (
            5,
            ClusterConfig(tensor_parallel=2),
            Place("cuda", 2, 8, ("0", "1", "2", "3"), 2, "NVIDIA H100"),
        ),
        (["MIG-a", "1"], ClusterConfig(), Place("cuda", 2, 8, ("MIG-a", "1"), 1, "NVIDIA H100")),
    ],
)
def test_this_machine(machine: Machine, gpus: int, wanted: ClusterConfig, expected: Place) -> None:
    machine(gpus)
    assert find_place(wanted) == expected


@pytest.mark.parametrize(
    ("gpus", "wanted", "message"),
    [
        (0, ClusterConfig(device="cuda"), "--device cuda: this machine shows no GPUs"),
        (1, ClusterConfig(num_gpus=2), "--num-gpus 2: this machine shows 1 GPU$"),
        (8, ClusterConfig(tensor_parallel=3, workers=3), "room for 2; give --workers 2"),
        (8, ClusterConfig(workers=10), "--workers 10 with 1 GPU each: this machine shows 8 GPUs"),
        (8, ClusterConfig(num_gpus=4, workers=5), "--num-gpus is 4, room for 4"),
        (
            2,
            ClusterConfig(tensor_parallel=4),
            "--tensor-parallel 4: this machine shows 2 GPUs; give at",
        ),
        (2, ClusterConfig(tensor_parallel=2, num_gpus=1), "--num-gpus is 1"),
        (0, ClusterConfig(tensor_parallel=2), "--tensor-parallel 2: this machine shows no GPUs"),
        (["MIG-a", "MIG-b"], ClusterConfig(tensor_parallel=2), r"\(MIG\) do not work together"),
    ],
)
def test_what_this_machine_cannot_is_refused(
    machine: Machine, gpus: int, wanted: ClusterConfig, message: str
) -> None:
    machine(gpus)
    with pytest.raises(InputError, match=message):
        find_place(wanted)


def test_gpus_are_handed_out_whole_and_once(machine: Machine) -> None:
    for gpus in range(1, 9):
        for size in range(1, gpus + 1):
            machine(gpus)
            place = find_place(ClusterConfig(tensor_parallel=size))
            envs = [worker_env(2, size, place.gpus, i) for i in range(place.workers)]
            given = [str(env["CUDA_VISIBLE_DEVICES"]).split(",") for env in envs]
            assert all(len(names) == size for names in given)
            flat = [name for names in given for name in names]
            assert len(set(flat)) == len(flat) == gpus // size * size
    assert "CUDA_VISIBLE_DEVICES" not in worker_env(0, 1, (), 0)


@pytest.mark.parametrize(
    ("nodes", "wanted", "expected"),
    [
        (((4, 0), (32, 4)), {}, Place("cuda", 4, 8, (), 1)),
        (((0, 0), (32, 4), (64, 8)), {"tensor_parallel": 4}, Place("cuda", 3, 32, (), 4)),
        (((4, 0), (32, 4)), {"workers": 9}, Place("cuda", 9, 8, (), 1)),  # five wait
        (((4, 0), (32, 4)), {"device": "cpu"}, Place("cpu", 1, 4)),
        (((0, 0), (8, 0), (6, 0)), {"workers": 4}, Place("cpu", 4, 3)),
    ],
)
def test_nodes_of_a_ray_decide(
    ray: Callable[..., None], nodes: tuple, wanted: dict, expected: Place
) -> None:
    ray(*nodes)
    assert find_place(ClusterConfig(backend="ray", **wanted)) == expected


@pytest.mark.parametrize(
    ("nodes", "wanted", "message"),
    [
        (((4, 2), (4, 2)), {"tensor_parallel": 4}, "shows 4 GPUs, 2 at most on one node"),
        (((4, 0),), {"device": "cuda"}, "--device cuda: the Ray cluster shows no GPUs"),
        (((1, 0),), {"threads": 2}, r"asks for 2 CPUs and 0 GPUs.*n0: 1 CPUs"),
        (((0, 0),), {}, "asks for 1 CPUs"),
        (((8, 0), (0, 4)), {}, "asks for 1 CPUs and 1 GPUs, and no node has both"),
        ((), {}, "there is no node"),
    ],
)
def test_what_no_node_can_is_refused_before_waiting(
    ray: Callable[..., None], nodes: tuple, wanted: dict, message: str
) -> None:
    ray(*nodes)
    with pytest.raises(InputError, match=message):
        find_place(ClusterConfig(backend="ray", **wanted))


def test_results_of_gpus_are_not_gone_on_with_on_cpus_in_silence(machine: Machine) -> None:
    machine(0)
    with pytest.raises(InputError, match=r"results were scored on GPUs.*--device cpu"):
        find_place(ClusterConfig(), {"cuda"})
    cpu = find_place(ClusterConfig(device="cpu"), {"cuda"})
    assert changed_device(cpu, {"cuda"}, "results") == [
        "cells of results were scored on GPUs: on CPUs (--device cpu) they are other cells and are "
        "scored anew"
    ]
    assert not changed_device(cpu, {"cuda", "cpu"}, "results")
    machine(1)
    assert "scored on CPUs: on GPUs" in changed_device(find_place(ClusterConfig()), {"cpu"}, "r")[0]
    assert not changed_device(cpu, set(), "results")


def test_gpus_of_several_kinds_are_named_and_one_may_be_taken(ray: Callable[..., None]) -> None:
    ray((8, 0), (16, 4, "A100"), (32, 8, "H100"))
    every = find_place(ClusterConfig(backend="ray"))
    assert (every.workers, every.kinds, every.kind) == (12, ("A100", "H100"), "")
    (line,) = mixed_kinds(every)
    assert "several kinds (A100, H100)" in line
    assert "resources" not in every.ray_options
    one = find_place(ClusterConfig(backend="ray", gpu_kind="h100", tensor_parallel=4))
    assert (one.workers, one.kind, mixed_kinds(one)) == (2, "H100", [])
    assert one.ray_options["resources"] == {"accelerator_type:H100": 0.001}
    large = find_place(ClusterConfig(backend="ray", tensor_parallel=8))
    assert not mixed_kinds(large), "an engine of eight fits on one kind alone"
    with pytest.raises(InputError, match=r"--gpu-kind L4: .* \(n1: A100; n2: H100\)"):
        find_place(ClusterConfig(backend="ray", gpu_kind="L4"))
    ray((8, 1))
    with pytest.raises(InputError, match="n0: of a kind that Ray does not know"):
        find_place(ClusterConfig(backend="ray", gpu_kind="L4"))


def test_kinds_are_of_clusters(machine: Machine) -> None:
    machine(2)
    with pytest.raises(InputError, match=r"--gpu-kind H100: .*CUDA_VISIBLE_DEVICES"):
        find_place(ClusterConfig(gpu_kind="H100"))


def test_a_ray_of_ones_own_has_room_or_says_so() -> None:
    node = Node("here", 2, 1)
    require_room([node], 1, 4, 0, own=True)  # it is started with the CPUs that are asked for
    with pytest.raises(InputError, match="2 Ray workers need 2 GPUs in all, Ray has 1"):
        require_room([node], 2, 1, 1, own=True)


def test_what_decides_numbers_goes_to_ray_and_secrets_do_not() -> None:
    goes = {
        "HF_HOME": "/hub", "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://x", "HF_HUB_CACHE": "/c",
        "EVALCORE_CACHE": "/e", "VLLM_ATTENTION_BACKEND": "FLASH_ATTN", "CUDA_LAUNCH_BLOCKING": "1",
        "NCCL_SOCKET_IFNAME": "ib0", "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    stays = {
        "CUDA_VISIBLE_DEVICES": "3", "VLLM_API_KEY": "k", "HF_TOKEN": "t", "VLLM_PORT": "1",
        "VLLM_DP_RANK": "1", "PATH": "/bin", "HOME": "/root", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    assert forwarded({**goes, **stays}) == goes


def test_a_known_device_needs_no_torch() -> None:
    code = (
        "import sys; from evalcore.app.place import find_place\n"
        "from evalcore.config import ClusterConfig\n"
        "from evalcore.engines.protocol import EngineSpec, numerics_class\n"
        "find_place(ClusterConfig(device='cpu'))\n"
        "spec = EngineSpec(device='cuda', dtype='bfloat16', adapters='merged')\n"
        "print(numerics_class(spec).label, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vllm/bfloat16/head-float32/cuda/merged", "False"]


def test_a_dry_run_names_what_it_would_do_and_writes_nothing(
    tiny_checkpoint: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    options = ScoreConfig.of(
        grid=(("pocket_nli", "default,io"),), output=out, adapters=(str(tiny_adapter),), limit=4,
        engine="hf", device="cpu", threads=1, dry_run=True,
    )  # fmt: skip
    outcome = score(options)
    assert not out.exists()
    text = "\n".join(outcome.lines())
    assert "engines: hf in float32, 1 engine on the CPU, 1 thread" in text
    assert "subjects (2): step-00100" in text
    assert "tasks (1): pocket_nli" in text
    assert "prompts (2): default, io" in text
    assert "16 examples to score in 4 cells" in text
    assert "time not known" in text

    ResultStore(out)  # and into one that is there
    before = {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]}
    assert score(options).plan.counts.examples_planned == 16
    assert {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]} == before
