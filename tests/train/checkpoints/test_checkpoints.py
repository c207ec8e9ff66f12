"""When a run saves: by minutes and steps, and when it is asked to."""

import logging
import os
import signal

import pytest
from small_runs import SmallRun, names_in

from clipfast.errors import UserError
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.loop import train


def test_a_state_is_due_after_so_many_minutes_by_rank_0s_clock(tmp_path):
    assert SmallRun(tmp_path, save_every_minutes=1e-9).checkpoints.wanted
    assert not SmallRun(tmp_path, save_every_minutes=60.0).checkpoints.wanted
    assert not SmallRun(tmp_path).checkpoints.wanted
    other = World(1, 2)
    assert not SmallRun(tmp_path, other, save_every_minutes=1e-9).checkpoints.wanted


def test_a_state_is_due_after_so_many_steps(tmp_path):
    run = SmallRun(tmp_path, save_every_steps=5)
    assert [step for step in range(1, 16) if run.checkpoints.due(step)] == [5, 10, 15]
    assert not SmallRun(tmp_path).checkpoints.due(5)


def test_what_is_being_written_when_a_run_fails_is_there_in_the_end(tmp_path):
    run = SmallRun(tmp_path)

    def fail():
        with run.checkpoints:
            run.save()
            raise UserError("ten in a row")

    with pytest.raises(UserError, match="ten in a row"):
        fail()
    assert run.states() == ["step_1"]


@pytest.fixture
def flags(digit_shards, tiny_model, tmp_path):
    """Of a run of six steps."""
    return [
        *("--train-data", digit_shards.train_pattern, "--model", tiny_model),
        *("--batch-size", "16", "--epochs", "1", "--workers", "1", "--log-every-n-steps", "1"),
        *("--logs", str(tmp_path / "logs"), "--name", "a"),
    ]


def test_sigusr1_saves_and_the_run_goes_on(flags):
    class AtTheSecondLine(logging.Handler):
        lines = 0

        def emit(self, record):
            if "Train Epoch" in record.getMessage():
                self.lines += 1
                if self.lines == 2:
                    os.kill(os.getpid(), signal.SIGUSR1)

    handler = AtTheSecondLine()
    logging.getLogger("clipfast.train").addHandler(handler)
    try:
        summary = train(parse_args(flags))
    finally:
        logging.getLogger("clipfast.train").removeHandler(handler)
    assert len(summary.losses) == 6
    assert names_in(summary.folder.states) == ["epoch_1", "step_3"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--logs", "none", "--save-every-steps", "5"], "--save-every-steps: expected --logs"),
        (["--keep-states", "0"], "--keep-states: expected at least 1; got 0"),
        (["--save-every-minutes", "-1"], "--save-every-minutes: expected 0 .*; got -1.0"),
        (["--remote-sync", "/there"], "--remote-sync: expected s3://BUCKET/FOLDER"),
        (
            ["--remote-sync", "there", "--remote-sync-protocol", "fsspec"],
            "--remote-sync: expected a URL",
        ),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(flags, more, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_args([*flags, *more])


def test_the_defaults_are_open_clips(flags):
    from open_clip_train.params import parse_args as theirs

    ours, open_clips = parse_args(flags), theirs([])
    for name in (
        *("save_frequency", "save_most_recent", "delete_previous_checkpoint", "resume"),
        *("remote_sync", "remote_sync_frequency", "remote_sync_protocol"),
    ):
        assert getattr(ours, name) == getattr(open_clips, name), name
