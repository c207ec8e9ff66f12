"""Flags of many processes: how they find each other, and how long they wait."""

from __future__ import annotations

import argparse
import math

from clipfast.errors import UserError
from clipfast.train.flags.ranges import Ranges

_URLS = ("env://", "tcp://", "file://")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("processes").add_argument
    add(
        "--dist-url",
        metavar="URL",
        help="where processes meet: env:// (the default: what their launcher says), "
        "tcp://HOST:PORT or file:///PATH",
    )
    add("--dist-backend", metavar="NAME", help="default: nccl on GPUs, gloo on CPUs")
    add(
        "--rank-timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="a process that stands still for longer ends the run by name; compiling, saving and "
        "evaluating have six times as long (default 600)",
    )
    add(
        "--no-set-device-rank",
        action="store_true",
        help="each process sees one GPU and takes that, instead of the one of its local rank",
    )
    add("--use-bn-sync", action="store_true", help="BatchNorm over the batches of all processes")
    add("--ddp-static-graph", action="store_true", help="DDP: the same graph in every step")
    add("--horovod", action="store_true", help="refused: torchrun, srun or mpirun start processes")


RANGES: Ranges = {
    "rank_timeout": ("a positive number of seconds", lambda x: 0 < x < math.inf),
}


def check(args: argparse.Namespace) -> None:
    if args.horovod:
        raise UserError(
            "--horovod: expected processes that torchrun, srun, mpirun or deepspeed started, which "
            "exchange gradients through torch; got Horovod"
        )
    if args.dist_url is not None and not args.dist_url.startswith(_URLS):
        raise UserError(
            f"--dist-url: expected env://, tcp://HOST:PORT or file:///PATH; got {args.dist_url!r}"
        )
