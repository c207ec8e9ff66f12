"""`clipfast shards`: makes, checks, shrinks, describes and deals WebDataset shards."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from clipfast.errors import UserError
from clipfast.shard_tools import check, deal, make, resize, stats

_COMMANDS = {"make": make, "check": check, "resize": resize, "stats": stats, "deal": deal}

_LIMITS = {
    "--samples-per-shard": (1, math.inf),
    "--side": (1, math.inf),
    "--resize": (1, math.inf),
    "--quality": (1, 100),
    "--workers": (1, math.inf),
    "--examples": (0, math.inf),
    "--sample": (1, math.inf),
    "--world-size": (1, math.inf),
    "--batch-size": (1, math.inf),
    "--accum-freq": (1, math.inf),
    "--train-num-samples": (1, math.inf),
    "--steps": (1, math.inf),
    "--seed": (0, math.inf),
    "--epoch": (0, math.inf),
}


def shards(arguments: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit code.

    Raises:
        UserError: a mistake in the flags, or nothing to work on.
        OSError: a folder cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="clipfast shards", description="Makes, checks, shrinks, describes and deals shards."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_flags(one)
        one.set_defaults(run=command.run)
    args = parser.parse_args(arguments)
    _check_limits(args)
    return args.run(args)


def _check_limits(args: argparse.Namespace) -> None:
    for flag, (low, high) in _LIMITS.items():
        value = getattr(args, flag[2:].replace("-", "_"), None)
        if value is not None and not low <= value <= high:
            wanted = f"at least {low}" if high == math.inf else f"{low} to {high}"
            raise UserError(f"{flag}: expected {wanted}; got {value}")
