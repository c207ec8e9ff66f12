"""history.jsonl: which steps are kept, and what is read back after a crash and a resume."""

import json
import math

import pytest

from clipfast.train.monitoring.history import History, read_history
from clipfast.train.monitoring.records import StepRecord


def history_of(path, total_steps=8, steps_per_epoch=4):
    return History(path, steps_per_epoch=steps_per_epoch, total_steps=total_steps, global_batch=16)


def take(history, step, loss, **changes):
    record = StepRecord(loss, 14.0, 1e-3, 0.1, 0.5, {"contrastive_loss": loss}, **changes)
    if history.step(step, record):
        history.point(step, record, memory=1000)


def test_every_step_of_a_short_run_is_a_point(tmp_path):
    history = history_of(tmp_path / "h")
    history.start(0)
    for step in range(8):
        take(history, step, 8.0 - step, grad_norm=float(step))
    history.flush()
    points = read_history(tmp_path / "h").points
    assert [point["step"] for point in points] == list(range(8))
    assert [point["loss"] for point in points] == [8.0 - step for step in range(8)]
    first = points[5]
    assert first["epoch"] == 1
    assert first["contrastive_loss"] == 3.0
    assert first["grad_norm"] == 5.0
    assert first["samples_per_second"] == 32.0
    assert first["data_wait"] == pytest.approx(0.2)
    assert first["memory"] == 1000


def test_a_long_run_has_about_two_thousand_points_that_leave_no_step_out(tmp_path):
    history = history_of(tmp_path / "h", total_steps=10_000, steps_per_epoch=5_000)
    for step in range(10_000):
        take(history, step, float(step))
    history.flush()
    points = read_history(tmp_path / "h").points
    assert 2_000 <= len(points) <= 2_010
    assert sum(point["steps"] for point in points) == 10_000
    total = sum(point["loss"] * point["steps"] for point in points)
    assert total == pytest.approx(sum(range(10_000)))
    assert {0, 4_999, 5_000, 9_999} <= {point["step"] for point in points}


def test_a_loss_that_is_not_finite_is_counted_and_is_valid_json(tmp_path):
    history = history_of(tmp_path / "h")
    take(history, 0, math.nan, skipped=True)
    take(history, 1, 2.0)
    history.flush()
    for line in (tmp_path / "h").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    skipped, taken = read_history(tmp_path / "h").points
    assert (skipped["skipped"], "loss" in skipped) == (1, False)
    assert (taken["skipped"], taken["loss"]) == (0, 2.0)


def test_of_what_a_resumed_run_does_again_the_later_holds(tmp_path):
    history = history_of(tmp_path / "h")
    history.start(0)
    for step in range(6):
        take(history, step, 1.0)
    history.evaluation(1, 4, {"x": 0.1})
    history.end(6, "killed")
    history = history_of(tmp_path / "h")
    history.start(3)
    for step in range(3, 8):
        take(history, step, 2.0)
    history.evaluation(1, 4, {"x": 0.2})
    history.flush()
    found = read_history(tmp_path / "h")
    assert [point["step"] for point in found.points] == list(range(8))
    assert [point["loss"] for point in found.points] == [1.0] * 3 + [2.0] * 5
    assert [e["metrics"] for e in found.evaluations] == [{"x": 0.2}]
    assert found.end is None
    assert len(found.starts) == 2


def test_an_evaluation_at_the_place_of_the_resume_stays(tmp_path):
    history = history_of(tmp_path / "h")
    history.start(0)
    history.evaluation(1, 4, {"x": 0.1})
    history_of(tmp_path / "h").start(4)
    assert len(read_history(tmp_path / "h").evaluations) == 1


def test_a_line_that_a_crash_cut_spoils_no_other(tmp_path):
    (tmp_path / "h").write_text('{"kind": "point", "step": 0, "lo')
    history = history_of(tmp_path / "h")
    take(history, 1, 2.0)
    history.flush()
    assert [point["step"] for point in read_history(tmp_path / "h").points] == [1]
