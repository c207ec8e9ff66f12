"""Flags of the loss."""

from __future__ import annotations

import argparse
import math

from clipfast.errors import UserError
from clipfast.train.flags.ranges import Ranges

_LOSS_DIST_IMPLS = ("bidir", "shift", "reduce", "gather")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("loss").add_argument
    any_way = "accepted; the gradient is always that of the loss over all ranks"
    add("--local-loss", action="store_true", help=any_way)
    add("--gather-with-grad", action="store_true", help=any_way)
    add("--siglip", action="store_true", help="SigLIP's sigmoid loss, and the bias that it needs")
    add(
        "--loss-dist-impl",
        metavar="NAME",
        help=f"{', '.join(_LOSS_DIST_IMPLS)}: accepted with --siglip; all give one gradient",
    )
    add("--distill-model", metavar="MODEL", help="a teacher, whose similarities are learned too")
    add("--distill-pretrained", metavar="FILE|TAG", help="its weights")
    add("--coca-caption-loss-weight", type=float, default=2.0, help="CoCa cannot be trained here")
    add("--coca-contrastive-loss-weight", type=float, default=1.0, help="nor has it a weight")


RANGES: Ranges = {
    "coca_caption_loss_weight": ("a finite number", math.isfinite),
    "coca_contrastive_loss_weight": ("a finite number", math.isfinite),
}


def check(args: argparse.Namespace) -> None:
    if args.loss_dist_impl not in (None, *_LOSS_DIST_IMPLS):
        raise UserError(
            f"--loss-dist-impl: expected one of {', '.join(_LOSS_DIST_IMPLS)}; "
            f"got {args.loss_dist_impl!r}"
        )
    if (args.distill_model is None) != (args.distill_pretrained is None):
        given, missing = "--distill-model", "--distill-pretrained"
        if args.distill_model is None:
            given, missing = missing, given
        raise UserError(f"{given}: expected {missing} with it; got none")
    if args.distill_model is None:
        return
    if args.siglip:
        raise UserError(
            "--distill-model: expected the softmax loss, whose similarities a teacher has; "
            "got --siglip"
        )
    if args.cache_locked_features is not None:
        raise UserError(
            "--distill-model: the teacher is shown every image and text; expected no "
            f"--cache-locked-features; got {args.cache_locked_features}"
        )
