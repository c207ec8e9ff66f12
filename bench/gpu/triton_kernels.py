"""Every Triton kernel as it is launched, compiled for four kinds of GPU."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from clipfast_bench.gpu import calls
from clipfast_bench.gpu.evidence import Evidence, LeftOut
from clipfast_bench.gpu.instructions import count_amdgcn, count_sass, disassemble

Job = tuple[str, str]  # a launch's name and a target's


def jobs() -> list[Job]:
    """All launches on all targets.

    Raises:
        ImportError: there is no Triton.
    """
    from clipfast_kernels.ops import triton_aot

    return [(launch.name, t.name) for launch in triton_aot.launches() for t in triton_aot.TARGETS]


def compile_all(wanted: list[Job], processes: int, on_done: Callable[[], None]) -> list[Evidence]:
    """Compiles in as many processes, started fresh: Triton's compiler has threads."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        found = []
        for one in pool.map(compile_one, wanted, chunksize=4):
            found.append(one)
            on_done()
        return found


def compile_one(job: Job) -> Evidence:
    """One launch on one target."""
    from clipfast_kernels.ops import triton_aot

    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
    name, target_name = job
    launch = next(one for one in triton_aot.launches() if one.name == name)
    target = next(one for one in triton_aot.TARGETS if one.name == target_name)
    compiled = triton_aot.build(launch, target)
    needs = triton_aot.resources(launch, target, compiled)
    if target.gpu.backend == "hip":
        tensor = count_amdgcn(compiled.asm["amdgcn"])
    else:
        tensor = sum(map(count_sass, disassemble(compiled.asm["cubin"]).values()), Counter())
    kernel, _, configuration = launch.name.partition(" ")
    return Evidence(
        kernel=kernel,
        written_in="Triton",
        configuration=configuration,
        launch="",
        target=target.name,
        call=call_of(launch.name).key,
        registers=needs.registers,
        spilled_bytes=needs.spilled_bytes,
        scalars_in_lanes=needs.scalars_in_lanes,
        static_shared_bytes=needs.static_shared_bytes,
        dynamic_shared_bytes=needs.shared_bytes,
        shared_limit=target.shared_limit,
        tensor_columns=needs.tensor_columns,
        warps=needs.num_warps,
        stages=needs.num_stages,
        tensor_instruction=tensor.most_common(1)[0][0] if tensor else None,
        tensor_instructions=tensor.total(),
    ).with_occupancy()


def call_of(launch: str) -> calls.Call:
    """The stated call that a launch is all or a part of."""
    kernel, dtype, *flags = launch.split()
    width = next((int(f.partition("=")[2]) for f in flags if f.startswith("WIDTH=")), 64)
    backward = "_bwd_" in kernel
    if kernel.startswith("contrastive"):
        return calls.contrastive(dtype)
    if kernel.startswith("sigmoid"):
        return calls.sigmoid(dtype)
    if kernel in ("similarity_kernel", "positive_kernel"):
        return calls.similarity(dtype)
    if kernel.startswith("quick_gelu"):
        return calls.quick_gelu(dtype, backward)
    packed = "PACKED_Q" in flags
    if kernel.startswith("single_query"):
        name = "captions, one query" if packed else "257, one query"
        return calls.attention(name, width, dtype, backward)
    if kernel == "spans_kernel":  # of the forward, and again of the backward
        return calls.attention("captions", width, "bf16", "OF_KEYS" in flags)
    name = "captions" if "SPANS" in flags else "long captions" if packed else "257"
    return calls.attention(name, width, dtype, backward)


def all_calls(wanted: list[Job]) -> Iterator[calls.Call]:
    """Of every launch, and the loss of one rank of many."""
    yield calls.contrastive_of_a_rank("bf16")
    for launch in dict.fromkeys(name for name, _ in wanted):
        yield call_of(launch)


def left_out() -> LeftOut | None:
    """Why there is no Triton to compile with; None where there is."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return LeftOut("Triton kernels", "triton is not installed")
    return None
