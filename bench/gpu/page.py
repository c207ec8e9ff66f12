"""The evidence as a page of the documentation, and as a table in a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipfast_bench.gpu.calls import PAPER
from clipfast_bench.gpu.evidence import STATUS, Evidence, Record
from clipfast_bench.report.drawing import seconds_words, short_number, three_digits
from rich.table import Table

STORED = Path("docs/gpu-evidence.md")
PICTURE = "gpu-evidence"  # the picture's name, beside the page
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
_NOTHING = "–"

_INTRO = f"""\
# GPU kernels: {STATUS}

No GPU has run these kernels yet. This page is what compilers say of them, and what arithmetic says
of the work: it is evidence that they fit the machines they are for, and no evidence of speed. That
they compute the right thing is tested elsewhere, Triton's kernels in its interpreter and the CUDA
kernels, from the file that nvcc compiles, in an emulation on the CPU. On a GPU, `clipfast doctor
--verify` checks and times them.

`make resources` writes this page and `bench/results/gpu_evidence.json`, which has a row for
every kernel, configuration and target. It took 22 minutes of CPU time here, and no GPU.

## How to read it
- **registers** of a thread; 255 are the most on NVIDIA's GPUs, 512 on AMD's (vector registers).
  What does not fit is **spilled** to memory, which is slow: it should be 0.
- **shared** memory of a block, in KiB. A block may have 163 on sm_80, 227 on sm_90 and sm_100, 64
  on gfx942.
- **occupancy**: the warps that a multiprocessor holds at a time, of the 64 it could hold; from
  registers, shared memory, warps and on sm_100 tensor memory. Theoretical: how many blocks fit, not
  how many there are. Kernels that live on tensor cores do well with little: what counts is that
  some warps compute while others wait. For gfx942 it is not computed.
- **tensor cores**: how many of their instructions are in the code, not how often they run. One
  HGMMA of sm_90 does the work of many HMMA of sm_80, so counts do not compare across targets.
  float32 is multiplied exactly: by NVIDIA's GPUs on their ordinary cores, by AMD's as v_mfma.
- **floor**: the longer of FLOPs over the peak and bytes over the memory bandwidth of the data
  sheet, for a stated call. It is of the whole call; where a call takes several kernels they share
  it. Nothing can take less time than its floor; what it takes has not been measured.
"""

_SOURCES = """\
## Sources
Limits of multiprocessors: CUDA programming guide, table "Technical Specifications per Compute
Capability". How registers and shared memory are dealt out: the occupancy calculator of the CUDA
toolkit, `cuda_occupancy.h`, with which a test compares ours. Tensor memory: PTX ISA,
`tcgen05.alloc`.
FLOPs and bytes: `clipfast_kernels/ops/*/cost.py`. Peaks: """


def markdown(record: Record) -> str:
    """The page, without the picture's files."""
    parts = [
        _INTRO,
        f"![Occupancy of every kernel, and FLOPs per byte of the stated calls]({PICTURE}.png)\n",
        _left_out(record),
        "## Floors of stated calls\n" + "\n".join(_floors(record)) + "\n",
        "## Every kernel in a line\nThe range over its configurations.\n\n"
        + "\n".join(_summary(record.kernels))
        + "\n",
        "## Every configuration\nFor each target: registers · shared KiB · occupancy · tensor-core "
        "instructions. Floors as above, for 16-bit and float32 numbers by the configuration.\n",
        *_configurations(record),
        _SOURCES
        + "; ".join(
            f"{gpu.sheet}, {gpu.tensor_flops / 1e12:g} and {gpu.fp32_flops / 1e12:g} TFLOP/s "
            f"(16-bit, float32), {gpu.hbm_bytes / 1e12:g} TB/s"
            for gpu in PAPER
        )
        + ".\n\nCompiled with "
        + ", ".join(f"{name} {version}" for name, version in record.versions.items())
        + ".\n",
    ]
    return "\n".join(part for part in parts if part)


def _left_out(record: Record) -> str:
    return "".join(f"Left out: {one.what}: {one.reason}.\n" for one in record.left_out)


def _table(head: Sequence[str], rows: Iterator[Sequence[str]], left: int = 1) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * left + "---:|" * (len(head) - left)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _floors(record: Record) -> Iterator[str]:
    """Of heads of 64, which most models have, and of what has no heads."""
    head = ["call", "FLOPs", "HBM bytes", "FLOP a byte"]
    head += [f"{gpu.name}" for gpu in PAPER] + ["the limit"]

    def rows() -> Iterator[Sequence[str]]:
        for key, call in record.calls.items():
            if " heads of " in key and "heads of 64" not in key:
                continue
            limits = dict.fromkeys(call["bound_by"].values())
            yield [
                key,
                _NOTHING if call["flops"] is None else short_number(call["flops"], "FLOP"),
                short_number(call["hbm_bytes"], "B"),
                _NOTHING if call["intensity"] is None else three_digits(call["intensity"]),
                *(seconds_words(call["floor_seconds"][gpu.name]) for gpu in PAPER),
                " / ".join(limits),
            ]

    return _table(head, rows())


def _summary(kernels: Sequence[Evidence]) -> Iterator[str]:
    groups: dict[tuple[str, str, str], list[Evidence]] = defaultdict(list)
    for one in kernels:
        groups[one.kernel, one.written_in, one.target].append(one)
    head = [
        "kernel",
        "in",
        "for",
        "registers",
        "spilled",
        "shared KiB",
        "occupancy",
        "tensor cores",
    ]

    def rows() -> Iterator[Sequence[str]]:
        for (kernel, written_in, target), group in groups.items():
            names = dict.fromkeys(one.tensor_instruction for one in group if one.tensor_instruction)
            yield [
                f"`{kernel}`",
                written_in,
                target,
                _range(one.registers for one in group),
                _range(one.spilled_bytes for one in group),
                _range((one.shared_bytes / 1024 for one in group), "{:.0f}"),
                _range(
                    (100 * one.occupancy for one in group if one.occupancy is not None), "{:.0f}"
                )
                + (" %" if group[0].occupancy is not None else ""),
                ", ".join(names) or _NOTHING,
            ]

    return _table(head, rows(), left=3)


def _range(values: Any, form: str = "{}") -> str:
    found = sorted(values)
    if not found:
        return _NOTHING
    low, high = form.format(found[0]), form.format(found[-1])
    return low if low == high else f"{low}–{high}"


def _configurations(record: Record) -> Iterator[str]:
    """A table for each kernel; rows that differ in the dtype's name alone are one."""
    of_kernel: dict[tuple[str, str], list[Evidence]] = defaultdict(list)
    for one in record.kernels:
        of_kernel[one.written_in, one.kernel].append(one)
    for (written_in, kernel), group in of_kernel.items():
        targets = [target for target in TARGETS if any(one.target == target for one in group)]
        head = ["configuration", "warps", *targets, *(f"floor {gpu.name}" for gpu in PAPER)]
        rows = _merged(record, group, targets)
        yield f"### `{kernel}` ({written_in})\n" + "\n".join(_table(head, rows)) + "\n"


def _merged(
    record: Record, group: Sequence[Evidence], targets: Sequence[str]
) -> Iterator[Sequence[str]]:
    rows: dict[tuple[str, ...], dict[str, Evidence]] = defaultdict(dict)
    for one in group:
        dtype, _, flags = one.configuration.partition(" ")
        rows[dtype, flags, one.launch][one.target] = one
    dtypes: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for (dtype, flags, launch), by_target in rows.items():
        first = next(iter(by_target.values()))
        floors = record.calls[first.call]["floor_seconds"]
        cells = [_cell(by_target[target]) if target in by_target else "" for target in targets]
        cells += [seconds_words(floors[gpu.name]) for gpu in PAPER]
        dtypes[flags, launch, str(first.warps), *cells].append(dtype)
    for (flags, launch, *cells), names in dtypes.items():
        at = f"at {launch}{' tokens' * launch.isdigit()}" if launch else ""
        yield [" ".join(filter(None, (", ".join(names), flags, at))), *cells]


def _cell(one: Evidence) -> str:
    spilled = f" · **spills {one.spilled_bytes} B**" if one.spilled_bytes else ""
    share = _NOTHING if one.occupancy is None else f"{100 * one.occupancy:.0f} %"
    tensor = f"{one.tensor_instructions}" if one.tensor_instruction else _NOTHING
    return f"{one.registers} · {one.shared_bytes / 1024:.0f} · {share} · {tensor}{spilled}"


def terminal_table(record: Record) -> Table:
    """A line for each kernel, configuration and target."""
    table = Table(title=f"GPU kernels: {STATUS}", title_justify="left")
    for name in ("kernel", "for"):
        table.add_column(name)
    for name in ("registers", "spilled B", "shared KiB", "warps", "occupancy"):
        table.add_column(name, justify="right")
    table.add_column("limited by")
    table.add_column("tensor cores")
    before = ""
    for one in record.kernels:
        name = " ".join(filter(None, (one.kernel, one.configuration, one.launch)))
        tensor = one.tensor_instruction
        table.add_row(
            name if name != before else "",
            one.target,
            str(one.registers),
            str(one.spilled_bytes),
            f"{one.shared_bytes / 1024:.1f}",
            str(one.warps),
            _NOTHING if one.occupancy is None else f"{one.occupancy:.0%}",
            one.limited_by or _NOTHING,
            f"{one.tensor_instructions} {tensor}" if tensor else _NOTHING,
        )
        before = name
    return table
