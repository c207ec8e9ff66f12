"""Flags of the files that a run writes, and goes on from."""

from __future__ import annotations

import argparse

from clipfast.data.sources.storage import is_remote
from clipfast.errors import UserError
from clipfast.train.flags.ranges import Ranges


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("files").add_argument
    add("--logs", default="./logs/", help="folder of all runs; none saves no checkpoints")
    add("--name", help="this run's folder in it (default: made of time and settings)")
    add(
        "--resume",
        metavar="FILE|latest",
        help="go on from a checkpoint of this or another run; latest: this one's furthest whole "
        "one, where there is one yet",
    )
    add(
        "--trust-checkpoint",
        action="store_true",
        help="let --resume read the weights in a folder of DeepSpeed's own, which may execute what "
        "is in it",
    )
    add("--save-frequency", type=int, default=1, help="epochs between checkpoints (default 1)")
    add("--save-most-recent", action="store_true", help="write epoch_latest.pt after each epoch")
    add(
        "--delete-previous-checkpoint",
        action="store_true",
        help="once an epoch's checkpoint is whole, remove the one before",
    )
    add("--save-every-steps", type=int, default=0, help="save a resumable state every N steps")
    add(
        "--save-every-minutes",
        type=float,
        default=0.0,
        help="or every so many minutes; SIGUSR1 asks for one at any time, SIGTERM and SIGINT for "
        "one and an end",
    )
    add(
        "--keep-states",
        type=int,
        default=2,
        metavar="K",
        help="keep the newest K states (default 2: should the last be damaged, there is another)",
    )
    _add_sync_flags(parser)


def _add_sync_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("remote copy of the files").add_argument
    add("--remote-sync", metavar="URL", help="copy the run's folder to URL/NAME, again and again")
    add(
        "--remote-sync-frequency",
        type=int,
        default=300,
        metavar="SECONDS",
        help="between two copies (default 300)",
    )
    add(
        "--remote-sync-protocol",
        choices=["s3", "fsspec"],
        default="s3",
        help="s3, or whatever URL fsspec knows (default s3)",
    )


RANGES: Ranges = {
    "save_frequency": ("0 (only at the end) or more", lambda x: x >= 0),
    "save_every_steps": ("0 (never) or more", lambda x: x >= 0),
    "save_every_minutes": ("0 (never) or more", lambda x: 0 <= x < float("inf")),
    "keep_states": ("at least 1", lambda x: x >= 1),
    "remote_sync_frequency": ("at least 1", lambda x: x >= 1),
}


def check(args: argparse.Namespace) -> None:
    if args.resume == "latest" and args.name is None:
        raise UserError("--resume latest: expected --name, the run to go on with; got none")
    if args.logs.lower() == "none":
        _check_saves_nothing(args)
    if args.remote_sync is not None:
        _check_sync(args)


def _check_saves_nothing(args: argparse.Namespace) -> None:
    for name in ("save_most_recent", "save_every_steps", "save_every_minutes", "remote_sync"):
        if getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: expected --logs FOLDER with it; got --logs {args.logs}")


def _check_sync(args: argparse.Namespace) -> None:
    is_s3 = args.remote_sync.startswith(("s3://", "s3a://"))
    if args.remote_sync_protocol == "s3" and not is_s3:
        raise UserError(
            f"--remote-sync: expected s3://BUCKET/FOLDER, or --remote-sync-protocol fsspec; "
            f"got {args.remote_sync}"
        )
    if not (is_remote(args.remote_sync) or args.remote_sync.startswith("file://")):
        raise UserError(
            f"--remote-sync: expected a URL, such as s3://BUCKET/FOLDER or file:///FOLDER; "
            f"got {args.remote_sync}"
        )
