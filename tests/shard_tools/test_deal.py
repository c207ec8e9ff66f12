"""`clipfast shards deal`: what it says is what the ranks of a run then do."""

import json

import numpy as np
import pytest
from shard_files import write_tar

from clipfast.data import sampler as module
from clipfast.data.sampler import Sampler
from clipfast.data.sources.opening import open_samples
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.setup import make_sampler

SIZES = [9, 30, 1, 17, 24, 40, 12, 7]  # 140


@pytest.fixture
def pattern(tmp_path, photos):
    for shard, size in enumerate(SIZES):
        members = {}
        for i in range(size):
            members |= {f"{i}.jpg": photos["small"], f"{i}.txt": b"caption"}
        write_tar(tmp_path / f"x-{shard}.tar", members)
    return f"{tmp_path}/x-{{0..7}}.tar"


@pytest.fixture(params=["whole", "lanes"])
def kind(request, monkeypatch):
    if request.param == "lanes":
        monkeypatch.setattr(module, "WHOLE", 64)
        monkeypatch.setattr(module, "WINDOW", 4)
    return request.param


RANKS, FLAGS = 8, ["--batch-size", "2", "--accum-freq", "2", "--workers", "2", "--seed", "5"]


def samplers(pattern):
    """Of a run's ranks, by the trainer."""
    args = parse_args(["--train-data", pattern, *FLAGS])
    samples = open_samples(args, args.train_data)
    return [make_sampler(args, samples, World(rank, RANKS)) for rank in range(RANKS)]


def test_it_says_what_the_ranks_of_the_trainer_do(shards, pattern, kind):
    code, out, _ = shards("deal", pattern, "--world-size", RANKS, *FLAGS, "--epoch", 3, "--json",
                          "--rank", 6)  # fmt: skip
    assert code == 0
    found = json.loads(out)
    parts = samplers(pattern)
    steps = parts[0].steps_per_epoch
    numbers = np.array([[part.batch(3, step) for part in parts] for step in range(steps)])
    times = np.bincount(numbers.ravel(), minlength=140)
    assert found["samples"] == 140
    assert found["global_batch"] == 32
    assert found["steps_per_epoch"] == found["steps_walked"] == steps
    assert found["samples_by_times"] == {
        "never": (times == 0).sum(),
        "once": (times == 1).sum(),
        "twice": (times == 2).sum(),
        "more": (times > 2).sum(),
    }
    shard_of = np.repeat(np.arange(8), SIZES)
    read = [np.unique(shard_of[numbers[:, rank]]) for rank in range(RANKS)]
    lengths = list(map(len, read))
    assert list(found["shards_of_a_rank"].values()) == [
        min(lengths), pytest.approx(np.mean(lengths)), max(lengths),
    ]  # fmt: skip
    assert found["shards_of_rank"] == [pattern.replace("{0..7}", str(i)) for i in read[6]]


def test_the_world_sizes_that_it_names_can_go_on_and_no_other(shards, pattern, kind):
    found = json.loads(shards("deal", pattern, "--world-size", RANKS, *FLAGS, "--json")[1])
    order = samplers(pattern)[0].order
    assert order.lanes == found["lanes"]
    for size in range(1, 40):
        possible = order.misfit(size) is None
        assert possible == (size in found["world_sizes_that_can_go_on"])
        if possible:
            Sampler(samplers(pattern)[0].shards, order, 0, size)


def test_the_sentences_have_the_figures(shards, pattern):
    code, out, _ = shards("deal", pattern, "--world-size", RANKS, *FLAGS)
    assert code == 0
    for words in (
        *("140 samples in 8 shards", "of 2 × 2 × 8 = 32 samples", "0 never", "20 twice, 0 more"),
        *("shuffled as a whole", "can go on inside an epoch: 1, 2, 4, 8, 16, 32 ranks"),
    ):
        assert words in out


def test_the_first_steps_alone_are_told_apart(shards, pattern, kind):
    found = json.loads(
        shards("deal", pattern, "--world-size", RANKS, *FLAGS, "--json", "--steps", 2)[1]
    )
    assert found["steps_walked"] == 2
    assert found["samples_by_times"]["once"] == 64
    assert found["samples_by_times"]["never"] == 76


def test_drawing_with_replacement_is_dealt_too(shards, pattern, kind):
    found = json.loads(
        shards("deal", f"{pattern}::{pattern}", "--world-size", RANKS, *FLAGS, "--json",
               "--dataset-resampled", "--train-data-upsampling-factors", "1::0")[1]
    )  # fmt: skip
    assert found["samples"] == 280
    assert found["samples_by_times"]["never"] >= 140


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--world-size", "0"], "--world-size: expected at least 1; got 0"),
        (["--world-size", "8", "--rank", "8"], "--rank: expected 0 to 7; got 8"),
        (["--world-size", "8", "--accum-freq", "9"], "--accum-freq: expected at most"),
    ],
)
def test_mistakes_are_a_sentence(shards, pattern, flags, sentence):
    code, _, err = shards("deal", pattern, *flags)
    assert code == 2
    assert sentence in err
