"""The demo's pairs as WebDataset shards in a folder, made once."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich.progress import track

from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_source import TarSource
from clipfast.demo.digits import DigitPair, render_split
from clipfast.errors import UserError

_SHARD = 1000
_JPEG_QUALITY = 92
_TEST_PAIRS = 1440
_SEED = 0
_MANIFEST = "digits.json"


class Label(NamedTuple):
    digit: int
    ink: str
    background: str
    writing: int


class DigitShards:
    """The shards of the splits "train", "test" and "unseen" in a folder; see `digits`.

    Args:
        folder: where `make` puts them.
        pairs: of the train split.
        image_size: side of the images in pixels.
    """

    def __init__(self, folder: Path, pairs: int, image_size: int) -> None:
        self.folder, self.image_size = folder, image_size
        self._counts = {"train": pairs, "test": _TEST_PAIRS, "unseen": _TEST_PAIRS}

    def make(self) -> DigitShards:
        """Draws and writes them, unless that is done already.

        Raises:
            UserError: the folder holds something else.
            OSError: it cannot be written.
        """
        folder, manifest, description = self.folder, self.folder / _MANIFEST, self.description
        if _read(manifest) == description:
            return self
        # Drawing writes the description here first, so that it goes on after an interruption and
        # never writes over anything else.
        unfinished = folder / "digits.unfinished.json"
        if _read(unfinished) != description:
            self._refuse_other_content(description)
            folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(description))
        for split, count in self._counts.items():
            self._make(split, render_split(split, count, self.image_size, _SEED), count)
        unfinished.replace(manifest)
        return self

    @property
    def description(self) -> dict[str, object]:
        """What the manifest says of them."""
        return {"format": 2, "pairs": self._counts, "image_size": self.image_size}

    @property
    def train_pattern(self) -> str:
        """For ``--train-data``."""
        return self._pattern("train")

    def samples(self, split: str) -> SampleSet:
        return SampleSet([TarSource(self._pattern(split), Storage())])

    def labels(self, split: str) -> list[Label]:
        """What is in each sample, in their order."""
        return [Label(*row) for row in json.loads(self._labels_path(split).read_text())]

    def _pattern(self, split: str) -> str:
        last = -(-self._counts[split] // _SHARD) - 1
        folder = str(self.folder).replace("{", r"\{").replace("}", r"\}")
        return f"{folder}/{split}-{{000000..{last:06d}}}.tar"

    def _refuse_other_content(self, description: dict[str, object]) -> None:
        content = sorted(p.name for p in self.folder.iterdir()) if self.folder.is_dir() else []
        if content:
            raise UserError(
                f"--data {self.folder}: expected an empty folder, or one with digits made as "
                f"{description}; it holds {', '.join(content[:3])}, made otherwise: name another "
                "folder, or remove this one"
            )

    def _labels_path(self, split: str) -> Path:
        return self.folder / f"{split}-labels.json"

    def _make(self, split: str, pairs: Iterator[DigitPair], count: int) -> None:
        labels = []
        with ShardWriter(self.folder, split, _SHARD) as writer:
            for pair in track(pairs, f"drawing {split:6}", total=count):
                writer.write(_jpeg(pair), pair.caption)
                labels.append(Label(pair.digit, pair.ink, pair.background, pair.writing))
        self._labels_path(split).write_text(json.dumps(labels))


def open_digit_shards(folder: Path) -> DigitShards:
    """The shards that a demo has made in a folder, or in its folder ``data``.

    Raises:
        UserError: none has, or it was interrupted.
    """
    for data in (folder, folder / "data"):
        match manifest := _read(data / _MANIFEST):
            case {"pairs": {"train": int(pairs)}, "image_size": int(image_size)}:
                shards = DigitShards(data, pairs, image_size)
                if shards.description == manifest:
                    return shards
    raise UserError(f"{folder}: expected the digits of clipfast demo; got no {_MANIFEST} of theirs")


def _read(manifest: Path) -> object:
    try:
        return json.loads(manifest.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _jpeg(pair: DigitPair) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pair.image).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
