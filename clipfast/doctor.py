"""`clipfast doctor`: what this machine has, and which backend serves which operation."""

from __future__ import annotations

import argparse
import platform
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata

import torch
from clipfast_kernels import Verdict, backends, verify
from clipfast_kernels.dispatch import FROM_ENVIRONMENT, NAMES, OPS
from clipfast_kernels.verdicts import Row, verdict_path
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import clipfast
from clipfast.errors import UserError


def doctor(arguments: Sequence[str]) -> int:
    """Prints what is here; returns 1 if --verify found a backend that is wrong, else 0."""
    parser = argparse.ArgumentParser(prog="clipfast doctor", description=__doc__)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check every backend against the reference and time it (minutes); "
        "on a GPU, auto takes the fastest right one from then on",
    )
    args = parser.parse_args(arguments)
    console = Console(width=shutil.get_terminal_size((110, 40)).columns, highlight=False)
    console.print(_parts_table())
    console.print(_backends_table())
    return _verify(console) if args.verify else 0


def _verify(console: Console) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting")

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        try:
            verdict = verify(device, refresh=True, progress=show)
        except RuntimeError as error:
            raise UserError(str(error)) from None
    console.print(_verdict_table(verdict, device))
    if device.type == "cpu":
        console.print(
            "There is no GPU here. On a CPU the order of the backends is fixed, by README's "
            "measurements; these times do not change it.",
            soft_wrap=True,
        )
    console.print(f"Kept in {verdict_path(device)}", soft_wrap=True)
    return 1 if verdict.untrusted() else 0


def _verdict_table(verdict: Verdict, device: torch.device) -> Table:
    table = Table(title=f"verified on {verdict.device}", title_justify="left")
    for column in ("operation", "kind of call", "dtype", "backend"):
        table.add_column(column)
    table.add_column("error / allowed, of what; or what happened", overflow="fold")
    table.add_column("ms", justify="right")
    previous = None
    for row in verdict.rows:
        kind = row.op, row.shape_class, row.dtype
        if previous not in (None, kind):
            table.add_section()
        times = "" if row.milliseconds is None else f"{row.milliseconds:.3g}"
        took = times and row.backend == _taken(verdict, device, row)
        shown = kind if kind != previous else ("", "", "")
        table.add_row(*shown, row.backend, _found(row), times + ("  ← auto" if took else ""))
        previous = kind
    return table


def _found(row: Row) -> str:
    if row.error is None:
        return f"{row.status}: {row.note}"
    return f"{row.status}: {row.error:.1e} / {row.allowed:.1e}, {row.note}"


def _taken(verdict: Verdict, device: torch.device, row: Row) -> str | None:
    """What auto takes for calls of the row's kind."""
    asked = OPS[row.op]().named_default([])
    if asked == "auto":
        asked = verdict.pins.get(row.op, "auto")
    if asked != "auto":
        return asked
    if device.type == "cpu":
        return backends(row.op).auto
    ranking = verdict.rankings().get((row.op, row.dtype, row.shape_class))
    return ranking[0] if ranking else "torch"


def _parts_table() -> Table:
    table = Table(title=f"clipfast {clipfast.__version__}: this machine", title_justify="left")
    table.add_column("part")
    table.add_column("found", overflow="fold")
    for part, find in _PARTS.items():
        table.add_row(part, find())
    return table


def _backends_table() -> Table:
    table = Table(title="backends, in the order in which auto tries them", title_justify="left")
    table.add_column("operation")
    table.add_column("backend")
    table.add_column("usable, or the reasons why not", overflow="fold")
    for op in OPS:
        found = backends(op)
        for backend, reasons in found.reasons.items():
            verdict = "; ".join(reasons) or "usable"
            chosen = "  ← auto" if backend == found.auto else ""
            table.add_row(op, backend, verdict + chosen)
    return table


def _python() -> str:
    return f"{platform.python_version()} on {platform.machine()}, {platform.system()}"


def _processor() -> str:
    return f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _cuda() -> str:
    built = torch.version.cuda or torch.version.hip
    if not torch.cuda.is_available():
        return f"no usable GPU; torch is built for {built or 'the CPU only'}"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; torch is built for {built}"


def _compiler() -> str:
    compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    return shutil.which(compiler) or "" if compiler else "none: the C++ backends cannot be built"


def _package(*names: str, without: str) -> Callable[[], str]:
    """The version of the first installed distribution of these names, or what its lack costs."""

    def find() -> str:
        for name in names:
            try:
                return f"{name} {metadata.version(name)}"
            except metadata.PackageNotFoundError:
                continue
        return f"not installed: {without}"

    return find


def _apex() -> str:
    """NVIDIA's apex is built from source; the package of that name on PyPI is another project."""
    try:
        distribution = metadata.distribution("apex")
    except metadata.PackageNotFoundError:
        return "not installed: torch's fused AdamW and LayerNorm serve instead"
    files = {str(f).replace("\\", "/") for f in distribution.files or ()}
    if any(f.startswith(("apex/normalization/", "apex/optimizers/")) for f in files):
        return f"NVIDIA apex {distribution.version}"
    return (
        f"apex {distribution.version} is the unrelated project of that name on PyPI, not NVIDIA's; "
        "it is not used"
    )


def _environment() -> str:
    if FROM_ENVIRONMENT in NAMES:
        return FROM_ENVIRONMENT
    return f"expected one of {', '.join(NAMES)}; got {FROM_ENVIRONMENT!r}: every operation refuses"


_PARTS: dict[str, Callable[[], str]] = {
    "Python": _python,
    "torch": _package("torch", without="nothing works"),
    "torchvision": _package("torchvision", without="images cannot be decoded"),
    "processor": _processor,
    "C++ compiler": _compiler,
    "CUDA": _cuda,
    "Triton": _package("triton", "pytorch-triton", without="no Triton kernels"),
    "DALI": _package(
        "nvidia-dali-cuda130", "nvidia-dali-cuda120", without="images are decoded by torchvision"
    ),
    "DeepSpeed": _package("deepspeed", without="no ZeRO; the plain engine trains"),
    "flash-attn": _package("flash-attn-4", "flash-attn", without="torch's attention serves"),
    "apex": _apex,
    "CLIPFAST_BACKEND": _environment,
    "open_clip": _package("open_clip_torch", without="nothing to compare with in bench/"),
}
