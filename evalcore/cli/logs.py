"""Log lines on a terminal."""

from __future__ import annotations

import logging

from evalcore.shown import one_line, printable


class ShownFormatter(logging.Formatter):
    """Log lines for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return one_line(text) if record.name.split(".")[0] in ("evalcore", "finetune") else text


def show_logs(debug: bool) -> None:
    """Warnings of all libraries go to standard error; with ``debug``, all that evalcore says."""
    handler = logging.StreamHandler()
    handler.setFormatter(ShownFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("evalcore").setLevel(logging.DEBUG if debug else logging.WARNING)
