"""Which models are scored, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from evalcore.config.option import check_part, option


@dataclass(frozen=True)
class SubjectsConfig:
    """Which models are scored, and what is known of them (``evalcore.identity`` reads it)."""

    SECTION: ClassVar[str] = "What is scored"

    adapters: tuple[str, ...] = option(
        (),
        "Folders searched for adapters (and for fully tuned checkpoints, with --parent-map), "
        "adapters on the hub ([hf:]REPO@REV[#FOLDER]), and lists of either (@FILE).",
    )
    checkpoints: tuple[str, ...] = option(
        (), "Also score this checkpoint by itself (repeatable; works without any adapter): a path, "
        "a place on the hub ([hf:]REPO@REV[#FOLDER]), or a list of those (@FILE, one a line).",
        "-m", "--checkpoint", metavar="PATH|REPO@REV|@FILE", read="source",
    )  # fmt: skip
    include_bases: bool = option(
        True, "Do not score the adapters' bases by themselves.", "--no-bases", takes_away=True
    )
    leave_out: tuple[str, ...] = option(
        (), "Leave out adapters and checkpoints below ADAPTERS whose path or name fits "
        "(repeatable).",
        "--leave-out", metavar="GLOB",
    )  # fmt: skip
    base_map: tuple[str, ...] = option(
        (), "Base of the adapters whose path or name matches (repeatable).",
        "--base-map", metavar="GLOB=PATH|REPO@REV",
    )  # fmt: skip
    assume_base: str | None = option(
        None, "Base of adapters that name none.", "--assume-base", metavar="PATH|REPO@REV"
    )
    parent_map: tuple[str, ...] = option(
        (), "What the fully tuned checkpoints whose path or name fits were tuned from "
        "(repeatable); those below ADAPTERS are scored too.",
        "--parent-map", metavar="GLOB=PATH|REPO@REV",
    )  # fmt: skip
    tokenizer: str = option(
        "adapter", "Whose tokenizer, chat template and end tokens ask: an adapter's own where they "
        "change what is asked (the base is then asked so too), the base's, or those of one folder.",
        "--tokenizer", metavar="adapter|base|PATH",
    )  # fmt: skip
    tuned_on: tuple[str, ...] = option(
        (), "What the models whose path or name fits were tuned on, where no record says it "
        "(repeatable; also: labels.yaml beside them, or later evalcore label).",
        "--tuned-on", metavar="GLOB=TASK[,seed=N,...]",
    )  # fmt: skip
    name_pattern: str | None = option(
        None, "The same read from their paths, for example '{step}/{tuning}-seed{seed}'.",
        "--name-pattern", metavar="PATTERN",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_part(self)
