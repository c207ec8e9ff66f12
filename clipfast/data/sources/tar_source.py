"""WebDataset tar shards: writing them, indexing them once, reading one sample by its place.

A sample is the tar members of one key: the path up to its base name's first dot. It needs an
image (jpg, jpeg, png or webp) and a caption (txt); the index counts keys that lack either.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from braceexpand import braceexpand

from clipfast.errors import UserError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_VERSION = 1
_HEADER_BYTES = 256


class ShardError(UserError):
    """A shard that is missing or damaged."""


class Sample(NamedTuple):
    """One encoded pair and where it came from."""

    image: bytes
    caption: bytes
    key: str
    shard: Path
    offset: int


class ShardWriter:
    """Writes pairs into ``prefix-000000.tar``, ``prefix-000001.tar``, …

    A shard appears under its name only when it is whole.

    Args:
        folder: created if absent.
        prefix: beginning of the shards' names.
        samples_per_shard: pairs in each shard but the last.
    """

    def __init__(self, folder: Path, prefix: str, samples_per_shard: int) -> None:
        self.folder, self.prefix, self.samples_per_shard = folder, prefix, samples_per_shard
        self.samples = 0
        self.shards: list[Path] = []
        self._tar: tarfile.TarFile | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._finish_shard()
        elif self._tar is not None:
            self._tar.close()
            self._partial.unlink(missing_ok=True)

    def write(self, image: bytes, caption: str, extension: str = "jpg") -> None:
        if self.samples % self.samples_per_shard == 0:
            self._finish_shard()
            self._tar = tarfile.open(self._partial, "w")  # noqa: SIM115, closed by _finish_shard
        key = f"{self.samples:09d}"
        self._add(f"{key}.{extension}", image)
        self._add(f"{key}.txt", caption.encode())
        self.samples += 1

    @property
    def _partial(self) -> Path:
        return self.folder / f"{self.prefix}-{len(self.shards):06d}.tar.partial"

    def _add(self, name: str, content: bytes) -> None:
        assert self._tar is not None
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        whole = self._partial.with_suffix("")
        os.replace(self._partial, whole)
        self.shards.append(whole)


def expand_shards(pattern: str) -> list[Path]:
    """Lists the shards of a pattern such as ``data/train-{000000..000007}.tar::more/a.tar``; a
    backslash before a brace takes it as it is.

    Raises:
        ShardError: a shard that does not exist, or no shard at all.
    """
    try:
        paths = [Path(p) for part in pattern.split("::") if part for p in braceexpand(part)]
    except ValueError:
        raise ShardError(f"train-data: expected balanced braces; got {pattern!r}") from None
    if not paths:
        raise ShardError(f"train-data: expected the path of at least one shard; got {pattern!r}")
    for path in paths:
        if not path.is_file():
            raise ShardError(f"shard {path}: no such file")
    return paths


class ShardSet:
    """All samples of a list of shards under one running number.

    Args:
        paths: the shards, in the order that numbers their samples.

    Attributes:
        incomplete: how many keys have no image or no caption, and are left out.

    Raises:
        ShardError: a shard is missing, truncated or no tar, or there is no sample in any.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self._indexes, incomplete = zip(*map(_load_or_make_index, self.paths), strict=True)
        self.incomplete = sum(incomplete)
        self._first = np.cumsum([0, *(len(index) for index in self._indexes)])
        if not len(self):
            raise ShardError(
                f"shards: expected samples with an image ({', '.join(IMAGE_EXTENSIONS)}) and a "
                f"caption (txt); found none in {len(self.paths)} shard(s), first {self.paths[0]}"
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    @cached_property
    def fingerprint(self) -> str:
        """Tells sets apart in which the same numbers would be other samples: by the shards' names,
        and keys, places and sizes of their members."""
        digest = hashlib.sha256()
        for path, index in zip(self.paths, self._indexes, strict=True):
            digest.update(repr((path.name, len(index))).encode())
            digest.update(index.tobytes())
        return digest.hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """Reads sample `number`; safe from several threads.

        Args:
            image: False leaves the image's bytes out.

        Raises:
            ShardError: the shard has gone or shrunk since it was indexed.
        """
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        place = self._indexes[shard][number - self._first[shard]]
        path, key = self.paths[shard], bytes(place["key"]).decode()
        parts = []
        try:
            with open(path, "rb", buffering=0) as file:
                for part, wanted in (("image", image), ("text", True)):
                    offset, size = int(place[f"{part}_offset"]), int(place[f"{part}_size"])
                    parts.append(os.pread(file.fileno(), size, offset) if wanted else b"")
        except OSError as error:
            raise ShardError(f"shard {path}: {error.strerror}") from None
        image_bytes = place["image_size"] if image else 0
        if len(parts[0]) != image_bytes or len(parts[1]) != place["text_size"]:
            raise ShardError(f"shard {path}: sample {key} is cut short; the file has shrunk")
        return Sample(parts[0], parts[1], key, path, int(place["image_offset"]))


def _record(key_bytes: int) -> np.dtype:
    integers = ("image_offset", "image_size", "text_offset", "text_size")
    return np.dtype([(name, "<i8") for name in integers] + [("key", f"S{key_bytes}")])


def _load_or_make_index(shard: Path) -> tuple[np.ndarray, int]:
    """The shard's records, and how many of its keys are incomplete. They come from the index beside
    the shard, which is made where it is absent, damaged or of another file, and not kept where the
    folder cannot be written."""
    path = shard.with_name(shard.name + ".clipfast-index")
    stat = shard.stat()
    identity = {"version": _VERSION, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if (found := _read_index(path, identity)) is not None:
        return found
    records, incomplete = _scan(shard)
    header = identity | {
        "samples": len(records),
        "key_bytes": records.dtype["key"].itemsize,
        "incomplete": incomplete,
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(json.dumps(header).encode().ljust(_HEADER_BYTES))
            file.write(records.tobytes())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return records, incomplete


def _read_index(path: Path, identity: dict[str, int]) -> tuple[np.ndarray, int] | None:
    """None where there is no whole index of the file with this identity."""
    try:
        content = path.read_bytes()
        header = json.loads(content[:_HEADER_BYTES])
        if any(header[name] != value for name, value in identity.items()):
            return None
        records = np.frombuffer(content, _record(header["key_bytes"]), offset=_HEADER_BYTES)
        return (records, header["incomplete"]) if len(records) == header["samples"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _scan(shard: Path) -> tuple[np.ndarray, int]:
    rows, keys, incomplete = [], [], 0
    for key, members in _samples(shard):
        image = next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)
        text = members.get("txt")
        if image is None or text is None:
            incomplete += 1
        else:
            rows.append((image.offset_data, image.size, text.offset_data, text.size))
            keys.append(key.encode())
    records = np.zeros(len(rows), _record(max(map(len, keys), default=1)))
    for column, name in enumerate(("image_offset", "image_size", "text_offset", "text_size")):
        records[name] = [row[column] for row in rows]
    records["key"] = keys
    return records, incomplete


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Consecutive members of one key, as {extension: member}."""
    size = shard.stat().st_size
    current, members = "", dict[str, tarfile.TarInfo]()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    raise ShardError(
                        f"shard {shard}: truncated: {member.name} ends at byte "
                        f"{member.offset_data + member.size}, the file has {size}"
                    )
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if key != current and members:
                    yield current, members
                    members = {}
                current = key
                members[extension.lower()] = member
            end = tar.offset
    except tarfile.TarError as error:
        raise ShardError(f"shard {shard}: truncated or not a tar file ({error})") from None
    with open(shard, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise ShardError(f"shard {shard}: truncated: no end-of-archive mark at byte {end}")
    if members:
        yield current, members
