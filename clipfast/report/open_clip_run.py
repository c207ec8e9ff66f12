"""A run of open_clip's trainer, read from out.log, results.jsonl and TensorBoard's events."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from clipfast.train.monitoring.history import Recorded

_TRAIN = re.compile(
    r"Train Epoch: (?P<epoch>\d+) \[ *(?P<done>\d+)/(?P<samples>\d+) \((?P<percent>\d+)%\)\] "
    r"Data \(t\): (?P<data>[\d.]+) Batch \(t\): (?P<batch>[\d.]+), (?P<rate>[\d.e+]+)/s.*? "
    r"LR: (?P<lr>[\d.e-]+) Logit Scale: (?P<scale>[\d.]+)(?P<losses>.*)"
)
_LOSS = re.compile(r"(\w+): ([\d.e+-]+|nan|inf) \(")
_EVALUATED = re.compile(r"Eval Epoch: (\d+) (?!\[)(.+)")
_METRIC = re.compile(r"(\S+): ([\d.e+-]+)")


def read(folder: Path) -> Recorded:
    """What there is of a history: points from TensorBoard, which has more digits, or the log."""
    log = folder / "out.log"
    text = log.read_text(errors="replace") if log.exists() else ""
    points = _points_of_events(folder / "tensorboard") or _points_of_log(text)
    return Recorded(points=points, evaluations=_evaluations(folder, text))


def _points_of_events(folder: Path) -> list[dict[str, Any]]:
    if not folder.is_dir():
        return []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    by_step: dict[int, dict[str, Any]] = {}
    for path in sorted(folder.glob("events.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 2_000})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            kind, _, name = tag.partition("/")
            for event in events.Scalars(tag) if kind == "train" else ():
                by_step.setdefault(event.step, {"step": event.step})[name] = event.value
    points = [by_step[step] for step in sorted(by_step)]
    for point in points:
        if point.get("batch_time"):
            point["data_wait"] = point.pop("data_time", 0.0) / point.pop("batch_time")
    return points


def _points_of_log(text: str) -> list[dict[str, Any]]:
    """Steps are counted in samples there; steps per epoch follow from the first line, whose step is
    the epoch's first."""
    points: dict[tuple[int, int], dict[str, Any]] = {}
    for found in _TRAIN.finditer(text):
        losses = {name.lower(): float(value) for name, value in _LOSS.findall(found["losses"])}
        batch = float(found["batch"])
        points[int(found["epoch"]), int(found["done"])] = {
            **losses,
            "epoch": int(found["epoch"]),
            "samples_per_second": float(found["rate"]),
            "data_wait": float(found["data"]) / batch if batch else 0.0,
            "lr": float(found["lr"]),
            "scale": float(found["scale"]),
        }
    if not points:
        return []
    global_batch = min(done for _, done in points)
    steps_per_epoch = max(done for _, done in points) // global_batch
    return [
        point | {"step": epoch * steps_per_epoch + done // global_batch - 1}
        for (epoch, done), point in sorted(points.items())
    ]


def _evaluations(folder: Path, text: str) -> list[dict[str, Any]]:
    """results.jsonl has every digit, the log has the epoch of those that were zero-shot alone."""
    logged = [
        {"epochs": int(epoch), "metrics": {n: float(v) for n, v in _METRIC.findall(words)}}
        for epoch, words in _EVALUATED.findall(text)
    ]
    exact = []
    path = folder / "checkpoints" / "results.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            exact.append(json.loads(line))
    if len(exact) == len(logged):
        found = [e | {"metrics": metrics} for e, metrics in zip(logged, exact, strict=True)]
    else:
        found = logged or [
            {"epochs": m.get("epoch", i), "metrics": m} for i, m in enumerate(exact, 1)
        ]
    return list({e["epochs"]: e for e in found}.values())
