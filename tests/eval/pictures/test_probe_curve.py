"""The probe's curves: where points, stars and bands stand."""

import numpy as np
import pytest
from PIL import Image

from clipfast.eval.pictures.probe_curve import save_lambda_curve, save_probe_curve

pytestmark = pytest.mark.filterwarnings("error")

FEW = [(1, 0.4, 0.3, 0.5), (2, 0.5, 0.45, 0.6), (16, 0.8, 0.79, 0.81)]


def marked(axes, marker):
    return [
        (*line.get_xdata(), *line.get_ydata()) for line in axes.lines if line.get_marker() == marker
    ]


def test_each_doubling_is_a_step_and_zero_shot_a_star_at_zero(tmp_path):
    figure = save_probe_curve(
        tmp_path / "a.png", {"m_1": FEW, "n": FEW[:2]}, {"m_1": 0.6}, {"m_1": 0.9}, "$t_1$"
    )
    (axes,) = figure.axes
    curve = next(line for line in axes.lines if line.get_label() == "m_1")
    assert list(curve.get_xdata()) == [1, 2, 5]
    assert list(curve.get_ydata()) == [0.4, 0.5, 0.8]
    assert marked(axes, "*")[0] == (0, 0.6)
    assert marked(axes, "D")[0] == (6, 0.9)
    ticks = dict(zip(axes.get_xticks(), axes.get_xticklabels(), strict=True))
    words = {place: label.get_text() for place, label in ticks.items()}
    assert words == {0: "0", 1: "1", 2: "2", 5: "16", 6: "all"}
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1000, 575)


def test_the_band_runs_from_the_lowest_to_the_highest_seed(tmp_path):
    figure = save_probe_curve(tmp_path / "a.png", {"m": FEW}, {}, {}, "t")
    (band,) = figure.axes[0].collections
    corners = {tuple(np.round(corner, 6)) for corner in band.get_paths()[0].vertices}
    assert {(1.0, 0.3), (1.0, 0.5), (2.0, 0.45), (2.0, 0.6), (5.0, 0.79), (5.0, 0.81)} <= corners


def test_the_legend_names_what_is_there_and_nothing_else(tmp_path):
    probe = ["probe; band: lowest to highest seed"]
    whole = ["probe on all training data"]
    few, one = {"m_1$": FEW}, {"m_1$": 0.9}
    for few_shots, zero_shot, full_probe, expected in (
        (few, {}, {}, probe),
        (few, {}, one, [*probe, *whole]),
        ({}, one, one, ["zero-shot", *whole]),
    ):
        path = tmp_path / "a.png"
        (legend,) = save_probe_curve(path, few_shots, zero_shot, full_probe, "t").legends
        assert [text.get_text() for text in legend.get_texts()] == ["m_1$", *expected]


@pytest.mark.parametrize("length", [45, 300])
def test_a_long_name_leaves_the_legend_inside_the_picture(length, tmp_path):
    name = "m" * length
    figure = save_probe_curve(tmp_path / "a.png", {name: FEW}, {name: 0.6}, {name: 0.9}, "t")
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= 1000


@pytest.mark.parametrize("models", [1, 12])
def test_one_point_and_many_models_can_be_drawn(models, tmp_path):
    few = {f"model {i}": [(4, 0.1 + i / 20, 0.1 + i / 20, 0.1 + i / 20)] for i in range(models)}
    figure = save_probe_curve(tmp_path / "a.png", few, dict.fromkeys(few, 0.5), {}, "t")
    curves = [line for line in figure.axes[0].lines if line.get_label() in few]
    assert [list(line.get_xdata()) for line in curves] == [[3]] * models


def test_zero_shot_without_any_probe_can_be_drawn(tmp_path):
    save_probe_curve(tmp_path / "a.png", {}, {"m": 0.5}, {}, "t")


def test_every_strength_is_on_the_curve_and_the_chosen_one_is_marked(tmp_path):
    tried = [(1e-6, 0.5), (1e6, 0.4), (1.0, 0.8), (10**0.125, 0.9)]
    figure = save_lambda_curve(tmp_path / "a.png", tried, 10**0.125, "t")
    curve, ring = figure.axes[0].lines
    assert list(zip(curve.get_xdata(), curve.get_ydata(), strict=True)) == sorted(tried)
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (10**0.125, 0.9)
    assert figure.axes[0].get_xlabel() == "λ; chosen: 1.33, 90.0%"
    labels = {label.get_text() for label in figure.axes[0].get_xticklabels()}
    assert {"10⁻⁶", "10⁰", "10⁶"} <= labels
