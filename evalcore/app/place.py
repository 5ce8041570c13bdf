"""Where a run's engines are: device, engines at a time, their GPUs and threads.

On this machine its own GPUs and cores decide; on a Ray cluster that is joined, the nodes': the
driver may stand on a machine without a GPU, and touches none where there is one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from evalcore.cluster.ray_session import KIND, Node, is_connected, ray_nodes, require_room
from evalcore.config import ClusterConfig
from evalcore.config.engine import Device
from evalcore.errors import InputError
from evalcore.machine import cores, gpu_name, visible_gpus


@dataclass(frozen=True)
class Place:
    """Where a run's engines are.

    Attributes:
        device: What they compute on.
        workers: Engines at a time.
        threads: CPU threads of each.
        gpus: The GPUs they share here, by the names CUDA knows; empty on CPUs and on Ray, which
            gives its actors their own.
        num_gpus: GPUs of one engine; 0 on CPUs.
        gpu_name: Model of the GPUs here; None where there is none, or they are a cluster's.
        kind: The one kind of a cluster's GPUs that is wanted; empty: any.
        kinds: Of the GPUs that engines may be placed on, where a cluster has several.
    """

    device: Device
    workers: int
    threads: int
    gpus: tuple[str, ...] = ()
    num_gpus: int = 0
    gpu_name: str | None = None
    kind: str = ""
    kinds: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """For a person."""
        each = f"{self.num_gpus} GPUs" if self.num_gpus > 1 else "a GPU"
        on = f"{each} and " if self.device == "cuda" else "the CPU, "
        count = "engine" if self.workers == 1 else "engines, each"
        threads = "thread" if self.threads == 1 else "threads"
        return f"{self.workers} {count} on {on}{self.threads} {threads}"

    @property
    def ray_options(self) -> dict[str, Any]:
        """What an actor asks for. On GPUs its threads wait most of the time."""
        kind = {"resources": {f"{KIND}{self.kind}": 0.001}} if self.kind else {}
        return {
            "num_cpus": 1 if self.device == "cuda" else self.threads,
            "num_gpus": self.num_gpus,
            **kind,
        }


def find_place(wanted: ClusterConfig, scored_on: Collection[str] = ()) -> Place:
    """Settles where engines are.

    Args:
        wanted: What was asked for.
        scored_on: Devices of the cells a results folder has.

    Raises:
        InputError: A GPU is wanted, or was used for these results, and none is there; more GPUs are
            wanted than there are; or an engine would fit nowhere.
    """
    on_ray = wanted.backend == "ray" and is_connected()
    names = () if on_ray else tuple(visible_gpus())
    nodes = ray_nodes() if on_ray else [Node("this machine", cores(), len(names))]
    if wanted.gpu_kind is not None:
        nodes = _of_kind(wanted.gpu_kind, nodes, on_ray)
    total = int(sum(node.gpus for node in nodes))
    where = "the Ray cluster" if on_ray else "this machine"
    shows = f"{where} shows {total or 'no'} GPU{'' if total == 1 else 's'}"
    if wanted.num_gpus is not None and wanted.num_gpus > total:
        raise InputError(f"--num-gpus {wanted.num_gpus}: {shows}")
    most = total if wanted.num_gpus is None else wanted.num_gpus
    device = _device(wanted, most, set(scored_on), shows)
    if device == "cpu":
        if wanted.tensor_parallel > 1:
            raise InputError(
                f"--tensor-parallel {wanted.tensor_parallel}: {_too_few(shows, on_ray)}"
            )
        place = _on_cpus(wanted, nodes)
    else:
        place = _on_gpus(wanted, nodes, most, shows, names, on_ray)
    if on_ray:
        asked = place.ray_options
        require_room(nodes, place.workers, asked["num_cpus"], asked["num_gpus"])
    return place


def _of_kind(kind: str, nodes: Sequence[Node], on_ray: bool) -> list[Node]:
    """The nodes with GPUs of a kind, whatever case it is written in."""
    if not on_ray:
        raise InputError(
            f"--gpu-kind {kind}: kinds are told apart on a Ray cluster (--cluster ray "
            "--ray-address); GPUs of this machine are chosen with CUDA_VISIBLE_DEVICES"
        )
    found = [node for node in nodes if node.gpus and node.kind.lower() == kind.lower()]
    if not found:
        there = {
            f"{n.name}: {n.kind or 'of a kind that Ray does not know'}": 0 for n in nodes if n.gpus
        }
        raise InputError(
            f"--gpu-kind {kind}: no node of the Ray cluster has such GPUs "
            f"({'; '.join(list(there)[:8]) or 'no node has any'})"
        )
    return found


def _device(wanted: ClusterConfig, gpus: int, scored_on: set[str], shows: str) -> Device:
    if wanted.device == "cpu" or gpus:
        return "cpu" if wanted.device == "cpu" else "cuda"
    if wanted.device == "cuda":
        raise InputError(f"--device cuda: {shows}; run it where there is one, or use --device cpu")
    if scored_on == {"cuda"}:
        raise InputError(
            f"the results were scored on GPUs, and {shows}; run it where there is one, or give "
            "--device cpu to score everything anew as cells of their own"
        )
    return "cpu"


def _too_few(shows: str, on_ray: bool) -> str:
    return f"{shows}; give at most that many" + ("" if on_ray else ", or --cluster ray")


def _on_cpus(wanted: ClusterConfig, nodes: Sequence[Node]) -> Place:
    workers = wanted.workers or 1
    usable = [node for node in nodes if node.cpus >= 1] or list(nodes)
    each = -(-workers // max(len(usable), 1))  # engines of one node
    fewest = min((int(node.cpus) for node in usable), default=1)
    return Place("cpu", workers, wanted.threads or max(1, fewest // each))


def _on_gpus(
    wanted: ClusterConfig,
    nodes: Sequence[Node],
    most: int,
    shows: str,
    names: tuple[str, ...],
    ray: bool,
) -> Place:
    """GPUs are handed out whole and once: an engine takes nearly all of their memory."""
    size = wanted.tensor_parallel
    holds = {node: int(node.gpus) // size for node in nodes if node.gpus >= size}
    room = min(sum(holds.values()), most // size)
    if not room:
        largest = "" if len(nodes) < 2 else f", {max(n.gpus for n in nodes):g} at most on one node"
        limit = "" if wanted.num_gpus is None else f", --num-gpus is {most}"
        raise InputError(f"--tensor-parallel {size}: {_too_few(shows + largest + limit, ray)}")
    if size > 1 and any(name.startswith("MIG-") for name in names):
        raise InputError(
            f"--tensor-parallel {size}: slices of a GPU (MIG) do not work together; give 1"
        )
    workers = wanted.workers or room
    if workers > room and not ray:  # on a cluster they wait for a place
        raise InputError(
            f"--workers {workers} with {size} GPU{'' if size == 1 else 's'} each: {shows}"
            + (f", --num-gpus is {most}" if most < int(sum(n.gpus for n in nodes)) else "")
            + f", room for {room}; give --workers {room}, or fewer GPUs each"
        )
    per_node = {n: min(count, workers) for n, count in holds.items()}
    threads = min(max(1, int(node.cpus) // count) for node, count in per_node.items())
    kinds = sorted({node.kind or "unknown to Ray" for node in holds}) if ray else []
    return Place(
        "cuda", workers, wanted.threads or threads, names[: workers * size], size,
        None if ray else gpu_name(), next(iter(holds)).kind if wanted.gpu_kind else "",
        tuple(kinds) if len(kinds) > 1 else (),
    )  # fmt: skip


def mixed_kinds(place: Place) -> list[str]:
    """One line where engines may come to stand on GPUs of several kinds."""
    if not place.kinds:
        return []
    return [
        f"the cluster's GPUs are of several kinds ({', '.join(place.kinds)}), whose scores may "
        "differ in the last digits: every row says in made_by which it is from, and so does every "
        "difference between two; --gpu-kind takes GPUs of one kind alone"
    ]


def changed_device(place: Place, scored_on: Collection[str], folder: str) -> list[str]:
    """One line where a results folder has cells of another device only."""
    others = sorted(set(scored_on) - {place.device})
    if not others or place.device in scored_on:
        return []
    words = {"cpu": "CPUs", "cuda": "GPUs"}
    return [
        f"cells of {folder} were scored on {words.get(others[0], others[0])}: on "
        f"{words[place.device]} (--device {place.device}) they are other cells and are scored anew"
    ]
