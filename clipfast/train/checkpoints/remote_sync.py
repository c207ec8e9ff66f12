"""``--remote-sync URL``: the run's files at URL/NAME, copied again and again."""

from __future__ import annotations

import argparse
import logging
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from clipfast.data.sources.remote import filesystem, reason, redacted
from clipfast.errors import UserError
from clipfast.train.checkpoints.manifest import NAME as MANIFEST
from clipfast.train.checkpoints.run_folder import LATEST, PARTIAL, RunFolder
from clipfast.train.checkpoints.states import remove

logger = logging.getLogger("clipfast.train")

_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss", "r2")
_TIMEOUT = 60.0  # seconds without a byte
_STATE = re.compile(r"state/step_(\d+)/" + re.escape(MANIFEST))
_EPOCH = re.compile(r"checkpoints/epoch_(\d+)\.pt")


class _Stamp(NamedTuple):
    bytes: int
    changed: float  # seconds since the epoch


class RemoteSync:
    """What is half written, and ``epoch_latest.pt``, which may change while it is copied, stays
    here. Nothing is removed there but states: as many are kept as here.

    Args:
        folder: the run's.
        url: where the folder of its name is, or will be.
        every: seconds between two copies.
        keep: so many of the newest states are kept.

    Raises:
        UserError: no such kind of URL, or a package for it is missing.
    """

    def __init__(self, folder: RunFolder, url: str, *, every: float, keep: int) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.name = redacted(url)
        self._files, root = filesystem(url, _TIMEOUT)
        self._root = f"{root.rstrip('/')}/{folder.path.name}"
        self._makes_folders = url.partition("://")[0] not in _OBJECT_STORES
        self._copied: dict[str, _Stamp] = {}
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @staticmethod
    def of(args: argparse.Namespace, folder: RunFolder) -> RemoteSync | None:
        """As the flags say."""
        if args.remote_sync is None:
            return None
        every = args.remote_sync_frequency
        return RemoteSync(folder, args.remote_sync, every=every, keep=args.keep_states)

    def start(self) -> None:
        """Copies all for a first time, then goes on in a thread.

        Raises:
            UserError: the first copy failed.
        """
        self._copied = self._already_there()
        self.copy()
        self._thread = threading.Thread(target=self._go_on, name="clipfast-sync", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Copies what is left.

        Raises:
            UserError: the last copy failed.
        """
        self.stop()
        self.copy()

    def stop(self) -> None:
        """Ends the thread, once the file that it copies is there."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()

    def copy(self) -> None:
        """Copies what has changed.

        Raises:
            UserError: a file could not be copied.
        """
        try:
            self._copy()
        except Exception as error:
            raise UserError(
                f"--remote-sync {self.name}: expected to copy the run's files there; got: "
                f"{reason(error)}"
            ) from None

    def fetch(self) -> None:
        """Copies here the newest state and epoch's checkpoint, where they are newer than those
        here.

        Raises:
            UserError: there are such, and they could not be copied.
        """
        try:
            there = self._listed()
            for name in self._newer(there):
                self._get(name, [n for n in there if n == name or n.startswith(f"{name}/")])
        except Exception as error:
            raise UserError(
                f"--remote-sync {self.name}: expected to read the run's checkpoints; got: "
                f"{reason(error)}"
            ) from None

    def _go_on(self) -> None:
        while not self._ending.wait(self.every):
            try:
                self.copy()
            except UserError as error:
                logger.warning(f"{error}; trying again in {self.every:g} seconds")

    def _copy(self) -> None:
        new_states = False
        for name, stamp in self._here():
            if self._ending.is_set() and threading.current_thread() is self._thread:
                return
            if self._copied.get(name) != stamp and self._put(name):
                self._copied[name] = stamp
                new_states = new_states or name.startswith("state/step_")
        if new_states:
            self._remove_old_states()

    def _here(self) -> Iterator[tuple[str, _Stamp]]:
        """The files to copy; manifests come last, as there they tell what is whole."""
        root = self.folder.path
        paths = (path for path in root.rglob("*") if path.is_file())
        names = [path.relative_to(root) for path in paths]
        for name in sorted(names, key=lambda name: (name.name == MANIFEST, name)):
            if not any(p.endswith(PARTIAL) or Path(p).stem == LATEST for p in name.parts):
                try:
                    stat = (root / name).stat()
                except FileNotFoundError:  # of a state that has made room
                    continue
                yield name.as_posix(), _Stamp(stat.st_size, stat.st_mtime)

    def _put(self, name: str) -> bool:
        """Whether the file was still there to be copied."""
        path, target = self.folder.path / name, f"{self._root}/{name}"
        if self._makes_folders:
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        try:
            self._files.put_file(str(path), target)
        except FileNotFoundError:
            if path.exists():
                raise
            return False
        return True

    def _listed(self) -> dict[str, int]:
        """What is there: names from the run's folder on, and sizes."""
        self._files.invalidate_cache()
        try:
            found = self._files.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        skip = len(self._root) + 1
        return {path[skip:]: info["size"] for path, info in found.items()}

    def _already_there(self) -> dict[str, _Stamp]:
        """The files of here that an earlier start has copied as they are now."""
        try:
            there = self._listed()
            return {
                name: stamp
                for name, stamp in self._here()
                if there.get(name) == stamp.bytes
                and self._files.modified(f"{self._root}/{name}").timestamp() >= stamp.changed
            }
        except NotImplementedError:  # a file system without times
            return {}
        except Exception as error:
            raise UserError(
                f"--remote-sync {self.name}: expected a place to copy to; got: {reason(error)}"
            ) from None

    def _remove_old_states(self) -> None:
        newest = _greatest(_STATE, [name for name, _ in self._here()])
        steps = sorted(step for step in _numbers(_STATE, self._listed()) if step <= newest)
        for step in steps[: -self.keep]:
            self._files.rm(f"{self._root}/state/step_{step}", recursive=True)

    def _newer(self, there: Iterable[str]) -> list[str]:
        """Folders and files that are further there than here; what has a manifest before it."""
        here, there = [name for name, _ in self._here()], list(there)
        state, epoch = _greatest(_STATE, there), _greatest(_EPOCH, there)
        wanted = []
        if state > _greatest(_STATE, here):
            wanted += [f"state/step_{state}"]
        if epoch > _greatest(_EPOCH, here):
            wanted += [f"checkpoints/epoch_{epoch}.pt", f"state/epoch_{epoch}"]
        return wanted

    def _get(self, name: str, names: list[str]) -> None:
        """Copies a folder of these files, or the file, here, whole or not at all."""
        target = self.folder.path / name
        partial = target.with_name(target.name + PARTIAL)
        remove(partial)
        for file in names:
            path = partial / file[len(name) + 1 :] if file != name else partial
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(f"{self._root}/{file}", str(path))
        if names:
            remove(target)
            partial.rename(target)


def _greatest(pattern: re.Pattern[str], names: Iterable[str]) -> int:
    return max(_numbers(pattern, names), default=-1)


def _numbers(pattern: re.Pattern[str], names: Iterable[str]) -> list[int]:
    return [int(match[1]) for name in names if (match := pattern.fullmatch(name))]
