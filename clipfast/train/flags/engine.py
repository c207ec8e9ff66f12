"""Flags of the engine: who holds what of the model, and how gradients travel."""

from __future__ import annotations

import argparse

from clipfast.errors import UserError
from clipfast.train.flags.ranges import Ranges


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("engine").add_argument
    add(
        "--zero-stage",
        type=int,
        choices=[0, 1, 2, 3],
        help="train by DeepSpeed; ranks share out the optimizer's state (1), gradients too (2), "
        "weights too (3), or nothing (0)",
    )
    add(
        "--zero-offload",
        choices=["none", "optimizer", "param"],
        default="none",
        help="keep the optimizer's state and its work, or the weights of --zero-stage 3 too, on "
        "the CPU",
    )
    add(
        "--deepspeed-config",
        "--deepspeed_config",
        metavar="FILE",
        help="DeepSpeed's own JSON, for what no flag says",
    )
    add("--deepspeed", action="store_true", help="of DeepSpeed's launcher; changes nothing")
    # What DeepSpeed's launcher adds; the environment says it too.
    add("--local_rank", "--local-rank", type=int, default=None, help=argparse.SUPPRESS)


RANGES: Ranges = {}


def check(args: argparse.Namespace) -> None:
    """Fills in the stage that `--deepspeed-config` says.

    Raises:
        UserError: the file cannot be honoured, or flags contradict it or each other.
    """
    # Deferred: it knows the model's precisions, whose module knows the model.
    from clipfast.train.engines.deepspeed.config import stage_of

    args.zero_stage = stage_of(args)
    if args.zero_offload != "none" and not args.zero_stage:
        raise UserError(
            f"--zero-offload {args.zero_offload}: expected --zero-stage 1, 2 or 3; "
            f"got {'none' if args.zero_stage is None else args.zero_stage}"
        )
    if args.zero_offload == "param" and args.zero_stage != 3:
        raise UserError(f"--zero-offload param: expected --zero-stage 3; got {args.zero_stage}")
    if args.torchcompile and args.zero_stage == 3:
        raise UserError(
            "--torchcompile: expected --zero-stage 0, 1 or 2; got 3, which fetches weights between "
            "layers, where compiled code does not stop"
        )
