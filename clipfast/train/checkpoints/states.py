"""``state/step_N/``: all that going on inside an epoch needs.

``run.pt`` holds what is one for the run, the other files are the engine's. Every rank writes into
``step_N.partial`` by a thread; when all have, rank 0 adds the manifest and gives it its name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipfast.ranks.agreement import by_main
from clipfast.ranks.world import World
from clipfast.train.checkpoints.host_copy import host_copy
from clipfast.train.checkpoints.manifest import Files, FileSum, Manifest, file_sum
from clipfast.train.checkpoints.random_states import random_states
from clipfast.train.checkpoints.run_folder import PARTIAL, Position, steps_in
from clipfast.train.checkpoints.writer import Writer
from clipfast.train.engines.engine import Engine
from clipfast.weights.checkpoint import save_checkpoint

RUN_FILE = "run.pt"


class States:
    """Args:
    folder: of all states; made when there is one. All ranks see it.
    world: the processes.
    writer: of the run's checkpoints.
    keep: so many of the newest states are kept.
    """

    def __init__(self, folder: Path, world: World, writer: Writer, *, keep: int) -> None:
        self.folder, self.world, self.writer, self.keep = folder, world, writer, keep

    def save(
        self, position: Position, global_step: int, engine: Engine, content: dict[str, Any]
    ) -> None:
        """Copies the state to memory, and has it written. Collective; waits for a write before it.

        Args:
            content: of the run: tensors and plain values; rank 0's counts.

        Raises:
            UserError: the checkpoint before could not be written, or the folder cannot be made.
        """
        self.writer.finish()
        target = self.folder / f"step_{global_step}"
        partial = target.with_name(target.name + PARTIAL)
        by_main(self.world, lambda: make_afresh([partial]))
        # A folder for each rank, until its files are whole: it knows them from the others'.
        own = partial / f"rank_{self.world.rank}{PARTIAL}"
        write_engine = engine.snapshot(own)
        run = host_copy(run_content(self.world, position, global_step, content))

        def write() -> Files:
            own.mkdir(parents=True)
            write_engine()
            if self.world.is_main:
                save_checkpoint(own / RUN_FILE, run)
            return _hand_over(own, partial)

        manifest = Manifest(engine.name, position, global_step, self.world.size, {})
        self.writer.start(
            str(target), write, self._commit(partial, target, manifest), lambda: remove(partial)
        )

    def _commit(self, partial: Path, target: Path, manifest: Manifest) -> Callable[[Files], None]:
        def commit(files: Files) -> None:
            finish_folder(partial, target, manifest, files)
            done = [path for step, path in steps_in(self.folder) if step <= manifest.global_step]
            for older in done[: -self.keep]:
                shutil.rmtree(older)

        return commit


def run_content(
    world: World, position: Position, global_step: int, content: dict[str, Any]
) -> dict[str, Any]:
    """What ``run.pt`` holds, on rank 0; nothing elsewhere. Collective."""
    random = random_states(world)
    if not world.is_main:
        return {}
    about = {"position": tuple(position), "global_step": global_step, "random_states": random}
    return content | about


def finish_folder(partial: Path, target: Path, manifest: Manifest, files: Files) -> None:
    """Gives a folder of whole files its manifest and its name; a folder that had it is removed."""
    manifest.with_files(files).write(partial)
    sync_folder(partial)
    before = target.with_name(f"{target.name}.before{PARTIAL}")
    if target.exists():
        target.rename(before)
    partial.rename(target)
    sync_folder(target.parent)
    remove(before)


def make_afresh(folders: list[Path]) -> None:
    """Empty folders in one; what was left unfinished there is removed."""
    parent = folders[0].parent
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"*{PARTIAL}"):
        shutil.rmtree(left)
    for folder in folders:
        folder.mkdir()


def remove(folder: Path) -> None:
    """What cannot be removed stays, under a name that says it is no checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Has the names in the folder on the disk, as `os.fsync` has a file's bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def written(path: Path) -> FileSum:
    """The sum of a file that is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return file_sum(path)


def _hand_over(own: Path, partial: Path) -> Files:
    """Moves a rank's files to where all ranks' are."""
    files: Files = {}
    for path in sorted(path for path in own.rglob("*") if path.is_file()):
        name = path.relative_to(own)
        files[str(name)] = written(path)
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(partial / name)
    shutil.rmtree(own)
    return files
