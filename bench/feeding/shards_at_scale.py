"""What many shards cost a rank: opening them by their manifest, and the indexes that it reads.

The shards are holes: as long as shards of small photographs, without a byte on the disk. Their
manifest is there, and the indexes of those that one rank reads. Nothing else is simulated.
"""

from __future__ import annotations

import gc
import json
import os
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipfast.data.sampler import Sampler
from clipfast.data.sources.storage import Identity, Storage
from clipfast.data.sources.tar_index import SUFFIX, TarIndex, index_bytes, record_type
from clipfast.data.sources.tar_manifest import MANIFEST
from clipfast.data.sources.tar_source import TarSource

Progressed = Callable[[int, int], None]

_BLOCK = 512
_IMAGE = 24 * 1024  # bytes, as of a photograph whose short side is 256
_TEXT = 60
_STRIDE = _BLOCK + _IMAGE + 2 * _BLOCK  # an image and a caption, each after a header
_KEY_BYTES = 9
_READ_STEPS = 20


class Opening(NamedTuple):
    """What the shards cost one rank.

    Attributes:
        seconds: to open all of them by their manifest.
        bytes_held: of Python and numpy objects then.
        manifest_bytes: of that file.
        shards_of_rank: whose samples it reads in an epoch.
        index_bytes_of_rank: of their indexes, mapped as they are needed.
        first_read_ms: of the first samples it reads, each of which opens a shard and its index.
        read_ms: of those after them.
        resident_bytes: how much the process has grown by then.
    """

    seconds: float
    bytes_held: int
    manifest_bytes: int
    shards_of_rank: int
    index_bytes_of_rank: int
    first_read_ms: float
    read_ms: float
    resident_bytes: int

    def rows(self) -> Iterator[tuple[str, str]]:
        """For a table."""
        yield "opened by their manifest", f"{self.seconds:.2f} s"
        yield "held by a rank", f"{self.bytes_held / 2**20:.1f} MiB"
        yield "manifest", f"{self.manifest_bytes / 2**20:.1f} MiB"
        yield "read by a rank in an epoch", f"{self.shards_of_rank:,}"
        yield "their indexes", f"{self.index_bytes_of_rank / 2**20:.1f} MiB"
        yield "a sample from one not yet opened", f"{self.first_read_ms:.2f} ms"
        yield "a sample from one that is open", f"{self.read_ms:.3f} ms"
        yield "process grown by then", f"{self.resident_bytes / 2**20:.1f} MiB"


def measure_opening(
    folder: Path, counts: NDArray[np.int64], sampler: Sampler, progressed: Progressed
) -> Opening:
    """Of the sampler's rank, with shards of these sizes that are made in `folder`."""
    ours = shards_of_rank(counts, sampler, progressed)
    pattern = make_shards(folder, counts, set(ours.tolist()))
    storage = Storage(folder / "cache")
    gc.collect()
    resident = _resident_bytes()
    began = time.perf_counter()
    source = TarSource(pattern, storage)
    seconds = time.perf_counter() - began
    assert np.array_equal(source.counts, counts), "the manifest was not believed"
    first, later = _read(source, sampler)
    grown = _resident_bytes() - resident
    del source
    tracemalloc.start()
    source = TarSource(pattern, storage)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del source
    return Opening(
        seconds,
        held,
        (folder / MANIFEST).stat().st_size,
        len(ours),
        sum((folder / f"{_name(shard)}{SUFFIX}").stat().st_size for shard in ours.tolist()),
        1000 * first,
        1000 * later,
        grown,
    )


def shards_of_rank(
    counts: NDArray[np.int64], sampler: Sampler, progressed: Progressed
) -> NDArray[np.int64]:
    """Those that have a sample of an epoch's steps of the sampler's rank."""
    ends = np.cumsum(counts)
    read = np.zeros(len(counts), np.bool_)
    for step in range(sampler.steps_per_epoch):
        read[np.searchsorted(ends, sampler.batch(0, step), side="right")] = True
        if step % 100 == 0:
            progressed(step, sampler.steps_per_epoch)
    return np.flatnonzero(read)


def make_shards(folder: Path, counts: NDArray[np.int64], indexed: set[int]) -> str:
    """Files that are holes, a manifest of all, an index of some; the pattern that names them."""
    records = _records(int(counts.max()))
    entries = {}
    for shard, samples in enumerate(counts.tolist()):
        path = folder / _name(shard)
        with open(path, "wb") as file:
            file.truncate(samples * _STRIDE + 2 * _BLOCK)
            stat = os.fstat(file.fileno())
        identity, crc = Identity(stat.st_size, str(stat.st_mtime_ns)), 0
        if shard in indexed:
            crc = zlib.crc32(records[:samples].tobytes())
            index = TarIndex(identity, crc, records[:samples], b"[]")
            path.with_name(path.name + SUFFIX).write_bytes(index_bytes(index))
        about = {"bytes": identity.bytes, "stamp": identity.stamp}
        entries[path.name] = about | {"samples": samples, "crc": crc, "flaws": 0}
    (folder / MANIFEST).write_text(json.dumps({"version": 1, "shards": entries}, indent=0))
    return str(folder / f"shard-{{000000..{len(counts) - 1:06d}}}.tar")


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


def _records(samples: int) -> NDArray[np.void]:
    records = np.zeros(samples, record_type(_KEY_BYTES))
    begin = np.arange(samples) * _STRIDE
    records["image_offset"], records["image_size"] = begin + _BLOCK, _IMAGE
    records["text_offset"], records["text_size"] = begin + 2 * _BLOCK + _IMAGE, _TEXT
    records["key"] = [f"{number:09d}".encode() for number in range(samples)]
    return records


def _read(source: TarSource, sampler: Sampler) -> tuple[float, float]:
    """Seconds for a sample in the epoch's first step, and in those after it."""
    times = []
    for step in range(min(_READ_STEPS, sampler.steps_per_epoch)):
        numbers = sampler.batch(0, step).tolist()
        began = time.perf_counter()
        for number in numbers:
            source.read(number)
        times.append((time.perf_counter() - began) / len(numbers))
    return times[0], float(np.median(times[1:] or times))
