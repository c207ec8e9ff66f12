"""Curves: what thinning and smoothing keep, and where axes and paths lie."""

import pytest

from clipfast.report.charts import Series, make_chart, short_number, smoothed, thinned, ticks


def curve_of(values):
    return list(enumerate(map(float, values)))


def test_thinning_keeps_every_peak():
    values = [1.0] * 10_000
    values[1234], values[7777] = 9.0, -9.0
    kept = thinned(curve_of(values))
    assert len(kept) <= 400
    assert (1234, 9.0) in kept
    assert (7777, -9.0) in kept
    assert kept == sorted(kept)


def test_smoothing_is_a_mean_and_leaves_short_curves_alone():
    curve = curve_of([0, 2] * 100)
    middle = [y for _, y in smoothed(curve)]
    assert min(middle) > 0.7
    assert max(middle) < 1.3
    assert [x for x, _ in smoothed(curve)] == [x for x, _ in curve]
    assert smoothed(curve[:10]) == curve[:10]
    assert smoothed([]) == []


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [
        (0.3, 5.3, 6, [1, 2, 3, 4, 5]),
        (0, 0.0021, 4, [0, 0.001, 0.002]),
        (-1.5, 1.5, 3, [-1, 0, 1]),
        (1, 4, 5, [1, 2, 3, 4]),
    ],
)
def test_ticks_are_round_and_inside(low, high, about, expected):
    assert ticks(low, high, about, whole=high == 4) == pytest.approx(expected)


def test_a_spike_does_not_flatten_the_rest():
    values = [1.0 + i / 1000 for i in range(1000)]
    values[500] = 1e6
    chart = make_chart("x", [Series("s", curve_of(values), "faint")], words=str)
    assert max(float(tick.label) for tick in chart.y_ticks) < 3


def test_a_curve_that_never_changes_and_a_single_point_can_be_drawn():
    for values in ([2.0] * 5, [0.0] * 5, [2.0]):
        chart = make_chart("x", [Series("s", curve_of(values))], words=str, from_zero=True)
        for shape in chart.shapes:
            assert "nan" not in shape.path
    assert make_chart("x", [Series("s", [])], words=str) is None


def test_the_path_runs_from_left_to_right_and_upwards_is_up():
    chart = make_chart("x", [Series("s", [(0, 1.0), (10, 2.0)])], words=str)
    start, end = chart.shapes[0].path.removeprefix("M").split("L")
    assert (start.split()[0], end.split()[0]) == ("0", "1000")
    assert int(start.split()[1]) > int(end.split()[1])


def test_numbers_of_an_axis_are_short():
    assert [short_number(x) for x in (0, 50, 1500, 2e6)] == ["0", "50", "1.5k", "2M"]
