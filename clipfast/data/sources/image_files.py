"""One file of a sample, read whole; what cannot be an image or a caption is not read at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from clipfast.data.sources.samples import Place, UnusableError
from clipfast.errors import UserError

LARGEST = 256_000_000  # bytes
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_file(path: bytes | Path, place: Place) -> bytes:
    """Raises:
    UnusableError: it is missing, no regular file or too large, or cannot be read.
    UserError: no file can be opened any more.
    """
    try:
        # Opening a named pipe would wait for someone to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise UnusableError("no file can have this name", place) from None
    except OSError as error:
        raise _as_unusable(error, place) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UnusableError(f"expected a file; got {kind}", place)
        check_size(status.st_size, place)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(LARGEST)
    except OSError as error:
        raise _as_unusable(error, place) from None
    finally:
        os.close(descriptor)


def check_size(size: int, place: Place) -> None:
    """Raises:
    UnusableError: it is too large.
    """
    if size > LARGEST:
        most, got = (f"{number / 1e6:,.1f} MB" for number in (LARGEST, size))
        raise UnusableError(f"expected at most {most}; got {got}", place)


def is_shortage(error: OSError) -> bool:
    """Whether what failed would fail for every file alike, and says nothing of this one."""
    return error.errno in _SHORTAGES


def _as_unusable(error: OSError, place: Place) -> UserError:
    if is_shortage(error):
        return UserError(f"{place.shard}: {place.key} cannot be opened: {error.strerror}")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UnusableError("no such file", place)
    return UnusableError(f"cannot be read: {error.strerror}", place)
