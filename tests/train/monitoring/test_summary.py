"""Words of the start and end blocks."""

import pytest

from clipfast.train.monitoring.metrics import best_of, main_metric
from clipfast.train.monitoring.summary import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (12.34, "12.3 s"), (90, "1 min 30 s"), (7500, "2 h 5 min"), (2e5, "2 d 7 h")],
)
def test_durations_are_in_their_two_largest_units(seconds, words):
    assert duration(seconds) == words


def test_the_best_is_the_highest_accuracy_and_the_lowest_loss():
    def evaluations(name, *values):
        return [{"epochs": i, "metrics": {name: v}} for i, v in enumerate(values, 1)]

    recalls = evaluations("image_to_text_R@1", 0.1, 0.3, 0.3)
    assert best_of(recalls, "image_to_text_R@1")["epochs"] == 2
    losses = evaluations("clip_val_loss", 3.0, 1.0, 2.0)
    assert best_of(losses, "clip_val_loss")["epochs"] == 2
    assert best_of(losses, "image_to_text_R@1") is None


def test_zero_shot_accuracy_judges_before_retrieval_and_retrieval_before_the_loss():
    metrics = {"clip_val_loss": 1.0, "image_to_text_R@1": 0.1, "imagenet-zeroshot-val-top1": 0.2}
    for name in ("imagenet-zeroshot-val-top1", "image_to_text_R@1", "clip_val_loss"):
        assert main_metric([{"epochs": 1, "metrics": metrics}]) == name
        del metrics[name]
    assert main_metric([{"epochs": 1, "metrics": {"num_samples": 3}}]) is None
