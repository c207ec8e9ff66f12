"""The table of a robustness evaluation: averages, effective robustness, and the probe's gain."""

import logging

import numpy as np
import pytest

from clipfast.eval.robustness.effective import Baseline
from clipfast.eval.robustness.evaluation import (
    RobustnessRow,
    RobustnessTable,
    Survival,
    robustness_table,
)

SHIFTS = ("imagenetv2", "imagenet-a", "imagenet-r", "objectnet", "imagenet_sketch")
# The paper's ViT-L/14@336px.
ZERO_SHOT = RobustnessRow("L/14", "zero-shot", 0.762, (0.701, 0.772, 0.889, 0.723, 0.602))
PROBE = RobustnessRow("L/14", "linear-probe", 0.854, (0.759, 0.753, 0.842, 0.662, 0.574))
BASELINES = (
    RobustnessRow("a", "baseline", 0.3, (0.2, 0.1, 0.1, 0.1, 0.0)),
    RobustnessRow("b", "baseline", 0.5, (0.4, 0.1, 0.2, 0.2, 0.1)),
    RobustnessRow("c", "baseline", 0.7, (0.6, 0.1, 0.3, 0.3, 0.2)),
)


def test_effective_robustness_is_what_the_line_of_the_baselines_leaves_of_the_average():
    table = robustness_table("imagenet1k", SHIFTS, [ZERO_SHOT, PROBE, *BASELINES])
    line = Baseline.fit([0.3, 0.5, 0.7], [np.mean(row.shifts) for row in BASELINES])
    assert table.baseline == line
    for row in table.rows:
        expected = np.mean(row.shifts) - line.expected(row.reference)
        assert row.effective == pytest.approx(expected, abs=1e-12)
    assert table.rows[0].effective > table.rows[1].effective > 0


def test_without_a_line_there_is_a_table_without_effective_robustness(caplog):
    caplog.set_level(logging.WARNING, "clipfast.eval")
    table = robustness_table("imagenet1k", SHIFTS, [ZERO_SHOT, BASELINES[0]])
    assert table.baseline is None
    assert [row.effective for row in table.rows] == [None, None]
    assert "imagenet1k: no effective robustness: baseline: expected at least 2" in caplog.text


def test_a_row_that_lacks_a_shift_is_refused():
    with pytest.raises(ValueError, match="L/14: expected accuracies under 4 shifts; got 5"):
        robustness_table("imagenet1k", SHIFTS[:4], [ZERO_SHOT])


def test_the_papers_gain_does_not_survive():
    (survival,) = RobustnessTable("imagenet1k", SHIFTS, (ZERO_SHOT, PROBE)).survivals()
    assert survival.reference == pytest.approx(0.092)
    assert survival.shifts == pytest.approx((0.058, -0.019, -0.047, -0.061, -0.028))
    assert survival.sentence() == (
        "L/14: the probe gives +9.2 points on the reference, -1.9 on average of the 5 shifts: "
        "the gain does not survive"
    )


@pytest.mark.parametrize(
    ("reference", "shifts", "end"),
    [
        (0.092, (-0.005,), "+9.2 points on the reference, -0.5 on the shift: the gain does not"),
        (0.1, (0.1, 0.2), "+15.0 on average of the 2 shifts: the gain survives"),
        (0.1, (0.1,), "+10.0 on the shift: the gain survives"),
        (0.1, (0.05, 0.0), "+2.5 on average of the 2 shifts: 25% of the gain survives"),
        (0.1, (0.0004, -0.0004), "+0.0 on average of the 2 shifts: the gain does not survive"),
        (0.0004, (0.1,), "+0.0 points on the reference, +10.0 on the shift: there is no gain to"),
        (-0.0004, (0.1,), "+0.0 points on the reference, +10.0 on the shift: there is no gain"),
        (-0.1, (-0.2,), "-10.0 points on the reference, -20.0 on the shift: there is no gain to"),
    ],
)
def test_the_sentence_follows_from_the_numbers_that_it_prints(reference, shifts, end):
    assert end in Survival("m", reference, shifts).sentence()


def test_only_models_with_both_adaptations_have_a_survival():
    other = RobustnessRow("B/32", "linear-probe", 0.7, PROBE.shifts)
    table = RobustnessTable("imagenet1k", SHIFTS, (PROBE, other, ZERO_SHOT, *BASELINES))
    assert [survival.label for survival in table.survivals()] == ["L/14"]


def test_severities_become_one_shift_of_the_weight_of_any_other():
    shifts = ["noise", "own", "noise", "blur", "noise"]
    rows = [
        RobustnessRow("m", "zero-shot", 0.9, (0.8, 0.5, 0.6, 0.4, 0.4)),
        RobustnessRow("p", "baseline", 0.3, (0.3, 0.2, 0.2, 0.1, 0.1)),
        RobustnessRow("q", "baseline", 0.9, (0.6, 0.5, 0.5, 0.3, 0.4)),
    ]
    table = robustness_table("digits", shifts, rows)
    assert table.shifts == ("noise", "own", "blur")
    assert table.rows[0].shifts == pytest.approx((0.6, 0.5, 0.4))
    assert table.rows[0].average == pytest.approx(0.5)
    assert table.baseline.points[0] == pytest.approx((0.3, 0.5 / 3))
    assert table.baseline.points[1] == pytest.approx((0.9, 1.3 / 3))
    assert table.rows[2].effective == pytest.approx(0, abs=1e-12)
