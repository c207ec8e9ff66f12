"""The order at a tenth of a thousandth of its scale: the same walk over a whole epoch, by tests."""

import numpy as np
import pytest
from clipfast_bench.feeding.order_at_scale import (
    check_ranks,
    coverage,
    rank_cost,
    sampler_of,
    unequal_shards,
)
from clipfast_bench.feeding.shards_at_scale import make_shards, measure_opening, shards_of_rank

from clipfast.data import sampler as module
from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_source import TarSource

SAMPLES, SHARDS, RANKS, BATCH = 2_000_000, 300, 8, 4096


@pytest.fixture(scope="module")
def counts():
    return unequal_shards(SAMPLES, SHARDS)


def quiet(done, total):
    pass


def test_shards_are_unequal_and_hold_all_samples(counts):
    assert counts.sum() == SAMPLES
    assert counts.max() > 2 * counts.min() > 0


def test_an_epoch_of_two_million_samples_has_each_one_and_only_its_end_again(counts):
    assert module.WHOLE < SAMPLES  # the order of large sets, cut into lanes
    found = coverage(counts, BATCH, RANKS, quiet)
    assert found.is_right
    assert (found.never, found.more) == (0, 0)
    assert found.once + found.twice == SAMPLES
    assert found.twice == found.steps * BATCH - SAMPLES
    assert found.first_repeat >= found.lap == found.steps - 1


def test_a_walk_finds_an_order_that_leaves_samples_out(counts, monkeypatch):
    whole = module.Sampler.batch
    monkeypatch.setattr(module.Sampler, "batch", lambda *args: whole(*args) // 2)
    with pytest.raises(AssertionError, match="the same sample twice"):
        coverage(counts, BATCH, RANKS, quiet)


def test_a_walk_finds_a_step_that_comes_again(counts, monkeypatch):
    whole = module.Sampler.batch
    monkeypatch.setattr(
        module.Sampler, "batch", lambda self, epoch, step: whole(self, epoch, max(step, 1))
    )
    found = coverage(counts, BATCH, RANKS, quiet)
    assert not found.is_right
    assert found.never > 0


def test_ranks_joined_are_the_step_of_one_process(counts):
    check_ranks(counts, BATCH, RANKS)


def test_a_ranks_order_holds_its_shards_sizes_and_little_more(counts):
    cost = rank_cost(counts, BATCH, RANKS, RANKS - 1)
    assert cost.bytes_held < 100 * SHARDS + (1 << 18)


def test_shards_that_are_holes_open_by_their_manifest_and_read_as_zeros(counts, tmp_path):
    sampler = sampler_of(counts, BATCH, 0, RANKS)
    ours = shards_of_rank(counts, sampler, quiet)
    assert 0 < len(ours) < SHARDS / 2
    source = TarSource(make_shards(tmp_path, counts, set(ours.tolist())), Storage(tmp_path))
    assert np.array_equal(source.counts, counts)
    sample = source.read(int(sampler.batch(0, 0)[0]))
    assert not any(sample.image)
    assert sample.place.key.isdecimal()


def test_what_shards_cost_a_rank_is_measured(counts, tmp_path):
    opening = measure_opening(tmp_path, counts, sampler_of(counts, BATCH, 0, RANKS), quiet)
    assert opening.manifest_bytes > 0
    assert opening.index_bytes_of_rank > opening.shards_of_rank * 45 * counts.min()
    assert {what for what, _ in opening.rows()} >= {"opened by their manifest", "their indexes"}
