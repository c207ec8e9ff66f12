"""Describes shards: how many samples, how long captions, how large images, how much is broken.

PATTERN is a path, a URL or a brace list, as for --train-data; several are joined by "::". Sources
of other kinds, such as a CSV, can be described as well.

Sizes of images come from their headers, so damage further in is not noticed here: that is what
`clipfast shards check --decode` is for. Captions are counted in CLIP's tokens with the two that
begin and end them, up to 1,024.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal
from rich.progress import MofNCompleteColumn
from rich.table import Table

from clipfast.data.images.header import Header, read_header
from clipfast.data.sources.opening import add_source_flags, open_samples
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Fault, UnusableError
from clipfast.data.sources.tar_source import TarSource
from clipfast.data.text.captions import CaptionReader
from clipfast.data.text.tokenizer import tokenize
from clipfast.shard_tools.crew import Crew
from clipfast.shard_tools.flags import add_workers_flag, console, counted, expand, size_of, storage
from clipfast.shard_tools.histograms import save_histograms
from clipfast.shard_tools.measures import CONTEXT_LENGTH, QUANTITIES, Measures
from clipfast.shard_tools.tally import Tally

SUMMARY = "numbers, sizes, caption lengths, and what is broken"

_PART = 256
_LONGEST = 1024  # tokens
_SEED = 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pattern", metavar="PATTERN", help="the shards")
    add("--sample", type=int, metavar="N", help="look at N random samples instead of all")
    add("--json", action="store_true", help="print JSON in place of tables")
    add("--plot", type=Path, metavar="FILE", help="draw histograms into FILE, a .png")
    add_workers_flag(parser)
    add_source_flags(parser.add_argument_group("how to read the samples"))


def run(args: argparse.Namespace) -> int:
    samples = open_samples(args, args.pattern)
    numbers = _choose(len(samples), args.sample)
    measures, broken = Measures(), Tally(samples.faults())

    def measure(part: NDArray[np.int64]) -> tuple[Measures, list[Fault]]:
        return _measure(samples, part.tolist(), args.caption_key)

    with Crew("measuring", len(numbers), args.workers, MofNCompleteColumn()) as crew:
        parts = np.split(numbers, range(_PART, len(numbers), _PART))
        for part, (measured, faults) in crew.in_order(measure, parts):
            measures.merge(measured)
            broken.extend(faults)
            crew.advance(len(part))
    found = _shards(samples, args) | _summary(samples, len(numbers), measures, broken)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _print(args.pattern, found, broken)
    if args.plot:
        save_histograms(args.plot, measures, f"{measures.samples:,} samples of {args.pattern}")
    return 0


def _choose(samples: int, wanted: int | None) -> NDArray[np.int64]:
    if wanted is None or wanted >= samples:
        return np.arange(samples)
    return np.sort(np.random.default_rng(_SEED).choice(samples, wanted, replace=False))


def _measure(
    samples: SampleSet, numbers: Sequence[int], caption_key: str | None
) -> tuple[Measures, list[Fault]]:
    headers, sizes, captions = list[Header](), list[float](), list[str]()
    faults = []
    for number in numbers:
        try:
            sample = samples.read(number)
            header, texts = (
                read_header(sample.image),
                CaptionReader(caption_key).all(sample.captions),
            )
        except UnusableError as error:
            faults.append(Fault(error.place or samples.place(number), str(error)))
            continue
        headers.append(header)
        captions += texts
        sizes.append(len(sample.image))
    measures = Measures()
    measures.samples = len(sizes)
    measures.formats.update(header.format for header in headers)
    measures.add("image_width", [header.width for header in headers])
    measures.add("image_height", [header.height for header in headers])
    measures.add("aspect_ratio", [header.width / header.height for header in headers])
    measures.add("image_bytes", sizes)
    measures.add("caption_characters", [len(caption) for caption in captions])
    measures.add("caption_tokens", _token_counts(captions))
    return measures, faults


def _token_counts(captions: list[str]) -> list[float]:
    if not captions:
        return []
    return tokenize(captions, _LONGEST, packed=True).cu_seqlens.diff().tolist()


def _shards(samples: SampleSet, args: argparse.Namespace) -> dict[str, int]:
    """Nothing where the samples are in no tars."""
    if not all(isinstance(source, TarSource) for source in samples.sources):
        return {}
    shards, store = expand(args.pattern), storage(args)
    return {"shards": len(shards), "bytes": sum(size_of(store, s) for s in shards)}


def _summary(samples: SampleSet, looked_at: int, measures: Measures, broken: Tally) -> dict:
    captions = len(measures.values("caption_tokens"))
    return {
        "samples": len(samples),
        "looked_at": looked_at,
        "usable": measures.samples,
        "broken": {kind: count for kind, count in broken.counts()},
        "formats": dict(measures.formats.most_common()),
        "captions": captions,
        f"captions_cut_at_{CONTEXT_LENGTH}": measures.cut(),
        "distributions": {name: measures.distribution(name) for name in QUANTITIES},
    }


def _print(pattern: str, found: dict, broken: Tally) -> None:
    out = console()
    looked_at = found["looked_at"]
    where = ""
    if "shards" in found:
        where = f" in {counted(found['shards'], 'shard')}, {decimal(found['bytes'])}"
    some = f"; {looked_at:,} of them looked at" * (looked_at < found["samples"])
    out.print(f"{counted(found['samples'], 'sample')}{where}{some}: {pattern}", soft_wrap=True)
    table = Table(title=f"of {counted(found['usable'], 'sample')}", title_justify="left")
    table.add_column("quantity")
    columns: list[str] = next((list(d) for d in found["distributions"].values() if d), [])
    for column in columns:
        table.add_column(column, justify="right")
    for name, (title, _, digits) in QUANTITIES.items():
        values = found["distributions"][name]
        table.add_row(title, *(f"{values[column]:,.{digits}f}" for column in columns if values))
    out.print(table)
    cut, captions = found[f"captions_cut_at_{CONTEXT_LENGTH}"], found["captions"]
    share = cut / captions if captions else 0
    out.print(
        f"{cut:,} of {counted(captions, 'caption')} ({share:.1%}) cut at {CONTEXT_LENGTH} tokens"
    )
    formats = ", ".join(f"{count:,} {name}" for name, count in found["formats"].items())
    out.print(f"images: {formats}")
    if broken.total:
        out.print(broken.table(f"{broken.total:,} that cannot be used"))
