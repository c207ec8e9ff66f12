"""Writing WebDataset tar shards, each of which appears under its name only when it is whole."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

AddMember = Callable[[str, bytes], None]


@contextlib.contextmanager
def new_shard(path: Path) -> Iterator[AddMember]:
    """A new tar, filled by calls of ``add(name, content)``.

    It is at `path` with all its members and on the disk, or not at all: an error takes it away, and
    of a process that dies there remains a ``.partial`` file, which the next one writes over.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                yield lambda name, content: _add(tar, name, content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def image_extension(image: bytes) -> str | None:
    """``jpg``, ``png`` or ``webp`` by an image's first bytes; None for anything else."""
    if image.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if image[:4] == b"RIFF" and image[8:12] == b"WEBP" else None


class ShardWriter:
    """Writes pairs into ``prefix-000000.tar``, ``prefix-000001.tar``, …

    Args:
        folder: created if absent.
        prefix: beginning of the shards' names.
        samples_per_shard: pairs in each shard but the last.
        after: whole shards of the same name and size, which the new ones are numbered after.

    Attributes:
        samples: how many pairs this writer has been given.
        shards: the whole ones, in order, with those of `after`.
    """

    def __init__(
        self, folder: Path, prefix: str, samples_per_shard: int, *, after: Sequence[Path] = ()
    ) -> None:
        self.folder, self.prefix, self.samples_per_shard = folder, prefix, samples_per_shard
        self.samples = 0
        self.shards = list(after)
        self._writing: Path | None = None
        self._open = contextlib.ExitStack()
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
        else:
            self._open.__exit__(kind, error, trace)

    def write(
        self,
        image: bytes,
        captions: str | Sequence[str],
        extension: str | None = None,
        *,
        key: str | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        """One pair. A single caption becomes ``KEY.txt``; several become the list ``captions`` in
        ``KEY.json``, where metadata is too.

        Args:
            extension: of the image; None takes it from its first bytes, and jpg for unknown ones.
            key: without a dot in its last part; None is the running number. Keys of a shard differ.
            metadata: whatever JSON can hold.
        """
        key = f"{self.samples:09d}" if key is None else key
        if "." in key.rpartition("/")[2]:
            raise ValueError(f"key: expected no dot after the last slash; got {key!r}")
        texts = [captions] if isinstance(captions, str) else list(captions)
        document = dict(metadata or {})
        if len(texts) != 1:
            document["captions"] = texts
        if self.samples % self.samples_per_shard == 0:
            self._finish_shard()
            self._writing = self.folder / f"{self.prefix}-{len(self.shards):06d}.tar"
            self._add = self._open.enter_context(new_shard(self._writing))
        self._add(f"{key}.{extension or image_extension(image) or 'jpg'}", image)
        if len(texts) == 1:
            self._add(f"{key}.txt", texts[0].encode("utf-8", "replace"))
        if document:
            self._add(
                f"{key}.json", json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
            )
        self.samples += 1

    def _finish_shard(self) -> None:
        if self._writing is None:
            return
        self._open.close()
        self.shards.append(self._writing)
        self._writing = None
