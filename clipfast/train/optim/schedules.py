"""The learning rate as a function of the step, so a resumed run needs nothing of it saved."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def make_schedule(args: argparse.Namespace, steps_per_epoch: int) -> Schedule:
    """open_clip's flags to its schedule: step of the whole run -> learning rate.

    Args:
        steps_per_epoch: updates of the weights, however many batches each has.
    """
    total = steps_per_epoch * args.epochs
    if args.skip_scheduler:
        return constant(args.lr, warmup=0)
    if args.lr_scheduler == "cosine":
        return cosine(args.lr, warmup=args.warmup, total=total)
    if args.lr_scheduler == "const-cooldown":
        return cooldown(
            args.lr,
            warmup=args.warmup,
            total=total,
            steps=steps_per_epoch * args.epochs_cooldown,
            end=args.lr_cooldown_end,
            power=args.lr_cooldown_power,
        )
    return constant(args.lr, warmup=args.warmup)


def describe_schedule(args: argparse.Namespace) -> str:
    """A line of the log."""
    if args.skip_scheduler:
        return f"learning rate: {args.lr:g} throughout"
    after = {"cosine": "half a cosine to 0", "const": "constant"}
    if args.lr_scheduler == "const-cooldown":
        after["const-cooldown"] = (
            f"constant, and in the last {args.epochs_cooldown} epochs down to "
            f"{args.lr_cooldown_end:g} by power {args.lr_cooldown_power:g}"
        )
    return (
        f"learning rate: {args.lr:g} after {args.warmup:,} steps of warm-up, "
        f"then {after[args.lr_scheduler]}"
    )


def constant(lr: float, *, warmup: int) -> Schedule:
    return _after_warmup(lambda step: lr, lr, warmup)


def cosine(lr: float, *, warmup: int, total: int) -> Schedule:
    """Half a cosine, from lr where the warm-up ends to 0 at `total`."""

    def falling(step: int) -> float:
        angle = math.pi * (step - warmup) / max(1, total - warmup)
        return 0.5 * (1 + math.cos(angle)) * lr

    return _after_warmup(falling, lr, warmup)


def cooldown(
    lr: float, *, warmup: int, total: int, steps: int, end: float, power: float
) -> Schedule:
    """Constant, then (1 − t)^power from lr to `end` over the last `steps`."""

    def falling(step: int) -> float:
        done = step - (total - steps)
        if done < 0:
            return lr
        return (1 - done / max(1, steps)) ** power * (lr - end) + end

    return _after_warmup(falling, lr, warmup)


def _after_warmup(schedule: Schedule, lr: float, warmup: int) -> Schedule:
    """Linear from lr / warmup to lr in `warmup` steps, then the schedule."""
    return lambda step: lr * (step + 1) / warmup if step < warmup else schedule(step)
