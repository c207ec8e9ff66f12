"""Test sets as CLIP_benchmark publishes them: WebDataset shards, with their prompts beside them.

``test/nshards.txt`` says how many of ``test/0.tar`` … there are; ``train`` is as ``test``.
``dataset_type.txt`` says "retrieval" where samples have captions, a line each in their ``.txt``;
others have a class, a number in their ``.cls``, whose names are in ``classnames.txt`` and whose
sentences are in ``zeroshot_classification_templates.txt``. A folder or a URL has all of them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from functools import cached_property
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipfast.data.sources.image_files import LARGEST
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Fault, Place, Sample, Source, UnusableError
from clipfast.data.sources.shard_names import base_name
from clipfast.data.sources.storage import Storage, StorageError, is_remote, redacted
from clipfast.data.sources.tar_scan import IMAGE_EXTENSIONS, Keyed, keyed_members, shown
from clipfast.data.sources.tar_source import TarSource
from clipfast.errors import UserError
from clipfast.eval.datasets.sets import (
    DEFAULT_TEMPLATES,
    CaptionedImages,
    Classification,
    LabelledImages,
    Retrieval,
    labelled,
)
from clipfast.eval.prompts.reading import as_templates, has_prompts, prompts_of

_TEST, _TRAIN = "test", "train"
_COUNT, _TYPE = "nshards.txt", "dataset_type.txt"
_CLASSES, _TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
_LABEL = "cls"
_LONGEST_LABEL = 20  # bytes
_MOST_SHARDS = 100_000
# "wds_vtab-cifar10" is CIFAR10 of the group VTAB.
_GROUP = re.compile(r"^wds_(?:vtab-)?")


def is_test_shards(root: str) -> bool:
    """Whether a folder or URL is of this form."""
    return _text(_resolved(root), f"{_TEST}/{_COUNT}", Storage()) is not None


def suite_of(root: str) -> str:
    """CLIP_benchmark's name for the set in a folder or under a URL."""
    parts = [part for part in root.split("/") if part not in ("", ".", "tree", "resolve", "main")]
    return _GROUP.sub("", parts[-1]) if parts else "test"


def open_test_shards(
    name: str, root: str, *, per_class: bool = False
) -> Classification | Retrieval:
    """The set.

    Args:
        name: of the set; prompts that it lacks are those that come along under its name.
        root: its folder or URL, or its page at Hugging Face.
        per_class: see `Classification`.

    Raises:
        UserError: no test shards, shards that cannot be read, or no names for the classes.
    """
    root, storage = _resolved(root), Storage()
    kind = (_text(root, _TYPE, storage) or "classification").strip()
    if kind not in ("classification", "retrieval"):
        raise UserError(f"{root}/{_TYPE}: expected classification or retrieval; got {kind!r}")
    shards = _shards(root, _TEST, storage)
    if shards is None:
        raise UserError(f"{root}/{_TEST}/{_COUNT}: no such file, which tells how many shards are")
    if kind == "retrieval":
        return Retrieval(name, CaptionedImages(SampleSet([CaptionLines(shards, storage)])))
    training = _shards(root, _TRAIN, storage)
    classes, templates, prompts = _prompts(name, root, storage)

    def opened(shards: list[str]) -> LabelledImages:
        source = LabelledShards(shards, storage)
        return labelled(source, source.labels, classes, templates, prompts)

    test = opened(shards)
    return Classification(
        name, test, None if training is None else opened(training), per_class=per_class
    )


class _Record(NamedTuple):
    """Where an image is, and its class."""

    shard: int
    offset: int
    size: int
    label: int
    key: str


class LabelledShards:
    """A `Source` of the images of tars that have a class each.

    Args:
        shards: paths or URLs.
        storage: gets them.

    Attributes:
        labels: (N,) int64.

    Raises:
        UserError: a shard is missing or cannot be read, or none has a labelled image.
    """

    def __init__(self, shards: list[str], storage: Storage) -> None:
        self._shards, self._storage = shards, storage
        self.name = f"{redacted(shards[0])} and {len(shards) - 1} more" if shards[1:] else shards[0]
        self._faults, self._records = list[Fault](), list[_Record]()
        self._identities = [storage.identity(shard) for shard in shards]
        for number in range(len(shards)):
            self._scan(number)
        if not self._records:
            why = f"; {self._faults[0].reason}" if self._faults else ""
            raise UserError(
                f"{self.name}: expected samples of an image ({', '.join(IMAGE_EXTENSIONS)}) and a "
                f"class ({_LABEL}); got none{why}"
            )
        of_shard = [record.shard for record in self._records]
        self.counts = np.bincount(of_shard, minlength=len(shards)).astype(np.int64)
        self.labels: NDArray[np.int64] = np.array([r.label for r in self._records], np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """By the shards' names and sizes, and the places, sizes and classes in them."""
        digest = hashlib.sha256()
        for shard, identity in zip(self._shards, self._identities, strict=True):
            digest.update(repr((base_name(shard), identity.bytes)).encode())
        for record in self._records:
            digest.update(repr(record).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        record, place = self._records[number], self.place(number)
        if not image:
            return Sample(b"", (), place)
        try:
            with self._storage.open(self._shards[record.shard]) as file:
                content = os.pread(file.fileno(), record.size, record.offset)
        except (StorageError, OSError) as error:
            raise UnusableError(f"the shard cannot be read: {error}", place) from None
        if len(content) != record.size:
            raise UnusableError("the shard has changed since it was opened", place)
        return Sample(content, (), place)

    def place(self, number: int) -> Place:
        """See `Source.place`."""
        record = self._records[number]
        return Place(redacted(self._shards[record.shard]), record.offset, shown(record.key))

    def faults(self) -> Iterator[Fault]:
        """See `Source.faults`."""
        return iter(self._faults)

    def _scan(self, number: int) -> None:
        shard = redacted(self._shards[number])
        try:
            with self._storage.open(self._shards[number]) as file:
                for keyed in keyed_members(file):
                    if keyed.flaw is not None:
                        flaw = keyed.flaw
                        self._faults.append(Fault(Place(shard, flaw.offset, flaw.key), flaw.reason))
                    self._add(number, keyed, file)
        except OSError as error:
            raise UserError(f"{shard}: cannot be read: {error.strerror}") from None

    def _add(self, number: int, keyed: Keyed, file: BinaryIO) -> None:
        key, members, _ = keyed
        image = next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)
        label = members.get(_LABEL)
        if not members:
            return
        text = b""
        if label is not None and label.size <= _LONGEST_LABEL:
            text = os.pread(file.fileno(), label.size, label.offset).strip()
        if image is None:
            reason = f"no image ({', '.join(IMAGE_EXTENSIONS)}) next to {', '.join(members)}"
        elif label is None:
            reason = f"no class ({_LABEL}) next to {', '.join(members)}"
        elif not text.isdigit():
            reason = f"expected a number from 0 on as class; got {text[:_LONGEST_LABEL]!r}"
        elif not 0 < image.size <= LARGEST:
            reason = f"expected an image of 1 to {LARGEST:,} bytes; got {image.size:,}"
        else:
            self._records.append(_Record(number, image.offset, image.size, int(text), key))
            return
        offset = next(iter(members.values())).offset
        place = Place(redacted(self._shards[number]), offset, shown(key))
        self._faults.append(Fault(place, shown(reason)))


class CaptionLines:
    """A `Source` of the samples of tars, each line of whose text is a caption.

    Args:
        shards: paths or URLs.
        storage: gets them.
    """

    def __init__(self, shards: list[str], storage: Storage) -> None:
        self._tars: Source = TarSource("::".join(map(_as_pattern, shards)), storage)
        self.name, self.counts = self._tars.name, self._tars.counts

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._tars.fingerprint} lines".encode()).hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        sample = self._tars.read(number, image=image)
        captions = (line.strip() for text in sample.captions for line in text.splitlines())
        return sample._replace(captions=tuple(line for line in captions if line))

    def place(self, number: int) -> Place:
        """See `Source.place`."""
        return self._tars.place(number)

    def faults(self) -> Iterator[Fault]:
        """See `Source.faults`."""
        return self._tars.faults()


def _prompts(
    name: str, root: str, storage: Storage
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """The data's, or where they lack some those that come along, and whose they are."""
    names, sentences = (_text(root, file, storage) for file in (_CLASSES, _TEMPLATES))
    # A line for each label, so an empty one counts too.
    theirs = tuple(line.strip() for line in (names or "").splitlines())
    ours = prompts_of(name, theirs) if has_prompts(name) else None
    classes = theirs or (ours.classes if ours else ())
    if not classes:
        raise UserError(f"{root}/{_CLASSES}: no such file, which has the names of the classes")
    if sentences is not None:
        return classes, as_templates(sentences, f"{root}/{_TEMPLATES}"), "the data"
    return classes, ours.templates if ours else DEFAULT_TEMPLATES, "clipfast"


def _shards(root: str, split: str, storage: Storage) -> list[str] | None:
    """None where there is no such split."""
    text = _text(root, f"{split}/{_COUNT}", storage)
    if text is None:
        return None
    count = text.strip()
    if not (count.isdecimal() and 0 < int(count) <= _MOST_SHARDS):
        raise UserError(
            f"{root}/{split}/{_COUNT}: expected the number of its shards; got {count[:20]!r}"
        )
    return [f"{root}/{split}/{number}.tar" for number in range(int(count))]


def _text(root: str, file: str, storage: Storage) -> str | None:
    """None where there is no such file."""
    url = f"{root}/{file}"
    try:
        with storage.open(url) as opened:
            return opened.read().decode("utf-8-sig")
    except StorageError as error:
        if str(error).endswith("no such file"):
            return None
        raise
    except UnicodeDecodeError:
        raise UserError(f"{url}: expected UTF-8; got other bytes") from None


def _resolved(root: str) -> str:
    """Where the files of a page at Hugging Face are."""
    root = root.rstrip("/")
    page = re.fullmatch(r"(https://huggingface\.co/datasets/[^/]+/[^/]+)(?:/tree/([^/]+))?", root)
    return f"{page[1]}/resolve/{page[2] or 'main'}" if page else root


def _as_pattern(shard: str) -> str:
    return shard if is_remote(shard) else re.sub(r"([{}])", r"\\\1", shard)
