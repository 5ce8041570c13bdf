"""``evalcore doctor``."""

from __future__ import annotations

import click

from evalcore.shown import printable

_MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "bad": ("BAD ", "red")}


@click.command()
def doctor() -> int:
    """Names versions, device, the engine that will be used, and each known trap.

    Exit status 1 when something will keep scoring from working.
    """
    from evalcore.app.doctor import doctor as examine

    checks = examine()
    for check in checks:
        mark, colour = _MARKS[check.status]
        detail = printable(f"{check.name:<18} {check.detail}")
        click.echo(f"{click.style(mark, fg=colour)} {detail}")
    return 1 if any(check.status == "bad" for check in checks) else 0
