"""What a release is made of and tested by: the source tree, commands, a bare Python."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent


class Release(NamedTuple):
    sdist: Path
    wheel: Path


def run(command, *, cwd=None, **environment) -> str:
    """What the command prints; fails with all of it if the command does."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-5000:]}"
    return done.stdout


def tree_files() -> list[str]:
    """All files of the source tree that git does not ignore."""
    command = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def only(paths: Iterator[Path]) -> Path:
    (path,) = paths
    return path


class Venv(NamedTuple):
    """A Python that has the wheel, and what it needs from the environment of the tests.

    Attributes:
        bin: the only folder on its PATH: there is no compiler.
    """

    bin: Path
    home: Path

    def __call__(self, *command, returns=0, **environment) -> str:
        bare = {
            "PATH": str(self.bin),
            "HOME": str(self.home),
            "COLUMNS": "200",
            "LC_ALL": "C.UTF-8",
        }
        kept = {
            name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TMPDIR") if name in os.environ
        }
        done = subprocess.run(
            [str(self.bin / command[0]), *map(str, command[1:])],
            cwd=self.home,
            env=bare | kept | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == returns, f"{command}:\n{done.stdout[-5000:]}"
        return done.stdout
