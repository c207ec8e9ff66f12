"""A run of 256 ranks goes on with other numbers of ranks: the same batches, or a sentence."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fake_group import one_of
from ranks_in_turn import GLOBAL_BATCH, InTurn, loader_on, open_data, write_shards
from small_runs import SmallRun

from clipfast.data import sampler as module
from clipfast.errors import UserError
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.checkpoints.checkpoints import Checkpoints
from clipfast.train.checkpoints.resume import order_state, resume
from clipfast.train.checkpoints.run_folder import Position
from clipfast.train.setup import make_sampler, set_up

SIZES = [5 + 37 * i % 41 for i in range(84)]  # 2,097 pairs, 5 steps
STOPPED = 2


@pytest.fixture(autouse=True)
def lanes(monkeypatch):
    """The order of large sets, at a size that a test can read whole: 512 lanes."""
    monkeypatch.setattr(module, "WHOLE", 64)
    monkeypatch.setattr(module, "WINDOW", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pattern = write_shards(tmp_path_factory.mktemp("shards"), "a", SIZES)
    open_data(parse_args(["--train-data", pattern]))
    return pattern


def run_of(data, folder, world, **changed):
    """A start of the run on one of the world's ranks: the run, its samples and its sampler."""
    changed = {"batch_size": GLOBAL_BATCH // world.size} | changed
    more = ["--batch-size", str(changed["batch_size"]), "--workers", "1"]
    args = parse_args(["--train-data", data, *more])
    samples = open_data(args)
    run = SmallRun(folder / "logs", world, **changed)
    run.engine.world = World()  # each takes rank 0's weights: nobody looks at them here
    return run, samples, make_sampler(args, samples, world)


@pytest.fixture
def stopped(data, tmp_path):
    """The folder of a run that 256 ranks began and left after step 2, and its sampler."""
    run, samples, sampler = run_of(data, tmp_path, InTurn(0, 256))
    run.save(STOPPED, content={"order": order_state(sampler, samples)})
    run.checkpoints.finish()
    return tmp_path, sampler


def goes_on(data, folder, world, **changed):
    """What the trainer's own resuming gives a rank of another world."""
    run, samples, sampler = run_of(data, folder, world, resume="latest", **changed)
    return samples, resume(run.args, run.folder, world, run.engine, sampler, samples)


def whole_batches(sampler, steps):
    """Those of all ranks together, as one process has them."""
    alone = module.Sampler(sampler.shards, sampler.order, 0, 1)
    return {step: alone.batch(0, step) for step in steps}


@pytest.mark.parametrize(
    "ranks",
    [1, 8, pytest.param(64, marks=pytest.mark.slow), pytest.param(128, marks=pytest.mark.slow),
     pytest.param(256, marks=pytest.mark.slow), pytest.param(512, marks=pytest.mark.slow)],
)  # fmt: skip
def test_any_possible_number_of_ranks_loads_the_batches_that_256_would_have(data, stopped, ranks):
    folder, sampler = stopped
    expected = whole_batches(sampler, range(STOPPED, sampler.steps_per_epoch))
    assert sorted(expected) == [2, 3, 4]
    loaded = []
    for rank in range(ranks):
        samples, got = goes_on(data, folder, InTurn(rank, ranks))
        assert got.position == Position(0, STOPPED)
        batches = loader_on(samples, got.sampler, folder).epoch(*got.position)
        loaded.append([(batch.numbers, batch.images) for batch in batches])
    assert {len(batches) for batches in loaded} == {len(expected)}
    for step, numbers in expected.items():
        parts = [batches[step - STOPPED] for batches in loaded]
        assert np.array_equal(np.concatenate([part[0] for part in parts]), numbers)
        images = torch.cat([part[1] for part in parts])
        whole = loader_on(samples, module.Sampler(sampler.shards, sampler.order), folder)
        assert torch.equal(images, whole.batch(0, step).images)


@pytest.mark.parametrize(
    ("ranks", "nearest"), [(3, "2 and 4"), (96, "64 and 128"), (100, "64 and 128"), (1000, "512")]
)
def test_an_impossible_number_of_ranks_is_refused_with_the_nearest_possible(
    data, stopped, ranks, nearest
):
    folder, _ = stopped
    sentence = (
        r"^--resume .*step_2: inside an epoch the order of the samples must stay the same; world "
        rf"size: expected a divisor of 512, the lanes .*; got {ranks}; the nearest are {nearest}$"
    )
    below = max(1, GLOBAL_BATCH // ranks)
    for batch_size in (below, below + 1):  # no size of theirs makes batches of 512
        with pytest.raises(UserError, match=sentence):
            goes_on(data, folder, InTurn(0, ranks), batch_size=batch_size)


def test_as_many_ranks_as_are_named_go_on(data, stopped):
    folder, sampler = stopped
    for ranks in sampler.order.world_sizes():
        _, got = goes_on(data, folder, InTurn(ranks - 1, ranks))
        assert len(got.sampler.batch(*got.position)) == GLOBAL_BATCH // ranks


def test_between_epochs_96_ranks_may_follow_256(data, stopped):
    folder, sampler = stopped
    run, samples, _ = run_of(data, folder, InTurn(0, 256))
    run.save_epoch({"order": order_state(sampler, samples)})
    run.checkpoints.finish()
    _, got = goes_on(data, folder, InTurn(0, 96))
    assert got.position == Position(1, 0)
    assert got.sampler.world_size == 96
    assert got.sampler.order.batch_size == 480


@pytest.mark.slow
def test_the_whole_start_of_a_rank_goes_on_where_rank_0_of_256_stopped(data, tiny_model, tmp_path):
    """Model, engine, checkpoint and loader by the trainer's own `set_up`, over a fake group."""

    def start(rank, size, *more):
        flags = [
            *("--train-data", data, "--model", tiny_model, "--workers", "1", "--device", "cpu"),
            *("--batch-size", str(GLOBAL_BATCH // size), "--precision", "fp32"),
            *("--logs", str(tmp_path), "--name", "run", "--save-frequency", "0", *more),
        ]
        args = parse_args(flags)
        return args, set_up(args, InTurn(rank, size, group=dist.group.WORLD))

    with one_of(256):
        args, begun = start(0, 256)
        checkpoints = Checkpoints(args, begun.folder, begun.world)
        content = {"order": order_state(begun.sampler, begun.samples)}
        checkpoints.save_state(Position(0, STOPPED), STOPPED, begun.engine, content)
        checkpoints.finish()
    whole = whole_batches(begun.sampler, [STOPPED])[STOPPED]
    for rank, size in ((0, 128), (77, 128), (127, 128), (63, 64), (511, 512)):
        with one_of(size, rank):
            _, parts = start(rank, size, "--resume", "latest")
        assert parts.start == Position(0, STOPPED)
        batch = next(parts.loader.epoch(*parts.start))
        own = GLOBAL_BATCH // size
        assert batch.numbers.tolist() == whole[rank * own : (rank + 1) * own].tolist()
    with one_of(96), pytest.raises(UserError, match="got 96; the nearest are 64 and 128"):
        start(0, 96, "--resume", "latest")
