"""An epoch on 256 ranks: each sample once but for the end, and each rank with few shards open."""

import numpy as np
import pytest
import torch
from ranks_in_turn import GLOBAL_BATCH, captions, make_rank, open_data, read_epoch, write_shards

from clipfast.data import sampler
from clipfast.data.text.tokenizer import tokenize
from clipfast.train import parse_args

FIRST = [5 + 37 * i % 41 for i in range(84)]  # 2,097 pairs
SECOND = [3, 60, 17, 1, 40]  # 121
RANKS = [16, pytest.param(256, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sources of real tars, indexed as the first rank of a run does it."""
    folder = tmp_path_factory.mktemp("shards")
    patterns = [write_shards(folder, "a", FIRST), write_shards(folder, "b", SECOND)]
    open_data(parse_args(["--train-data", "::".join(patterns)]))
    return patterns


@pytest.fixture(params=["whole", "lanes"])
def order(request, monkeypatch):
    """Both orders, the one of large sets at a size that a test can read whole."""
    if request.param == "lanes":
        monkeypatch.setattr(sampler, "WHOLE", 64)
        monkeypatch.setattr(sampler, "WINDOW", 4)
    return request.param


def flags(data, ranks, *more):
    size = ["--batch-size", str(GLOBAL_BATCH // ranks), "--workers", "1"]
    return parse_args(["--train-data", data, *size, *more])


@pytest.fixture(scope="module")
def epochs(data, tmp_path_factory):
    """Reads the first epoch of ranks and sources in an order; what was read before is kept."""
    read = {}

    def of(order, ranks, sources):
        key = order, ranks, sources
        if key not in read:
            args = flags("::".join(data[:sources]), ranks)
            read[key] = read_epoch(args, ranks, tmp_path_factory.mktemp("epoch"))
        return read[key]

    return of


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("sources", [1, 2])
def test_an_epoch_of_all_ranks_has_each_sample_once_but_for_its_end(epochs, order, ranks, sources):
    texts = captions("a", FIRST) + captions("b", SECOND) * (sources - 1)
    epoch = epochs(order, ranks, sources)
    steps = -(-len(texts) // GLOBAL_BATCH)
    assert epoch.numbers.shape == (steps, ranks, GLOBAL_BATCH // ranks)
    times = np.bincount(epoch.numbers.ravel(), minlength=len(texts))
    assert times.min() == 1
    assert times.max() == 2
    assert (times == 2).sum() == steps * GLOBAL_BATCH - len(texts)
    # Before the last step none comes again, so no two ranks have the same one.
    assert len(np.unique(epoch.numbers[:-1])) == epoch.numbers[:-1].size
    if order == "lanes":  # there, ranks share nothing at the end either
        owners = {(n, r) for r in range(ranks) for n in epoch.numbers[:, r].ravel().tolist()}
        assert len(owners) == len(texts)


@pytest.mark.parametrize("ranks", RANKS)
def test_the_captions_that_ranks_get_are_those_of_the_samplers_numbers(epochs, order, ranks):
    texts = captions("a", FIRST) + captions("b", SECOND)
    epoch = epochs(order, ranks, 2)
    for step, of_ranks in enumerate(epoch.texts):
        expected = [texts[n] for n in epoch.numbers[step].ravel().tolist()]
        assert torch.equal(torch.cat(of_ranks), tokenize(expected, 32, packed=True).tokens)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("order", ["lanes"], indirect=True)
def test_a_rank_of_a_large_set_opens_the_shards_of_its_own_lanes_and_no_other(epochs, order, ranks):
    epoch = epochs(order, ranks, 1)
    assert not any(epoch.opened_at_start)  # the manifest is enough
    shard_of = np.repeat(np.arange(len(FIRST)), FIRST)
    own = [set(shard_of[epoch.numbers[:, rank].ravel()].tolist()) for rank in range(ranks)]
    assert epoch.opened == [{f"a-{shard:06d}" for shard in shards} for shards in own]
    # A line of 84 shards that is cut at W − 1 places has at most 84 + W − 1 pieces.
    assert sum(map(len, own)) <= len(FIRST) + ranks - 1


@pytest.mark.parametrize("ranks", RANKS)
def test_samples_drawn_with_replacement_are_those_of_one_process_shared_out(
    data, order, ranks, tmp_path
):
    more = ["--dataset-resampled", "--train-data-upsampling-factors", "1::4"]
    args = flags("::".join(data), ranks, *more)
    epoch = read_epoch(args, ranks, tmp_path)
    whole = flags("::".join(data), 1, *more)
    alone = make_rank(whole, 0, 1, tmp_path).sampler
    assert epoch.numbers.shape[0] == alone.steps_per_epoch
    for step, of_ranks in enumerate(epoch.numbers):
        assert np.array_equal(of_ranks.ravel(), alone.batch(0, step))
    share = (epoch.numbers >= sum(FIRST)).mean()
    expected = 4 * sum(SECOND) / (sum(FIRST) + 4 * sum(SECOND))
    spread = np.sqrt(expected * (1 - expected) / epoch.numbers.size)
    runs = 1 if order == "whole" else sampler.RUN  # draws follow each other in runs there
    assert abs(share - expected) < 4 * spread * np.sqrt(runs)
