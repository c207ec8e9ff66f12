"""Checks and times an op's backends on this process's device.

`verify` runs this in a process of its own (`measure_in_child`): a kernel that brings the process or
the device down is then a row of the verdict.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from clipfast_kernels.dispatch import OPS, CannotServe, Op
from clipfast_kernels.ops.trial import Trial
from clipfast_kernels.verdicts import Row, dtype_name

DTYPES = {
    "cuda": (torch.bfloat16, torch.float16, torch.float32),
    "cpu": (torch.float32, torch.bfloat16),
}

# The yardstick; never chosen, for its memory.
REFERENCE = "reference"

_NEAR_MISS = 4.0  # times what is allowed
_OTHER_SEEDS = (1, 2)

_SAMPLE_SECONDS = 2e-3  # a clock's grain and a launch's delay are small beside it
_TRIAL_SECONDS = 0.5
_ROUNDS = 3, 15


_T = TypeVar("_T")


class _Finding(NamedTuple):
    status: str
    error: float | None
    allowed: float | None
    note: str


def measure(
    op: Op,
    dtype: torch.dtype,
    device: torch.device,
    excluded: set[str],
    begin: Callable[[str, str], None] = lambda backend, shape_class: None,
) -> list[Row]:
    """One row per trial and backend that serves it.

    Args:
        excluded: backends to leave out.
        begin: called with the backend and the shape class before each of them runs.
    """
    rows: list[Row] = []
    if op.trials is None or REFERENCE in excluded:
        return rows
    backends = [name for name in op.modules if name != REFERENCE and name not in excluded]
    for trial in op.trials().trials(device, dtype):
        rows += _measured_trial(op, trial, dtype, device, backends, begin)
    return rows


def _measured_trial(
    op: Op,
    trial: Trial,
    dtype: torch.dtype,
    device: torch.device,
    backends: list[str],
    begin: Callable[[str, str], None],
) -> list[Row]:
    begin(REFERENCE, trial.shape_class)
    problem = _guarded(lambda: _Problem(trial, dtype, 0), device)
    found: dict[str, _Finding | None] = {}
    if isinstance(problem, _Problem):
        for name in backends:
            begin(name, trial.shape_class)
            found[name] = _guarded(partial(_checked, problem, name), device)
        inputs = problem.inputs
        del problem  # what the reference answered takes memory, which changes what is measured
    else:  # nothing is known of this kind of call
        found[REFERENCE] = problem
    right = [name for name, finding in found.items() if finding and finding.status == "right"]
    times = _milliseconds(trial, inputs, right, device, begin) if trial.timed and right else {}
    where = op.name, trial.shape_class, dtype_name(dtype)
    return [
        Row(*where, name, **finding._asdict(), milliseconds=times.get(name))
        for name, finding in found.items()
        if finding is not None
    ]


class _Problem:
    """A trial's inputs for one seed, and the reference's answers to them."""

    def __init__(self, trial: Trial, dtype: torch.dtype, seed: int):
        self.trial, self.dtype, self.seed = trial, dtype, seed
        self.inputs = trial.draw(seed)
        self.exact = trial.call(REFERENCE, *map(_wide, self.inputs))
        self.low = trial.call(REFERENCE, *self.inputs)

    def compared(self, backend: str) -> _Finding:
        """The worse of two runs: a race need not show in the first."""
        eps = torch.finfo(self.dtype).eps
        runs = (self.trial.call(backend, *self.inputs) for _ in range(2))
        return max((compared(run, self.low, self.exact, eps) for run in runs), key=_badness)


def _checked(problem: _Problem, backend: str) -> _Finding:
    """What misses by little is asked again on other data, and wrong if it misses once more.

    The bound is twice an error that was itself measured only once: now and then a right kernel
    misses it by a few per cent. A wrong one misses on other data too.
    """
    finding = problem.compared(backend)
    if finding.status == "right" or _badness(finding) > _NEAR_MISS:
        return finding
    again = (_Problem(problem.trial, problem.dtype, seed) for seed in _OTHER_SEEDS)
    return max((other.compared(backend) for other in again), key=_badness)


def _wide(x: Tensor | None) -> Tensor | None:
    return x.double() if x is not None and x.is_floating_point() else x


def _guarded(work: Callable[[], _T], device: torch.device) -> _T | _Finding | None:
    """The work's result; None where the backend does not serve the call; what came instead of it.

    An error that the device does not get over is raised: this process is of no more use.
    """
    try:
        with _poisoned_memory():
            return work()
    except CannotServe:
        return None
    except torch.OutOfMemoryError:
        return _Finding("out of memory", None, None, "the device's memory does not suffice")
    except Exception as error:
        _synchronize(device)
        return _Finding("crashed", None, None, _sentence(error))


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"


def _badness(finding: _Finding) -> float:
    if finding.error is None or not finding.allowed:
        return math.inf if finding.error else 0.0
    return finding.error / finding.allowed


def compared(
    actual: dict[str, Tensor], low: dict[str, Tensor], exact: dict[str, Tensor], eps: float
) -> _Finding:
    """Of all outputs and gradients, the one that is furthest out of what it may be.

    max|actual − exact| ≤ 2·(max|low − exact| + eps·max|exact|), where `exact` is the float64
    reference and `low` the reference in the kernel's dtype; whole numbers are equal or wrong.
    """
    findings = []
    for name, e in exact.items():
        a, b = actual.get(name), low[name]
        if a is None or a.shape != e.shape or a.dtype != b.dtype:
            came = "nothing" if a is None else f"{a.dtype} {tuple(a.shape)}"
            note = f"{name}: expected {b.dtype} {tuple(e.shape)}; got {came}"
            return _Finding("wrong", math.inf, 0.0, note)
        if e.numel() == 0:
            continue
        error = (a.double() - e.double()).abs().max().item()
        error = math.inf if math.isnan(error) else error
        allowed = 0.0
        if e.is_floating_point():
            low_error = (b.double() - e).abs().max().item()
            allowed = 2 * (low_error + eps * e.abs().max().item())
        status = "right" if error <= allowed else "wrong"
        findings.append(_Finding(status, error, allowed, name))
    return max(findings, key=_badness)


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, not the right answer that was just freed."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=only_warn)


def _milliseconds(
    trial: Trial,
    inputs: tuple[Tensor | None, ...],
    backends: list[str],
    device: torch.device,
    begin: Callable[[str, str], None],
) -> dict[str, float]:
    """Medians of forward and backward. The backends take turns, so that what slows the machine for
    a while slows them all."""

    def sample(backend: str, repeats: int) -> float:
        begin(backend, trial.shape_class)
        return _seconds(lambda: trial.call(backend, *inputs), repeats, device) / repeats

    once = {name: min(sample(name, 1) for _ in range(2)) for name in backends}
    repeats = {name: max(1, min(100, int(_SAMPLE_SECONDS / once[name]))) for name in backends}
    a_round = sum(once[name] * repeats[name] for name in backends)
    fewest, most = _ROUNDS
    rounds = max(fewest, min(most, int(_TRIAL_SECONDS / max(a_round, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in backends}
    for _ in range(rounds):
        for name in backends:
            samples[name].append(sample(name, repeats[name]))
    return {name: 1e3 * statistics.median(found) for name, found in samples.items()}


def _seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    _synchronize(device)
    if device.type != "cuda":
        first = time.perf_counter()
        for _ in range(repeats):
            work()
        return time.perf_counter() - first
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work()
    stop.record()
    _synchronize(device)
    return 1e-3 * start.elapsed_time(stop)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_in_child(request: str, descriptor: int) -> None:
    """The whole work of a child process of `verify`.

    Args:
        request: JSON of the device, the units [op, dtype], and the excluded pairs [op, backend].
        descriptor: of the pipe that takes a line of JSON per event: {"begin": [op, dtype,
            backend, shape class]}, and {"rows": […]} at the end of each unit.
    """
    wanted = json.loads(request)
    device = torch.device(wanted["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches on the current one
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:

        def say(**event: object) -> None:
            print(json.dumps(event), file=pipe, flush=True)

        for op, dtype in wanted["units"]:
            excluded = {backend for o, backend in wanted["excluded"] if o == op}
            begin = partial(_say_begin, say, op, dtype)
            rows = measure(OPS[op](), getattr(torch, dtype), device, excluded, begin)
            say(rows=[row._asdict() for row in rows])


def _say_begin(
    say: Callable[..., None], op: str, dtype: str, backend: str, shape_class: str
) -> None:
    say(begin=[op, dtype, backend, shape_class])
