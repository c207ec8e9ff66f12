"""What `clipfast bench feed` says: what was measured, and what a training would need of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from clipfast_bench.feeding.targets import GPU_DECODING, PUBLISHED, Rate, Target
from clipfast_bench.harness.machine import origin
from rich import box
from rich.console import Console
from rich.table import Table

MEASURED = "measured"


class Reading(NamedTuple):
    """Reading samples as they are stored, one after the other in one thread.

    Attributes:
        samples: how many were read.
        bytes_per_sample: image and captions, encoded.
        bytes_per_second: as fast as they came; from memory, if they were read before.
    """

    samples: int
    bytes_per_sample: float
    bytes_per_second: float


class Tokenizing(NamedTuple):
    """The tokenizer alone, in one thread.

    Attributes:
        captions_per_second: of real captions, some of which repeat.
    """

    captions: int
    captions_per_second: float


class Feeding(NamedTuple):
    """Whole batches of one decoder: read, decoded, augmented, tokenized.

    Attributes:
        decoder, device: who decodes, and where.
        threads: of the loader.
        images: how many came while it was measured.
        images_per_second: by the clock.
        images_per_core_second: by the time that the process had a core.
    """

    decoder: str
    device: str
    threads: int
    images: int
    images_per_second: float
    images_per_core_second: float


class Step(NamedTuple):
    """A training step of the model.

    Attributes:
        samples: in its batch.
        seconds: of forward, backward and AdamW.
        device: that computed it; empty where its time was given.
    """

    model: str
    samples: int
    seconds: float
    device: str

    @property
    def images_per_second(self) -> float:
        return self.samples / self.seconds


class Need(NamedTuple):
    """What a training at a rate needs.

    Attributes:
        training: model and GPUs.
        rate: of one GPU.
        images_per_second: of all GPUs.
        decoder: how images are decoded, and by whose figure.
        cores: of this machine's kind, for all GPUs.
        decoding_gpus: besides; 0 where cores decode.
        bytes_per_second: that are read.
    """

    training: str
    rate: Rate
    images_per_second: float
    decoder: str
    cores: float
    decoding_gpus: float
    bytes_per_second: float


class Report(NamedTuple):
    """Everything that was measured, and the needs.

    Attributes:
        data: what was named.
        cores: of this machine that the process may use.
        replaced: how many unusable samples were met.
        left_out: decoders that this machine does not have, and why.
    """

    data: str
    cores: int
    reading: Reading
    tokenizing: Tokenizing
    feedings: list[Feeding]
    step: Step
    needs: list[Need]
    replaced: int
    left_out: list[str]

    def as_json(self) -> str:
        record = {
            **origin(),
            **{name: _plain(value) for name, value in self._asdict().items()},
            "starved": [starved_share(f, self.step) for f in self.feedings],
        }
        return json.dumps(record, indent=1) + "\n"


def starved_share(feeding: Feeding, step: Step) -> float:
    """The share of the time in which the model waits for data, where both run side by side."""
    return max(0.0, 1 - feeding.images_per_second / step.images_per_second)


def needs_of(
    targets: Sequence[Target], feedings: Sequence[Feeding], reading: Reading
) -> Iterator[Need]:
    """Of each target and rate, by each measured decoder and by NVIDIA's figure for a GPU's."""
    best: dict[str, Feeding] = {}
    for feeding in feedings:
        if feeding.images_per_second >= best.get(feeding.decoder, feeding).images_per_second:
            best[feeding.decoder] = feeding
    for target in targets:
        for rate in target.rates:
            total = target.gpus * rate.images_per_second
            given = target.name, rate, total
            read = total * reading.bytes_per_sample
            for name, feeding in best.items():
                gpus = total / feeding.images_per_second if feeding.device != "cpu" else 0.0
                how = f"{name} on {gpus:,.0f} GPUs" if gpus else name
                cores = total / feeding.images_per_core_second
                yield Need(*given, f"{how}, {MEASURED}", cores, gpus, read)
            if target.gpu == GPU_DECODING.gpu:
                gpus = total / GPU_DECODING.images_per_second
                how = f"dali on {gpus:,.0f} {target.gpu}s, {PUBLISHED}"
                yield Need(*given, how, gpus * GPU_DECODING.cpu_threads, gpus, read)


def show(report: Report) -> None:
    console = Console(width=shutil.get_terminal_size((110, 40)).columns, highlight=False)
    console.print(f"Measured on this machine, {report.cores} cores: {report.data}", soft_wrap=True)
    console.print(_measured(report))
    for line in _remarks(report):
        console.print(line, soft_wrap=True)
    console.print("\nNeeded, with cores of this machine's kind and samples of this size:")
    console.print(_needed(report))
    for line in _sources(report):
        console.print(line, soft_wrap=True)


def _measured(report: Report) -> Table:
    table = _table(
        ("decoder", "threads"),
        ("images/s", "a core", "MB/s", "model waits"),
    )
    for feeding in report.feedings:
        megabytes = feeding.images_per_second * report.reading.bytes_per_sample / 1e6
        table.add_row(
            feeding.decoder,
            str(feeding.threads),
            f"{feeding.images_per_second:,.0f}",
            f"{feeding.images_per_core_second:,.0f}",
            f"{megabytes:,.1f}",
            f"{starved_share(feeding, report.step):.0%}",
        )
    return table


def _remarks(report: Report) -> Iterator[str]:
    reading, step = report.reading, report.step
    yield "a core: by the time that the process had one; model waits: this share of the time"
    yield (
        f"reading alone: {reading.bytes_per_second / 1e6:,.0f} MB/s, "
        f"{reading.bytes_per_sample / 1e3:,.1f} kB a sample (from memory, where it was read before)"
    )
    yield f"tokenizer alone, one thread: {report.tokenizing.captions_per_second:,.0f} captions/s"
    how = f"measured on {step.device}" if step.device else "as given"
    yield (
        f"{step.model}: {step.images_per_second:,.1f} images/s, a step of {step.samples} "
        f"in {step.seconds:.3g} s, {how}"
    )
    if step.device == "cpu":
        yield "The model's step was measured alone: in a run it shares the cores with the loader."
    if report.replaced:
        yield f"unusable samples, replaced by others: {report.replaced:,}"
    yield from report.left_out


def _needed(report: Report) -> Table:
    table = _table(
        ("training", "images/s", "GB/s", "decoding"),
        ("cores", "per GPU"),
    )
    before = None
    for need in report.needs:
        first = (need.training, need.rate) != before
        before = need.training, need.rate
        table.add_row(
            need.training if first else "",
            f"{need.images_per_second:,.0f}, {need.rate.kind}" if first else "",
            f"{need.bytes_per_second / 1e9:,.2f}" if first else "",
            need.decoder,
            f"{need.cores:,.0f}",
            f"{need.cores * need.rate.images_per_second / need.images_per_second:,.1f}",
        )
    return table


def _sources(report: Report) -> Iterator[str]:
    rates = dict.fromkeys(need.rate for need in report.needs)
    for rate in rates:
        yield (
            f"{rate.model} on one {rate.gpu}, {rate.kind}: {rate.images_per_second:,.0f} images/s "
            f"({rate.source})"
        )
    if any(rate.gpu == GPU_DECODING.gpu for rate in rates):
        yield (
            f"decoding on one {GPU_DECODING.gpu}, {PUBLISHED}: "
            f"{GPU_DECODING.images_per_second:,.0f} images/s with {GPU_DECODING.cpu_threads} CPU "
            f"threads ({GPU_DECODING.source})"
        )


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for word in words:
        table.add_column(word)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _plain(value: Any) -> Any:
    """Named tuples as dicts, at every depth."""
    if hasattr(value, "_asdict"):
        return {name: _plain(field) for name, field in value._asdict().items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
