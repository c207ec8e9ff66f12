"""Going on: from which checkpoint, with what, and when not."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from small_runs import CONTENT, SmallRun, flip_a_bit

from clipfast.data.sampler import Sampler
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.synthetic import SyntheticSource
from clipfast.errors import UserError
from clipfast.ranks.world import World
from clipfast.train.checkpoints.resume import order_state, resume
from clipfast.train.checkpoints.run_folder import Position

SAMPLES = SampleSet([SyntheticSource(80, 32)])


def sampler_of(args, world=World(), workers=1):  # noqa: B008, a value
    return Sampler.of(
        SAMPLES.shards,
        args.batch_size * world.size,
        workers,
        args.seed,
        rank=world.rank,
        world_size=world.size,
        micro_batches=args.accum_freq,
    )


def saved_run(tmp_path, steps=3, **changed):
    run = SmallRun(tmp_path / "logs", **changed)
    run.content = CONTENT | {"order": order_state(sampler_of(run.args), SAMPLES)}
    run.save(steps, content=run.content)
    run.checkpoints.finish()
    return run


def resumed(tmp_path, source="latest", *, world=World(), samples=SAMPLES, workers=1, **changed):  # noqa: B008
    """A new process of the run, and what it goes on with."""
    run = SmallRun(tmp_path / "logs", world, resume=source and str(source), **changed)
    sampler = sampler_of(run.args, world, workers)
    return run, resume(run.args, run.folder, world, run.engine, sampler, samples)


def test_weights_optimizer_content_and_random_numbers_come_back(tmp_path):
    run = saved_run(tmp_path)
    drawn = torch.rand(3)
    torch.manual_seed(99)
    again, got = resumed(tmp_path)
    assert got.position == Position(0, 3)
    assert torch.equal(again.engine.part, run.engine.part)
    assert torch.equal(again.engine.momentum, run.engine.momentum)
    assert got.content.keys() == CONTENT.keys()
    assert torch.equal(got.content["ema"]["x"], CONTENT["ema"]["x"])
    assert torch.equal(torch.rand(3), drawn)


def test_an_epochs_checkpoint_brings_back_as_much(tmp_path):
    run = saved_run(tmp_path)
    run.save_epoch(run.content)
    drawn = torch.rand(3)
    run.checkpoints.finish()
    torch.manual_seed(99)
    again, got = resumed(tmp_path, workers=4)
    assert got.source.name == "epoch_1.pt"
    assert got.position == Position(1, 0)
    assert got.sampler.steps_per_epoch == 10  # of the first start: four workers would make it 12
    assert got.content["skipped"] == CONTENT["skipped"]
    assert torch.equal(again.engine.part, run.engine.part)
    assert torch.equal(torch.rand(3), drawn)


def test_without_a_checkpoint_yet_latest_starts_afresh_and_says_so(tmp_path, caplog):
    _, got = resumed(tmp_path)
    assert (got.position, got.content, got.source) == (Position(0, 0), {}, None)
    assert "no checkpoint in" in caplog.text


def test_without_resume_nothing_is_looked_for(tmp_path):
    saved_run(tmp_path)
    _, got = resumed(tmp_path, None)
    assert got.position == Position(0, 0)


def test_a_state_of_another_run_is_taken_by_its_folder(tmp_path):
    run = saved_run(tmp_path)
    shutil.move(run.folder.path, tmp_path / "logs" / "other")
    _, got = resumed(
        tmp_path, tmp_path / "logs" / "other" / "state" / "step_3", trust_checkpoint=True
    )
    assert got.position == Position(0, 3)


@pytest.mark.parametrize(
    ("keys", "position"),
    [({"epoch": 2, "optimizer": {"state": {0: torch.ones(3)}}}, Position(2, 0)), ({}, (0, 0))],
)
def test_checkpoints_of_open_clips_own_and_bare_weights_are_taken(tmp_path, keys, position):
    state = {"module.part": torch.full((3,), 5.0)}
    torch.save(keys | {"state_dict": state} if keys else state, tmp_path / "theirs.pt")
    run, got = resumed(tmp_path, tmp_path / "theirs.pt")
    assert got.position == position
    assert run.engine.part.tolist() == [5, 5, 5]
    assert (run.engine.momentum.tolist() == [1, 1, 1]) == bool(keys)


@pytest.mark.parametrize("kind", ["state", "checkpoint"])
def test_a_damaged_checkpoint_that_is_asked_for_is_refused(tmp_path, kind):
    run = saved_run(tmp_path)
    run.save_epoch(run.content)
    run.checkpoints.finish()
    state, checkpoint = run.folder.states / "step_3", run.folder.checkpoints / "epoch_1.pt"
    source, damaged = (state, state / "part_0.pt") if kind == "state" else (checkpoint, checkpoint)
    flip_a_bit(damaged)
    with pytest.raises(UserError, match=rf"{source.name}: damaged: .*has another checksum"):
        resumed(tmp_path, source)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt: no such file or folder"):
        resumed(tmp_path, tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: expected manifest\.json in it; got none"):
        resumed(tmp_path, tmp_path / "empty")


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"epoch": 1, "state_dict": {"part": Trap()}}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="only executing code would load"):
        resumed(tmp_path, tmp_path / "trap.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("tagged", [True, False])
def test_deepspeeds_own_files_are_unpickled_only_where_they_are_trusted(tmp_path, tagged):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    folder = tmp_path / "theirs" / "global_step7"
    folder.mkdir(parents=True)
    (folder.parent / "latest").write_text("global_step7\n")
    module = {"module.part": torch.full((3,), 5.0), "module.logit_scale": torch.ones(1)}
    torch.save({"module": module, "x": Trap()}, folder / "mp_rank_00_model_states.pt")
    source = folder.parent if tagged else folder
    with pytest.raises(UserError, match="add --trust-checkpoint"):
        resumed(tmp_path, source)
    assert not (tmp_path / "executed").exists()
    run, got = resumed(tmp_path, source, trust_checkpoint=True)
    assert (tmp_path / "executed").exists()
    assert got.position == (0, 0)
    assert run.engine.part.tolist() == [5, 5, 5]
    assert not run.engine.momentum.any()


def test_weights_that_deepspeed_left_in_parts_name_the_tool_that_joins_them(tmp_path):
    (tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"DeepSpeed's zero_to_fp32\.py makes"):
        resumed(tmp_path, tmp_path, trust_checkpoint=True)


def test_a_state_of_another_engine_is_refused_and_the_way_named(tmp_path):
    saved_run(tmp_path)
    run = SmallRun(tmp_path / "logs", resume="latest")
    run.engine.name = "plain"
    with pytest.raises(UserError, match=r"one of the shards engine; go on from .*epoch_N\.pt"):
        resume(run.args, run.folder, World(), run.engine, sampler_of(run.args), SAMPLES)


def test_a_manifest_of_another_release_is_refused(tmp_path):
    run = saved_run(tmp_path)
    path = run.folder.states / "step_3" / "manifest.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(UserError, match="damaged: its checksum is another"):
        resumed(tmp_path, path.parent)


@pytest.mark.parametrize(
    ("batch_size", "accum_freq", "ranks", "ways"),
    [
        (8, 1, 2, "; --batch-size 4 would do"),
        (4, 4, 1, "; --batch-size 2 or --accum-freq 2 would do"),
        (1, 5, 4, "; --accum-freq 2 would do"),
        (3, 3, 2, ""),
    ],
)
def test_another_global_batch_names_the_flags_that_would_do(
    tmp_path, batch_size, accum_freq, ranks, ways
):
    saved_run(tmp_path)
    sampler = Sampler.of(
        SAMPLES.shards, batch_size * ranks, 1, 0, world_size=ranks, micro_batches=accum_freq
    )
    run = SmallRun(tmp_path / "logs", resume="latest", batch_size=batch_size, accum_freq=accum_freq)
    sentence = (
        rf"expected a global batch of 8; got {batch_size} \(--batch-size\) × {accum_freq} "
        rf"\(--accum-freq\) × {ranks} \(processes\){ways}$"
    )
    with pytest.raises(UserError, match=sentence):
        resume(run.args, run.folder, World(), run.engine, sampler, SAMPLES)


@pytest.mark.parametrize(
    ("ranks", "nearest"), [(3, "2 and 4"), (6, "4 and 8"), (7, "4 and 8"), (100, "8")]
)
def test_ranks_that_cannot_share_the_lanes_out_are_told_how_many_could(tmp_path, ranks, nearest):
    saved_run(tmp_path)
    for batch_size in (1, 2, 3):
        run = SmallRun(tmp_path / "logs", resume="latest", batch_size=batch_size)
        sampler = sampler_of(run.args, World(size=ranks))
        sentence = (
            r"--resume .*step_3: inside an epoch the order of the samples must stay the same; "
            rf"world size: expected a divisor of 8, .*; got {ranks}; the nearest are {nearest}$"
        )
        with pytest.raises(UserError, match=sentence):
            resume(run.args, run.folder, World(), run.engine, sampler, SAMPLES)


def test_between_epochs_another_batch_size_may_follow_but_inside_one_other_samples_may_not(
    tmp_path,
):
    run = saved_run(tmp_path)
    other = SampleSet([SyntheticSource(80, 64)])
    with pytest.raises(UserError, match="expected the samples that the state was saved under"):
        resumed(tmp_path, samples=other)
    run.save_epoch(run.content)
    run.checkpoints.finish()
    _, got = resumed(tmp_path, batch_size=16)
    assert got.sampler.order.batch_size == 16
    _, got = resumed(tmp_path, batch_size=2, world=World(size=3))
    assert got.sampler.order.lanes == 6
    assert got.position == Position(1, 0)


def test_on_more_ranks_the_global_batches_stay_and_new_ranks_draw_numbers_of_their_own(tmp_path):
    run = saved_run(tmp_path)
    drawn = torch.rand(3)
    (first, first_drawn), (second, second_drawn) = run_ranks(2, on_two, tmp_path)
    whole = sampler_of(run.args).batch(0, 3)
    assert np.array_equal(np.concatenate([first, second]), whole)
    assert torch.equal(first_drawn, drawn)
    assert not torch.equal(second_drawn, drawn)


def on_two(tmp_path):
    world = World(dist.get_rank(), 2, control=dist.group.WORLD)
    _, got = resumed(tmp_path, batch_size=4, world=world)
    return got.sampler.batch(0, 3), torch.rand(3)
