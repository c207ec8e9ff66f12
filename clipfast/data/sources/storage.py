"""Files by path or URL; remote ones come whole into a cache folder of bounded size.

Several processes and machines may share the folder: ``files/`` has the files, ``locks/`` what keeps
two from fetching the same one. Of a file that is being fetched the name tells its size, so that
room is kept for all of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from clipfast.data.sources.remote import (
    Identity,
    Patience,
    RemoteFile,
    StorageError,
    is_remote,
    no_room,
    redacted,
)

__all__ = ["Identity", "Patience", "Storage", "StorageError", "is_remote", "redacted"]

_PARTIAL = re.compile(r"\.[0-9a-f]{12}\.([0-9]+)\.partial$")
_GIGABYTE = 1_000_000_000
# Of so many URLs the servers' answers are kept: of all shards, if not of all images.
_REMEMBERED = 1 << 18


class Storage:
    """Files by path or URL; remote ones through fsspec into a bounded local cache.

    The least recently used files make room for new ones. An open file stays readable when that
    happens; a path may lead nowhere by the time it is opened, so prefer `open`.

    Args:
        cache: where remote files are kept; created when there is one. Default: ``clipfast/data`` in
            the user's cache folder.
        gigabytes: the bound of all files in it together.
        patience: with a server that fails.

    Attributes:
        folder: `cache`, in which others may keep small files, which the bound does not count.
    """

    def __init__(
        self,
        cache: Path | None = None,
        gigabytes: float = 50.0,
        *,
        patience: Patience | None = None,
    ) -> None:
        self.folder = _default_folder() if cache is None else cache
        self.gigabytes = gigabytes
        self.patience = patience or Patience()
        self._files, self._locks = self.folder / "files", self.folder / "locks"
        self._identities: dict[str, Identity] = {}
        self._remembering = threading.Lock()
        # Some network file systems' locks only keep processes apart.
        self._threads = [threading.Lock() for _ in range(256)]

    def local(self, url: str) -> Path:
        """The file on the local disk: a path as it is, without a look; a remote file is fetched.

        Raises:
            StorageError: the file cannot be had, or does not fit.
        """
        if not is_remote(url):
            return Path(url.removeprefix("file://"))
        identity = self.identity(url)
        digest = hashlib.sha256(f"{url}\n{identity}".encode()).hexdigest()
        target = self._files / f"{digest[:24]}-{_readable(url)}"
        if not _use(target, identity.bytes):
            with self._threads[int(digest[:2], 16)], self._lock(digest[:3]):
                # Another thread or process may have fetched it meanwhile.
                if not _use(target, identity.bytes):
                    self._fetch(url, target, identity)
        return target

    def open(self, url: str) -> BinaryIO:
        """The file opened for reading, fetched first where it is remote.

        Raises:
            StorageError: the file cannot be had, or does not fit.
        """
        while True:
            try:
                return open(self.local(url), "rb")
            except FileNotFoundError:
                # A remote file was there just now, and has made room for another one since.
                if not is_remote(url):
                    raise StorageError(f"{url}: no such file") from None
            except OSError as error:
                raise StorageError(f"{redacted(url)}: expected a file; got: {error}") from None

    def identity(self, url: str) -> Identity:
        """What is under `url`; a server is asked once, and its answer kept.

        Raises:
            StorageError: nothing is, or the server does not tell.
        """
        if is_remote(url):
            return self._remembered(url)
        path = self.local(url)
        try:
            stat = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise StorageError(f"{url}: no such file") from None
        except OSError as error:
            raise StorageError(f"{url}: expected a file; got: {error.strerror}") from None
        if path.is_dir():
            raise StorageError(f"{url}: expected a file; got a folder")
        return Identity(stat.st_size, str(stat.st_mtime_ns))

    def _remembered(self, url: str) -> Identity:
        if identity := self._identities.get(url):
            return identity
        identity = RemoteFile(url, self.patience).identity()
        with self._remembering:
            while len(self._identities) >= _REMEMBERED:
                del self._identities[next(iter(self._identities))]
            return self._identities.setdefault(url, identity)

    def _fetch(self, url: str, target: Path, identity: Identity) -> None:
        partial = self._make_room(url, target, identity.bytes)
        try:
            RemoteFile(url, self.patience).fetch(partial, identity)
            with self._lock("room"):  # a file that changes its name may be missed by `_scan`
                os.replace(partial, target)
        except OSError as error:
            raise StorageError(no_room(self._files, identity.bytes, error)) from None
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, url: str, target: Path, size: int) -> Path:
        """An empty file for `size` bytes, for which the least recently used ones are removed."""
        bound = int(self.gigabytes * _GIGABYTE)
        if size > bound:
            raise StorageError(
                f"{redacted(url)}: expected at most {self.gigabytes:g} GB, the bound of the cache "
                f"{self.folder}; got {size / _GIGABYTE:.3g} GB"
            )
        partial = self._files / f"{target.name}.{uuid.uuid4().hex[:12]}.{size}.partial"
        while not self._reserve(partial, size, bound):
            # Files that others are fetching have the room; they will be there, and can be removed.
            time.sleep(min(0.1, self.patience.timeout))
        return partial

    def _reserve(self, partial: Path, size: int, bound: int) -> bool:
        """Whether `partial` could be made, for `size` bytes."""
        with self._lock("room"):
            files = sorted(self._scan(), key=lambda file: file.used)
            if bound - sum(file.size for file in files if file.partial) < size:
                return False
            room = bound - sum(file.size for file in files)
            for file in files:
                if room >= size:
                    break
                if not file.partial:
                    file.path.unlink(missing_ok=True)
                    room += file.size
            try:
                partial.touch()
            except OSError as error:
                raise StorageError(no_room(self._files, size, error)) from None
            return True

    def _scan(self) -> Iterator[_Cached]:
        # A fetch that lives writes to its file, or gives it up.
        dead = time.time() - 2 * self.patience.timeout
        for entry in os.scandir(self._files):
            if entry.name.startswith("."):
                continue
            try:
                stat = entry.stat()
            except FileNotFoundError:
                continue
            path, size = Path(entry.path), stat.st_size
            if whole := _PARTIAL.search(entry.name):
                size = int(whole[1])
                if stat.st_mtime < dead:
                    path.unlink(missing_ok=True)
                    continue
            yield _Cached(path, size, stat.st_mtime, partial=whole is not None)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Keeps processes apart, as far as the file system has locks."""
        try:
            self._files.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(exist_ok=True)
            file = open(self._locks / name, "ab")  # noqa: SIM115, closed below
        except OSError as error:
            raise StorageError(
                f"{self.folder}: expected a cache folder that can be written; got: {error.strerror}"
            ) from None
        with file:
            # Without locks a file may be fetched twice, and the bound be passed by it.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


class _Cached(NamedTuple):
    path: Path
    size: int
    used: float
    partial: bool


def _use(path: Path, size: int) -> bool:
    """Whether the file is there whole; then it is the most recently used one."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except OSError:
        return False
    return True


def _readable(url: str) -> str:
    """The file's name in `url`, as far as it is harmless in a path and tells nothing secret."""
    name = redacted(url).removesuffix("?…").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-80:]


def _default_folder() -> Path:
    parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(parent) / "clipfast" / "data"
