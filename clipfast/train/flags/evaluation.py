"""Flags of the evaluation during training."""

from __future__ import annotations

import argparse

from clipfast.train.flags.ranges import Ranges

_DATA = ("val_data", "imagenet_val", "imagenet_v2", "zeroshot_data")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("evaluation").add_argument
    add(
        "--val-data",
        metavar="DATA",
        help="pairs, named as those of --train-data are: retrieval, and the loss of batches of "
        "--batch-size",
    )
    add(
        "--val-num-samples",
        type=int,
        metavar="N",
        help="taken as open_clip takes it, which evaluates all of --val-data whatever it says",
    )
    add(
        "--val-frequency",
        type=int,
        default=1,
        metavar="EPOCHS",
        help="between evaluations on --val-data; the last epoch has one too (default 1)",
    )
    add("--imagenet-val", metavar="DIR", help="ImageNet's validation images, a folder per class")
    add("--imagenet-v2", metavar="DIR", help="ImageNetV2's matched-frequency images")
    add(
        "--zeroshot-data",
        metavar="DIR",
        help="images of your own classes, a folder per class. Its name is the class's, unless "
        "classes.txt beside the folders names them in their order, one a line; templates.txt may "
        "hold sentences with {} where the name goes",
    )
    add(
        "--zeroshot-frequency",
        type=int,
        default=2,
        metavar="EPOCHS",
        help="between zero-shot classifications; the last epoch has one too (default 2)",
    )


RANGES: Ranges = {
    "val_num_samples": ("at least 1", lambda x: x >= 1),
    "val_frequency": ("0 (never) or more", lambda x: x >= 0),
    "zeroshot_frequency": ("0 (never) or more", lambda x: x >= 0),
}


def only_evaluates(args: argparse.Namespace) -> bool:
    """Whether the command line names data to evaluate on and none to train on."""
    trains = args.train_data or args.dataset_type == "synthetic"
    return not trains and any(getattr(args, name) is not None for name in _DATA)


def check(args: argparse.Namespace) -> None:
    """Nothing but ranges."""
