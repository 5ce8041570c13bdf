"""How users say where a model is, alone and in lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalcore.errors import InputError
from evalcore.identity.places import HubPlace, listed


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("org/name@main", HubPlace("org/name", "main")),
        ("hf:org/name@main", HubPlace("org/name", "main")),
        ("gpt2@v1.0", HubPlace("gpt2", "v1.0")),
        ("org/name@pr/7#runs/checkpoint-500/", HubPlace("org/name", "pr/7", "runs/checkpoint-500")),
        ("org/name", None),
        ("./runs@home/a", None),
        ("org/name@main#", None),
        ("org/name@main#../../etc", None),
    ],
)
def test_places(text: str, place: HubPlace | None) -> None:
    assert HubPlace.parse(text) == place
    if place is not None:
        assert HubPlace.parse(str(place)) == place


@pytest.mark.parametrize("text", ["hf:org/name", "hf:org/name@", "hf:a/b/c@main", "hf:a/b@m#../c"])
def test_what_is_said_to_be_on_the_hub_has_to_be_whole(text: str) -> None:
    with pytest.raises(InputError, match="no place on the hub: expected hf:ORG/NAME@REVISION"):
        HubPlace.parse(text)


def test_a_path_that_is_there_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "name@main").mkdir()
    assert HubPlace.parse("name@main") is None


def test_lists(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "list.txt"
    file.write_text("# steps\n\n  org/name@step1 # first\norg/name@step2#sub\na\norg/name@step1\n")
    given = ["org/other@main", f"@{file}", "b"]
    own = ["org/name@step1", "org/name@step2#sub", str(tmp_path / "a")]
    assert listed(given, "-m") == ("org/other@main", *own, "b")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\norg/name\n", "line 2: 'org/name' is neither a path that is there"),
        ("a/b@c\n# x\nhf:nonsense\n", "line 3: 'hf:nonsense' is no place on the hub"),
        ("@more.txt\n", "line 1: '@more.txt': a list cannot name another list"),
        ("# nothing\n", "the list is empty; give a path or REPO@REV a line"),
    ],
)
def test_a_bad_line_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        listed([f"@{file}"], "-m")
    assert line in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"-m @.*gone.txt: .* is missing"):
        listed([f"@{tmp_path / 'gone.txt'}"], "-m")
