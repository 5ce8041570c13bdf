"""The table of docs/hub.md: what each command ends with under each fault of the hub."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evalcore.cli import main
from evalcore.identity import answers, open_checkpoint
from evalcore.tasks import load_documents, load_task
from tests.hub.conftest import forget
from tests.hub.faults import (
    BASE,
    COMMANDS,
    FAULTS,
    QUICK,
    WATCH,
    Said,
    clear,
    table,
    write_places,
)
from tests.hub.loopback import LoopbackHub

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hub.md"
PLACE = "or put its rows at <data-root>/nyu-mll/glue/rte/"
Ask = Callable[[str, str], Said]


@pytest.fixture
def ask(
    hub: LoopbackHub,
    glue: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Ask]:
    """(fault, command) -> what is said, in this process; a tenth of a second for every answer."""
    from huggingface_hub import constants

    monkeypatch.setattr(answers, "ANSWER_S", 0.1)
    monkeypatch.setattr(answers, "WINDOW_S", 0.3)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.1)
    cut = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: cut(min(seconds, 2.0)))
    monkeypatch.setenv("EVALCORE_CACHE", str(tmp_path / "facts"))
    monkeypatch.chdir(tmp_path)
    places = {name: str(path) for name, path in write_places(tmp_path, hub).items()}
    whole = {key: (dict(r.commits), dict(r.refs)) for key, r in hub.repositories.items()}

    def prime() -> None:
        open_checkpoint("org/base@step10")
        main_of(("score", "org/lora@main", "-t", "pocket_nli", "--limit", "2", "--engine", "hf",
                 "-o", "r", "--dry-run"))  # fmt: skip
        for role in ("score", "train"):
            load_documents(load_task("rte"), role)  # type: ignore[arg-type]

    def main_of(words: tuple[str, ...]) -> int:
        monkeypatch.setattr(sys, "argv", ["evalcore", *(w.format(**places) for w in words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    def run(fault: str, command: str) -> Said:
        about, (repo, words) = FAULTS[fault], COMMANDS[command]
        gone = hub.stopping.is_set()  # it primes nobody again
        clear(tmp_path, cache=not gone)
        hub.faults.clear()
        for key, repository in hub.repositories.items():
            repository.gated = repository.private = False
            commits, refs = whole[key]
            repository.commits, repository.refs = dict(commits), dict(refs)
        forget()
        if about.primed and not gone:
            prime()
            forget()
        about.befalls(hub, repo)
        with monkeypatch.context() as while_asked:
            for name, value in about.environment.items():
                while_asked.setenv(name, value)
            capsys.readouterr()
            caplog.clear()
            status = main_of(words)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        return Said(status, "\n".join([shown.out, *warned]), shown.err)

    yield run
    clear(tmp_path)


def one_line(said: Said) -> None:
    """An error is one line, the last."""
    *before, last = said.err.strip().splitlines()
    assert last.startswith("evalcore: ")
    assert not any("Traceback" in line or line.startswith("evalcore:") for line in before), said.err


def rows_of_page() -> dict[str, dict[str, str]]:
    """Fault -> heading -> cell, as the page has them."""
    lines = PAGE.read_text("utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("| fault | `score"))
    heads, *rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines[begin:]
        if line.startswith("|") and not line.startswith("|---")
    ]
    return {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows if row[0] in FAULTS}


@pytest.mark.parametrize("fault", [name for name, about in FAULTS.items() if not about.primed])
def test_what_people_read_of_each_fault(fault: str, ask: Ask) -> None:
    """Of the commands asked most; the page says what the others end with."""
    page = rows_of_page()[fault]
    for command in QUICK:
        said = ask(fault, command)
        assert said.cell(FAULTS[fault].words) == page[command], command
        one_line(said)
        assert any(name in said.err for name in ("org/base@step10", PLACE)), command


@pytest.mark.proof
@pytest.mark.parametrize("fault", FAULTS)
def test_the_whole_row_of_each_fault(fault: str, ask: Ask) -> None:
    row = {command: ask(fault, command).cell(FAULTS[fault].words) for command in COMMANDS}
    assert table({fault: row}).splitlines()[-1] in PAGE.read_text("utf-8"), table({fault: row})


@pytest.mark.proof
def test_what_is_watched_goes_on(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "`watch`", (BASE, (*WATCH, "--rest", "0")))
    assert ask("503", "`watch`").cell(FAULTS["503"].words) == "1, named"


def test_the_page_has_every_fault_and_every_command() -> None:
    page = rows_of_page()
    assert list(page) == list(FAULTS)
    assert all(list(row) == list(COMMANDS) for row in page.values())
    cells = {cell for row in page.values() for cell in row.values()}
    assert cells <= {"0", "2", "0, named", "2, named", "0, -"}
