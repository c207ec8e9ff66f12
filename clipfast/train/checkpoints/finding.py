"""Which checkpoint a run goes on from: the furthest that is whole."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from clipfast.errors import UserError
from clipfast.ranks.agreement import by_main, refuse
from clipfast.ranks.world import World
from clipfast.train.checkpoints.foreign import is_foreign
from clipfast.train.checkpoints.manifest import Manifest
from clipfast.train.checkpoints.run_folder import (
    EPOCH_FILE,
    LATEST,
    Position,
    RunFolder,
    epochs_in,
    steps_in,
)
from clipfast.weights.checkpoint import read_checkpoint

logger = logging.getLogger("clipfast.train")


class Saved(NamedTuple):
    """A checkpoint on the disk.

    Attributes:
        path: a state's folder, or a file in open_clip's form.
        position: how far the run had come; what a file of open_clip's own holds goes before it.
        folder: of the manifest; None for a file without one, as open_clip's are.
        manifest: of what was saved.
    """

    path: Path
    position: Position
    folder: Path | None = None
    manifest: Manifest | None = None


def furthest_whole(folder: RunFolder, world: World) -> Saved | None:
    """What ``--resume latest`` goes on from, None where nothing was saved yet. Collective.

    Damaged checkpoints are passed over, with a warning that names them.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    found, damaged = by_main(world, lambda: _all(folder))
    for sentence in damaged:
        _warn(world, sentence)
    for saved in sorted(found, key=lambda s: (s.position, s.manifest is not None), reverse=True):
        try:
            check(saved, world)
        except UserError as error:
            _warn(world, str(error))
            continue
        return saved
    if found or damaged:
        refuse(
            world,
            f"--resume latest: expected a whole checkpoint in {folder.path}; got damaged ones, "
            f"{len(found) + len(damaged)} in number; go on from another by --resume FILE",
        )
    return None


def saved_at(path: Path) -> Saved:
    """The checkpoint that a user names: a state's folder, or one of DeepSpeed's own, or a file.

    Raises:
        UserError: there is none.
    """
    if is_foreign(path):
        return Saved(path, Position(0, 0))
    if path.is_dir():
        manifest = Manifest.read(path)
        return Saved(path, manifest.position, path, manifest)
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file or folder")
    folder = path.parent.parent / "state" / path.stem
    if path.parent.name == "checkpoints" and folder.is_dir():
        manifest = Manifest.read(folder)
        return Saved(path, manifest.position, folder, manifest)
    if (named := EPOCH_FILE.fullmatch(path.name)) is not None:
        return Saved(path, Position(int(named[1]), 0))  # reading all of many would take minutes
    return Saved(path, Position(_read(path), 0))


def check(saved: Saved, world: World) -> None:
    """Compares a checkpoint with its manifest; each rank reads a share of the files. One without a
    manifest is read as a whole, by rank 0. Collective.

    Raises:
        UserError: it is damaged.
    """
    if saved.manifest is None or saved.folder is None:
        by_main(world, lambda: _read(saved.path))
        return
    names = sorted(saved.manifest.files)[world.rank :: world.size]
    found = saved.manifest.damage(saved.folder, names)
    if world.is_main:
        found += [f"{n} is not in its manifest" for n in saved.manifest.unlisted(saved.folder)]
    faults = [fault for share in world.all(found) for fault in share]
    if faults:
        refuse(world, f"checkpoint {saved.path}: damaged: {'; '.join(faults)}")


def _all(folder: RunFolder) -> tuple[list[Saved], list[str]]:
    """What is in the run's folder, and what is wrong with the rest of it."""
    paths = [path for _, path in steps_in(folder.states)]
    paths += [path for _, path in epochs_in(folder.checkpoints)]
    latest = folder.checkpoints / f"{LATEST}.pt"
    found, damaged = [], []
    for path in [*paths, *([latest] if latest.exists() else [])]:
        try:
            found.append(saved_at(path))
        except UserError as error:
            damaged.append(str(error))
    return found, damaged


def _read(path: Path) -> int:
    """The epochs that a file of open_clip's own says are done."""
    epochs: int = read_checkpoint(path).get("epoch", 0)
    return epochs


def _warn(world: World, sentence: str) -> None:
    if world.is_main:
        logger.warning(f"{sentence}; passed over")
