"""A folder of images with captions beside them, or in a Hugging Face ``metadata`` file."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.status import Status

from clipfast.data.sources.csv_rows import as_bytes
from clipfast.data.sources.folder_metadata import NAMES, read_metadata
from clipfast.data.sources.image_files import read_file
from clipfast.data.sources.row_source import blocks
from clipfast.data.sources.samples import Fault, Place, Sample, UnusableError
from clipfast.errors import UserError

IMAGE_ENDINGS = (b".jpg", b".png", b".jpeg", b".webp")
CAPTION_ENDINGS = (b".txt", b".json")
_LISTED = 1000  # faults; of the others only the number is told
_LARGE = 100_000  # files whose listing is worth telling of


class FolderSource:
    """Images with captions in any subfolder, in the order of their paths.

    ``a.jpg`` has its caption in ``a.txt`` or ``a.json``, or in the ``metadata.csv`` or
    ``metadata.jsonl`` of a folder above it. Hidden files are left out, and links are followed only
    to files inside the folder.

    Args:
        path: of the folder.
        prefer_json: where ``a.txt`` and ``a.json`` are both there, the second is the caption.

    Raises:
        UserError: the folder or its metadata cannot be read.
    """

    def __init__(self, path: str, *, prefer_json: bool = False) -> None:
        self.name = path
        self._root = os.fsencode(path)
        self._faults: list[Fault] = []
        self._unlisted = 0
        if not os.path.isdir(path):
            raise UserError(f"folder {path}: no such folder")
        endings = CAPTION_ENDINGS[::-1] if prefer_json else CAPTION_ENDINGS
        pairs = _Pairs()
        with _Counter(path) as count:
            _Scan(self._root, endings, pairs, self._add_fault, count).walk()
        self._pairs = pairs.finished()
        self.counts = blocks(len(self._pairs))
        if not len(self._pairs):
            raise UserError(
                f"folder {path}: expected images (.jpg, .png, .jpeg, .webp) with captions beside "
                f"them (.txt, .json) or in a metadata.csv or metadata.jsonl; got none{self._why()}"
            )

    @cached_property
    def fingerprint(self) -> str:
        """By the names of the files and their sizes."""
        digest = hashlib.sha256()
        for number in range(len(self._pairs)):
            image, caption = self._pairs[number]
            digest.update(b"%s\0%d\0%s\0" % (image, _size(self._root, image), caption))
            if not caption.startswith(b"["):
                digest.update(b"%d\0" % _size(self._root, _beside(image, caption)))
        return digest.hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        path, caption = self._pairs[number]
        place = self._place(number, path)
        if caption.startswith(b"["):
            captions = tuple(map(as_bytes, json.loads(caption)))
        else:
            captions = (read_file(os.path.join(self._root, _beside(path, caption)), place),)
        if not captions:
            raise UnusableError("no caption", place)
        content = read_file(os.path.join(self._root, path), place) if image else b""
        return Sample(content, captions, place)

    def place(self, number: int) -> Place:
        """See `Source.place`."""
        return self._place(number, self._pairs[number][0])

    def faults(self) -> Iterator[Fault]:
        """Images without a caption, captions without an image, and links that lead elsewhere."""
        yield from self._faults
        if self._unlisted:
            place = Place(self.name, -1, "")
            yield Fault(place, f"{self._unlisted:,} more files of the folder cannot be used")

    def _why(self) -> str:
        if not self._faults:
            return ""
        count, first = len(self._faults) + self._unlisted, self._faults[0]
        return f", and {count:,} that cannot be used, first {first.place.key}: {first.reason}"

    def _place(self, number: int, path: bytes) -> Place:
        return Place(self.name, number, path.decode("utf-8", "replace"))

    def _add_fault(self, path: bytes, reason: str) -> None:
        if len(self._faults) < _LISTED:
            self._faults.append(Fault(self._place(-1, path), reason))
        else:
            self._unlisted += 1


class _Pairs:
    """Images' paths and captions, one after the other in one block of bytes.

    A caption is the ending of its file, or a JSON list of the texts themselves.
    """

    def __init__(self) -> None:
        self._content, self._ends = bytearray(), array("q", [0])
        self._first: NDArray[np.int64] = np.zeros(1, np.int64)

    def add(self, image: bytes, caption: bytes) -> None:
        for part in (image, caption):
            self._content += part
            self._ends.append(len(self._content))

    def finished(self) -> _Pairs:
        self._first = np.frombuffer(self._ends, np.int64)
        return self

    def __len__(self) -> int:
        return len(self._first) // 2

    def __getitem__(self, number: int) -> tuple[bytes, bytes]:
        a, b, c = self._first[2 * number : 2 * number + 3].tolist()
        return bytes(self._content[a:b]), bytes(self._content[b:c])


class _Scan:
    """One walk through a folder: its files by name, then its subfolders'.

    Args:
        root: the folder.
        endings: of captions; the first that is there is taken.
        pairs: get what is found.
        fault: is told what cannot be used.
        count: is told of every file.
    """

    def __init__(
        self,
        root: bytes,
        endings: tuple[bytes, ...],
        pairs: _Pairs,
        fault: Callable[[bytes, str], None],
        count: Callable[[], None],
    ) -> None:
        self._root, self._endings, self._pairs = root, endings, pairs
        self._fault, self._count = fault, count
        self._inside = os.path.join(os.path.realpath(root), b"")
        self._texts: dict[bytes, list[str]] = {}  # by image, of the metadata read so far

    def walk(self) -> None:
        waiting = [b""]
        while waiting:
            folder = waiting.pop()
            files, subfolders = self._list(folder)
            self._add_metadata(folder, files)
            self._pair(folder, files)
            waiting += sorted(subfolders, reverse=True)
        for path in self._texts:
            self._fault(path, "no such file, though the metadata names it")

    def _list(self, folder: bytes) -> tuple[set[bytes], list[bytes]]:
        """Names of its files, and paths of its subfolders."""
        files, subfolders = set(), []
        try:
            with os.scandir(os.path.join(self._root, folder)) as entries:
                for entry in entries:
                    self._count()
                    if entry.name.startswith(b"."):
                        continue
                    if entry.is_symlink():
                        if self._leads_inside(entry.path, os.path.join(folder, entry.name)):
                            files.add(entry.name)
                    elif entry.is_dir():
                        subfolders.append(os.path.join(folder, entry.name))
                    elif entry.is_file():
                        files.add(entry.name)
        except OSError as error:
            self._fault(folder, f"cannot be listed: {error.strerror}")
        return files, subfolders

    def _leads_inside(self, link: bytes, path: bytes) -> bool:
        target = os.path.realpath(link)
        if os.path.isdir(target):
            self._fault(path, "a link to a folder, which is not followed")
        elif not target.startswith(self._inside):
            self._fault(path, "a link that leads out of the folder")
        elif not os.path.isfile(target):
            self._fault(path, "a link to no file")
        else:
            return True
        return False

    def _add_metadata(self, folder: bytes, files: set[bytes]) -> None:
        for name in NAMES:
            if name in files:
                path = os.path.join(folder, name)

                def fault(row: int, reason: str, path: bytes = path) -> None:
                    self._fault(path, f"row {row}: {reason}")

                self._texts |= read_metadata(os.path.join(self._root, path), folder, fault)

    def _pair(self, folder: bytes, files: set[bytes]) -> None:
        by_stem: dict[bytes, dict[bytes, bytes]] = {}
        for name in sorted(files):
            stem, ending = os.path.splitext(name)
            if ending.lower() in IMAGE_ENDINGS + CAPTION_ENDINGS:
                by_stem.setdefault(stem, {})[ending] = ending.lower()
        for stem, endings in by_stem.items():
            path = os.path.join(folder, stem)
            images = sorted(
                (ending for ending in endings if endings[ending] in IMAGE_ENDINGS),
                key=lambda ending: IMAGE_ENDINGS.index(endings[ending]),
            )
            beside = next((e for own in self._endings for e in endings if endings[e] == own), None)
            if beside is not None and not images:
                self._fault(path + beside, "no image of this name beside it")
            taken = False
            for ending in images:
                image = path + ending
                if (texts := self._texts.pop(image, None)) is not None:
                    self._pairs.add(image, json.dumps(texts).encode())
                elif beside is None:
                    self._fault(image, "no caption (.txt or .json) beside it, nor in any metadata")
                elif taken:
                    self._fault(image, "its caption is another image's of this name")
                else:
                    self._pairs.add(image, beside)
                    taken = True


class _Counter:
    """Tells of a long listing on a terminal.

    Args:
        folder: that is listed.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._files = folder, 0
        self._shown = ExitStack()
        self._status: Status | None = None

    def __enter__(self) -> Callable[[], None]:
        return self._count

    def __exit__(self, *_: object) -> None:
        self._shown.close()

    def _count(self) -> None:
        self._files += 1
        if self._files % _LARGE == 0 and sys.stderr.isatty():
            text = f"listing {self._folder}: {self._files:,} files"
            if self._status is None:
                self._status = self._shown.enter_context(Console(stderr=True).status(text))
            self._status.update(text)


def _beside(image: bytes, ending: bytes) -> bytes:
    return os.path.splitext(image)[0] + ending


def _size(root: bytes, path: bytes) -> int:
    """-1 where there is no such file any more."""
    try:
        return os.stat(os.path.join(root, path)).st_size
    except OSError:
        return -1
