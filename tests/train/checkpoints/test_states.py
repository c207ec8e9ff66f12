"""States inside an epoch: written beside training, whole or not at all."""

import json
import multiprocessing
import os
import threading

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from small_runs import CONTENT, ShardEngine, SmallRun, flip_a_bit, full_disk, names_in

from clipfast.errors import OtherRankError, UserError
from clipfast.ranks.world import World
from clipfast.train.checkpoints.finding import furthest_whole
from clipfast.train.checkpoints.run_folder import Position
from clipfast.weights.checkpoint import read_dict


@pytest.fixture
def run(tmp_path):
    return SmallRun(tmp_path)


def test_a_state_is_what_the_weights_were_when_it_was_asked_for(run):
    run.save()
    part = run.engine.part.clone()
    run.engine.step()
    run.checkpoints.finish()
    folder = run.folder.states / "step_1"
    assert names_in(folder) == ["manifest.json", "part_0.pt", "run.pt"]
    assert torch.equal(read_dict(folder / "part_0.pt")["part"], part)


def test_the_content_of_the_run_is_loaded_without_executing_anything(run):
    run.save(content=CONTENT | {"counts": [1, 2], "names": ("a", "b")})
    run.checkpoints.finish()
    content = read_dict(run.folder.states / "step_1" / "run.pt")
    assert content["position"] == (0, 1)
    assert content["counts"] == [1, 2]
    assert torch.equal(content["ema"]["x"], torch.ones(2))
    assert len(content["random_states"]) == 1


def test_training_goes_on_while_a_state_is_written(run):
    let_go = threading.Event()
    write_of(run, lambda folder: let_go.wait(120))
    run.save()
    assert run.checkpoints.unfinished
    assert not list(run.folder.states.glob("step_?"))
    let_go.set()
    run.checkpoints.finish()
    assert run.states() == ["step_1"]


def write_of(run, write):
    """Has the engine call `write` where it would write its file."""
    run.engine.snapshot = lambda folder: lambda: write(folder)


def test_the_newest_states_are_kept_and_as_many_as_asked(run):
    for _ in range(4):
        run.save()
    run.checkpoints.finish()
    assert run.states() == ["step_3", "step_4"]


def test_a_newer_state_that_was_passed_over_does_not_drive_out_good_ones(tmp_path):
    run = SmallRun(tmp_path, keep_states=1)
    run.save(9)
    run.checkpoints.finish()
    again = SmallRun(tmp_path, keep_states=1)
    again.save(5)
    again.checkpoints.finish()
    assert again.states() == ["step_5", "step_9"]
    again.save(4)
    again.checkpoints.finish()
    assert again.states() == ["step_9"]
    manifest = json.loads((again.folder.states / "step_9" / "manifest.json").read_text())
    assert manifest["position"] == [0, 9]


def test_what_a_killed_run_left_unfinished_is_cleared_away(run):
    left = run.folder.states / "step_7.partial"
    left.mkdir(parents=True)
    (left / "part_0.pt").write_bytes(b"half")
    run.save()
    run.checkpoints.finish()
    assert run.states() == ["step_1"]


def test_a_full_disk_is_one_sentence_and_the_state_before_stands(tmp_path):
    with full_disk(tmp_path / "disk", 1 << 20):
        run = SmallRun(tmp_path / "disk")
        run.save()
        run.engine = ShardEngine(width=1 << 19)
        run.save()
        with pytest.raises(UserError, match=r"step_2: expected to write it; got: .*part_0.pt") as e:
            run.checkpoints.finish()
        assert "\n" not in str(e.value)
        assert run.states() == ["step_1"]
        assert furthest_whole(run.folder, World()).position == Position(0, 1)


def test_an_error_of_the_write_is_told_at_the_next_step(run):
    def fail(folder):
        raise OSError(28, "No space left on device", str(folder))

    write_of(run, fail)
    run.save()
    while run.checkpoints.unfinished:  # as the loop asks in each step
        run.engine.step()
    with pytest.raises(UserError, match="No space left on device; the checkpoints before it stand"):
        run.checkpoints.settle()
    assert run.states() == []
    run.checkpoints.finish()


def test_a_folder_that_cannot_be_made_is_one_sentence(run):
    run.folder.path.mkdir()
    run.folder.states.write_text("a file")
    with pytest.raises(UserError, match="state: (File exists|Not a directory)"):
        run.save()


def test_a_state_killed_while_written_leaves_the_one_before(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "clipfast_kernels"])
    ours, theirs = context.Pipe()
    process = context.Process(target=save_and_hang, args=(tmp_path, theirs))
    process.start()
    assert ours.poll(120)
    process.kill()
    process.join()
    run = SmallRun(tmp_path)
    assert run.states() == ["step_1", "step_2.partial"]
    assert furthest_whole(run.folder, World()).path.name == "step_1"


def save_and_hang(tmp_path, pipe):
    run = SmallRun(tmp_path)
    run.save()
    run.checkpoints.finish()

    def half(folder):
        (folder / "part_0.pt").write_bytes(b"half")
        pipe.send("half of it is there")
        threading.Event().wait()

    write_of(run, half)
    run.save()
    threading.Event().wait()


@pytest.mark.parametrize("damaged", ["part_0.pt", "run.pt", "manifest.json"])
def test_a_flipped_bit_in_the_newest_is_named_and_the_one_before_taken(run, damaged, caplog):
    run.save()
    run.save()
    run.checkpoints.finish()
    flip_a_bit(run.folder.states / "step_2" / damaged)
    assert furthest_whole(run.folder, World()).path.name == "step_1"
    (warning,) = caplog.messages
    assert str(run.folder.states / "step_2") in warning
    assert damaged in warning
    assert warning.endswith("; passed over")


@pytest.mark.parametrize("change", ["missing", "cut", "added"])
def test_a_state_whose_files_are_not_the_manifests_is_passed_over(run, change, caplog):
    run.save()
    run.save()
    run.checkpoints.finish()
    folder = run.folder.states / "step_2"
    if change == "missing":
        (folder / "part_0.pt").unlink()
    elif change == "cut":
        os.truncate(folder / "part_0.pt", 100)
    else:
        (folder / "part_1.pt").write_bytes(b"not ours")
    assert furthest_whole(run.folder, World()).path.name == "step_1"
    assert "part_" in caplog.text


def test_where_every_checkpoint_is_damaged_the_run_does_not_start_afresh(run):
    run.save()
    run.checkpoints.finish()
    flip_a_bit(run.folder.states / "step_1" / "run.pt")
    with pytest.raises(UserError, match="expected a whole checkpoint in .*; got damaged ones, 1"):
        furthest_whole(run.folder, World())


def test_ranks_write_one_state_and_one_ranks_failure_ends_all(tmp_path):
    (kind, told, whole), (other_kind, other_told, other_whole) = run_ranks(2, on_two, tmp_path)
    assert (kind, other_kind) == (UserError, OtherRankError)
    assert "got: rank 1: no room here;" in told
    assert told == other_told
    assert whole == other_whole == Position(0, 1)
    assert names_in(tmp_path / "run" / "state") == ["step_1"]
    files = names_in(tmp_path / "run" / "state" / "step_1")
    assert files == ["manifest.json", "part_0.pt", "part_1.pt", "run.pt"]
    content = read_dict(tmp_path / "run" / "state" / "step_1" / "run.pt")
    first, second = content["random_states"]
    assert not torch.equal(first["cpu"], second["cpu"])


def on_two(tmp_path):
    rank = dist.get_rank()
    world = World(rank, 2, control=dist.group.WORLD)
    torch.manual_seed(rank)
    run = SmallRun(tmp_path, world)
    run.save()
    run.checkpoints.finish()
    if rank == 1:

        def fail(folder):
            raise OSError(28, "no room here")

        write_of(run, fail)
    run.save()
    with pytest.raises(UserError) as caught:
        run.checkpoints.finish()
    return caught.type, str(caught.value), furthest_whole(run.folder, world).position
