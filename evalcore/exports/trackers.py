"""Results as runs of a tracker, by the tracker's own client, without a server.

A run is a series (``exports.series``): one tuning over the checkpoints, the untuned ones beside it.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path

from evalcore.errors import InputError
from evalcore.exports.series import Point, Series, series_of
from evalcore.store import ResultStore

log = logging.getLogger("evalcore")

PROJECT = "evalcore"
STEP, TOKENS = "checkpoint/step", "checkpoint/tokens"


def to_wandb(store: ResultStore, output: Path) -> int:
    """Writes an offline run of Weights & Biases per series below ``output/wandb``.

    ``wandb sync output/wandb/offline-run-*`` sends them. Gives the number of runs.

    Raises:
        InputError: There is nothing to write, wandb is not installed, or ``output`` cannot be
            written.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise InputError(
            "export wandb: wandb is not installed; pip install 'evalcore[wandb]'"
        ) from error
    found = list(series_of(store))
    _folder(output)
    others = wandb.run is not None
    quiet = wandb.Settings(
        silent=True, console="off", disable_git=True, save_code=False,
        x_disable_stats=True, x_disable_meta=True,
    )  # fmt: skip
    for series in found:
        try:
            run = wandb.init(
                mode="offline", dir=str(output), project=PROJECT, name=series.name,
                group=store.path.name, config=series.about, settings=quiet, reinit="create_new",
            )  # fmt: skip
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP)
            for point in series.points:
                run.log({**_axes(point), **point.values})
            run.finish()
        except (wandb.Error, OSError) as error:
            raise InputError(f"export wandb to {output}: {_line(error)}") from error
    if not others:
        wandb.teardown()  # its writer is a process of its own; finish() does not wait for the disk
    return len(found)


def to_mlflow(store: ResultStore, output: Path) -> int:
    """Writes a run per series into an MLflow database, ``output/mlflow.db``.

    ``mlflow ui --backend-store-uri sqlite:///output/mlflow.db`` shows it. Gives the number of runs.
    (MLflow's store of plain files is no longer kept up.)

    Raises:
        InputError: There is nothing to write, mlflow is not installed, or ``output`` cannot be
            written.
    """
    try:
        import sqlalchemy  # noqa: F401  # mlflow-skinny asks for it only when it is used
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise InputError(
            f"export mlflow: {error.name} is not installed; pip install 'evalcore[mlflow]'"
        ) from error
    found = list(series_of(store))
    _folder(output)
    try:
        client = MlflowClient(tracking_uri=f"sqlite:///{output.resolve() / 'mlflow.db'}")
        known = client.get_experiment_by_name(PROJECT)
        place = known.experiment_id if known else client.create_experiment(
            PROJECT, artifact_location=(output / "mlartifacts").resolve().as_uri()
        )  # fmt: skip
        for series in found:
            names = mlflow_names(series)
            run = client.create_run(place, run_name=series.name, tags={"results": store.path.name})
            stamp = run.info.start_time
            metrics = [
                Metric(names[key], value, stamp, point.x)
                for point in series.points
                for key, value in {**_axes(point), **point.values}.items()
            ]
            params = [Param(key, str(value)[:500]) for key, value in series.about.items()]
            params.append(Param("models", json.dumps([p.model for p in series.points])[:500]))
            for start in range(0, len(metrics), 900):  # a batch holds 1,000 things at most
                client.log_batch(run.info.run_id, metrics[start : start + 900],
                                 params if start == 0 else ())  # fmt: skip
            client.set_terminated(run.info.run_id)
    except (MlflowException, OSError) as error:
        raise InputError(f"export mlflow to {output}: {_line(error)}") from error
    return len(found)


def mlflow_names(series: Series) -> dict[str, str]:
    """What values are called there, where names have few signs and must not coincide."""
    keys = list(dict.fromkeys(
        [STEP, TOKENS, *(key for point in series.points for key in point.values)]
    ))  # fmt: skip
    safe = {key: re.sub(r"[^\w\-. :/]", "_", key.replace("@", "/"), flags=re.ASCII)[:240]
            for key in keys}  # fmt: skip
    count = Counter(safe.values())
    seen: Counter[str] = Counter()
    for key, name in safe.items():
        if count[name] > 1:
            seen[name] += 1
            safe[key] = f"{name}_{seen[name]}"
    return safe


def _axes(point: Point) -> dict[str, float]:
    return {STEP: point.x, **({} if point.tokens is None else {TOKENS: point.tokens})}


def _folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror or error}") from error


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
