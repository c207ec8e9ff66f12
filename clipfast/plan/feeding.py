"""How fast images must come, and what cores and storage that takes."""

from __future__ import annotations

from typing import NamedTuple

# One core reads, decodes, crops and tokenizes as many a second: test_loader of
# bench/feeding/bench_loader.py on 640 × 427 JPEGs of quality 98
# (bench/results/cpu-2-cores-feeding.json).
DECODE_RATE = 287.0
DECODE_SOURCE = (
    "measured on this project's 2-core machine, the whole loader on one core, 640 × 427 JPEGs "
    "(bench/results/cpu-2-cores-feeding.json)"
)
IMAGE_KB = 25.0
IMAGE_SOURCE = "estimate: a JPEG of about 256 pixels' short side, and its caption"


class Feed(NamedTuple):
    """What a training needs, and gets.

    Attributes:
        images_per_second: that it takes.
        decode_rate: images/s of one core.
        cores: to decode them.
        available_cores: of the machines that hold the GPUs.
        storage_bytes_per_second: read.
        dataset_bytes: stored; None where the number of samples stored is not known.
    """

    images_per_second: float
    decode_rate: float
    cores: float
    available_cores: float
    storage_bytes_per_second: float
    dataset_bytes: float | None

    @property
    def limit(self) -> float:
        """Images/s that those cores decode."""
        return self.available_cores * self.decode_rate
