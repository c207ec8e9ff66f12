"""Flags of the model."""

from __future__ import annotations

import argparse

from clipfast.errors import UserError
from clipfast.train.flags.ranges import Ranges


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", default="RN50", help="a built-in model or the path of a .json configuration")
    add("--pretrained", default="", metavar="FILE|TAG", help="start from these weights")
    add(
        "--pretrained-image",
        action="store_true",
        help="a timm image tower starts from timm's own weights, if --pretrained gives none",
    )
    add("--cache-dir", metavar="DIR", help="of the weights and tokenizers that open_clip fetches")
    add("--force-quick-gelu", action="store_true")
    add("--force-custom-text", action="store_true", help="the text tower is a module of its own")
    add("--force-image-size", type=int, nargs="+", metavar="SIDE")
    add("--force-context-length", type=int, metavar="TOKENS")
    add("--force-patch-dropout", type=float, metavar="SHARE", help="of patches left out")
    for flag in ("--torchscript", "--trace"):
        add(flag, action="store_true", help="refused: use --torchcompile")
    add("--use-bnb-linear", metavar="CLASS", help="refused: bitsandbytes' triton layers are gone")


RANGES: Ranges = {
    "force_context_length": ("at least 2, a start and an end token", lambda x: x >= 2),
    "force_patch_dropout": ("0 ≤ share < 1", lambda x: 0 <= x < 1),
}


def check(args: argparse.Namespace) -> None:
    for flag, value in (("--torchscript", args.torchscript), ("--trace", args.trace)):
        if value:
            raise UserError(
                f"{flag}: TorchScript is deprecated and cannot hold packed captions; "
                "expected --torchcompile, or neither"
            )
    if args.use_bnb_linear is not None:
        raise UserError(
            "--use-bnb-linear: its layers ask for triton 2.0.0, which no longer runs beside torch; "
            f"expected none; got {args.use_bnb_linear!r}"
        )
    if "coca" in args.model.lower():
        raise UserError(
            "--model: expected a model of two towers; CoCa's captioning decoder is not supported; "
            f"got {args.model!r}"
        )
    side = args.force_image_size
    if isinstance(side, list) or (side is not None and side < 1):
        raise UserError(
            "--force-image-size: expected one side, of at least 1 pixel, as images are square; "
            f"got {side}"
        )
