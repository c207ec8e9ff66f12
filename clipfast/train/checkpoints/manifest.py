"""``manifest.json``: what a checkpoint consists of, so that damage is found before it is used.

It lies beside the files that it lists, in a folder of ``state/``, and is written last: a folder
without one was never finished.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from clipfast.errors import UserError
from clipfast.train.checkpoints.run_folder import Position
from clipfast.weights.checkpoint import replacing

NAME = "manifest.json"
_FORMAT = 1
_PACKAGES = ("clipfast", "torch", "deepspeed")


class FileSum(NamedTuple):
    """What tells a file from one that was damaged since."""

    bytes: int
    sha256: str


Files = dict[str, FileSum]


@dataclass(frozen=True)
class Manifest:
    """Attributes:
    engine: the name of the one that wrote the weights; "open_clip" where they are in its form.
    position: how far the run had come.
    global_step: the same, in steps.
    world_size: how many ranks wrote.
    files: by path, from the manifest's folder.
    """

    engine: str
    position: Position
    global_step: int
    world_size: int
    files: Files

    def with_files(self, files: Files) -> Manifest:
        return dataclasses.replace(self, files=files)

    def write(self, folder: Path) -> None:
        """Raises:
        OSError: it cannot be written; one that was there stands.
        """
        about = {"format": _FORMAT, **dataclasses.asdict(self), "versions": _versions()}
        about["files"] = {name: sums._asdict() for name, sums in self.files.items()}
        with replacing(folder / NAME) as partial:
            partial.write_text(json.dumps(about | {"sha256": _digest(about)}, indent=1) + "\n")

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Raises:
        UserError: there is none, it is damaged, or of a later release.
        """
        path = folder / NAME
        try:
            about = json.loads(path.read_text())
            digest = about.pop("sha256")
        except FileNotFoundError:
            raise UserError(f"checkpoint {folder}: expected {NAME} in it; got none") from None
        except OSError as error:
            raise UserError(f"checkpoint {path}: cannot be read: {error.strerror}") from None
        except (ValueError, AttributeError, KeyError, TypeError):
            raise UserError(f"checkpoint {path}: damaged: no manifest of ours") from None
        if digest != _digest(about):
            raise UserError(f"checkpoint {path}: damaged: its checksum is another")
        if about["format"] != _FORMAT:
            raise UserError(
                f"checkpoint {path}: expected format {_FORMAT}; got {about['format']}, of another "
                "release of clipfast"
            )
        return Manifest(
            about["engine"],
            Position(*about["position"]),
            about["global_step"],
            about["world_size"],
            {name: FileSum(**sums) for name, sums in about["files"].items()},
        )

    def damage(self, folder: Path, names: Iterable[str]) -> list[str]:
        """What is wrong with the files of these names, a phrase for each that is not whole."""
        return [fault for name in names if (fault := self._fault(folder, name)) is not None]

    def _fault(self, folder: Path, name: str) -> str | None:
        try:
            size = (folder / name).stat().st_size
            if size != self.files[name].bytes:
                return f"{name} has {size} of {self.files[name].bytes} bytes"
            if file_sum(folder / name) != self.files[name]:
                return f"{name} has another checksum"
        except OSError as error:
            return f"{name}: {error.strerror}"
        return None

    def unlisted(self, folder: Path) -> list[str]:
        """Files in the folder that the manifest does not vouch for."""
        found = (str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
        return sorted(name for name in found if name != NAME and name not in self.files)


def file_sum(path: Path) -> FileSum:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileSum(os.fstat(file.fileno()).st_size, digest)


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
