"""Holds a vLLM that is not installed to what evalcore relies on of its inside; ``make contract``.

    python -m bench.contract            # the installed one
    python -m bench.contract 0.33.0     # a wheel, fetched by pip into a folder that is removed
    python -m bench.contract PATH       # a wheel, or a folder with vllm's source

Names that are where they were, but whose source differs from the installed version's, are listed
too: their meaning may have changed. Status 1 where a name is not as evalcore knows it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evalcore.engines.vllm.contract import Finding, installed, read, source_of, verdicts
from evalcore.engines.vllm.names import CAPABILITIES


@contextmanager
def source(which: str | None) -> Iterator[Path]:
    """The folder ``vllm`` of what is asked for."""
    path = Path(which or "")
    if which is None:
        root = installed()
        if root is None:
            raise SystemExit("vllm is not installed; name a version, a wheel or a folder")
        yield root
    elif path.is_dir():
        yield path / "vllm" if (path / "vllm").is_dir() else path
    else:
        with tempfile.TemporaryDirectory(prefix="evalcore-contract-") as folder:
            wheel = path if path.is_file() else _fetched(which, folder)
            with zipfile.ZipFile(wheel) as packed:
                names = [
                    n for n in packed.namelist() if n.startswith("vllm/") and n.endswith(".py")
                ]
                packed.extractall(folder, names)
            yield Path(folder) / "vllm"


def _fetched(version: str, folder: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    wanted = version if version.startswith("vllm") else f"vllm=={version}"
    if subprocess.run([*command, "-d", folder, wanted], check=False).returncode:
        raise SystemExit(f"pip cannot fetch {wanted}")
    return next(Path(folder).glob("*.whl"))


def lines(findings: list[Finding], differ: set[str]) -> Iterator[str]:
    """The table."""
    for f in findings:
        note = f.detail or ("its source differs" if f.name.name in differ else "")
        if f.state != "present" or note:
            yield f"{f.state:8} {f.name.capability:8} {f.name.name:58} {f.where:48} {note}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("which", nargs="?", help="a version, a wheel or a folder")
    parser.add_argument("--all", action="store_true", help="names that are as known, too")
    arguments = parser.parse_args()
    here = installed()
    with source(arguments.which or None) as root:
        findings = read(root)
        differ = set()
        if here is not None and here != root:
            differ = {
                f.name.name
                for f in findings
                if f.state == "present" and source_of(root, f.name) != source_of(here, f.name)
            }
        if arguments.all:
            for f in findings:
                print(f"{f.state:8} {f.name.capability:8} {f.name.name:58} {f.where}")
        else:
            print("\n".join(lines(findings, differ)))
    lacks = verdicts(findings)
    print(f"{sum(f.state == 'present' for f in findings)} of {len(findings)} names as known")
    for what, why in lacks.items():
        print(f"{what:8} {why + '; ' + CAPABILITIES[what] if why else 'as known'}")
    return 1 if any(lacks.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
