"""GPUs as their makers' data sheets have them. Nothing here was measured by us.

Rates are decimal, per second. A sheet's gigabytes of memory are what drivers show as about as many
GiB, so they are taken as GiB.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import NamedTuple

from clipfast.errors import UserError


class Gpu(NamedTuple):
    """One GPU, and its place in the machine that its maker builds around it.

    Attributes:
        name: of the module on its board (SXM).
        memory_gib: on the board.
        tensor_flops: dense products of 16-bit numbers.
        fp32_flops: float32 without tensor cores, as torch multiplies float32 by default.
        hbm_bytes: memory bandwidth.
        nvlink_bytes: to the machine's other GPUs, both directions together.
        network_bytes: share of the machine's network, one direction.
        per_machine: GPUs in it.
        cores: of its processors, for all of its GPUs.
        bfloat16: whether tensor cores take it.
        sheet, machine: where these figures stand.
    """

    name: str
    memory_gib: int
    tensor_flops: float
    fp32_flops: float
    hbm_bytes: float
    nvlink_bytes: float
    network_bytes: float
    per_machine: int
    cores: int
    bfloat16: bool
    sheet: str
    machine: str

    def peak(self, size: int) -> float:
        """FLOP/s of products of matrices whose numbers have so many bytes."""
        return self.fp32_flops if size == 4 else self.tensor_flops


_V100 = "NVIDIA V100 data sheet, SXM2"
_A100 = "NVIDIA A100 data sheet, SXM"
_H100 = "NVIDIA H100 data sheet, SXM, without sparsity"
_H200 = "NVIDIA H200 data sheet, SXM, without sparsity"
_DGX_1 = "DGX-1 with V100: 4 ports of 100 Gb/s and 40 cores for 8 GPUs"
_DGX_A100 = "DGX A100: 8 ports of 200 Gb/s and 128 cores for 8 GPUs"
_DGX_H100 = "DGX H100: 8 ports of 400 Gb/s and 112 cores for 8 GPUs"
_DGX_H200 = "DGX H200: 8 ports of 400 Gb/s and 112 cores for 8 GPUs"

_TABLE = (
    Gpu("V100", 32, 125e12, 15.7e12, 0.9e12, 300e9, 6.25e9, 8, 40, False, _V100, _DGX_1),
    Gpu("V100-16GB", 16, 125e12, 15.7e12, 0.9e12, 300e9, 6.25e9, 8, 40, False, _V100, _DGX_1),
    Gpu("A100", 80, 312e12, 19.5e12, 2.039e12, 600e9, 25e9, 8, 128, True, _A100, _DGX_A100),
    Gpu("A100-40GB", 40, 312e12, 19.5e12, 1.555e12, 600e9, 25e9, 8, 128, True, _A100, _DGX_A100),
    Gpu("H100", 80, 989e12, 67e12, 3.35e12, 900e9, 50e9, 8, 112, True, _H100, _DGX_H100),
    Gpu("H200", 141, 989e12, 67e12, 4.8e12, 900e9, 50e9, 8, 112, True, _H200, _DGX_H200),
)
GPUS = {gpu.name: gpu for gpu in _TABLE}
_ALIASES = {"V100-32GB": "V100", "A100-80GB": "A100", "H100-80GB": "H100", "H200-141GB": "H200"}


def find_gpu(name: str) -> Gpu:
    """By its name, however it is written.

    Raises:
        UserError: it is not in the table.
    """
    written = {known.lower(): known for known in (*GPUS, *_ALIASES)}
    known = written.get(name.lower())
    if known is not None:
        return GPUS[_ALIASES.get(known, known)]
    near = get_close_matches(name.lower(), written, n=1, cutoff=0.5)
    nearest = f"; the nearest is {written[near[0]]}" if near else ""
    raise UserError(f"--gpu: expected one of {', '.join(GPUS)}; got {name!r}{nearest}")
