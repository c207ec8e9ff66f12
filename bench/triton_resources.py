"""What every Triton kernel compiles to, for four kinds of GPU, none of which is needed.

``python -m clipfast_bench.triton_resources [--out FILE]`` prints the table and stores it as JSON.
Compiled, interpreted in the tests, not timed: none of these figures is a speed.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch
import triton
from clipfast_kernels.ops import triton_aot
from rich.console import Console
from rich.progress import track
from rich.table import Table

_STATUS = "compiled, interpreted, not timed"


def main() -> None:
    parser = argparse.ArgumentParser(prog="clipfast_bench.triton_resources", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/results/triton_resources.json"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
    pairs = [(launch, t) for launch in triton_aot.launches() for t in triton_aot.TARGETS]
    rows = [
        triton_aot.compile_for(launch, target)
        for launch, target in track(pairs, description="compiling", console=Console(stderr=True))
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "status": _STATUS,
        "versions": {"triton": triton.__version__, "torch": torch.__version__},
        "kernels": [row._asdict() for row in rows],
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    Console(width=132).print(_table(rows))
    print(f"stored in {arguments.out}")


def _table(rows: list[triton_aot.Resources]) -> Table:
    table = Table(title=f"Triton kernels: {_STATUS}", title_justify="left")
    for name in ("kernel", "target", "registers", "spilled B", "scalars in lanes", "shared B"):
        table.add_column(name, justify="left" if name in ("kernel", "target") else "right")
    table.add_column("tensor cores")
    table.add_column("warps × stages", justify="right")
    before = None
    for row in rows:
        table.add_row(
            row.kernel if row.kernel != before else "",
            row.target,
            str(row.registers),
            str(row.spilled_bytes),
            str(row.scalars_in_lanes),
            str(row.shared_bytes),
            row.tensor_core or "–",
            f"{row.num_warps} × {row.num_stages}",
            end_section=row.target == "gfx942",
        )
        before = row.kernel
    return table


if __name__ == "__main__":
    main()
