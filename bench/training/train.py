"""`clipfast bench train`: our trainer and open_clip's in turn, on the same shards, on this machine.

Both run as their users start them, in processes of their own, from shards to a checkpoint. Neither
is timed before both have shown the same losses on the same weights and batches.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from clipfast_bench.inputs.shards import make_shards
from clipfast_bench.training.train_report import Comparison, as_json, show
from clipfast_bench.training.train_runs import (
    OURS,
    THEIRS,
    THEIRS_ON_OUR_BATCHES,
    Progressed,
    Run,
    Span,
    Trainer,
)
from clipfast_bench.training.train_runs import (
    run as start,
)
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from clipfast.errors import UserError
from clipfast.models.factory import create_model, image_size

_MODELS = ("ViT-B-32", "RN50")
_CHECKED_STEPS = 4
_TOLERANCE = 1e-4
_MEMORY_STEPS = 3
# As clipfast's command sets it for itself; any user of open_clip can.
_SHORT_SPIN = (("GOMP_SPINCOUNT", "5000"),)


def train(arguments: Sequence[str]) -> int:
    """Compares, and prints what it found.

    Raises:
        UserError: a mistake in flags or data, a trainer that fails, or losses that differ.
        OSError: the file for --json cannot be written.
    """
    args = parse(arguments)
    cores = len(os.sched_getaffinity(0))
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
        tempfile.TemporaryDirectory(prefix="clipfast-bench-") as folder,
    ):
        comparisons = [Bench(args, model, Path(folder), bar).comparison() for model in args.models]
    data = args.data or "pieces of two photographs, captions of 18 tokens"
    show(data, cores, comparisons)
    if args.json is not None:
        args.json.write_text(as_json(data, cores, comparisons))
        print(f"stored in {args.json}")
    return 0


class Setting(NamedTuple):
    """How a trainer is started."""

    trainer: Trainer
    workers: int

    def __str__(self) -> str:
        environment = [f"{name}={value}" for name, value in self.trainer.environment]
        return " ".join([*environment, f"--workers {self.workers}"])


class Bench:
    """One model's comparison."""

    def __init__(self, args: argparse.Namespace, model: str, folder: Path, bar: Progress) -> None:
        self.args, self.model, self.folder, self.bar = args, model, folder, bar
        self.numbers = itertools.count()
        built = create_model(model)
        self.parameters = sum(p.numel() for p in built.parameters())
        self.data = args.data or make_shards(
            Path(tempfile.mkdtemp(dir=folder, prefix="photos-")), image_size(built)
        )
        self.weights = folder / "start.pt"
        torch.save(built.state_dict(), self.weights)

    def comparison(self) -> Comparison:
        """Checks, chooses settings, looks after memory, then times."""
        difference = self.difference_of_losses()
        if not difference <= _TOLERANCE:
            raise UserError(
                f"{self.model}: expected both trainers' losses within {_TOLERANCE} of each other "
                f"on the same weights and batches; got {difference:.1e}: nothing is timed"
            )
        span = Span.of(self.args.steps)
        ours, theirs = self._best(OURS, span), self._best(THEIRS, span)
        ours_memory, theirs_memory = (
            self.run(setting, _MEMORY_STEPS, "memory") for setting in (ours, theirs)
        )
        runs: dict[Setting, list[Run]] = {ours: [], theirs: []}
        for number in range(self.args.rounds):
            for setting in (ours, theirs) if number % 2 == 0 else (theirs, ours):
                what = f"round {number + 1} of {self.args.rounds}"
                runs[setting].append(self.run(setting, span, what))
        return Comparison(
            model=self.model,
            batch_size=self.args.batch_size,
            steps=span.steps,
            parameters=self.parameters,
            loss_difference=difference,
            ours_with=str(ours),
            theirs_with=str(theirs),
            ours=runs[ours],
            theirs=runs[theirs],
            ours_memory=ours_memory,
            theirs_memory=theirs_memory,
        )

    def difference_of_losses(self) -> float:
        """The largest between the two trainers' losses, relative to theirs."""
        # Adam's first steps take a gradient's sign: at a larger rate the rounding of tiny ones
        # sends even two runs of one ResNet apart by more than the tolerance.
        flags = ["--pretrained", str(self.weights), "--lr", "1e-5", "--skip-scheduler"]
        ours, theirs = (
            self.run(Setting(trainer, 1), _CHECKED_STEPS, "same losses?", flags).losses
            for trainer in (OURS, THEIRS_ON_OUR_BATCHES)
        )
        return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))

    def _best(self, trainer: Trainer, span: Span) -> Setting:
        """The fastest of the settings to try."""
        settings = [Setting(trainer, workers) for workers in self.args.workers]
        if trainer is not OURS:
            shorter = trainer._replace(environment=_SHORT_SPIN)
            settings += [Setting(shorter, workers) for workers in self.args.workers]
        if len(settings) == 1:
            return settings[0]
        trial = Span.of(max(4, span.steps // 2))
        seconds = {s: self.run(s, trial, f"trying {s}").step_seconds for s in settings}
        return min(seconds, key=seconds.__getitem__)

    def run(self, setting: Setting, what: Span | int, why: str, more: Sequence[str] = ()) -> Run:
        """Of a span that is timed, or of so many steps that are not."""
        span = what if isinstance(what, Span) else None
        steps = what if isinstance(what, int) else what.all_steps
        flags = [
            *("--train-data", self.data, "--train-num-samples", str(steps * self.args.batch_size)),
            *("--model", self.model, "--batch-size", str(self.args.batch_size)),
            *("--workers", str(setting.workers), "--epochs", "1", "--warmup", "100"),
            *("--precision", "fp32", "--device", "cpu", "--report-to", "tensorboard"),
            *("--log-every-n-steps", str(1 if span is None else span.every), *more),
        ]
        folder = self.folder / f"run-{next(self.numbers)}"
        try:
            with self._shown(f"{self.model}: {setting.trainer.name}, {why}") as progressed:
                return start(setting.trainer, flags, folder, span, progressed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # checkpoints are large

    @contextmanager
    def _shown(self, what: str) -> Iterator[Progressed]:
        task = self.bar.add_task(what, total=1)
        yield lambda done: self.bar.update(task, completed=min(1, done))
        self.bar.remove_task(task)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="clipfast bench train",
        description="Our trainer and open_clip's in turn, on the same shards, on the CPU.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "data",
        nargs="?",
        metavar="SHARDS",
        help="WebDataset tars with a brace range (default: photographs, made for it)",
    )
    add(
        "--model",
        action="append",
        dest="models",
        metavar="MODEL",
        help=f"a built-in model or a .json configuration; may be repeated "
        f"(default {' and '.join(_MODELS)})",
    )
    add("--batch-size", type=int, default=32)
    add("--steps", type=int, default=12, help="timed in each round (default 12)")
    add("--rounds", type=int, default=5, help="pairs of timed runs (default 5)")
    add(
        "--workers",
        type=int,
        nargs="+",
        metavar="N",
        help="tried on both sides, of which the best is timed (default 1 and as many as cores)",
    )
    add("--json", type=Path, metavar="FILE", help="where all figures are stored")
    args = parser.parse_args(arguments)
    args.models = args.models or list(_MODELS)
    args.workers = sorted(set(args.workers or (1, len(os.sched_getaffinity(0)))))
    if args.workers[0] < 1:
        raise UserError(f"--workers: expected at least 1; got {args.workers[0]}")
    for name in ("batch_size", "steps", "rounds"):
        if getattr(args, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: expected at least 1; got {getattr(args, name)}")
    if args.json is not None and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: expected a folder that exists; got none")
    if args.data is not None and not args.data.endswith(".tar"):
        raise UserError(f"SHARDS: expected WebDataset tars; got {args.data!r}")
    missing = [n for n in ("open_clip_train", "webdataset") if importlib.util.find_spec(n) is None]
    if missing:
        raise UserError(
            f"{missing[0]}: expected open_clip's trainer beside ours; it is not installed: "
            'pip install "open_clip_torch[training]==3.3.0"'
        )
    return args
