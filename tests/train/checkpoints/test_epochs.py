"""Checkpoints in open_clip's form, and what that form has no place for."""

import pytest
import torch
from small_runs import CONTENT, SmallRun, flip_a_bit, full_disk, names_in

from clipfast.errors import UserError
from clipfast.ranks.world import World
from clipfast.train.checkpoints.finding import furthest_whole, saved_at
from clipfast.train.checkpoints.run_folder import Position
from clipfast.weights.checkpoint import read_checkpoint, read_dict


def run_of(tmp_path, epochs=3, **changed):
    run = SmallRun(tmp_path, epochs=epochs, **changed)
    for _ in range(epochs):
        run.save_epoch()
    run.checkpoints.finish()
    return run


@pytest.mark.parametrize(
    ("changed", "files"),
    [
        ({}, ["epoch_1.pt", "epoch_2.pt", "epoch_3.pt"]),
        ({"save_frequency": 0}, ["epoch_3.pt"]),
        ({"save_frequency": 2}, ["epoch_2.pt", "epoch_3.pt"]),
        ({"save_frequency": 0, "save_most_recent": True}, ["epoch_3.pt", "epoch_latest.pt"]),
        ({"delete_previous_checkpoint": True}, ["epoch_3.pt"]),
        ({"delete_previous_checkpoint": True, "save_frequency": 2}, ["epoch_3.pt"]),
        ({"logs": "none"}, []),
    ],
)
def test_the_files_are_those_that_open_clips_flags_ask_for(tmp_path, changed, files):
    run = run_of(tmp_path, **changed)
    assert names_in(run.folder.checkpoints) == files
    assert run.states() == [name.removesuffix(".pt") for name in files]


def test_a_checkpoint_is_deleted_only_when_the_next_is_whole(tmp_path):
    run = SmallRun(tmp_path, delete_previous_checkpoint=True, save_frequency=2, epochs=4)
    for _ in range(3):
        run.save_epoch()
        run.checkpoints.finish()
    assert names_in(run.folder.checkpoints) == ["epoch_2.pt"]


def test_a_checkpoint_has_open_clips_keys_and_nothing_else(tmp_path):
    run = run_of(tmp_path, save_most_recent=True)
    content = torch.load(run.folder.checkpoints / "epoch_2.pt", weights_only=True)
    assert content.keys() == {"epoch", "name", "state_dict", "optimizer"}
    assert (content["epoch"], content["name"]) == (2, "run")
    last = read_checkpoint(run.folder.checkpoints / "epoch_latest.pt")
    assert last["epoch"] == 3
    assert torch.equal(last["state_dict"]["part"], run.engine.part)


def test_a_checkpoint_is_of_the_weights_when_the_epoch_ended(tmp_path):
    run = SmallRun(tmp_path)
    run.save_epoch()
    part = run.engine.part.clone()
    run.engine.step()
    run.checkpoints.finish()
    state = read_checkpoint(run.folder.checkpoints / "epoch_1.pt")["state_dict"]
    assert torch.equal(state["part"], part)


def test_averaged_weights_are_written_in_open_clips_form_where_its_resume_does_not_look(tmp_path):
    run = SmallRun(tmp_path)
    run.save_epoch(ema={"part": torch.full((3,), 7.0)})
    run.checkpoints.finish()
    assert names_in(run.folder.ema) == ["epoch_1.pt"]
    averaged = read_checkpoint(run.folder.ema / "epoch_1.pt")
    assert averaged["epoch"] == 1
    assert averaged["state_dict"]["part"].tolist() == [7, 7, 7]


def test_what_only_going_on_needs_is_kept_for_the_newest_checkpoints(tmp_path):
    run = run_of(tmp_path)
    assert names_in(run.folder.states / "epoch_1") == ["manifest.json"]
    for epoch in (2, 3):
        content = read_dict(run.folder.states / f"epoch_{epoch}" / "run.pt")
        assert content["skipped"] == CONTENT["skipped"]
    for epoch in (1, 2, 3):
        saved = saved_at(run.folder.checkpoints / f"epoch_{epoch}.pt")
        assert saved.position == Position(epoch, 0)
        assert saved.manifest.damage(saved.folder, saved.manifest.files) == []


def test_a_flipped_bit_in_the_last_is_named_and_the_one_before_taken(tmp_path, caplog):
    run = run_of(tmp_path)
    flip_a_bit(run.folder.checkpoints / "epoch_3.pt")
    assert furthest_whole(run.folder, World()).path.name == "epoch_2.pt"
    assert "epoch_3.pt has another checksum" in caplog.text


def test_the_furthest_of_states_and_checkpoints_is_taken(tmp_path):
    run = SmallRun(tmp_path, save_most_recent=True)
    run.save(5)
    run.save_epoch()
    run.checkpoints.finish()
    assert furthest_whole(run.folder, World()).path.stem in ("epoch_1", "epoch_latest")
    run.save(5)
    run.checkpoints.finish()
    assert furthest_whole(run.folder, World()).path.name == "step_15"


def test_checkpoints_of_open_clips_own_are_found_by_their_epochs(tmp_path):
    run = SmallRun(tmp_path)
    run.folder.checkpoints.mkdir(parents=True)
    for name, epoch in (("epoch_9", 9), ("epoch_10", 10), ("epoch_latest", 11)):
        content = {"epoch": epoch, "name": "theirs", "state_dict": {"part": torch.ones(3)}}
        torch.save(content, run.folder.checkpoints / f"{name}.pt")
    assert furthest_whole(run.folder, World()).path.name == "epoch_latest.pt"
    (run.folder.checkpoints / "epoch_latest.pt").unlink()
    assert furthest_whole(run.folder, World()).path.name == "epoch_10.pt"
    (run.folder.checkpoints / "epoch_10.pt").write_bytes(b"cut short")
    assert furthest_whole(run.folder, World()).path.name == "epoch_9.pt"


def test_a_full_disk_leaves_the_checkpoints_before_and_nothing_half(tmp_path):
    with full_disk(tmp_path / "disk", 1 << 20):
        run = SmallRun(tmp_path / "disk", save_most_recent=True)
        run.save_epoch()
        run.checkpoints.finish()
        run.engine.part = torch.zeros(1 << 19)
        run.engine.momentum = torch.zeros(1 << 19)
        run.save_epoch()
        with pytest.raises(UserError, match=r"epoch_2\.pt: expected to write it; got: "):
            run.checkpoints.finish()
        assert names_in(run.folder.checkpoints) == ["epoch_1.pt", "epoch_latest.pt"]
        assert run.states() == ["epoch_1", "epoch_latest"]
        assert furthest_whole(run.folder, World()).position == Position(1, 0)


def test_a_checkpoint_half_written_is_seen_by_neither_trainer(tmp_path):
    run = run_of(tmp_path, epochs=1)
    (run.folder.checkpoints / "epoch_2.pt.partial").write_bytes(b"half")
    (run.folder.states / "epoch_2.partial").mkdir()
    assert [path.name for path in run.folder.checkpoints.glob("**/*.pt")] == ["epoch_1.pt"]
    assert furthest_whole(run.folder, World()).path.name == "epoch_1.pt"
