"""Every CUDA kernel, compiled by nvcc for two kinds of GPU, and its launches at stated calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from clipfast_bench.gpu import calls
from clipfast_bench.gpu.evidence import Evidence
from clipfast_bench.gpu.instructions import Missing, count_sass, disassemble
from clipfast_bench.gpu.limits import MULTIPROCESSORS
from clipfast_bench.gpu.ptxas import Compiled, parse
from clipfast_kernels.ops.attention import tiles
from clipfast_kernels.ops.attention.cuda import WIDTHS

SOURCE = Path("csrc/cuda/attention.cu")
TARGETS = {"sm_80": 108, "sm_90": 132}  # multiprocessors of an A100 and of an H100 (SXM)
_WIDTH = 64  # of the models that most people train; other widths at one length alone
_LENGTHS = ("50", "197", "257", "577", "captions")
_OTHER_LENGTHS = ("257",)

# The name of attention_kernel<Strip<T, D>> as the compiler writes it.
_MANGLED = re.compile(
    r"\d(?P<strip>Forward|Query|Key)StripINS_\d+(?P<dtype>Half|BFloat16)ELi(?P<width>\d+)E"
    r"(?:LNS_8GradientE(?P<gradient>\d)E)?"
)
_NAME = "attention_"
_STEPS = {"Forward": "fwd", "Query": "bwd_q", "Key": "bwd_kv"}
_DTYPES = {"Half": "fp16", "BFloat16": "bf16"}
_GRADIENTS = ("", " of keys", " of values")  # Gradient of attention_bwd.cuh


class Kernel(NamedTuple):
    """Attributes:
    step: one of `tiles.PASSES`.
    part: which gradients, where a kernel has not both.
    """

    step: str
    dtype: str
    width: int
    part: str = ""

    @property
    def name(self) -> str:
        return f"{_NAME}{self.step}{self.part}"

    @property
    def configuration(self) -> str:
        return f"{self.dtype} WIDTH={self.width}"


def kernel_of(mangled: str) -> Kernel:
    """Raises:
    ValueError: it is no kernel of attention.cu.
    """
    found = _MANGLED.search(mangled)
    if found is None:
        raise ValueError(f"expected a kernel of {SOURCE}; got {mangled}")
    part = _GRADIENTS[int(found["gradient"] or 0)]
    return Kernel(_STEPS[found["strip"]], _DTYPES[found["dtype"]], int(found["width"]), part)


def find_nvcc() -> Path:
    """From the PATH or CUDA_HOME.

    Raises:
        Missing: it is in neither.
    """
    home = os.environ.get("CUDA_HOME")
    for candidate in (shutil.which("nvcc"), Path(home, "bin/nvcc") if home else None):
        if candidate is not None and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise Missing("nvcc was not found on the PATH or in CUDA_HOME")


def compile_all(root: Path, processes: int) -> list[Evidence]:
    """All kernels on all targets.

    Args:
        root: the checkout.
        processes: of nvcc at a time, one to a target.

    Raises:
        Missing: there is no nvcc, no source or no cuobjdump, as a sentence.
    """
    nvcc = find_nvcc()
    if not (root / SOURCE).exists():
        raise Missing(f"{SOURCE} is not there: a checkout has it, an installed package has not")
    with ThreadPoolExecutor(processes) as pool:
        found = pool.map(lambda target: compile_for(nvcc, root, target), TARGETS)
        return sorted((one for of_target in found for one in of_target), key=_place)


def _place(one: Evidence) -> tuple[object, ...]:
    """By pass, width, dtype and launch, as one reads; compilers have an order of their own."""
    step = tiles.PASSES.index(one.kernel.removeprefix(_NAME).partition(" ")[0])
    dtype, width = one.configuration.split(" WIDTH=")
    return step, one.kernel, int(width), dtype, _LENGTHS.index(one.launch), one.target


def compile_for(nvcc: Path, root: Path, target: str, only: str = "") -> list[Evidence]:
    """All kernels on one target, or those whose mangled names contain `only`.

    Raises:
        Missing: nvcc does not compile the source.
    """
    number = target.removeprefix("sm_")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "attention.cubin")
        command = [nvcc, "-std=c++17", "-O3", "-cubin", "-Xptxas", "-v", root / SOURCE]
        command += [f"-gencode=arch=compute_{number},code=sm_{number}", "-o", cubin]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            why = " ".join(done.stderr.split())[:200] or "without a message"
            raise Missing(f"{nvcc} does not compile {SOURCE}: {why}")
        code = disassemble(cubin.read_bytes())
    return [
        one
        for compiled in parse(done.stderr)
        if only in compiled.name
        for one in launches(compiled, target, code[compiled.name])
    ]


def launches(compiled: Compiled, target: str, sass: str) -> Iterator[Evidence]:
    """A kernel at each stated call of its width."""
    kernel = kernel_of(compiled.name)
    tensor = count_sass(sass)
    for name in _LENGTHS if kernel.width == _WIDTH else _OTHER_LENGTHS:
        plan = plan_of(kernel, name, TARGETS[target])
        tile = tiles.tile_bytes(kernel.step, kernel.width)
        yield Evidence(
            kernel=kernel.name,
            written_in="CUDA",
            configuration=kernel.configuration,
            launch=name,
            target=target,
            call=call_of(kernel, name).key,
            registers=compiled.registers,
            spilled_bytes=compiled.spilled_bytes,
            scalars_in_lanes=0,
            static_shared_bytes=compiled.static_shared_bytes,
            dynamic_shared_bytes=plan.heads * plan.tiles * tile,
            shared_limit=MULTIPROCESSORS[target].block_shared_bytes,
            tensor_columns=0,
            warps=plan.warps,
            stages=None,
            tensor_instruction=tensor.most_common(1)[0][0] if tensor else None,
            tensor_instructions=tensor.total(),
        ).with_occupancy()


def plan_of(kernel: Kernel, name: str, multiprocessors: int) -> tiles.Plan:
    """How the host cuts the launch."""
    sequences = calls.SEQUENCES[name]
    lengths = [n for n, _ in sequences.lengths]
    return tiles.plan(
        kernel.step,
        batch=len(lengths),
        heads=sequences.heads,
        width=kernel.width,
        longest=max(lengths),
        typical=-(-sum(lengths) // len(lengths)),
        other_longest=max(lengths),
        multiprocessors=multiprocessors,
    )


def call_of(kernel: Kernel, name: str) -> calls.Call:
    return calls.attention(name, kernel.width, kernel.dtype, kernel.step != "fwd")


def all_calls() -> Iterator[calls.Call]:
    """Of every launch."""
    for width in WIDTHS:
        for name in _LENGTHS if width == _WIDTH else _OTHER_LENGTHS:
            for backward in (False, True):
                yield calls.attention(name, width, "bf16", backward)


def version() -> str:
    """nvcc's release, such as "13.0".

    Raises:
        Missing: there is none.
    """
    done = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release ([\d.]+)", done.stdout)
    return found[1] if found else "unknown"
