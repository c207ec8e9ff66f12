"""Peaks of memory: of a process of its own on a CPU, of torch's allocator on a GPU."""

from __future__ import annotations

import ast
import ctypes
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

PROCESS_SECONDS = 6.0  # about what starting one takes, with torch and a peer in it


def peak_mib(function: Callable[..., object], *arguments: str | int) -> float:
    """MiB that a run needs beyond what it holds when it begins and the tensors that it returns, in
    a process of its own.

    Args:
        function: of a module of clipfast_bench; function(*arguments) makes the run.
        arguments: given on as they are.

    Raises:
        RuntimeError: the process fails.
    """
    words = [f"{_module_of(function)}:{function.__name__}", *map(repr, arguments)]
    command = [sys.executable, "-m", "clipfast_bench.harness.memory", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise RuntimeError(f"{' '.join(words)}: {last[0]}")
    return float(done.stdout.split()[-1])


def cuda_peak_mib(run: Callable[[], object]) -> float:
    """MiB that torch allocates beyond what it holds when the run begins and the tensors that it
    returns. No GPU has run this."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    answer = run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20 - _mib(answer)


def _module_of(function: Callable[..., object]) -> str:
    """By which a new process finds it: pytest names the modules that it collects by other roots."""
    package = Path(__file__).parents[1]
    file = Path(sys.modules[function.__module__].__file__ or "")
    if file.is_relative_to(package):
        return ".".join(["clipfast_bench", *file.relative_to(package).with_suffix("").parts])
    return function.__module__


def main(where: str, *arguments: str) -> None:
    """The whole work of the process: two parts, of which the second is measured."""
    module, _, name = where.partition(":")
    values = [ast.literal_eval(word) for word in arguments]
    run = getattr(importlib.import_module(module), name)(*values)
    _trim()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _kib("VmRSS")
    answer = run()
    peak = _kib("VmHWM")
    print((peak - before) / 1024 - _mib(answer))


def _mib(answer: object) -> float:
    """Of a mapping's tensors: gradients, which every contender must hold."""
    tensors = answer.values() if isinstance(answer, dict) else ()
    return sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor)) / 2**20


def _trim() -> None:
    ctypes.CDLL(None).malloc_trim(0)


def _kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
