"""Flags of what the person at the terminal and the dashboards see."""

from __future__ import annotations

import argparse

from clipfast.train.flags.ranges import Ranges
from clipfast.train.monitoring.dashboards import asked_for


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("reporting").add_argument
    add("--report-to", default="", help="tensorboard, wandb, both joined by a comma, or all")
    add("--wandb-notes", default="", help="what wandb shows beside the run")
    add("--wandb-project-name", default="open-clip", help="default open-clip")
    add("--log-every-n-steps", type=int, default=100, help="default 100")
    add(
        "--log-local",
        action="store_true",
        help="the first process of every other machine writes a log too, out-RANK",
    )
    add("--debug", action="store_true", help="log more; wandb shows gradients and weights")
    add("--copy-codebase", action="store_true", help="keep the program's source beside the run")


RANGES: Ranges = {
    "log_every_n_steps": ("at least 1", lambda x: x >= 1),
}


def check(args: argparse.Namespace) -> None:
    asked_for(args.report_to)
