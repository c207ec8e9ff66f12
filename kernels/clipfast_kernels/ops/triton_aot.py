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
from triton.compiler import ASTSource, CompiledKernel

from clipfast_kernels.ops.attention import triton as attention
from clipfast_kernels.ops.attention.triton_rows import SPANS_BLOCK, spans_kernel
from clipfast_kernels.ops.attention.triton_single import (
    single_config,
    single_query_bwd_kernel,
    single_query_fwd_kernel,
)
from clipfast_kernels.ops.contrastive.triton import contrastive_bwd_kernel, contrastive_fwd_kernel
from clipfast_kernels.ops.quick_gelu import triton as quick_gelu
from clipfast_kernels.ops.sigmoid.triton import sigmoid_fwd_kernel
from clipfast_kernels.ops.similarity.triton import (
    MAX_TOPK,
    positive_kernel,
    similarity_kernel,
)
from clipfast_kernels.ops.triton_tile import (
    PAIR_CONFIGS,
    SIMILARITY_CONFIGS,
    Config,
    launch_options,
)


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


# Constants that are more than a flag.
_NUMBERS = {"K", "WIDTH"}


class Launch(NamedTuple):
    """One kernel as the host launches it."""

    kernel: Any
    dtype: str
    constants: dict[str, Any]
    configs: dict[int, Any]
    tensor_cores: bool = True  # whether its 16-bit products are meant for them

    @property
    def name(self) -> str:
        """The kernel, dtype and the flags that are set."""
        flags = [f"{k}={v}" if k in _NUMBERS else k for k, v in self.constants.items() if v]
        return " ".join([self.kernel.__name__, self.dtype, *flags])


class Resources(NamedTuple):
    """What one launch compiles to on one target. Registers are per thread."""

    kernel: str
    target: str
    registers: int
    spilled_bytes: int  # to memory
    scalars_in_lanes: int  # AMD: scalar registers kept in vector registers' lanes, not in memory
    shared_bytes: int  # that a launch asks for
    static_shared_bytes: int  # that the code declares beside them
    tensor_columns: int  # of tensor memory, on sm_100
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
        of_elements = {DTYPES[dtype]: quick_gelu.CONFIG}
        for kernel in (quick_gelu.quick_gelu_fwd_kernel, quick_gelu.quick_gelu_bwd_kernel):
            yield Launch(kernel, dtype, {}, of_elements, tensor_cores=False)
    yield from _attention_launches()


def _attention_launches() -> Iterator[Launch]:
    """Packed sequences, one to a program, at one width alone: only where a program finds its rows
    differs from what is compiled for sequences of one length.
    """
    for of_keys in (False, True):
        block = {4: Config(SPANS_BLOCK, 0, 0, 4, 3)}
        yield Launch(spans_kernel, "fp32", {"OF_KEYS": of_keys}, block, tensor_cores=False)
    for dtype, size in DTYPES.items():
        for width in attention.WIDTHS:
            fwd = {size: attention.fwd_config(size, width)}
            bwd = {size: attention.bwd_config(size, width)}
            single = {size: single_config(width)}
            for packed in (False, True) if width == 64 else (False,):
                flags = {"WIDTH": width, "PACKED_Q": packed, "PACKED_K": packed}
                for kernel in (single_query_fwd_kernel, single_query_bwd_kernel):
                    yield Launch(kernel, dtype, flags, single, tensor_cores=False)
                for spans in (False,) if packed else (False, True):
                    of_tiles = {**flags, "SPANS": spans}
                    yield Launch(attention.attention_fwd_kernel, dtype, of_tiles, fwd)
                    yield Launch(attention.attention_bwd_queries_kernel, dtype, of_tiles, bwd)
                    yield Launch(attention.attention_bwd_keys_kernel, dtype, of_tiles, bwd)


# Pointers that are not float32 vectors; the first group has the inputs' dtype.
_FEATURES = {"x", "y", "h", "g", "queries", "keys", "chosen"}
_FEATURES |= {"d_x", "d_y"}
_FEATURES |= {"q", "k", "v", "out", "d_out", "d_q", "d_k", "d_v"}
_INT64 = {"ids", "positives"}
_INT32 = {"rank", "topk_indices", "cu_own", "cu_other", "cu_q", "cu_k", "spans"}
_SCALARS = {"first_row", "last_row", "n", "N", "D", "offset", "tiles"}
_SCALARS |= {"rows", "batch", "bits", "causal", "T_q", "T_k", "max_q", "max_k"}
_STRIDES = {"q_stride", "k_stride", "v_stride", "d_q_stride", "d_k_stride", "d_v_stride"}
_FLOATS = {"h_scale", "g_scale", "softmax_scale"}
_OPTIONAL = {"ids": "HAS_IDS", "positives": "HAS_POSITIVES", "positive": "HAS_POSITIVES"}
_OPTIONAL |= {"spans": "SPANS", "cu_q": "PACKED_Q", "cu_k": "PACKED_K"}


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
        elif name in _SCALARS | _STRIDES:
            signature[name] = "i32"
        elif name in _FLOATS:
            signature[name] = "fp32"
        else:
            kinds = {"i64": _INT64, "i32": _INT32, launch.dtype: _FEATURES}
            kind = next((k for k, names in kinds.items() if name in names), "fp32")
            signature[name] = f"*{kind}"
    return signature, constants


def compile_for(launch: Launch, target: Target) -> Resources:
    """Compiles one launch for one target; no GPU is needed."""
    return resources(launch, target, build(launch, target))


def build(launch: Launch, target: Target) -> CompiledKernel:
    """The launch compiled as at run time, with its assembly and machine code."""
    signature, constants = _signature(launch)
    config = launch.configs[DTYPES[launch.dtype]]
    # As at run time: addresses, and sizes that are multiples of 16, are known to be aligned.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(launch.kernel.arg_names)
        if signature[name].startswith("*") or name == "D" or name in _STRIDES
    }
    return triton.compile(
        ASTSource(launch.kernel, signature, constants, aligned),
        target=target.gpu,
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )


def resources(launch: Launch, target: Target, compiled: CompiledKernel) -> Resources:
    """What a build needs of its target."""
    config = launch.configs[DTYPES[launch.dtype]]
    static_shared = 0
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
        declared = re.search(r"(\d+) bytes smem", report)
        static_shared = int(declared.group(1)) if declared else 0
        in_lanes = 0
    return Resources(
        kernel=launch.name,
        target=target.name,
        registers=registers,
        spilled_bytes=spilled,
        scalars_in_lanes=in_lanes,
        shared_bytes=compiled.metadata.shared,
        static_shared_bytes=static_shared,
        tensor_columns=getattr(compiled.metadata, "tmem_size", None) or 0,
        tensor_core=target.tensor_core if target.tensor_core in assembly else None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
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
