"""The installed lm-eval, kept quiet and on a leash: the one module that imports it."""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from evalcore.deadline import MAX_TEMPLATE_MB, MAX_TEMPLATE_S, bounded
from evalcore.errors import DataError, DefinitionError, EvalcoreError, InputError
from evalcore.lm_eval.trust import Known
from evalcore.tasks.hub import note_commit
from evalcore.tasks.sources import split_files

VERSION = "0.4.13"
FEWSHOT_SEED = 1234
"""Seed of the shots where lm-eval is given none."""
_RANDOM_SEED, _NUMPY_SEED = 0, 1234  # what lm-eval sets before it loads tasks
_BUILDER = {"jsonl": "json", "jsonl.gz": "json", "json": "json", "parquet": "parquet",
            "csv": "csv", "arrow": "arrow"}  # fmt: skip


def require() -> Path:
    """Folder of the installed lm-eval.

    Raises:
        InputError: If it is not installed, or another version than the one evalcore knows.
    """
    command = "pip install 'evalcore[lm-eval]'"
    try:
        import lm_eval
        import lm_eval.tasks

        found = metadata.version("lm_eval")
    except ImportError as error:
        raise InputError(f"tasks of lm-eval need its package ({error}): {command}") from None
    if found != VERSION:
        raise InputError(f"lm-eval {found} is installed, evalcore knows {VERSION}: {command}")
    return Path(lm_eval.__file__).resolve().parent


def known_names() -> Known:
    """Names that stand for lm-eval's own code, and the builders of ``datasets``."""
    import lm_eval.api.metrics
    import lm_eval.filters  # noqa: F401  registers the filters
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
    from lm_eval.api.registry import filter_registry, metric_registry

    return Known(
        metrics=set(metric_registry.keys()),
        filters=set(filter_registry.keys()),
        builders=set(_PACKAGED_DATASETS_MODULES),
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Mutes lm-eval's log and the progress bars of it and of ``datasets``."""
    import datasets
    import lm_eval.api.task as module

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, module.tqdm
    bars = datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    module.tqdm = lambda items, **options: items
    try:
        yield
    finally:
        logger.setLevel(level)
        module.tqdm = bar
        if not bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def seeded(state: Any = None) -> Iterator[list[Any]]:
    """Random numbers as lm-eval has them; the caller's own state comes back afterwards.

    Some tasks shuffle choices while they load and while their requests are made.

    Args:
        state: Where an earlier use of this ended; None: where lm-eval starts.

    Yields:
        A list that holds the state at the end, once it is over.
    """
    import numpy as np

    mine = random.getstate(), np.random.get_state()
    if state is None:
        random.seed(_RANDOM_SEED)
        np.random.seed(_NUMPY_SEED)
    else:
        random.setstate(state[0])
        np.random.set_state(state[1])
    end: list[Any] = []
    try:
        yield end
    finally:
        end.append((random.getstate(), np.random.get_state()))
        random.setstate(mine[0])
        np.random.set_state(mine[1])


@contextlib.contextmanager
def sandboxed(active: bool = True) -> Iterator[None]:
    """lm-eval's templates in Jinja's sandbox: a template is code as well."""
    if not active:
        yield
        return
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    before = utils.env
    sandbox = SandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    sandbox.filters.update(before.filters)
    utils.env = sandbox
    try:
        yield
    finally:
        utils.env = before


@contextlib.contextmanager
def data_from(root: Path | None) -> Iterator[None]:
    """Hub data sets from ``<root>/<repo>[/<config>]/<split>.*`` where such files are there.

    Of others the commit is noted, and one that is not the commit a task asks for is an error.
    """
    import datasets

    before = datasets.load_dataset

    def load(path: Any = None, name: str | None = None, **options: Any) -> Any:
        files = _local_files(root, str(path), name) if root is not None else {}
        if not files:
            found = before(path, name, **options)
            parts = found.values() if isinstance(found, dict) else [found]
            cached = [one["filename"] for part in parts for one in getattr(part, "cache_files", ())]
            note_commit(str(path), name, options.get("revision"), cached)
            return found
        first = next(iter(files.values()))[0]
        suffix = next(s for s in _BUILDER if first.endswith("." + s))
        return before(_BUILDER[suffix], data_files=files)

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = before


def _local_files(root: Path, repo: str, config: str | None) -> dict[str, list[str]]:
    folder = root / repo / config if config else root / repo
    if not folder.is_dir():
        return {}
    splits = {file.name.split(".")[0].split("-")[0] for file in folder.iterdir()}
    found = {split: [str(f) for f in split_files(folder, split)] for split in sorted(splits)}
    return {split: files for split, files in found.items() if files}


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
    """Any error of lm-eval, ``datasets`` or a task's own code as one line of ours.

    Raises:
        DataError: Data are missing or broken.
        DefinitionError: Anything else.
    """
    try:
        yield
    except (EvalcoreError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # tasks are other people's code: any kind may come
        text = _line(error)
        if _is_data_error(error):
            offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
            why = "HF_HUB_OFFLINE is set; " if offline else ""
            raise DataError(
                f"{what}: its data set is not to be had ({why}{text}); fetch it while online, or "
                f"put its splits under --data-root as <repo>/<config>/<split>.parquet"
            ) from None
        raise DefinitionError(f"{what}: {text}") from None


def _is_data_error(error: BaseException) -> bool:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    module = type(error).__module__
    return bool(
        kinds & {"ConnectionError", "FileNotFoundError", "DatasetNotFoundError"}
    ) or module.startswith(("datasets.exceptions", "huggingface_hub", "httpx", "requests"))


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    shown = text if len(text) <= 300 else text[:297] + "..."
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def chat_renderer(tokenizer: Any, values: Mapping[str, Any]) -> Callable[..., str]:
    """How lm-eval's hf backend writes a chat with this tokenizer; without a system if it must.

    Args:
        tokenizer: Has the chat template.
        values: What the template is given beside the messages.

    Raises:
        InputError: When called, if the tokenizer has no chat template.
    """
    import jinja2

    def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("--apply-chat-template: the tokenizer has no chat template")

        def write(history: Sequence[Mapping[str, str]]) -> str:
            with bounded(MAX_TEMPLATE_S, MAX_TEMPLATE_MB):
                return str(
                    tokenizer.apply_chat_template(
                        list(history),
                        tokenize=False,
                        add_generation_prompt=add_generation_prompt,
                        continue_final_message=not add_generation_prompt,
                        **values,
                    )
                )

        try:
            return write(messages)
        except TimeoutError as error:
            raise InputError(f"--apply-chat-template: the chat template {error}") from None
        except jinja2.exceptions.TemplateError:
            return write([message for message in messages if message["role"] != "system"])

    return render
