"""Ahead-of-time compilation of every Triton kernel as it is launched, for GPUs that are not here.

What comes out is evidence of the code, not of its speed: registers, spills, shared memory, and
whether the products run on tensor cores.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from clipfast_kernels.ops.contrastive.triton import contrastive_bwd_kernel, contrastive_fwd_kernel
from clipfast_kernels.ops.sigmoid.triton import sigmoid_fwd_kernel
from clipfast_kernels.ops.similarity.triton import (
    MAX_TOPK,
    positive_kernel,
    similarity_kernel,
)
from clipfast_kernels.ops.triton_tile import PAIR_CONFIGS, SIMILARITY_CONFIGS, launch_options


class Target(NamedTuple):
    name: str
    gpu: GPUTarget
    shared_limit: int  # bytes that one block may have
    tensor_core: str  # what a 16-bit product compiles to, in the PTX or the assembly


TARGETS = [
    Target("sm_80", GPUTarget("cuda", 80, 32), 163 * 1024, "mma.sync"),
    Target("sm_90", GPUTarget("cuda", 90, 32), 227 * 1024, "wgmma"),
    Target("sm_100", GPUTarget("cuda", 100, 32), 227 * 1024, "tcgen05"),
    Target("gfx942", GPUTarget("hip", "gfx942", 64), 64 * 1024, "v_mfma"),
]

# Triton's name of a dtype, and its size in bytes.
DTYPES = {"fp16": 2, "bf16": 2, "fp32": 4}


class Launch(NamedTuple):
    """One kernel as the host launches it."""

    kernel: Any
    dtype: str
    constants: dict[str, Any]
    configs: dict[int, Any]

    @property
    def name(self) -> str:
        """The kernel, dtype and the flags that are set."""
        flags = [f"{k}={v}" if k == "K" else k for k, v in self.constants.items() if v]
        return " ".join([self.kernel.__name__, self.dtype, *flags])


class Resources(NamedTuple):
    """What one launch compiles to on one target. Registers are per thread."""

    kernel: str
    target: str
    registers: int
    spilled_bytes: int  # to memory
    scalars_in_lanes: int  # AMD: scalar registers kept in vector registers' lanes, not in memory
    shared_bytes: int
    tensor_core: str | None
    num_warps: int
    num_stages: int


def launches() -> Iterator[Launch]:
    """Every kernel, dtype and choice of flags that the launchers use."""
    for dtype in DTYPES:
        for ids in (False, True):
            for symmetric in (False, True):
                flags = {"HAS_IDS": ids, "SYMMETRIC": symmetric}
                yield Launch(contrastive_fwd_kernel, dtype, flags, PAIR_CONFIGS)
            yield Launch(contrastive_bwd_kernel, dtype, {"HAS_IDS": ids}, PAIR_CONFIGS)
            for gradient in (False, True):
                of_sigmoid = {"HAS_IDS": ids, "GRADIENT": gradient}
                yield Launch(sigmoid_fwd_kernel, dtype, of_sigmoid, PAIR_CONFIGS)
        yield Launch(positive_kernel, dtype, {}, SIMILARITY_CONFIGS)
        for positives, slots in ((False, 0), (False, 16), (True, 0), (True, 16), (True, MAX_TOPK)):
            of_similarity = {"HAS_POSITIVES": positives, "K": slots}
            yield Launch(similarity_kernel, dtype, of_similarity, SIMILARITY_CONFIGS)


# Pointers that are not float32 vectors; the first group has the inputs' dtype.
_FEATURES = {"x", "y", "h", "g", "queries", "keys", "chosen"}
_INT64 = {"ids", "positives"}
_INT32 = {"rank", "topk_indices"}
_SCALARS = {"first_row", "last_row", "n", "N", "D", "offset", "tiles"}
_OPTIONAL = {"ids": "HAS_IDS", "positives": "HAS_POSITIVES", "positive": "HAS_POSITIVES"}


def _signature(launch: Launch) -> tuple[dict[str, str], dict[str, Any]]:
    config = launch.configs[DTYPES[launch.dtype]]
    options = launch_options(config)
    constants = {**launch.constants}
    constants |= {k: v for k, v in options.items() if k in launch.kernel.arg_names}
    signature = {}
    for name in launch.kernel.arg_names:
        if name in constants or constants.get(_OPTIONAL.get(name, ""), True) is False:
            signature[name] = "constexpr"
            constants.setdefault(name, None)
        elif name in _SCALARS:
            signature[name] = "i32"
        elif name in ("h_scale", "g_scale"):
            signature[name] = "fp32"
        else:
            kinds = {"i64": _INT64, "i32": _INT32, launch.dtype: _FEATURES}
            kind = next((k for k, names in kinds.items() if name in names), "fp32")
            signature[name] = f"*{kind}"
    return signature, constants


def compile_for(launch: Launch, target: Target) -> Resources:
    """Compiles one launch for one target; no GPU is needed."""
    signature, constants = _signature(launch)
    config = launch.configs[DTYPES[launch.dtype]]
    # As at run time: addresses, and sizes that are multiples of 16, are known to be aligned.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(launch.kernel.arg_names)
        if signature[name].startswith("*") or name == "D"
    }
    compiled = triton.compile(
        ASTSource(launch.kernel, signature, constants, aligned),
        target=target.gpu,
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    if target.gpu.backend == "hip":
        assembly = compiled.asm["amdgcn"]
        registers = _field(assembly, r"\.vgpr_count:\s+(\d+)")
        spilled = _field(assembly, r"\.private_segment_fixed_size:\s+(\d+)")
        spilled += 4 * _field(assembly, r"\.vgpr_spill_count:\s+(\d+)")
        in_lanes = _field(assembly, r"\.sgpr_spill_count:\s+(\d+)")
    else:
        assembly = compiled.asm["ptx"]
        report = _ptxas(assembly, target.gpu.arch)
        registers = _field(report, r"Used (\d+) registers")
        spilled = _field(report, r"(\d+) bytes spill stores")
        in_lanes = 0
    return Resources(
        launch.name,
        target.name,
        registers,
        spilled,
        in_lanes,
        compiled.metadata.shared,
        target.tensor_core if target.tensor_core in assembly else None,
        config.num_warps,
        config.num_stages,
    )


def _field(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"the compiler's report has no {pattern!r}: {text[-500:]}")
    return int(found.group(1))


def _ptxas(ptx: str, arch: int) -> str:
    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    tool = folder / ("ptxas-blackwell" if arch >= 90 else "ptxas")
    # What Triton asked for: sm_90a, not sm_90, has wgmma.
    name = re.search(r"\.target (\w+)", ptx)
    assert name is not None
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "kernel.ptx")
        source.write_text(ptx)
        done = subprocess.run(
            [
                tool,
                "-v",
                f"--gpu-name={name.group(1)}",
                source,
                "-o",
                Path(scratch, "kernel.cubin"),
            ],
            capture_output=True,
            text=True,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{tool} refused the kernel: {done.stderr[-500:]}")
    return done.stderr
