"""Flags of what the image tower is shown."""

from __future__ import annotations

import argparse
import math

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.preprocess import INTERPOLATIONS, RESIZE_MODES
from clipfast.errors import UserError
from clipfast.train.flags.key_values import ParseKeyValues


def add_image_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--image-mean", type=float, nargs=3, help="default: the pretrained model's, or CLIP's")
    add("--image-std", type=float, nargs=3, help="default: the pretrained model's, or CLIP's")
    add(
        "--image-interpolation",
        choices=INTERPOLATIONS,
        help="in evaluation, where random is bicubic, and of crops by --aug-cfg use_timm=True "
        "(default: the pretrained model's, or bicubic)",
    )
    add(
        "--image-resize-mode",
        choices=RESIZE_MODES,
        help="in evaluation: the shortest side to the model's size, or the longest, or both "
        "(default: the pretrained model's, or shortest)",
    )
    add(
        "--aug-cfg",
        nargs="*",
        default={},
        action=ParseKeyValues,
        metavar="KEY=VALUE",
        help="open_clip's: scale='(0.9, 1.0)', color_jitter='(.4, .4, .4, .1)', "
        "color_jitter_prob=.8, gray_scale_prob=.2, use_timm=True",
    )


def check_images(args: argparse.Namespace) -> None:
    for name, expected, holds in (
        ("image_mean", "three finite numbers", math.isfinite),
        ("image_std", "three positive numbers", lambda x: 0 < x < math.inf),
    ):
        if not all(map(holds, getattr(args, name) or ())):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: expected {expected}; got {getattr(args, name)}")
    Augmentation.of(args.aug_cfg)
