"""Flags of the optimizer, its schedule, and the average of the weights."""

from __future__ import annotations

import argparse
import math

from clipfast.errors import UserError
from clipfast.train.flags.key_values import ParseKeyValues
from clipfast.train.flags.ranges import Ranges

_DEFAULTS_BY_TOWER = {
    True: {"lr": 5e-4, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6},  # a ViT
    False: {"lr": 5e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
}
_OPTIMIZERS = ("adamw", "lamb", "apex", "deepspeed")


def add_flags(parser: argparse.ArgumentParser) -> None:
    _add_optimizer_flags(parser.add_argument_group("optimizer"))
    _add_group_flags(parser.add_argument_group("what decays, and by layer"))
    _add_schedule_flags(parser.add_argument_group("learning rate"))


def _add_optimizer_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--opt",
        default="adamw",
        metavar="NAME",
        help="adamw, fused; lamb, timm's; apex, NVIDIA's FusedAdam; deepspeed, its fused or CPU "
        "Adam; or timm/NAME, any of timm's (default adamw)",
    )
    add(
        "--opt-kwargs",
        nargs="*",
        default={},
        action=ParseKeyValues,
        metavar="KEY=VALUE",
        help="further arguments of the optimizer, such as amsgrad=True",
    )
    add("--beta1", type=float, help="default by model: .9; with timm/NAME, timm's")
    add("--beta2", type=float, help="default by model: .98 (ViT) or .999; with timm/NAME, timm's")
    add("--eps", type=float, help="default by model: 1e-6 (ViT) or 1e-8; with timm/NAME, timm's")
    add("--momentum", type=float, help="of timm/NAME")
    add("--grad-clip-norm", type=float, metavar="NORM", help="scale larger gradients to this norm")
    add(
        "--ema-decay",
        type=float,
        metavar="D",
        help="keep an average of the weights, whose past counts D times as much after each step, "
        "and evaluate it: .999 for short runs, .9999 for long ones",
    )


def _add_group_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--wd", type=float, default=0.2, help="weight decay (default 0.2)")
    add(
        "--wd-exclude",
        nargs="*",
        default=[],
        metavar="PATTERN",
        help="of names of parameters that do not decay, beside gains, biases and the scale: "
        "'*positional_embedding'",
    )
    add(
        "--image-layer-decay",
        "--visual-layer-decay",
        type=float,
        metavar="D",
        help="multiply the learning rate by D for each layer of the image tower below its head",
    )
    add("--text-layer-decay", type=float, metavar="D", help="the same of the text tower")


def _add_schedule_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--lr", type=float, help="default by model: 5e-4; with timm/NAME it has to be said")
    add("--warmup", type=int, default=10000, help="steps (default 10000)")
    add(
        "--lr-scheduler",
        choices=["cosine", "const", "const-cooldown"],
        default="cosine",
        help="after the warm-up: down to 0 by a cosine, constant, or constant and down at the end",
    )
    add("--epochs-cooldown", type=int, metavar="N", help="the last epochs of const-cooldown")
    add("--lr-cooldown-end", type=float, default=0.0, help="where it goes down to (default 0)")
    add(
        "--lr-cooldown-power",
        type=float,
        default=1.0,
        metavar="P",
        help="by (1 − t)^P, t from 0 to 1 (default 1, linear)",
    )
    add("--skip-scheduler", action="store_true", help="keep the learning rate at --lr")


RANGES: Ranges = {
    "lr": ("a positive number", lambda x: 0 < x < math.inf),
    "wd": ("0 or more", lambda x: 0 <= x < math.inf),
    "beta1": ("0 ≤ β1 < 1", lambda x: 0 <= x < 1),
    "beta2": ("0 ≤ β2 < 1", lambda x: 0 <= x < 1),
    "eps": ("a positive number", lambda x: 0 < x < math.inf),
    "momentum": ("0 ≤ momentum < 1", lambda x: 0 <= x < 1),
    "warmup": ("at least 0", lambda x: x >= 0),
    "epochs_cooldown": ("at least 0", lambda x: x >= 0),
    "lr_cooldown_end": ("0 or more", lambda x: 0 <= x < math.inf),
    "lr_cooldown_power": ("0 or more", lambda x: 0 <= x < math.inf),
    "grad_clip_norm": ("a positive number", lambda x: x > 0),
    "image_layer_decay": ("0 < decay ≤ 1", lambda x: 0 < x <= 1),
    "text_layer_decay": ("0 < decay ≤ 1", lambda x: 0 < x <= 1),
    "ema_decay": ("0 < decay < 1", lambda x: 0 < x < 1),
}


def fill_in(args: argparse.Namespace) -> None:
    """open_clip's defaults, which depend on the model's name; timm's optimizers have their own."""
    if _is_timm(args):
        return
    for name, value in _DEFAULTS_BY_TOWER["vit" in args.model.lower()].items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def check(args: argparse.Namespace) -> None:
    if not _is_timm(args) and args.opt.lower() not in _OPTIMIZERS:
        raise UserError(f"--opt: expected {', '.join(_OPTIMIZERS)} or timm/NAME; got {args.opt!r}")
    if args.lr is None:
        raise UserError(f"--lr: expected a learning rate for --opt {args.opt}; got none")
    if (args.beta1 is None) != (args.beta2 is None):
        raise UserError(
            f"--beta1, --beta2: expected both or neither for --opt {args.opt}; "
            f"got {args.beta1} and {args.beta2}"
        )
    cools_down = args.lr_scheduler == "const-cooldown" and not args.skip_scheduler
    if cools_down and args.epochs_cooldown is None:
        raise UserError(
            "--epochs-cooldown: expected the number of epochs in which --lr-scheduler "
            "const-cooldown goes down; got none"
        )


def _is_timm(args: argparse.Namespace) -> bool:
    return bool(args.opt.lower().startswith("timm/"))
