"""Which of an evaluation's metrics tells models apart, and which value of it is best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# The first that a run has is the one that it is judged by.
_MAIN = (
    "imagenet-zeroshot-val-top1",
    "zeroshot-val-top1",
    "image_to_text_R@1",
    "clip_val_loss",
)
_NO_MEASURE = ("epoch", "num_samples")


def is_measure(name: str) -> bool:
    """False for what is written beside the metrics."""
    return name not in _NO_MEASURE


def higher_is_better(name: str) -> bool:
    return not any(word in name for word in ("loss", "rank"))


def is_share(name: str) -> bool:
    """Whether it lies between 0 and 1, as recalls and accuracies do."""
    return "R@" in name or "top1" in name or "top5" in name


def main_metric(evaluations: Iterable[dict[str, Any]]) -> str | None:
    """The metric by which a run's evaluations are compared; None without any.

    Args:
        evaluations: {"epochs", "metrics"} each.
    """
    names = {name: None for e in evaluations for name in e["metrics"] if is_measure(name)}
    return next((name for name in (*_MAIN, *names) if name in names), None)


def best_of(evaluations: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The evaluation with the metric's best value, the earlier of equals."""
    having = [e for e in evaluations if isinstance(e["metrics"].get(name), (int, float))]
    sign = -1 if higher_is_better(name) else 1
    return min(having, key=lambda e: sign * e["metrics"][name], default=None)
