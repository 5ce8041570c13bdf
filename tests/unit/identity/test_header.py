"""Headers of safetensors files: held against the format's own reader, refused in one line."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from evalcore.errors import InputError
from evalcore.identity import read_header, weights

GOOD: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def write(path: Path, header: Any, size: int = 32) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


def changed(name: str, **changes: Any) -> dict[str, Any]:
    return {**GOOD, name: {**GOOD[name], **changes}}


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    tensors, start = read_header(write(tmp_path / "w", {**GOOD, "__metadata__": {"k": "v"}}))
    assert (tensors["a"].shape, tensors["a"].stop, tensors["b"].dtype) == ((2, 3), 24, "BF16")
    assert start == (tmp_path / "w").stat().st_size - 32
    save_file({}, tmp_path / "none")
    assert read_header(tmp_path / "none")[0] == {}
    save_file({"x": np.zeros((0, 4), "f4"), "y": np.ones(3)}, tmp_path / "zero")
    assert read_header(tmp_path / "zero")[0]["x"].shape == (0, 4)


BAD = {
    "negative": (changed("a", data_offsets=[-24, 0]), r"'a': data_offsets \[-24, 0\]"),
    "overlap": (changed("b", data_offsets=[16, 24]), "tensor 'b' overlaps another"),
    "gap": (changed("b", data_offsets=[26, 34]), "tensor 'b' leaves a gap"),
    "backwards": (changed("a", data_offsets=[24, 0]), r"\[start, stop\]"),
    "shape": (changed("a", shape=[2, 4]), r"F32 \[2, 4\] needs 32 bytes, .* span 24"),
    "shape of texts": (changed("a", shape=["2", 3]), "no list of sizes"),
    "shape of a truth value": (changed("a", shape=[True, 6]), "no list of sizes"),
    "huge shape": (changed("a", shape=[2**62, 2**62]), "needs too many bytes"),
    "many axes": (changed("a", shape=[1] * 70), "no list of sizes"),
    "dtype": (changed("a", dtype="F31"), "dtype 'F31' is unknown"),
    "dtype of a number": (changed("a", dtype=32), "dtype 32 is unknown"),
    "three offsets": (changed("a", data_offsets=[0, 12, 24]), "data_offsets"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [1]}}, "data_offsets None"),
    "text for a tensor": ({"a": "F32"}, "described by an object"),
    "metadata": ({**GOOD, "__metadata__": {"a": 1}}, "__metadata__"),
    "list": ([], "no JSON object"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep tensor": (b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested too deeply"),
    "surrogate": ({"\ud800": GOOD["a"]}, "surrogate"),
    "twice": (json.dumps(GOOD)[:-1].encode() + b',"a":' + json.dumps(GOOD["a"]).encode() + b"}",
              "'a' is given twice"),
    "no UTF-8": (b'{"\xff": 1}', "not readable JSON"),
    "no JSON": (b"{", "not readable JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_header_that_is_wrong_is_one_line(tmp_path: Path, case: str) -> None:
    header, reason = BAD[case]
    path = write(tmp_path / "bad.safetensors", header)
    with pytest.raises(InputError, match=reason) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_sizes_of_file_and_header_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cut short: it has 30 bytes"):
        read_header(write(tmp_path / "cut", GOOD, 30))
    with pytest.raises(InputError, match="1 bytes at its end belong to no tensor"):
        read_header(write(tmp_path / "long", GOOD, 33))
    for name, data in {"empty": b"", "short": b"\1\0", "huge": b"\xff" * 8 + b"{}"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="longer than the file"):
            read_header(tmp_path / name)
    (tmp_path / "large").write_bytes((100_000_001).to_bytes(8, "little"))
    with open(tmp_path / "large", "r+b") as file:
        file.truncate(100_000_100)
    with pytest.raises(InputError, match="too large"):
        read_header(tmp_path / "large")


def test_what_the_formats_own_reader_refuses_is_refused(tmp_path: Path) -> None:
    """Seeded mutations of a header: nothing is accepted here that engines would not open."""
    rng = random.Random(5)
    text = json.dumps(GOOD).encode()
    values = [b"0", b"-1", b"24", b"32", b"1e9", b'"F16"', b"[]", b"null", b"{}", b"true", b"2"]
    accepted = refused = 0
    for number in range(600):
        data = bytearray(text)
        for _ in range(rng.randint(0, 2)):
            at = rng.randrange(len(data))
            end = at + rng.randint(0, 3)
            data[at:end] = rng.choice(values) if rng.random() < 0.5 else bytes([rng.choice(text)])
        path = write(tmp_path / f"{number}", bytes(data))
        try:
            names = set(read_header(path)[0])
        except InputError:
            refused += 1
            continue
        accepted += 1
        try:
            with safe_open(path, "numpy") as theirs:
                assert set(theirs.keys()) == names
        except SafetensorError as error:
            raise AssertionError(f"accepted here, refused there: {data!r}: {error}") from None
    assert accepted > 50
    assert refused > 200


def test_weights_cut_short_while_they_are_hashed_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map of the file would kill whoever reads it; so does what safetensors itself does."""
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((3, 1 << 20), np.float32)}, path)
    whole = weights.hash_tensors(path)
    monkeypatch.setattr(weights, "_PIECE_BYTES", 1 << 16)
    assert weights.hash_tensors(path) == whole
    known = read_header(path)
    monkeypatch.setattr(weights, "read_header", lambda file: known)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match="cut short while it was read"):
        weights.hash_tensors(path)
