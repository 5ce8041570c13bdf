"""The command line: every option says what it does, and what the README shows exists."""

from __future__ import annotations

import errno
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from evalcore.cli import cli, main
from evalcore.cli.command import sections
from evalcore.cli.logs import ShownFormatter
from evalcore.cli.options import Limit, parse_shard
from evalcore.cli.output import echo, echo_line
from evalcore.errors import EvalcoreError

ROOT = Path(__file__).resolve().parents[3]


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", c) for sub, c in command.commands.items())


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_command_and_option_has_help(name: str, command: click.Command) -> None:
    assert command.help, name
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_documented_commands_and_options_exist(page: str) -> None:
    known = dict(commands())
    text = (ROOT / page).read_text().replace("\\\n", " ")
    for line in re.findall(r"evalcore ((?:score|run|report|export|finetune|demo) .*)", text):
        words = re.split(r"[`#]", line)[0].split()
        options = {o for p in known[words[0]].params for o in p.opts}
        for option in (w.rstrip(",.)") for w in words if re.match(r"--?[a-zA-Z]", w)):
            assert option in options, f"{page}: evalcore {words[0]} has no {option}"


@pytest.mark.parametrize(("text", "value"), [("0/1", (0, 1)), ("3/8", (3, 8))])
def test_shard(text: str, value: tuple[int, int]) -> None:
    assert parse_shard(None, None, text) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["8/8", "1", "a/b", "-1/2", "1/0", "/"])
def test_wrong_shards_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="0/4"):
        parse_shard(None, None, text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        ("--workers", "1000000"), ("--workers", "0"), ("--threads", "100000"), ("--limit", "-1"),
        ("--tensor-parallel", "99"), ("--tensor-parallel", "8"), ("--commit-every", "nan"),
        ("--commit-every", "inf"), ("--commit-every", "-1"), ("--certify-share", "nan"),
        ("--peak-tflops", "nan"), ("--peak-tflops", "1e300"), ("--seed", str(2**70)),
        ("--seed", "-1"), ("--num-fewshot", "99999999999"), ("--unit-examples", str(10**12)),
        ("--max-length", str(10**12)), ("--shard", "²/3"), ("--shard", f"1/{'9' * 5000}"),
        ("--time-limit", "9" * 5000), ("--time-limit", "9999999h"), ("--time-limit", "nan"),
        ("--time-limit", "-5"),
    ],
)  # fmt: skip
def test_absurd_arguments_are_one_line(words: tuple[str, str], tmp_path: Path) -> None:
    command = ["score", "-m", str(tmp_path), "-t", "pocket_nli", "-o", str(tmp_path / "r"), *words]
    with pytest.raises((click.UsageError, EvalcoreError)) as caught:
        cli.main(command, standalone_mode=False)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    option = words[0].removeprefix("--")
    shown = getattr(caught.value, "param_hint", None) or getattr(caught.value, "param", None)
    assert option in f"{caught.value} {shown} {getattr(shown, 'opts', '')}".replace(
        " limit", "-limit"
    )
    assert not (tmp_path / "r").exists()


def test_what_a_terminal_would_obey_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    echo("ok \x1b[2J\x1b]0;title\x07 \u202eback \udcff über 猫\n\tsecond")
    assert capsys.readouterr().out == (
        r"ok \x1b[2J\x1b]0;title\x07 \u202eback \udcff über 猫" + "\n\tsecond\n"
    )
    echo_line("one\nnot scored: forged\r", err=True)
    assert capsys.readouterr().err == "one\\nnot scored: forged\\r\n"
    record = logging.LogRecord("evalcore", 30, "", 0, "adapter %s", ("\x1b[31mred",), None)
    assert ShownFormatter("%(message)s").format(record) == r"adapter \x1b[31mred"


WELL = {
    "score": ("-m", "none", "-t", "pocket_nli", "-o", "r", "--dry-run"),
    "watch": ("none", "-t", "pocket_nli", "-o", "r"),
    "run": ("none.yaml", "--dry-run"),
    "finetune": ("none.yaml", "--dry-run"),
    "import": ("scores.csv",),
    "power": ("none", "--effect", ".02"),
    "bench": ("-o", "b", "--dry-run"),
    "prompts show": ("pocket_nli", "default"),
    "tasks check": ("pocket_nli",),
}
"""Commands with numbers among their options, asked of things that are not there."""
NUMBERS = ("-1", "0", "1e308", "nan", "inf", str(10**12), "1e-308", "²", "9" * 5000, "")


def numeric(command: click.Command) -> list[str]:
    kinds = (click.types.IntParamType, click.types.FloatParamType, Limit)
    durations = ("--time-limit", "--idle", "--shard", "--budget")
    options = [p for p in command.params if isinstance(p, click.Option) and not p.is_flag]
    found = [
        max(p.opts, key=len)
        for p in options
        if isinstance(p.type, kinds) or p.opts[-1] in durations
    ]
    assert found
    return found


@pytest.mark.parametrize("name", WELL)
def test_absurd_numbers_are_taken_or_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every option with a number: what is taken fails for what is not there, or does well."""
    monkeypatch.chdir(tmp_path)
    Path("scores.csv").write_text("model,task,score\na,t,0.5\nb,t,0.6\n")
    command: click.Command | None = cli
    for word in name.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    for option in numeric(command):
        for value in NUMBERS:
            done = CliRunner().invoke(cli, [*name.split(), *WELL[name], f"{option}={value}"])
            error = done.exception
            assert error is None or isinstance(error, (SystemExit, EvalcoreError)), (option, error)
            said = str(error) if isinstance(error, EvalcoreError) else ""
            assert "\n" not in said
            assert len(said) < 6000, (option, value, said)
            if value in ("nan", "inf", "1e308", "²", ""):
                assert done.exit_code, (option, value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.csv"]


def test_an_empty_word_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``-o "$OUT"`` of a variable that is not set would be the folder one is in."""
    monkeypatch.chdir(tmp_path)
    for words in (["-o", ""], ["--output="], ["--limit", ""], [""]):
        done = CliRunner().invoke(cli, ["score", "-m", "x", "-t", "pocket_nli", *words])
        assert done.exit_code == 2
        assert "is empty; is a variable of the shell not set?" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["report", "9" * 5000], ["score", "-m", "x", "-o", "9" * 5000]])
def test_a_name_that_is_too_long_is_one_short_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["evalcore", *words, *["-t", "pocket_nli"] * (words[0] == "score")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("e", "E"))]
    assert len(said) == 1
    assert len(said[0]) < 500


ODD = "a\n\u202eb\x1b[2Jc\u2028d"


@pytest.mark.parametrize(
    "words",
    [
        ["score", "-m", ODD, "-t", "pocket_nli", "-o", "r"],
        ["score", ODD, "-t", "pocket_nli", "-o", "r"],
        ["score", "-m", "x", "-t", ODD, "-o", "r"],
        ["score", "-m", "x", "-t", "pocket_nli", "-o", "r", "--limit", ODD],
        ["score", "-m", "x", "-t", "pocket_nli", "-o", "r", f"--{ODD}"],
        ["report", ODD],
        ["export", ODD],
        ["run", ODD],
        ["status", ODD],
        [ODD],
    ],
)
def test_errors_are_one_line_whatever_they_name(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["evalcore", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if not line.startswith(("Usage:", "Try "))]
    assert len([line for line in lines if line]) == 1, said
    assert not re.search("[\x1b\u202e\u2028]", said)


def test_nothing_is_printed_past_the_one_place() -> None:
    """Every module of the command line prints through ``cli.output``."""
    for path in (ROOT / "evalcore").rglob("*.py"):
        if path.name not in ("output.py", "doctor.py"):
            assert not re.search(r"\bclick\.echo\(|^\s*print\(", path.read_text(), re.M), path


@pytest.mark.parametrize(("word", "status"), [("--version", 0), ("scroes", 2)])
def test_the_interpreter_is_not_taken_down(word: str, status: int) -> None:
    """Threads of Arrow that want it then would abort the process; exit handlers have run."""
    code = (
        "import atexit, sys\n"
        "from evalcore import cli\n"
        "class Last:\n"
        "    def __del__(self): print('down')\n"
        "last, main = Last(), cli.main\n"
        "def own(**more):\n"
        "    atexit.register(print, 'handler')\n"
        "    main(**more)\n"
        "cli.main = own\n"
        "cli.program()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stdout.splitlines()[-1] == "handler"


@pytest.mark.parametrize("name", ["score", "run", "demo", "finetune"])
def test_help_is_in_sections(name: str) -> None:
    known = dict(commands())
    command = known[name]
    text = CliRunner().invoke(cli, [name, "--help"]).output
    titles = [title for title in sections() if f"{title}:" in text]
    assert len(titles) >= 4
    placed = {option for names in sections().values() for option in names}
    options = {p.name for p in command.params if isinstance(p, click.Option)}
    assert options <= placed
    assert text.index("Other:") > text.index(titles[-1])  # --help alone
    for param in command.params:
        if isinstance(param, click.Option):
            assert max(param.opts, key=len) in text


def test_every_section_names_options_that_exist() -> None:
    known = {param.name for _, command in commands() for param in command.params}
    assert {name for names in sections().values() for name in names} <= known
    spelled = [o for _, command in commands() for p in command.params for o in p.opts]
    assert not [option for option in spelled if option.startswith("--") and "_" in option]


@pytest.mark.parametrize("word", ["--num_fewshot", "--num-fewshot"])
def test_underscores_are_dashes(word: str, tmp_path: Path) -> None:
    command = ["score", "-m", str(tmp_path), "-t", "pocket_nli", "-o", str(tmp_path / "r")]
    with pytest.raises(click.UsageError, match="99999999999 is not in the range"):
        cli.main([*command, word, "99999999999"], standalone_mode=False)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--batch_size", "8"], "--batch-size: batches are made by themselves"),
        (["--model_args", "pretrained=x"], "without pretrained="),
        (["--model", "hf"], "the engine is --engine vllm|hf"),
        (["--output_path=out"], "the results folder is -o RESULTS"),
        (["-m", "pretrained=org/m,dtype=float32"], "by itself: -m org/m"),
        (["--log_samples"], "every example is kept already"),
    ],
)
def test_habits_of_lm_eval_are_answered(words: list[str], answer: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        cli.main(["score", "-t", "pocket_nli", "-o", "r", *words], standalone_mode=False)
    assert answer in caught.value.format_message()
    assert "\n" not in caught.value.format_message()


@pytest.mark.parametrize("megabytes", [48, 100, 150, 240])
def test_too_few_addresses_are_one_line(megabytes: int) -> None:
    """``ulimit -v``: numpy's import fails in one of several ways, or never ends."""
    done = subprocess.run(
        ["bash", "-c", 'ulimit -v "$0" && exec "$@"', f"{megabytes * 1000}", sys.executable, "-m",
         "evalcore", "tasks", "list"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert line.startswith("evalcore: there is not enough memory: ulimit -v allows")
    assert done.returncode == 2


def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(error: Exception) -> Callable[..., None]:
        def main(**_: object) -> None:
            raise error

        return main

    for error, said in (
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y\nz"),
            "/x/y\\nz: Permission denied",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "there is not enough memory"),
        (RuntimeError("can't start new thread"), "there is not enough memory"),
        (MemoryError(), "there is not enough memory"),
        (OSError(errno.ENOENT, "No usable temporary directory found"), "No usable temporary"),
        (RuntimeError("Could not determine home directory."), "there is no home directory"),
    ):
        monkeypatch.setattr(cli, "main", refuse(error))
        monkeypatch.setattr(sys, "argv", ["evalcore", "tasks"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"evalcore: {said}")
    monkeypatch.setattr(cli, "main", refuse(RuntimeError("a fault of the program")))
    with pytest.raises(RuntimeError):
        main()


@pytest.mark.parametrize(
    "how", ["| head -1", ">&-", ">/dev/full", "2>&-", "2>/dev/full", "</dev/null >/dev/null"]
)
def test_who_does_not_read_changes_no_status(how: str) -> None:
    """``| head``, closed streams, a full disk behind them: no traceback, the command's status."""
    command = f'"$0" -m evalcore tasks list {how}; echo "status ${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable], capture_output=True, text=True, timeout=120
    )
    full = how == ">/dev/full"
    assert done.stdout.splitlines()[-1] == f"status {74 if full else 0}"
    expected = "evalcore: standard output cannot be written (No space left on device)\n"
    assert done.stderr == (expected if full else "")
