"""Images with their captions, one or several each: what retrieval is measured on."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from clipfast.data.sources.csv_rows import SEPARATORS, CsvRows
from clipfast.data.sources.opening import add_source_flags, open_samples
from clipfast.data.sources.parquet_columns import CAPTION_KEYS, IMAGE_KEYS
from clipfast.data.sources.row_source import TableSource, blocks
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Fault, Place, Sample, Source, UnusableError
from clipfast.data.sources.shard_names import base_name
from clipfast.data.sources.storage import Storage
from clipfast.errors import UserError
from clipfast.eval.datasets.file_images import FileImages
from clipfast.eval.datasets.sets import CaptionedImages, Retrieval

_TEST = "test"
# Karpathy's files of the common sets, by CLIP_benchmark's names of these.
KARPATHY = {
    "flickr8k": "dataset_flickr8k.json",
    "flickr30k": "dataset_flickr30k.json",
    "mscoco_captions": "dataset_coco.json",
}
# Where images are beside such a file, as their archives unpack.
_IMAGES = ("", "images", "Images", "flickr30k-images", "flickr30k_images", "Flicker8k_Dataset")


def open_pairs(data: str, args: argparse.Namespace | None = None) -> Retrieval:
    """Any source that training takes; rows of a table that name the same image are one image.

    Args:
        data: paths, brace lists or URLs; see `open_samples`.
        args: with what `add_source_flags` adds; None finds a table's separator and columns.

    Raises:
        UserError: it is missing or holds nothing.
    """
    samples = open_samples(args or _flags(data), data, flag="--suite")
    name = base_name(data.rstrip("/")).partition(".")[0] or data
    together = [_together(source) for source in samples.sources]
    return Retrieval(name, CaptionedImages(SampleSet(together)))


def open_karpathy(name: str, root: Path) -> Retrieval:
    """The test images of Karpathy's split, with all their captions.

    Args:
        name: of the set.
        root: its JSON file, or the folder of it; the images are beside it.

    Raises:
        UserError: the file is missing or of another form, or the images are not there.

    Source: Karpathy and Fei-Fei 2015, arXiv 1412.2306.
    """
    file = root if root.suffix == ".json" else root / KARPATHY[name]
    images = [image for image in _listed(file) if image["split"] == _TEST]
    if not images:
        raise UserError(f"{file}: expected images of the split {_TEST}; got none")
    files = [str(Path(image.get("filepath", ""), image["filename"])) for image in images]
    captions = [tuple(s["raw"].encode() for s in image["sentences"]) for image in images]
    folders = [file.parent / inside for inside in _IMAGES]
    found = next((folder for folder in folders if (folder / files[0]).is_file()), None)
    if found is None:
        raise UserError(
            f"{file}: expected its images beside it, or in one of {', '.join(_IMAGES[1:])}; "
            f"got no {files[0]}"
        )
    source = FileImages(found, files, captions)
    return Retrieval(name, CaptionedImages(SampleSet([source])))


class OneOfEachImage:
    """The samples of a `Source` whose images are the same, as one with the captions of all.

    Args:
        source: of all samples.
        groups: the samples of each image, by number.
    """

    def __init__(self, source: Source, groups: Sequence[Sequence[int]]) -> None:
        self.name, self._source, self._groups = source.name, source, groups
        self.counts = blocks(len(groups))

    @cached_property
    def fingerprint(self) -> str:
        of = repr((self._source.fingerprint, self._groups))
        return hashlib.sha256(of.encode()).hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`. Captions that cannot be used are left out, but not all."""
        first, *others = self._groups[number]
        sample = self._source.read(first, image=image)
        return sample._replace(captions=sample.captions + tuple(chain(*map(self._texts, others))))

    def place(self, number: int) -> Place:
        """See `Source.place`; of the first."""
        return self._source.place(self._groups[number][0])

    def faults(self) -> Iterator[Fault]:
        """See `Source.faults`."""
        return self._source.faults()

    def _texts(self, number: int) -> tuple[bytes, ...]:
        try:
            return self._source.read(number, image=False).captions
        except UnusableError:
            return ()


def _together(source: Source) -> Source:
    if not isinstance(source, TableSource):
        return source
    paths = list(source.paths())
    if len(paths) != source.counts.sum():
        return source  # tables that hold their images do not name them
    groups = dict[bytes | int, list[int]]()
    for number, path in enumerate(paths):
        groups.setdefault(path or number, []).append(number)
    return source if len(groups) == len(paths) else OneOfEachImage(source, list(groups.values()))


def _flags(data: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_source_flags(parser)
    args = parser.parse_args([])
    if not base_name(data).lower().partition(".")[2].startswith(("csv", "tsv")):
        return args
    path = Storage().local(data)
    for separator in SEPARATORS:
        with CsvRows(path, separator, data) as table:
            image, caption = (
                next((key for key in keys if key in table.header), None)
                for keys in (IMAGE_KEYS, CAPTION_KEYS)
            )
        if image and caption:
            args.csv_separator, args.csv_img_key, args.csv_caption_key = separator, image, caption
            break
    return args


def _listed(file: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: expected Karpathy's split; got: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file}: expected a JSON document; got: {error}") from None
    images = content.get("images") if isinstance(content, dict) else None
    for number, image in enumerate(images if isinstance(images, list) else [None]):
        if not _is_image(image):
            raise UserError(
                f"{file}: expected images with filename, split, and sentences with raw; got "
                f"otherwise in image {number}"
            )
    assert isinstance(images, list)
    return images


def _is_image(image: Any) -> bool:
    try:
        texts = [image["filename"], image["split"], image.get("filepath", "")]
        texts += [sentence["raw"] for sentence in image["sentences"]]
    except (TypeError, LookupError, AttributeError):
        return False
    return len(texts) > 3 and all(isinstance(text, str) for text in texts)
