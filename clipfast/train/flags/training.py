"""Flags of what is computed: how much of it, and in which precision."""

from __future__ import annotations

import argparse

from clipfast.models.precision import PRECISIONS
from clipfast.train.flags.ranges import Ranges


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--batch-size", type=int, default=64, help="of each process (default 64)")
    add(
        "--accum-freq",
        type=int,
        default=1,
        metavar="K",
        help="steps of K batches, with the loss and the gradients of one K times as large, in the "
        "memory of one (default 1)",
    )
    add("--epochs", type=int, default=32, help="default 32")
    add("--seed", type=int, default=0, help="of weights, order and augmentation (default 0)")
    add("--device", default="cuda", help="falls back to cpu where there is no GPU (default cuda)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="amp",
        help="amp autocasts to float16; on a CPU it computes in fp32, unless --precision amp and "
        "--device cpu are both written (default amp)",
    )
    add("--grad-checkpointing", action="store_true", help="recompute blocks in the backward")
    add("--torchcompile", action="store_true", help="compute both towers by torch.compile")
    add("--backend", default="auto", help="of the loss; `clipfast doctor` lists them")


RANGES: Ranges = {
    "batch_size": ("at least 1", lambda x: x >= 1),
    "accum_freq": ("at least 1", lambda x: x >= 1),
    "epochs": ("at least 1", lambda x: x >= 1),
    "seed": ("0 to 2^32 - 1", lambda x: 0 <= x < 2**32),
}


def check(args: argparse.Namespace) -> None:
    """Nothing but ranges."""
