"""The robustness scatter: where models stand, and the lines that they are read against."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from scipy.special import logit

from clipfast.eval.pictures.robustness_scatter import save_robustness_scatter
from clipfast.eval.robustness.effective import Baseline
from clipfast.eval.robustness.evaluation import RobustnessRow, RobustnessTable

pytestmark = pytest.mark.filterwarnings("error")

BASELINES = [
    RobustnessRow(f"pixels {n}", "baseline", reference, (shift - 0.1, shift + 0.1))
    for n, reference, shift in ((10, 0.5, 0.3), (100, 0.7, 0.45), (1000, 0.85, 0.7))
]
MODEL = [
    RobustnessRow("m_1$", "zero-shot", 0.76, (0.6, 0.8)),
    RobustnessRow("m_1$", "linear-probe", 0.85, (0.5, 0.7)),
]


def table_of(rows, *, with_line=True):
    line = Baseline.fit([r.reference for r in BASELINES], [r.average for r in BASELINES])
    return RobustnessTable("ref_1", ("v2", "sketch"), tuple(rows), line if with_line else None)


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def place(line):
    return tuple(map(float, (line.get_xdata()[0], line.get_ydata()[0])))


def test_models_stand_at_their_accuracies_and_an_arrow_leads_to_the_probe(tmp_path):
    figure = save_robustness_scatter(tmp_path / "a.png", table_of([*MODEL, *BASELINES]))
    drawn = lines(figure)
    assert place(drawn["m_1$, zero-shot"]) == pytest.approx((0.76, 0.7))
    assert place(drawn["m_1$, probe"]) == pytest.approx((0.85, 0.6))
    assert list(drawn["baseline models"].get_xdata()) == [0.5, 0.7, 0.85]
    np.testing.assert_allclose(drawn["baseline models"].get_ydata(), [0.3, 0.45, 0.7])
    (arrow,) = figure.axes[0].texts
    assert arrow.xyann == pytest.approx((0.76, 0.7))
    assert arrow.xy == pytest.approx((0.85, 0.6))
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1000, 775)


def test_the_baselines_line_is_straight_in_logits_and_is_what_it_expects(tmp_path):
    table = table_of([*MODEL, *BASELINES])
    line = lines(save_robustness_scatter(tmp_path / "a.png", table))[
        "expected of the baseline models"
    ]
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert table.baseline is not None
    np.testing.assert_allclose(logit(y), table.baseline.slope * logit(x) + table.baseline.intercept)
    assert x[0] < 0.5
    assert x[-1] > 0.85


def test_without_baseline_models_only_what_is_lost_is_shown(tmp_path):
    figure = save_robustness_scatter(tmp_path / "a.png", table_of(MODEL, with_line=False))
    drawn = lines(figure)
    np.testing.assert_array_equal(
        drawn["nothing lost: y = x"].get_xdata(), drawn["nothing lost: y = x"].get_ydata()
    )
    assert set(drawn) == {"m_1$, zero-shot", "m_1$, probe", "nothing lost: y = x"}


def test_everything_lies_within_the_axes(tmp_path):
    figure = save_robustness_scatter(tmp_path / "a.png", table_of([*MODEL, *BASELINES]))
    (left, right), (low, high) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
    for row in (*MODEL, *BASELINES):
        assert left < row.reference < right
        assert low < row.average < high


def test_accuracies_of_none_and_all_are_drawn_at_the_edge_and_called_so(tmp_path):
    row = RobustnessRow("m", "zero-shot", 1.0, (0.0,))
    table = RobustnessTable("digits", ("noise",), (row,))
    figure = save_robustness_scatter(tmp_path / "a.png", table)
    assert place(lines(figure)["m, zero-shot"]) == (0.999, 0.001)
    (axes,) = figure.axes
    assert "≥ 99.9%" in [label.get_text() for label in axes.get_xticklabels()]
    assert "≤ 0.1%" in [label.get_text() for label in axes.get_yticklabels()]


def test_ticks_are_apart_whatever_the_range(tmp_path):
    rows = [RobustnessRow(f"m{i}", "zero-shot", a, (a,)) for i, a in enumerate((0.001, 0.5, 0.999))]
    figure = save_robustness_scatter(tmp_path / "a.png", table_of(rows, with_line=False))
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 4
    for left, right in pairwise(boxes):
        assert left.x1 < right.x0
