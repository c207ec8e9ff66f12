"""The progress bar: two lines that fit a terminal of 80 columns, and nothing anywhere else."""

import io

from rich.console import Console
from runs import record_of

from clipfast.train.monitoring.progress import TrainingBar, status_words


def bar_on(console, done=0):
    return TrainingBar(console, epochs=4, steps_per_epoch=1000, global_batch=64, done=done)


def test_the_bar_and_the_figures_fit_a_terminal_of_80_columns():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, color_system=None, width=80)
    bar = bar_on(console, done=1500)
    assert bar.add(record_of(2.5), 1501)
    bar.show(1501, memory=3 << 30)
    for renderable in bar.get_renderables():
        console.print(renderable)
    first, second = shown.getvalue().splitlines()
    assert "epoch 2 of 4" in first
    assert "1501/4000 steps" in first
    for words in ("loss 2.500", "128 samples/s", "data wait 20%", "scale 14.2", "lr 5.0e-04"):
        assert words in second
    assert "3.00 GiB" in second
    assert len(second.rstrip()) <= 80


def test_figures_are_means_of_the_last_steps_and_skipped_ones_are_counted():
    records = [record_of(2.0), record_of(float("nan"), skipped=True), record_of(1.0)]
    words = status_words(records, global_batch=64, memory=0)
    assert "loss 1.500" in words
    assert words.endswith("1 skipped")


def test_nothing_is_drawn_where_there_is_no_terminal():
    shown = io.StringIO()
    bar = bar_on(Console(file=shown))
    with bar:
        assert not bar.add(record_of(2.5), 1)
    assert shown.getvalue() == ""
