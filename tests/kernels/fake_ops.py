"""An op of the tests' own, y = 2x, with backends that are slow, wrong, or bring their process down.

As a script it is the child process of verify(): fake_ops.py NAMES REQUEST DESCRIPTOR.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from types import SimpleNamespace

import torch
from clipfast_kernels.dispatch import OPS, Op
from clipfast_kernels.measuring import measure_in_child
from clipfast_kernels.ops.trial import Trial, leaf, normal, with_gradients


class _ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, d_y):
        return torch.zeros_like(d_y)


class _Unfilled(torch.autograd.Function):
    """Right only where the memory happens to hold the answer of an earlier call."""

    @staticmethod
    def forward(ctx, x):
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, d_y):
        return 2 * d_y


def _slow(x):
    time.sleep(0.02)
    return 2 * x


def _raising(x):
    raise RuntimeError("no such instruction\nand a long story")


def _dying(x):
    os.kill(os.getpid(), signal.SIGSEGV)


def _leaving(x):
    print("CUDA error: an illegal memory access", file=sys.stderr)
    os._exit(7)


def _without_memory(x):
    raise torch.OutOfMemoryError("too large")


_UNLUCKY = itertools.count()


def _unlucky(x):
    """Misses by a little on the first data, and nowhere else."""
    return x * (2 + 1e-6 * (next(_UNLUCKY) < 2))


def _nothing_here(*tensors):
    return ["it serves nothing"]


WORK = {
    "reference": lambda x: 2 * x,
    "quick": lambda x: x + x,
    "torch": _slow,
    "wrong": lambda x: 2.001 * x,
    "unlucky": _unlucky,
    "zero_gradient": _ZeroGradient.apply,
    "unfilled": _Unfilled.apply,
    "other_dtype": lambda x: 2 * x.double(),
    "nan": lambda x: x * torch.nan,
    "raising": _raising,
    "dying": _dying,
    "leaving": _leaving,
    "hanging": lambda x: time.sleep(600),
    "without_memory": _without_memory,
    "unable": _slow,
}


def doubled(x, backend="auto"):
    return WORK[OPS["doubled"]().choose(backend, x)](x)


def _shape_class(x):
    return "long" if len(x) > 100 else "short"


def _trials(device, dtype):
    def call(backend, x):
        leaves = {"x": leaf(x)}
        y = doubled(leaves["x"], backend)
        return {"y": y.detach(), **with_gradients(y, leaves, torch.ones_like(y))}

    def draw(length):
        return lambda seed: normal(seed, dtype, device, (length,))

    for kind, length, timed in (("odd sizes", 3, False), ("short", 64, True)):
        yield Trial(kind, draw(length), call, timed)


def fake_op(names):
    def module(name):
        unusable = _nothing_here if name == "unable" else lambda *tensors: []
        return lambda: SimpleNamespace(unusable=unusable)

    trials = SimpleNamespace(shape_class=_shape_class, trials=_trials)
    return Op("doubled", {n: module(n) for n in names}, {"planned": "later"}, lambda: trials)


if __name__ == "__main__":
    op = fake_op(sys.argv[1].split(","))
    OPS["doubled"] = lambda: op
    measure_in_child(sys.argv[2], int(sys.argv[3]))
