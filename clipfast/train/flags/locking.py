"""Flags of towers that do not train."""

from __future__ import annotations

import argparse

from clipfast.errors import UserError
from clipfast.train.flags.ranges import Ranges


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("locked towers").add_argument
    add("--lock-image", action="store_true", help="freeze the image tower")
    add("--lock-image-unlocked-groups", type=int, default=0, help="but its last N groups")
    add(
        "--lock-image-freeze-bn-stats",
        action="store_true",
        help="and the BatchNorm statistics of what is frozen",
    )
    add("--lock-text", action="store_true", help="freeze the text tower")
    add("--lock-text-unlocked-layers", type=int, default=0, help="but its last N layers")
    add(
        "--lock-text-freeze-layer-norm",
        action="store_true",
        help="and the LayerNorms of what is frozen, which train otherwise",
    )
    add(
        "--cache-locked-features",
        metavar="DIR",
        help="compute the features of a wholly locked tower once, and keep them there",
    )


RANGES: Ranges = {
    "lock_image_unlocked_groups": ("at least 0", lambda x: x >= 0),
    "lock_text_unlocked_layers": ("at least 0", lambda x: x >= 0),
}


def check(args: argparse.Namespace) -> None:
    if args.cache_locked_features is not None and not (args.lock_image or args.lock_text):
        raise UserError("--cache-locked-features: expected --lock-image or --lock-text; got none")
