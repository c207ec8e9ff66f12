"""out.log's lines: the expected ones were written by open_clip_train 3.3.0."""

import pytest

from clipfast.train.monitoring.log_line import LogLine
from clipfast.train.monitoring.records import StepRecord

# Of a run of 8 steps of 64 samples with --log-every-n-steps 2.
OPEN_CLIPS = [
    "Train Epoch: 0 [ 64/512 (12%)] Data (t): 5.781 Batch (t): 8.791, 7.28046/s, 7.28046/s/gpu "
    "LR: 0.000125 Logit Scale: 14.286 Contrastive_loss: 4.3902 (4.3902) Loss: 4.3902 (4.3902)",
    "Train Epoch: 0 [192/512 (38%)] Data (t): 0.662 Batch (t): 2.498, 18.3645/s, 18.3645/s/gpu "
    "LR: 0.000375 Logit Scale: 14.281 Contrastive_loss: 4.1615 (4.2759) Loss: 4.1615 (4.2759)",
]


def record(loss, scale, lr, data_time, batch_time, **more):
    return StepRecord(loss, scale, lr, data_time, batch_time, {"contrastive_loss": loss}, **more)


def test_the_lines_are_open_clips():
    first = record(4.39020, 14.286, 0.000125, 5.781, 64 / 7.28046)
    between = record(9.0, 14.283, 0.00025, 2 * 0.662 - 0.5, 2 * 2.498 - 64 / 18.3645)
    second = record(4.16150, 14.281, 0.000375, 0.5, 64 / 18.3645)
    line = LogLine(global_batch=64, world_size=1, steps_per_epoch=8)
    line.add(first)
    written = [line.write(0, 0, first)]
    line.add(between)
    line.add(second)
    written.append(line.write(0, 2, second))
    assert written == OPEN_CLIPS


def test_samples_are_all_ranks_and_the_second_rate_is_one_ranks():
    line = LogLine(global_batch=128, world_size=4, steps_per_epoch=2)
    step = record(1.0, 10.0, 1e-3, 0.0, 0.5)
    line.add(step)
    assert "[128/256 (50%)]" in (written := line.write(0, 0, step))
    assert "256.000/s, 64.0000/s/gpu" in written


def test_the_mean_of_the_losses_begins_anew_in_each_epoch():
    line = LogLine(global_batch=8, world_size=1, steps_per_epoch=1)
    for epoch, loss in enumerate((4.0, 2.0)):
        step = record(loss, 10.0, 1e-3, 0.0, 0.5)
        line.add(step)
        written = line.write(epoch, 0, step)
    assert "Loss: 2.0000 (2.0000)" in written


def test_each_part_of_the_loss_has_its_word_and_its_tag():
    line = LogLine(global_batch=8, world_size=1, steps_per_epoch=1)
    parts = {"contrastive_loss": 1.5, "distill_loss": 0.5}
    step = StepRecord(2.0, 10.0, 1e-3, 0.0, 0.5, parts)
    line.add(step)
    assert line.write(0, 0, step).endswith(
        "Contrastive_loss: 1.5000 (1.5000) Distill_loss: 0.50000 (0.50000) Loss: 2.0000 (2.0000)"
    )
    assert line.scalars(step) == pytest.approx(
        {
            "data_time": 0.0,
            "batch_time": 0.5,
            "samples_per_second": 16.0,
            "samples_per_second_per_gpu": 16.0,
            "scale": 10.0,
            "lr": 1e-3,
            "contrastive_loss": 1.5,
            "distill_loss": 0.5,
            "loss": 2.0,
        }
    )
