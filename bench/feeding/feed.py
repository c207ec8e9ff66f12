"""`clipfast bench feed`: how fast your data becomes batches here, and what a training needs.

Every figure is measured with the data that is named, or says whose it is.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from clipfast_bench.feeding.feed_measures import feed_for, read_some, time_step, tokenize_some
from clipfast_bench.feeding.feed_report import Feeding, Report, Step, needs_of, show
from clipfast_bench.feeding.targets import parse_target
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import DECODERS, Decoder, choose_decoder
from clipfast.data.images.normalize import Normalize
from clipfast.data.loader import Loader
from clipfast.data.quarantine import Quarantine
from clipfast.data.sampler import Sampler
from clipfast.data.sources.opening import add_source_flags, open_samples
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.text.captions import CaptionReader
from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.errors import UserError
from clipfast.models.factory import create_model, image_size
from clipfast.train.flags.data import add_loading_flags

_TARGETS = ("ViT-B-32@256xH100", "ViT-L-14@256xH100")
_NAMED = tuple(name for name in DECODERS if name != "auto")
_SYNTHETIC_SAMPLES = 10_000
_STEP_SAMPLES = 32  # of a step on a CPU: more tell no more, and take a laptop minutes
_EPOCH_SAMPLES = 1 << 40  # no epoch ends while it is measured


def feed(arguments: Sequence[str]) -> int:
    """Measures, and prints what it found.

    Raises:
        UserError: a mistake in flags or data.
        OSError: the file for --json cannot be written.
    """
    args = _parse(arguments)
    samples = open_samples(args, args.data, epoch_samples=_SYNTHETIC_SAMPLES)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
        tempfile.TemporaryDirectory() as folder,
    ):
        quarantine = Quarantine(Path(folder, "faults"), args.max_unusable, lambda _: None)
        report = _Bench(args, samples, quarantine, bar).report()
    show(report)
    if args.json is not None:
        args.json.write_text(report.as_json())
        print(f"stored in {args.json}")
    return 0


class _Bench:
    """One call of `feed`: what its measurements share."""

    def __init__(
        self, args: argparse.Namespace, samples: SampleSet, quarantine: Quarantine, bar: Progress
    ) -> None:
        self.args, self.samples, self.quarantine, self.bar = args, samples, quarantine, bar
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = create_model(args.model).to(self.device)
        self.size, self.tokenize = image_size(self.model), tokenizer_for(self.model)
        self.read_caption = CaptionReader(args.caption_key)
        self.left_out: list[str] = []

    def report(self) -> Report:
        args = self.args
        with self._shown("reading") as progressed:
            sampler = self._sampler(args.batch_size)
            reading, read = read_some(self.samples, sampler, args.seconds, progressed)
        with self._shown("tokenizing") as progressed:
            tokenizing = tokenize_some(
                read, self.read_caption, self.tokenize, min(args.seconds, 3), progressed
            )
        feedings = list(self._feedings())
        return Report(
            data=args.data or "synthetic",
            cores=len(os.sched_getaffinity(0)),
            reading=reading,
            tokenizing=tokenizing,
            feedings=feedings,
            step=self._step(feedings[0].decoder),
            needs=list(needs_of(args.targets, feedings, reading)),
            replaced=self.quarantine.replaced,
            left_out=self.left_out,
        )

    def _feedings(self) -> Iterator[Feeding]:
        """By each decoder that was asked for; else by each that this machine has."""
        for name in self.args.decoders or _NAMED:
            for threads in self.args.threads:
                try:
                    decoder = self._decoder(name, threads)
                except UserError as error:
                    if self.args.decoders:
                        raise
                    self.left_out.append(f"not measured: {error}")
                    break
                with self._shown(f"{name}, {threads} threads") as progressed:
                    loader = self._loader(decoder, self.args.batch_size, threads)
                    yield feed_for(loader, self.args.seconds, progressed)

    def _decoder(self, name: str, threads: int) -> Decoder:
        return choose_decoder(
            name,
            size=self.size,
            augmentation=Augmentation.of(self.args.aug_cfg),
            device=self.device,
            threads=threads,
            fast_jpeg=self.args.fast_jpeg,
            max_batch=self.args.batch_size,
        )

    def _sampler(self, batch_size: int) -> Sampler:
        return Sampler.of(
            self.samples.shards, batch_size, workers=1, seed=0, epoch_samples=_EPOCH_SAMPLES
        )

    def _loader(self, decoder: Decoder, batch_size: int, threads: int) -> Loader:
        return Loader(
            self.samples,
            self._sampler(batch_size),
            decoder=decoder,
            image_size=self.size,
            read_caption=self.read_caption,
            tokenize=self.tokenize,
            augment=True,
            workers=threads,
            quarantine=self.quarantine,
        )

    def _step(self, decoder: str) -> Step:
        args = self.args
        if args.step_seconds is not None:
            return Step(args.model, args.batch_size, args.step_seconds, "")
        small = self.device.type == "cpu"
        batch_size = min(args.batch_size, _STEP_SAMPLES) if small else args.batch_size
        loader = self._loader(self._decoder(decoder, 1), batch_size, 0)
        normalize = Normalize(args.image_mean, args.image_std, self.device)
        with self._shown(f"a step of {args.model}") as progressed:
            return time_step(args.model, self.model, loader.batch(0, 0), normalize, progressed)

    @contextmanager
    def _shown(self, what: str) -> Iterator[Callable[[float], None]]:
        task = self.bar.add_task(what, total=1)
        yield lambda done: self.bar.update(task, completed=min(1, done))
        self.bar.update(task, completed=1)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="clipfast bench feed",
        description="How fast this machine makes batches of your data, and what a training needs.",
        allow_abbrev=False,
        conflict_handler="resolve",  # of training's flags, two take lists here
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help="as --train-data in training")
    group = parser.add_argument_group("data and loading, as in training")
    add_source_flags(group)
    add_loading_flags(group)
    add = parser.add_argument_group("what is measured").add_argument
    add("--decoder", metavar="NAMES", dest="decoders", help="default: all that this machine has")
    add("--threads", "--workers", metavar="NUMBERS", help="default: 1 and as many as cores")
    add("--model", default="ViT-B-32", help="that is to be fed (default ViT-B-32)")
    add("--batch-size", type=int, default=64)
    add("--step-seconds", type=float, help="of its step, which is not measured then")
    add("--seconds", type=float, default=10.0, help="for each measurement (default 10)")
    add(
        "--target",
        action="append",
        default=[],
        metavar="MODEL@NxGPU[=RATE]",
        help="a training whose needs to tell; RATE: images/s of one GPU",
    )
    add("--json", type=Path, metavar="FILE", help="where all figures are stored")
    args = parser.parse_args(arguments)
    if args.data is None and args.dataset_type != "synthetic":
        raise UserError("DATA: expected a path, a brace list or a URL; got none")
    for name in ("batch_size", "seconds", "step_seconds"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')}: expected a positive number; got {value}")
    if args.json is not None and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: expected a folder that exists; got none")
    args.decoders = _names(args.decoders)
    args.threads = _thread_counts(args.threads)
    args.targets = [parse_target(text) for text in dict.fromkeys([*_TARGETS, *args.target])]
    return args


def _names(text: str | None) -> list[str]:
    names = [] if text is None else text.split(",")
    if any(name not in _NAMED for name in names):
        raise UserError(f"--decoder: expected some of {','.join(_NAMED)}; got {text!r}")
    return names


def _thread_counts(text: str | None) -> list[int]:
    text = f"1,{len(os.sched_getaffinity(0))}" if text is None else text
    counts = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(counts) < 1:
        raise UserError(f"--threads: expected whole numbers from 1 on, such as 1,2; got {text!r}")
    return sorted(set(counts))
