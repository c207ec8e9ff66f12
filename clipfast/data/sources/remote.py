"""Files by URL, read through fsspec: what they are, and their bytes on the local disk."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from clipfast.errors import UserError

T = TypeVar("T")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)]+")
_USER = re.compile(r"(?<=://)[^/?#]*@")
_QUERY = re.compile(r"\?.*", re.DOTALL)

# What file systems call a sign that the content is another one, the surest first.
_STAMPS = (
    *("ETag", "etag", "Content-MD5", "md5Hash", "checksum", "Digest", "Last-Modified"),
    *("LastModified", "last_modified", "updated", "mtime", "modified", "created"),
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PASSING_STATUSES = (408, 425, 429)  # time-out, too early, too many requests
_OURS = ("http", "https", "s3", "s3a")
_LARGE = 64 << 20


class StorageError(UserError):
    """A file that cannot be had."""


class Identity(NamedTuple):
    """Tells a file from what may later be under the same name.

    Attributes:
        bytes: its size.
        stamp: its ETag, checksum or time of change; empty where the server tells none.
    """

    bytes: int
    stamp: str


class Patience(NamedTuple):
    """How long a server may fail.

    Attributes:
        attempts: how often a file is tried.
        wait: seconds before the second attempt; twice as long before each further one.
        timeout: seconds without a byte after which an attempt has failed.
    """

    attempts: int = 4
    wait: float = 0.5
    timeout: float = 30.0


def is_remote(url: str) -> bool:
    """Whether `url` has a scheme, other than ``file://``."""
    return bool(_URL.match(url)) and not url.startswith("file://")


def redacted(url: str) -> str:
    """`url` as it may be shown: without a user, a password, or the values of a query."""
    return _QUERY.sub("?…", _USER.sub("", url)) if is_remote(url) else url


class RemoteFile:
    """One file by URL.

    Credentials, endpoints and proxies are found where fsspec's packages look for them: their
    environment variables and configuration files.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        self.url, self.patience = url, patience
        self.name = redacted(url)

    def identity(self) -> Identity:
        """What the server says the file is.

        Raises:
            StorageError: there is no such file, or the server does not tell.
        """
        return self._persist(self._ask)

    def fetch(self, target: Path, identity: Identity) -> None:
        """Writes the file's bytes to `target`; after an error that is removed.

        Raises:
            StorageError: they cannot be had, are of another file than `identity`, or do not fit.
        """
        try:
            self._persist(lambda: self._fetch(target, identity))
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _persist(self, attempt: Callable[[], T]) -> T:
        """`attempt`'s result; errors that may pass are waited for.

        Errors are not chained: their texts have the URL with its credentials.
        """
        for tried in range(self.patience.attempts):
            if tried:
                time.sleep(self.patience.wait * 2 ** (tried - 1))
            try:
                return attempt()
            except StorageError:
                raise
            except Exception as error:
                if (lasting := _lasting(error)) is not None:
                    raise StorageError(f"{self.name}: {lasting}") from None
                why = reason(error)
        raise StorageError(
            f"{self.name}: expected the file; got an error in each of {self.patience.attempts} "
            f"attempts, the last time {why}"
        )

    def _ask(self) -> Identity:
        files, path = filesystem(self.url, self.patience.timeout)
        info = _watched(lambda: files.info(path), lambda: None, self.patience.timeout)
        if info.get("type") == "directory":
            raise StorageError(f"{self.name}: expected a file; got a folder")
        if info.get("size") is None:
            raise StorageError(f"{self.name}: expected a server that tells its size; got none")
        stamp = next((info[key] for key in _STAMPS if info.get(key)), "")
        return Identity(int(info["size"]), str(stamp))

    def _fetch(self, target: Path, identity: Identity) -> None:
        files, path = filesystem(self.url, self.patience.timeout)
        # A new file, since an attempt that was given up may still write to the last one.
        fresh = target.with_name(f".{target.name}")
        fresh.touch()
        os.replace(fresh, target)
        arrived = _Arrived()
        with _progress_bar(self.name, identity.bytes) as bar:
            task = bar.add_task(self.name.rsplit("/", 1)[-1], total=identity.bytes)

            def progress() -> object:
                bar.update(task, completed=arrived.bytes)
                # Not every file system counts the bytes.
                return arrived.bytes, target.stat().st_size

            try:
                _watched(
                    lambda: files.get_file(path, str(target), callback=arrived),
                    progress,
                    self.patience.timeout,
                )
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise StorageError(no_room(target.parent, identity.bytes, error)) from None
                raise
            finally:
                arrived.wanted = False
        self._check(target.stat().st_size, identity)

    def _check(self, size: int, identity: Identity) -> None:
        if (now := self._ask()) != identity:
            raise StorageError(
                f"{self.name}: expected the file that was there at first, of {identity.bytes} "
                f"bytes ({identity.stamp}); got one of {now.bytes} bytes ({now.stamp})"
            )
        if size != identity.bytes:
            raise OSError(f"{size} of {identity.bytes} bytes")


class _Arrived(Callback):
    """Counts bytes, and ends a download that is not wanted any more."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.wanted = True

    def relative_update(self, inc: int = 1) -> None:
        if not self.wanted:
            raise TimeoutError
        self.bytes += inc


def no_room(folder: Path, size: int, error: OSError) -> str:
    """The sentence for a disk that does not take a file."""
    return f"{folder}: expected room for a file of {size} bytes; got: {error.strerror}"


def filesystem(url: str, timeout: float) -> tuple[Any, str]:
    """fsspec's file system for `url`, and the file's path in it.

    Raises:
        StorageError: fsspec knows no such kind of URL, or a package for it is missing.
    """
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            # Its own limit is five minutes for a whole file.
            limit = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
            options["client_kwargs"] = {
                "trust_env": True,
                **_configured(protocol).get("client_kwargs", {}),
                "timeout": limit,
            }
        elif protocol in ("s3", "s3a"):
            # Its several parts at once are held in memory, 50 MB each, before a byte is written.
            options = {"max_concurrency": 1, **_configured(protocol)}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = getattr(error.__cause__ or error, "name", None) or f"a package for {protocol}://"
        wanted = '"clipfast[remote]"' if protocol in _OURS else package
        message = f"expected {package} for this kind of URL; pip install {wanted}"
    except ValueError as error:
        if "rotocol not known" not in str(error):
            raise
        message = f"expected a kind of URL that fsspec knows; got {protocol}://"
    raise StorageError(f"{redacted(url)}: {message}")


def _configured(protocol: str) -> Mapping[str, Any]:
    return fsspec.config.conf.get(protocol, {})


def _watched(task: Callable[[], T], progress: Callable[[], object], timeout: float) -> T:
    """`task`'s result, from a thread of its own.

    Raises:
        TimeoutError: `progress` gave the same for `timeout` seconds; the task is left behind.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(task())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    # A thread that no exit of the program waits for.
    threading.Thread(target=run, name="clipfast-fetch", daemon=True).start()
    last, since = progress(), time.monotonic()
    while not done.wait(min(timeout / 4, 0.5)):
        if (now := progress()) != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since >= timeout:
            raise TimeoutError(f"no byte for {timeout:g} seconds")
    if errors:
        raise errors[0]
    return results[0]


def _progress_bar(name: str, size: int) -> Progress:
    """Shown to whoever waits for a large file: not for threads that read ahead."""
    console = Console(stderr=True)
    waits = threading.current_thread() is threading.main_thread()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not (waits and size > _LARGE and console.is_terminal),
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, as aiohttp or botocore tell it."""
    for cause in _causes(error):
        if isinstance(status := getattr(cause, "status", None), int):
            return status
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(status, int):
                return status
    return None


def _lasting(error: Exception) -> str | None:
    """The end of the sentence for an error that no further attempt would mend."""
    status = _status(error)
    if status is None and error.__cause__ is None:
        if isinstance(error, FileNotFoundError):
            return "no such file"
        if isinstance(error, PermissionError):
            return "expected permission to read it; got none"
    if status is None or not 400 <= status < 500 or status in _PASSING_STATUSES:
        return None
    if status == 404:
        return "no such file"
    if status in (401, 403):
        return f"expected permission to read it; got HTTP status {status}"
    return f"expected the file; got HTTP status {status}"


def reason(error: Exception) -> str:
    """What a server or file system says was wrong, without credentials."""
    if status := _status(error):
        return f"HTTP status {status}"
    *_, cause = _causes(error)
    text = _URL_IN_TEXT.sub(lambda url: redacted(url[0]), str(cause)) or type(cause).__name__
    return " ".join(text.split())
