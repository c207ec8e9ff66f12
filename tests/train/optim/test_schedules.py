"""The learning rate is open_clip's, to the bit, at every step of every setting."""

import pytest
import torch

from clipfast.train import parse_args
from clipfast.train.optim.schedules import describe_schedule, make_schedule

scheduler = pytest.importorskip("open_clip_train.scheduler")

COOLDOWN = ("--lr-scheduler", "const-cooldown", "--epochs-cooldown")


def parsed(*flags):
    return parse_args(["--train-data", "x.tar", *flags])


def open_clips(args, batches_per_epoch):
    """As open_clip_train's main makes it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    steps_per_epoch = batches_per_epoch // args.accum_freq
    total = steps_per_epoch * args.epochs
    if args.lr_scheduler == "cosine":
        return scheduler.cosine_lr(optimizer, args.lr, args.warmup, total)
    if args.lr_scheduler == "const":
        return scheduler.const_lr(optimizer, args.lr, args.warmup, total)
    cooldown = steps_per_epoch * args.epochs_cooldown
    return scheduler.const_lr_cooldown(
        *(optimizer, args.lr, args.warmup, total, cooldown),
        *(args.lr_cooldown_power, args.lr_cooldown_end),
    )


@pytest.mark.parametrize("warmup", [0, 1, 7, 33, 1000])
@pytest.mark.parametrize(
    "shape",
    [
        ("--lr-scheduler", "cosine"),
        ("--lr-scheduler", "const"),
        (*COOLDOWN, "0"),
        (*COOLDOWN, "1"),
        (*COOLDOWN, "2", "--lr-cooldown-power", "0.5", "--lr-cooldown-end", "1e-5"),
        (*COOLDOWN, "3", "--lr-cooldown-power", "2"),
        (*COOLDOWN, "4"),
    ],
)
@pytest.mark.parametrize(("accum_freq", "batches"), [(1, 11), (2, 23), (4, 47)])
def test_every_step_has_open_clips_rate(warmup, shape, accum_freq, batches):
    args = parsed("--epochs", "3", "--warmup", str(warmup), "--lr", "3e-4", *shape)
    args.accum_freq = accum_freq
    ours, theirs = make_schedule(args, batches // accum_freq), open_clips(args, batches)
    steps = range(3 * (batches // accum_freq))
    assert [ours(step) for step in steps] == [theirs(step) for step in steps]


def test_without_a_schedule_the_rate_stays():
    schedule = make_schedule(parsed("--skip-scheduler", "--lr", "0.1", "--warmup", "9"), 4)
    assert {schedule(step) for step in range(99)} == {0.1}


def test_the_schedule_is_told():
    assert describe_schedule(parsed(*COOLDOWN, "2", "--lr-cooldown-end", "1e-5")) == (
        "learning rate: 0.0005 after 10,000 steps of warm-up, then constant, and in the last "
        "2 epochs down to 1e-05 by power 1"
    )
    assert describe_schedule(parsed("--skip-scheduler")) == "learning rate: 0.0005 throughout"
