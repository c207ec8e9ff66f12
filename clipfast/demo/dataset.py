"""The demo's pairs as WebDataset shards in a folder, made once."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich.progress import track

from clipfast.data.shards import ShardSet, ShardWriter, expand_shards
from clipfast.demo.digits import DigitPair, render_split
from clipfast.errors import UserError

_SHARD = 1000
_JPEG_QUALITY = 92
_TEST_PAIRS = 1440
_SEED = 0


class Label(NamedTuple):
    digit: int
    ink: str
    background: str
    writing: int


class DigitShards:
    """The shards of the splits "train", "test" and "unseen" in a folder; see `digits`.

    Args:
        folder: made and filled if it holds no such data yet.
        pairs: of the train split.
        image_size: side of the images in pixels.

    Raises:
        UserError: the folder holds data of another size.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, pairs: int, image_size: int) -> None:
        self.folder = folder
        description = {"format": 1, "train": pairs, "test": _TEST_PAIRS, "image_size": image_size}
        manifest = folder / "digits.json"
        if manifest.is_file():
            found = json.loads(manifest.read_text())
            if found != description:
                raise UserError(
                    f"--data {folder}: holds digits made as {found}; expected {description}: name "
                    "another folder, or remove this one"
                )
            return
        for split, count in (("train", pairs), ("test", _TEST_PAIRS), ("unseen", _TEST_PAIRS)):
            self._make(split, render_split(split, count, image_size, _SEED), count)
        manifest.write_text(json.dumps(description))

    @property
    def train_pattern(self) -> str:
        return "::".join(str(path) for path in self._paths("train"))

    def samples(self, split: str) -> ShardSet:
        return ShardSet(self._paths(split))

    def labels(self, split: str) -> list[Label]:
        """What is in each sample, in their order."""
        return [Label(*row) for row in json.loads(self._labels_path(split).read_text())]

    def _paths(self, split: str) -> list[Path]:
        found = sorted(self.folder.glob(f"{split}-*.tar"))
        return expand_shards("::".join(map(str, found)))

    def _labels_path(self, split: str) -> Path:
        return self.folder / f"{split}-labels.json"

    def _make(self, split: str, pairs: Iterator[DigitPair], count: int) -> None:
        labels = []
        with ShardWriter(self.folder, split, _SHARD) as writer:
            for pair in track(pairs, f"drawing {split:6}", total=count):
                writer.write(_jpeg(pair), pair.caption)
                labels.append(Label(pair.digit, pair.ink, pair.background, pair.writing))
        self._labels_path(split).write_text(json.dumps(labels))


def _jpeg(pair: DigitPair) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pair.image).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
