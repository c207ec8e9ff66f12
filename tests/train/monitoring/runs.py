"""A monitor over a run of made-up steps, as several tests need it."""

from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.checkpoints.run_folder import Position
from clipfast.train.monitoring.monitor import Monitor
from clipfast.train.monitoring.records import StepRecord


def monitor_of(folder, *flags, steps_per_epoch=4, world=None, start=None):
    """Args:
    folder: the run's, which must be there.
    flags: beside those of a run of two epochs.
    """
    args = parse_args(
        ["--train-data", "x", "--epochs", "2", "--batch-size", "16", "--name", "a", *flags]
    )
    return Monitor(
        args,
        folder,
        world or World(),
        steps_per_epoch=steps_per_epoch,
        start=start or Position(0, 0),
    )


def record_of(loss, **changes):
    parts = {"contrastive_loss": loss}
    values = {"logit_scale": 14.25, "lr": 5e-4, "data_time": 0.1, "batch_time": 0.5, "parts": parts}
    return StepRecord(loss, **(values | changes))
