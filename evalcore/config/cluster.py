"""What engines run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from evalcore.config.option import check_part, option

MAX_WORKERS, MAX_THREADS, MAX_GPUS = 4096, 1024, 64


@dataclass(frozen=True)
class ClusterConfig:
    """What engines run on; ``app.place`` settles it where the engines are."""

    SECTION: ClassVar[str] = "Machines"

    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "What engines compute on: auto takes GPUs where they are, on this machine or, with "
        "--cluster ray, on the cluster's nodes; cuda: without one nothing is done.",
        "--device", study="device",
    )  # fmt: skip
    num_gpus: int | None = option(
        None, "GPUs to use at most, over all engines (default: all that are shown).", "--num-gpus",
        low=0, high=MAX_WORKERS * MAX_GPUS,
    )  # fmt: skip
    gpu_kind: str | None = option(
        None, "With --cluster ray: take GPUs of this kind alone, as Ray names it (H100, A100-80G).",
        "--gpu-kind", metavar="KIND",
    )  # fmt: skip
    tensor_parallel: int = option(
        1, "GPUs of one engine.", "--tensor-parallel",
        low=1, high=MAX_GPUS, study="tensor_parallel",
    )  # fmt: skip
    workers: int | None = option(
        None, "Engines at a time (default: one per GPU, or 1).", "--workers",
        low=1, high=MAX_WORKERS,
    )  # fmt: skip
    threads: int | None = option(
        None, "CPU threads of one engine (default: fair share).", "--threads",
        low=1, high=MAX_THREADS,
    )  # fmt: skip
    backend: Literal["local", "ray"] = option(
        "local", "Workers as child processes of this one, or as Ray actors.", "--cluster",
        name="cluster",
    )  # fmt: skip
    ray_address: str | None = option(
        None, "Ray cluster to join (auto: the running one).", "--ray-address", metavar="ADDRESS"
    )
    disk_budget: int | None = option(
        None, "Checkpoints and adapters from the hub only pass through a cache of this size on "
        "each node (200GB, 1.5TiB): fetched where they are scored, given up for the next ones.",
        "--disk-budget", metavar="SIZE", read="size", low=1,
    )  # fmt: skip
    peak_tflops: float | None = option(
        None, "Peak of one device in TFLOP/s, for the MFU (default: a table of known GPUs).",
        "--peak-tflops", section="Engine", above=0, high=1e6,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_part(self)
