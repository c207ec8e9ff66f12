"""All samples of a run under one running number, whatever sources they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from clipfast.data.sampler import Shards
from clipfast.data.sources.samples import Fault, Place, Sample, Source
from clipfast.errors import UserError


class SampleSet:
    """Args:
        sources: in the order that numbers their samples.
        factors: of each source, how often its samples are drawn beside those of a factor of 1;
            None takes every sample once an epoch.

    Attributes:
        shards: what a sampler needs to know of them.

    Raises:
        UserError: there is no sample.
    """

    def __init__(self, sources: Sequence[Source], factors: Sequence[float] | None = None) -> None:
        self.sources = list(sources)
        self._first = np.cumsum([0, *(int(source.counts.sum()) for source in sources)])
        counts = np.concatenate([source.counts for source in sources])
        weights = None
        if factors is not None:
            shards = [len(source.counts) for source in sources]
            weights = np.repeat(np.asarray(factors, np.float64), shards)
        self.shards = Shards(counts, weights)
        if not len(self):
            raise UserError(f"data: expected samples; got none in {sources[0].name}")

    def __len__(self) -> int:
        return int(self._first[-1])

    @cached_property
    def fingerprint(self) -> str:
        """Tells sets apart in which the same numbers would be other samples."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(source.fingerprint.encode())
        return digest.hexdigest()[:16]

    def read(self, number: int, *, image: bool = True) -> Sample:
        """See `Source.read`."""
        source, inside = self._find(number)
        return source.read(inside, image=image)

    def place(self, number: int) -> Place:
        source, inside = self._find(number)
        return source.place(inside)

    def faults(self) -> Iterator[Fault]:
        """What opening the sources found to be unusable."""
        for source in self.sources:
            yield from source.faults()

    def describe(self) -> Iterator[str]:
        """Lines of the log."""
        for source in self.sources:
            yield f"data: {int(source.counts.sum()):,} pairs in {source.name}"

    def _find(self, number: int) -> tuple[Source, int]:
        at = int(np.searchsorted(self._first, number, side="right")) - 1
        return self.sources[at], int(number - self._first[at])
