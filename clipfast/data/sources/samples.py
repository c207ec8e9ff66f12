"""What every source of samples gives: encoded pairs, and where each one came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clipfast.errors import UserError


class Place(NamedTuple):
    """Where a sample is, for whoever wants to look at it.

    Attributes:
        shard: path or URL of the tar, table or folder that holds it.
        offset: its first byte in a tar; its row in a table or list.
        key: its name there.
    """

    shard: str
    offset: int
    key: str


class Sample(NamedTuple):
    """One pair as it is stored.

    Attributes:
        image: encoded; empty where it was not asked for.
        captions: as they are written, a JSON document or a plain text each; most samples have one.
        place: where it was found.
    """

    image: bytes
    captions: tuple[bytes, ...]
    place: Place


class Fault(NamedTuple):
    """Something in the data that cannot be used, and why."""

    place: Place
    reason: str


class UnusableError(UserError):
    """A sample that cannot be used; another takes its place.

    Args:
        reason: why, as one phrase.
        place: where the sample is, where that is known.
    """

    def __init__(self, reason: str, place: Place | None = None) -> None:
        super().__init__(reason)
        self.place = place


class Source(Protocol):
    """Samples under the numbers 0 … n − 1.

    Attributes:
        name: what the log calls it: a path, a brace list, a URL.
        counts: (shards,) int64, how many samples each shard has; their numbers follow each other.
            Samples of one shard are read fastest one after the other.
        fingerprint: other for sets in which the same numbers would be other samples.
    """

    name: str
    counts: NDArray[np.int64]

    @property
    def fingerprint(self) -> str: ...

    def read(self, number: int, *, image: bool = True) -> Sample:
        """Sample `number`; safe from several threads.

        Args:
            image: False leaves the image's bytes out, and does not read them.

        Raises:
            UnusableError: it cannot be had, though the set as a whole can.
            UserError: nothing of the set can be had any more.
        """

    def place(self, number: int) -> Place:
        """Where sample `number` is, without reading it."""

    def faults(self) -> Iterator[Fault]:
        """What opening the source found to be unusable; it has no number and is in no batch."""
