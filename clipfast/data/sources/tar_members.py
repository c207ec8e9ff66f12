"""The members of a tar, header by header; their contents are passed over.

Plain headers, which most members have, are read here, ten times as fast as by tarfile. That reads
all others: of long or foreign names, links, sparse files.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_PLAIN_FILE = (b"0", b"\0")
_EXTENSION = b"x"
# What an extended header may say that changes where a member is, or its name. tarfile and
# webdataset write one for each member that says but the time.
_MATTERS = re.compile(rb"(?:path|size|hdrcharset|GNU\.[^=\n]*)=")
# Of a name or an extended header.
_LARGEST_HEADER = 1 << 16
# How far after the end mark is looked for a second archive; tar fills up to 10 kB.
_TAIL = 1 << 16

FILE, FOLDER = "a file", "a folder"


class Member(NamedTuple):
    """Attributes:
    name: bytes of it that are not UTF-8 are lone surrogates.
    offset: of its content.
    size: of its content.
    kind: `FILE`, `FOLDER`, or what else it is, as a phrase.
    """

    name: str
    offset: int
    size: int
    kind: str = FILE


class DamagedTarError(Exception):
    """The members up to here are whole.

    Attributes:
        offset: the first byte that cannot be used.
        reason: a phrase.
    """

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset, self.reason = offset, reason


def tar_members(file: BinaryIO) -> Iterator[Member]:
    """All members whose content is there in full.

    Raises:
        DamagedTarError: the tar ends early or goes on otherwise.
        OSError: the file cannot be read.
    """
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    at = 0
    while (header := os.pread(descriptor, _BLOCK, at)) != _ZEROS:
        if len(header) < _BLOCK:
            raise _short(at, size)
        member, end = _plain(descriptor, header, at) or _any(file, at, size)
        if member.size < 0 or end <= at:
            raise _damaged(at)
        # Of a sparse file the size is not what it takes here.
        last = member.offset + member.size if member.kind == FILE else end
        if last > size:
            name = ascii(member.name[:200])
            reason = f"truncated at byte {size}: {name} should end at byte {last}"
            raise DamagedTarError(size, reason)
        yield member
        at = end
    if os.pread(descriptor, _TAIL, at).strip(b"\0"):
        raise DamagedTarError(at, f"more follows the end-of-archive mark at byte {at}")


def _plain(descriptor: int, header: bytes, at: int) -> tuple[Member, int] | None:
    """A regular file with a header that needs no more than a look, and where the next header is."""
    size = _size(header)
    if header[156:157] == _EXTENSION and size is not None and size <= _LARGEST_HEADER:
        extension = os.pread(descriptor, size, at + _BLOCK)
        if _MATTERS.search(extension):
            return None
        at += _BLOCK + _padded(size)
        header = os.pread(descriptor, _BLOCK, at)
        size = _size(header)
    # Byte 345 begins the first part of a longer name.
    if size is None or header[156:157] not in _PLAIN_FILE or header[345]:
        return None
    name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    if name.endswith("/"):
        return None
    offset = at + _BLOCK
    return Member(name, offset, size), offset + _padded(size)


def _size(header: bytes) -> int | None:
    """Of a member; None where the header is not a whole and plain one."""
    try:
        size = int(header[124:136].strip(b" \0"), 8)
        checksum = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return None
    # The checksum is a sum of all bytes, with its own field as eight spaces.
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    return size if len(header) == _BLOCK and size >= 0 and total == checksum else None


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _any(file: BinaryIO, at: int, size: int) -> tuple[Member, int]:
    """The member that tarfile finds at a byte, and where the next header is."""
    file.seek(at)
    try:
        with tarfile.TarFile(
            fileobj=_Bounded(file),  # type: ignore[arg-type]
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar:
            found, end = tar.next(), tar.offset
    except OSError:
        raise
    except Exception as error:  # what tarfile raises on a hostile header is not all its own
        if isinstance(error, tarfile.ReadError) and file.tell() >= size and at:
            raise _short(at, size) from None
        raise _damaged(at) from None
    if found is None:
        raise _damaged(at)
    return Member(found.name, found.offset_data, found.size, _kind(found)), end


class _Bounded:
    """A file that headers are read from, but no more at once than they need."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER + _BLOCK:
            raise tarfile.ReadError(f"header of {size} bytes")
        return self._read(size)


def _kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file"
    if member.isreg():
        return FILE
    if member.isdir():
        return FOLDER
    if member.issym():
        return "a symbolic link"
    return "a hard link" if member.islnk() else "a device or the like"


def _short(at: int, size: int) -> DamagedTarError:
    if not size:
        return DamagedTarError(0, "an empty file")
    if not at:
        return _damaged(at)
    if at < size:
        return DamagedTarError(size, f"truncated at byte {size}: in the header from byte {at} on")
    return DamagedTarError(size, f"truncated at byte {size}: no end-of-archive mark")


def _damaged(at: int) -> DamagedTarError:
    if not at:
        return DamagedTarError(0, "no tar file, or a compressed one")
    return DamagedTarError(at, f"damaged at byte {at}: no tar header is there")
