"""The trainer's command line: open_clip_train 3.3.0's flags, defaults and meanings, and ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from clipfast.errors import UserError
from clipfast.train.flags import (
    checkpoints,
    data,
    engine,
    evaluation,
    launch,
    locking,
    model,
    objective,
    optimization,
    reporting,
    training,
)

_SUBJECTS = (
    data,
    training,
    model,
    locking,
    objective,
    optimization,
    evaluation,
    checkpoints,
    reporting,
    launch,
    engine,
)


def parse_args(arguments: Sequence[str]) -> argparse.Namespace:
    """Parses a trainer command line into a namespace with open_clip_train's attribute names.

    Raises:
        UserError: a value out of range, a choice that this release cannot honour, or shards that
            the shell made of a pattern.
        SystemExit: an unknown flag or an unreadable value (argparse's message, exit code 2).
    """
    parser = argparse.ArgumentParser(
        prog="clipfast train", usage="%(prog)s FLAGS", description=__doc__, allow_abbrev=False
    )
    for subject in _SUBJECTS:
        subject.add_flags(parser)
    args, unknown = parser.parse_known_args(arguments)
    _check_unknown(parser, unknown)
    optimization.fill_in(args)
    if args.force_image_size is not None and len(args.force_image_size) == 1:
        (args.force_image_size,) = args.force_image_size
    args.amp_on_cpu = (
        (args.precision, args.device) == ("amp", "cpu")
        and _is_written("--precision", arguments)
        and _is_written("--device", arguments)
    )
    for subject in _SUBJECTS:
        for name, (expected, holds) in subject.RANGES.items():
            value = getattr(args, name)
            if value is not None and not holds(value):
                raise UserError(f"--{name.replace('_', '-')}: expected {expected}; got {value}")
        subject.check(args)
    return args


def _check_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
    if unknown and all(word.endswith(".tar") for word in unknown):
        raise UserError(
            f"--train-data, --val-data: expected one pattern, in quotes; got {unknown[0]} as a "
            "second word, which the shell makes of a pattern without them"
        )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")


def _is_written(flag: str, arguments: Sequence[str]) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in arguments)
