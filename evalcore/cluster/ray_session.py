"""Ray itself: joining or starting it, what its nodes have, what of the environment goes to workers.

Nothing here makes an actor (:mod:`evalcore.cluster.ray_pool` does), so that a driver may ask a
cluster what it has before it plans.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalcore.errors import EngineError, InputError
from evalcore.machine import cores

logger = logging.getLogger("evalcore")

FORWARDED = (
    "EVALCORE_*", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_DATASETS_*",
    "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM", "VLLM_*", "CUDA_*", "NCCL_*", "PYTORCH_*",
    "TORCHDYNAMO_*", "OMP_WAIT_POLICY",
)  # fmt: skip
"""Variables of the driver that its workers on other machines get: what decides kernels and numbers,
and where the hub's files lie. Local children inherit everything."""
NOT_FORWARDED = (
    "CUDA_VISIBLE_DEVICES",  # Ray gives every actor its own
    "VLLM_HOST_IP", "VLLM_PORT", "VLLM_DP_*",  # of one process
    "*_KEY", "*_TOKEN", "*SECRET*", "*PASSWORD*",  # Ray shows variables to all its users
)  # fmt: skip


KIND = "accelerator_type:"
"""What Ray puts before a kind of accelerator to name the resource by which it is asked for."""


@dataclass(frozen=True)
class Node:
    """A machine that workers may be placed on.

    Attributes:
        name: Of the machine, for people.
        cpus: CPUs it lends.
        gpus: GPUs it lends.
        kind: Of its GPUs, as Ray calls it (``H100``); empty where Ray does not know.
    """

    name: str
    cpus: float
    gpus: float
    kind: str = ""


def forwarded(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that go to a worker on another machine."""
    return {
        name: value
        for name, value in environment.items()
        if _named(name, FORWARDED) and not _named(name, NOT_FORWARDED)
    }


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(p.replace("*", ".*"), name) is not None for p in patterns)


def is_connected() -> bool:
    """Whether this process has joined or started a Ray already."""
    ray = sys.modules.get("ray")
    return bool(ray is not None and ray.is_initialized())


@contextlib.contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Joins the cluster at an address for a while; without one, or inside another, does nothing.

    Raises:
        EngineError: There is no Ray at the address.
    """
    address = address_of(address)
    if address is None or is_connected():
        yield
        return
    ray = initialise(address)
    try:
        yield
    finally:
        with handlers_kept():
            ray.shutdown()


@contextlib.contextmanager
def shared(address: str | None, num_cpus: float) -> Iterator[None]:
    """One Ray for several pools, joined or started: each alone would stop its own under others."""
    if is_connected():
        yield
        return
    ray = initialise(address_of(address), num_cpus)
    try:
        yield
    finally:
        with handlers_kept():
            ray.shutdown()


def ray_nodes() -> list[Node]:
    """The living nodes of the Ray this process is connected to.

    A node on the driver's machine lends no more CPUs than this process may use itself.
    """
    ray = sys.modules["ray"]
    here = ray.util.get_node_ip_address()
    found = []
    for node in ray.nodes():
        if not node.get("Alive"):
            continue
        has = node.get("Resources", {})
        cpus = float(has.get("CPU", 0))
        if node.get("NodeManagerAddress") == here:
            cpus = min(cpus, cores())
        name = node.get("NodeManagerHostname") or node.get("NodeManagerAddress") or "node"
        kind = next((one.removeprefix(KIND) for one in sorted(has) if one.startswith(KIND)), "")
        found.append(Node(str(name), cpus, float(has.get("GPU", 0)), kind))
    return found


def require_room(
    nodes: Sequence[Node], workers: int, cpus: float, gpus: float, *, own: bool = False
) -> None:
    """Actors that can never be placed would wait without a word.

    Args:
        nodes: What there is.
        workers: Workers wanted; where they are more than there is room for, some wait.
        cpus: Of one worker.
        gpus: Of one worker.
        own: Whether the Ray was started for this run, and so never grows.

    Raises:
        InputError: No node has what one worker asks for, or there is no room for all and none will
            come.
    """
    if not own and not any(node.cpus >= cpus and node.gpus >= gpus for node in nodes):
        there = "; ".join(f"{n.name}: {n.cpus:g} CPUs, {n.gpus:g} GPUs" for n in nodes[:8])
        raise InputError(
            f"a Ray worker asks for {cpus:g} CPUs and {gpus:g} GPUs, and no node has both "
            f"({there or 'there is no node'}); give fewer --threads or --tensor-parallel, or add "
            "a node first"
        )
    wanted, room = workers * gpus, sum(node.gpus for node in nodes)
    if wanted <= room:
        return
    text = f"{workers} Ray workers need {wanted:g} GPUs in all, Ray has {room:g}"
    if own:
        raise InputError(f"{text}; ask for fewer workers or for less num_gpus")
    logger.warning("%s; some wait until the cluster has grown", text)


def address_of(given: str | None) -> str | None:
    """Of the cluster to join; None: one of our own is started."""
    address = given or os.environ.get("RAY_ADDRESS")
    return str(address) if address and address != "local" else None


def initialise(address: str | None, num_cpus: float = 1) -> Any:
    """Joins the Ray at an address, or starts one of this process (``num_cpus`` at least).

    Returns:
        The module ``ray``.

    Raises:
        EngineError: Ray cannot be used.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings(), handlers_kept():
        warnings.simplefilter("ignore")
        if not address:
            _ask_for_token()
        import ray  # here: it takes a second, and only this backend needs it

        if not ray.is_initialized():
            _init(ray, address, num_cpus)
    return ray


def _init(ray: Any, address: str | None, num_cpus: float) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **common)
            return
        # Workers may share cores: a small machine must not leave actors waiting for ever.
        cpus = max(cores(), math.ceil(num_cpus))
        # What engines started goes when their actor does, also when it was killed.
        os.environ.setdefault("RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper", "1")
        with _on_loopback():
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **common)
        _warn_if_open(ray)
    except (ConnectionError, RuntimeError, ValueError) as error:
        detail = " ".join(str(error).split())
        at = f"at {address}" if address else "on this machine"
        raise EngineError(
            f"Ray {at} cannot be used: {detail[:300]}; check the address, or use backend local"
        ) from error


def _ask_for_token() -> None:
    """Whoever reaches Ray's ports can run code: its own token mode (Ray 2.52) asks who it is.

    A token given by the user's environment or kept in Ray's own place is used; otherwise this
    process makes one for itself and its children, and writes it nowhere. The mode is read when Ray
    is imported; a Ray that is there already turns it on by itself (2.60) or not at all.
    """
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not given and not (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Lets a Ray that is started listen on this machine only, where it would on all interfaces.

    Ray listens on the loopback address when its node's address is that, and takes a given loopback
    address for a mistake (``services.resolve_ip_for_localhost``). Where clusters are switched off,
    as they are by default on macOS and Windows (ray-project/ray#18730), it does as wanted.
    """
    from ray._private import ray_constants  # no public switch: the variable is read on import

    name = "ENABLE_RAY_CLUSTER"
    before = getattr(ray_constants, name, None)
    setattr(ray_constants, name, False)
    try:
        yield
    finally:
        setattr(ray_constants, name, before)


def _warn_if_open(ray: Any) -> None:
    addresses = {str(node.get("NodeManagerAddress")) for node in ray.nodes()}
    if not all(address.startswith("127.") or address == "::1" for address in addresses):
        logger.warning(
            "this version of Ray listens on %s: other machines may reach it; take a newer one, or "
            "--cluster local",
            ", ".join(sorted(addresses)),
        )


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Puts signal handlers back: Ray's init and shutdown replace that of SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before: dict[signal.Signals, Callable[..., Any] | int | None] = {
        number: signal.getsignal(number) for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
