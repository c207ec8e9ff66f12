"""Compiles every GPU kernel for GPUs that are not here, and writes what came out: JSON, a page of
the documentation with its picture, and a table. Nothing is timed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clipfast_bench.gpu import cuda_kernels, evidence, page, picture, triton_kernels
from clipfast_bench.gpu.evidence import Evidence, LeftOut, Record
from clipfast_bench.gpu.instructions import Missing
from clipfast_bench.report.drawing import save
from rich.console import Console
from rich.progress import Progress

_PROCESSES = 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m clipfast_bench.gpu", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout")
    parser.add_argument("--processes", type=int, default=_PROCESSES, help="that compile at a time")
    parser.add_argument(
        "--page-only", action="store_true", help="from the JSON that is there, without compiling"
    )
    args = parser.parse_args(arguments)
    stored = args.root / evidence.STORED
    if args.page_only:
        record = evidence.read(stored)
    else:
        record = collect(args.root, args.processes)
        if not record.kernels:
            for one in record.left_out:
                print(f"left out: {one.what}: {one.reason}", file=sys.stderr)
            return 1
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text(evidence.as_json(record), encoding="utf-8")
    for path in (stored, *write_page(record, args.root)):
        print(f"written: {path}")
    if not args.page_only:
        Console(width=132).print(page.terminal_table(record))
    return 0


def collect(root: Path, processes: int = _PROCESSES) -> Record:
    """Compiles whatever there are compilers for; the rest is left out with a reason."""
    left_out, versions, calls, kernels = [], {}, [], []
    missing = triton_kernels.left_out()
    if missing is None:
        import torch
        import triton

        versions = {"triton": triton.__version__, "torch": torch.__version__}
        jobs = triton_kernels.jobs()
        calls += triton_kernels.all_calls(jobs)
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("Triton", total=len(jobs))
            kernels += triton_kernels.compile_all(jobs, processes, lambda: progress.advance(task))
    else:
        left_out.append(missing)
    found = cuda_evidence(root, processes)
    if isinstance(found, LeftOut):
        left_out.append(found)
    else:
        calls += cuda_kernels.all_calls()
        versions["nvcc"] = cuda_kernels.version()
        kernels += found
    return evidence.make_record(versions, calls, kernels, left_out)


def cuda_evidence(root: Path, processes: int = _PROCESSES) -> list[Evidence] | LeftOut:
    """Of the CUDA kernels, or why there is none."""
    try:
        return cuda_kernels.compile_all(root, processes)
    except Missing as why:
        return LeftOut("CUDA kernels", str(why))


def write_page(record: Record, root: Path) -> list[Path]:
    """The page and its picture."""
    path = root / page.STORED
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.markdown(record), encoding="utf-8")
    return [path, *save(picture.draw(record, page.PICTURE), path.parent)]
