"""Flags of the training data, and of how samples become batches."""

from __future__ import annotations

import argparse
import math

from clipfast.data.images.decoders import DECODERS
from clipfast.data.sources.opening import add_source_flags
from clipfast.errors import UserError
from clipfast.train.flags.evaluation import only_evaluates
from clipfast.train.flags.images import add_image_flags, check_images
from clipfast.train.flags.ranges import Ranges


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add = group.add_argument
    add(
        "--train-data",
        metavar="DATA",
        help="WebDataset tars, a CSV, Parquet files, a folder or a Hugging Face dataset on disk: "
        "paths or URLs with brace ranges, several sources joined by ::",
    )
    add(
        "--train-num-samples",
        type=int,
        metavar="N",
        help="samples in an epoch (default: all, which are counted)",
    )
    add(
        "--dataset-resampled",
        action="store_true",
        help="draw samples with replacement, in place of each one once an epoch",
    )
    add(
        "--train-data-upsampling-factors",
        metavar="FACTORS",
        help="with --dataset-resampled, how often each source's samples are drawn, joined by ::",
    )
    add_source_flags(group)
    add_loading_flags(group)


def add_loading_flags(group: argparse._ArgumentGroup) -> None:
    """How samples become batches."""
    add = group.add_argument
    add("--workers", type=int, default=4, help="decoding threads (default 4)")
    add(
        "--decoder",
        choices=DECODERS,
        default="auto",
        help="auto takes DALI on a GPU where it is installed, else the native one",
    )
    add(
        "--fast-jpeg",
        action="store_true",
        help="decode large JPEGs at a fraction of their size: sooner, and not the same pixels",
    )
    add(
        "--max-unusable",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of the samples tried, above which the run stops (default 0.01)",
    )
    add_image_flags(group)


RANGES: Ranges = {
    "workers": ("at least 0", lambda x: x >= 0),
    "train_num_samples": ("at least 1", lambda x: x >= 1),
    "max_unusable": ("0 ≤ share ≤ 1", lambda x: 0 <= x <= 1),
    "data_cache_gb": ("a positive number", lambda x: 0 < x < math.inf),
}


def check(args: argparse.Namespace) -> None:
    if not (args.train_data or args.dataset_type == "synthetic" or only_evaluates(args)):
        raise UserError("--train-data: expected the training data; got none")
    check_images(args)
