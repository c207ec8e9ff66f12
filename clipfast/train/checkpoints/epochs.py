"""``checkpoints/epoch_N.pt`` and ``epoch_latest.pt``: weights and optimizer in open_clip's form.

That form has no place for random numbers, data position and averaged weights: they go into
``state/epoch_N/run.pt``, whose manifest also has the checksum of ``epoch_N.pt``. Rank 0 writes all.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from clipfast.errors import UserError
from clipfast.ranks.agreement import by_main
from clipfast.ranks.world import World
from clipfast.train.checkpoints.host_copy import host_copy
from clipfast.train.checkpoints.manifest import Files, Manifest
from clipfast.train.checkpoints.run_folder import (
    LATEST,
    PARTIAL,
    Position,
    RunFolder,
    epochs_in,
    numbered,
)
from clipfast.train.checkpoints.states import (
    RUN_FILE,
    finish_folder,
    make_afresh,
    remove,
    run_content,
    written,
)
from clipfast.train.checkpoints.writer import Writer
from clipfast.train.engines.engine import Engine
from clipfast.weights.checkpoint import save_checkpoint

_STATE = re.compile(r"epoch_(\d+)")
OPEN_CLIP = "open_clip"  # the engine's name in a manifest: any may read it


class Epochs:
    """Args:
    folder: the run's.
    world: the processes.
    writer: of the run's checkpoints.
    frequency: epochs between checkpoints; the last one has one in any case.
    total: epochs of the run.
    latest: write epoch_latest.pt after each epoch.
    delete_previous: once a checkpoint is whole, the one before is removed.
    keep: so many of the newest checkpoints keep what open_clip's form has no place for.
    """

    def __init__(
        self,
        folder: RunFolder,
        world: World,
        writer: Writer,
        *,
        frequency: int,
        total: int,
        latest: bool,
        delete_previous: bool,
        keep: int,
    ) -> None:
        self.folder, self.world, self.writer = folder, world, writer
        self.frequency, self.total, self.latest = frequency, total, latest
        self.delete_previous, self.keep = delete_previous, keep

    def save(
        self,
        epochs_done: int,
        global_step: int,
        engine: Engine,
        content: dict[str, Any],
        ema_weights: dict[str, Tensor] | None = None,
    ) -> None:
        """Copies to memory what is due after this epoch, and has it written. Collective; waits for
        a write before it.

        Args:
            content: of the run: tensors and plain values; rank 0's counts.
            ema_weights: written to ``ema/`` under the same names.

        Raises:
            UserError: the checkpoint before could not be written, or the folder cannot be made.
        """
        names = self._due(epochs_done)
        if not names:
            return
        self.writer.finish()
        by_main(self.world, lambda: self._make_folders(names, ema=ema_weights is not None))
        checkpoint = engine.checkpoint()
        position = Position(epochs_done, 0)
        content = run_content(self.world, position, global_step, content)
        about = {"epoch": epochs_done, "name": self.folder.path.name}
        files = {}
        if checkpoint is not None:
            files[self.folder.checkpoints] = about | checkpoint
            if ema_weights is not None:
                files[self.folder.ema] = about | {"state_dict": ema_weights}
        run, files = host_copy((content, files))

        def write() -> Files:
            if not self.world.is_main:
                return {}
            for folder, file_content in files.items():
                self._write(folder, names, file_content)
            return self._write_run_files(names, run)

        manifest = Manifest(OPEN_CLIP, position, global_step, self.world.size, {})
        self.writer.start(
            str(self.folder.checkpoints / f"{names[0]}.pt"),
            write,
            lambda sums: self._commit(names, list(files), manifest, sums),
            lambda: self._undo(names),
        )

    def _due(self, epochs_done: int) -> list[str]:
        often = self.frequency > 0 and epochs_done % self.frequency == 0
        names = [f"epoch_{epochs_done}"] if often or epochs_done == self.total else []
        return [*names, LATEST] if self.latest else names

    def _make_folders(self, names: list[str], *, ema: bool) -> None:
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        if ema:
            self.folder.ema.mkdir(exist_ok=True)
        make_afresh([self._state(name, PARTIAL) for name in names])

    def _state(self, name: str, ending: str = "") -> Path:
        return self.folder.states / f"{name}{ending}"

    def _write(self, folder: Path, names: list[str], content: dict[str, Any]) -> None:
        first, *others = [folder / f"{name}.pt{PARTIAL}" for name in names]
        save_checkpoint(first, content)
        for other in others:
            shutil.copyfile(first, other)

    def _write_run_files(self, names: list[str], run: dict[str, Any]) -> Files:
        """Returns the sums of all files of all names, by path from their folders in state/."""
        files: Files = {}
        for name in names:
            save_checkpoint(self._state(name, PARTIAL) / RUN_FILE, run)
            files[f"{name}/{RUN_FILE}"] = written(self._state(name, PARTIAL) / RUN_FILE)
            files[f"{name}/{_file(name)}"] = written(
                self.folder.checkpoints / f"{name}.pt{PARTIAL}"
            )
        return files

    def _commit(
        self, names: list[str], folders: list[Path], manifest: Manifest, sums: Files
    ) -> None:
        for name in names:
            # A new file beside the old one's sum would be taken for damaged.
            remove(self._state(name))
            for folder in folders:
                os.replace(folder / f"{name}.pt{PARTIAL}", folder / f"{name}.pt")
            files = {file: sums[f"{name}/{file}"] for file in (RUN_FILE, _file(name))}
            finish_folder(self._state(name, PARTIAL), self._state(name), manifest, files)
        if self.delete_previous and names[0] != LATEST:
            self._delete_previous(manifest.position.epoch)
        self._forget_old_runs()

    def _undo(self, names: list[str]) -> None:
        for name in names:
            remove(self._state(name, PARTIAL))
            for folder in (self.folder.checkpoints, self.folder.ema):
                (folder / f"{name}.pt{PARTIAL}").unlink(missing_ok=True)

    def _delete_previous(self, epoch: int) -> None:
        for folder in (self.folder.checkpoints, self.folder.ema):
            for number, path in [e for e in epochs_in(folder) if e[0] < epoch][-1:]:
                path.unlink()
                remove(self._state(f"epoch_{number}"))

    def _forget_old_runs(self) -> None:
        """What only going on needs is large where weights are averaged."""
        for _, state in numbered(self.folder.states, _STATE)[: -self.keep]:
            with contextlib.suppress(UserError):  # a damaged manifest says nothing of run.pt
                manifest = Manifest.read(state)
                files = {name: s for name, s in manifest.files.items() if name != RUN_FILE}
                manifest.with_files(files).write(state)
                (state / RUN_FILE).unlink(missing_ok=True)


def _file(name: str) -> str:
    """A checkpoint's path from its folder in state/."""
    return f"../../checkpoints/{name}.pt"
