"""Several sources under one running number, told apart from any others."""

import numpy as np
import pytest

from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Fault, Place, Sample
from clipfast.errors import UserError


class Listed:
    """A source of given captions, in shards of given sizes."""

    def __init__(self, name, captions, counts):
        self.name, self.captions, self.counts = name, captions, np.array(counts, np.int64)
        self.fingerprint = f"{name} {captions}"

    def read(self, number, *, image=True):
        return Sample(b"pixels" if image else b"", (self.captions[number],), self.place(number))

    def place(self, number):
        return Place(self.name, number, str(number))

    def faults(self):
        yield Fault(Place(self.name, 0, "x"), "no image")


A = Listed("a", [b"a0", b"a1", b"a2"], [1, 2])
EMPTY = Listed("empty", [], [0])
B = Listed("b", [b"b0", b"b1"], [2])


def test_numbers_run_on_from_source_to_source():
    samples = SampleSet([A, EMPTY, B])
    assert len(samples) == 5
    assert [samples.read(n).captions[0] for n in range(5)] == [b"a0", b"a1", b"a2", b"b0", b"b1"]
    assert samples.place(3) == Place("b", 0, "0")
    assert samples.read(4, image=False).image == b""
    assert samples.shards.counts.tolist() == [1, 2, 0, 2]


def test_each_shard_has_its_sources_factor():
    assert SampleSet([A, B], [1, 2.5]).shards.weights.tolist() == [1, 1, 2.5]
    assert SampleSet([A, B]).shards.weights is None


def test_faults_of_all_sources_are_told():
    assert [fault.place.shard for fault in SampleSet([A, B]).faults()] == ["a", "b"]


def test_the_order_of_sources_is_part_of_the_fingerprint():
    prints = {SampleSet(s).fingerprint for s in ([A, B], [B, A], [A], [A, EMPTY, B])}
    assert len(prints) == 4
    assert SampleSet([A, B]).fingerprint == SampleSet([A, B]).fingerprint


def test_a_set_without_a_sample_is_a_sentence():
    with pytest.raises(UserError, match="expected samples; got none in empty"):
        SampleSet([EMPTY])
