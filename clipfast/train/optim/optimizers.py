"""From flags to the optimizer, and from a saved state to its own."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipfast.errors import UserError
from clipfast.train.optim.groups import (
    Rule,
    check_patterns,
    layer_decay_groups,
    open_clip_rule,
    parameter_groups,
    timm_rule,
)

logger = logging.getLogger(__name__)

Groups = list[dict[str, Any]]

# Of a group: how the step is computed, not what. A saved state does not decide it.
_IMPLEMENTATION = ("fused", "foreach", "capturable")
_HYPERPARAMETERS = ("weight_decay", "betas", "eps", "momentum", "lr_scale")


def make_optimizer(
    args: argparse.Namespace, model: nn.Module, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of `--opt` over the parameters that are not locked, in open_clip's groups,
    unless layers are to have learning rates of their own.

    A group's learning rate is the schedule's times its "lr_scale", 1 where it has none.

    Raises:
        UserError: it is unknown, or not installed, or does not run on this device, or takes no
            such arguments; or a tower has no layers to tell apart.
    """
    check_patterns(model, args.wd_exclude)
    name = args.opt.lower()
    if name.startswith("timm/"):
        return _timm(args, model, name.removeprefix("timm/"))
    groups = _groups(args, model, open_clip_rule(args.wd_exclude))
    make = {"adamw": _adamw, "lamb": _lamb, "apex": _apex, "deepspeed": _deepspeed}[name]
    settings = {"lr": args.lr, "betas": (args.beta1, args.beta2), "eps": args.eps}
    return _checked(args.opt, lambda: make(groups, device, settings | args.opt_kwargs))


def adamw(
    model: nn.Module, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """Fused AdamW in open_clip's groups."""
    groups = parameter_groups(model, weight_decay, open_clip_rule())
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict, where: str) -> None:
    """Loads a saved state, ours or open_clip's; theirs would switch the fused step off, and leave
    its counters on the wrong device.

    Learning rates apart, hyperparameters become the saved ones, as in open_clip.

    Args:
        where: names the state's file in errors.

    Raises:
        UserError: the state is of other parameters, or another optimizer's.
    """
    ours, saved = optimizer.param_groups, state["param_groups"]
    shape, expected = ([_shape(group) for group in groups] for groups in (saved, ours))
    if shape != expected:
        raise UserError(
            f"checkpoint {where}: optimizer: expected groups of {_said(expected)} parameters, of "
            f"those that train; got {_said(shape)}: go on with the --lock, layer-decay and "
            "--wd-exclude flags that it was saved under"
        )
    _check_kind(optimizer, state, where)
    groups = []
    for mine, theirs in zip(ours, saved, strict=True):
        _warn_of_changes(mine, theirs, where)
        kept = {key: mine[key] for key in _IMPLEMENTATION if key in mine}
        named = {key: value for key, value in mine.items() if key != "params"}
        groups.append(named | theirs | kept)
    optimizer.load_state_dict(state | {"param_groups": groups})


def describe_optimizer(args: argparse.Namespace, optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """Lines of the log."""
    groups, defaults = optimizer.param_groups, optimizer.defaults
    shown = ("betas", "momentum", "eps")
    settings = [f"{key} {defaults[key]}" for key in shown if defaults.get(key) is not None]
    decayed = sum(len(group["params"]) for group in groups if group["weight_decay"])
    total = sum(len(group["params"]) for group in groups)
    settings.append(f"weight decay {args.wd:g} of {decayed} of {total} tensors")
    how = ", fused" * bool(defaults.get("fused"))
    yield f"optimizer: {type(optimizer).__name__} (--opt {args.opt}{how}), {', '.join(settings)}"
    scales = [group.get("lr_scale", 1.0) for group in groups]
    if min(scales) < 1:
        yield f"layer decay: {len(groups)} groups, from {min(scales):.3g} of the learning rate up"
    if args.ema_decay is not None:
        yield f"EMA: an average of the weights, decay {args.ema_decay:g}, is what is evaluated"


def warnings_of(args: argparse.Namespace) -> Iterator[str]:
    """Lines of the log: flags that change nothing here."""
    timm = args.opt.lower().startswith("timm/")
    for name, default, needed, met in (
        ("momentum", None, "--opt timm/NAME", timm),
        ("epochs_cooldown", None, "--lr-scheduler const-cooldown", _cools_down(args)),
        ("lr_cooldown_end", 0.0, "--lr-scheduler const-cooldown", _cools_down(args)),
        ("lr_cooldown_power", 1.0, "--lr-scheduler const-cooldown", _cools_down(args)),
    ):
        if getattr(args, name) != default and not met:
            flag = f"--{name.replace('_', '-')}"
            yield f"{flag}: without {needed} it changes nothing, as in open_clip"
    if args.skip_scheduler and args.lr_scheduler != "cosine":
        yield "--lr-scheduler: with --skip-scheduler it changes nothing, as in open_clip"


def _cools_down(args: argparse.Namespace) -> bool:
    return args.lr_scheduler == "const-cooldown" and not args.skip_scheduler


def _groups(args: argparse.Namespace, model: nn.Module, undecayed: Rule) -> Groups:
    if args.image_layer_decay is None and args.text_layer_decay is None:
        return parameter_groups(model, args.wd, undecayed)
    return layer_decay_groups(
        model, args.wd, undecayed, image=args.image_layer_decay, text=args.text_layer_decay
    )


def _adamw(groups: Groups, device: torch.device, settings: dict) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, **{"fused": True} | settings)


def _lamb(groups: Groups, device: torch.device, settings: dict) -> torch.optim.Optimizer:
    """Source: You et al. 2019, arXiv 1904.00962."""
    _check_timm("lamb")
    from timm.optim import Lamb

    # Its own clipping would come on top of --grad-clip-norm.
    return Lamb(groups, **{"max_grad_norm": None} | settings)


def _apex(groups: Groups, device: torch.device, settings: dict) -> torch.optim.Optimizer:
    if device.type != "cuda":
        raise UserError(f"--opt apex: expected a GPU; got {device}; on a CPU, adamw is fused too")
    spec = find_spec("apex")
    source = "install it from https://github.com/NVIDIA/apex"
    if spec is None:
        raise UserError(f"--opt apex: expected NVIDIA's apex; got none: {source}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not any((folder / "optimizers").is_dir() for folder in folders):
        raise UserError(
            "--opt apex: expected NVIDIA's apex; got the package of that name on PyPI, which is "
            f"another: uninstall it, and {source}"
        )
    from apex.optimizers import FusedAdam

    return FusedAdam(groups, **{"adam_w_mode": True} | settings)


def _deepspeed(groups: Groups, device: torch.device, settings: dict) -> torch.optim.Optimizer:
    if find_spec("deepspeed") is None:
        raise UserError("--opt deepspeed: expected deepspeed; got none: pip install deepspeed")
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

    if device.type == "cpu":
        return DeepSpeedCPUAdam(groups, **{"adamw_mode": True} | settings)
    return FusedAdam(groups, **{"adam_w_mode": True} | settings)


def _timm(args: argparse.Namespace, model: nn.Module, name: str) -> torch.optim.Optimizer:
    """As open_clip makes it: what the command line does not say has timm's defaults."""
    _check_timm(args.opt)
    from timm.optim import create_optimizer_v2

    betas = None if args.beta1 is None else (args.beta1, args.beta2)
    said = {"lr": args.lr, "eps": args.eps, "betas": betas, "momentum": args.momentum}
    settings = {key: value for key, value in said.items() if value is not None}
    if args.wd_exclude or args.image_layer_decay or args.text_layer_decay:
        groups = _groups(args, model, timm_rule(model, args.wd_exclude))
        settings["param_group_fn"] = lambda model: groups
    settings |= {"weight_decay": args.wd, **args.opt_kwargs}
    return _checked(args.opt, lambda: create_optimizer_v2(model, name, **settings))


def _check_timm(name: str) -> None:
    if find_spec("timm") is None:
        raise UserError(f"--opt {name}: expected timm; got none: pip install timm")


def _checked(name: str, make: Callable[[], torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Raises:
    UserError: in place of what libraries raise where they cannot make it.
    """
    try:
        return make()
    except (TypeError, ValueError, ImportError, RuntimeError, AssertionError) as error:
        raise UserError(f"--opt {name}: {' '.join(str(error).split())}") from error


def _shape(group: dict[str, Any]) -> tuple[int, str | None]:
    return len(group["params"]), group.get("name")


def _said(shapes: list[tuple[int, str | None]]) -> str:
    return ", ".join(f"{count} ({name})" if name else f"{count}" for count, name in shapes)


def _check_kind(optimizer: torch.optim.Optimizer, state: dict, where: str) -> None:
    """Parameters have the same places in every optimizer, and what it keeps of them has not."""
    if isinstance(optimizer, torch.optim.AdamW):
        # Its hyperparameters grow with torch's releases, which fill in those that are missing.
        kept = [set(entries) for entries in state["state"].values()]
        expected = {"step", "exp_avg", "exp_avg_sq"}
        got = next((entries for entries in kept if not expected <= entries), expected)
    else:
        expected = optimizer.param_groups[0].keys() - {"lr_scale", "name"}
        got = state["param_groups"][0].keys() & expected
    if got != expected:
        raise UserError(
            f"checkpoint {where}: optimizer: expected {type(optimizer).__name__}'s state, with "
            f"{', '.join(sorted(expected))}; got one of {', '.join(sorted(got)) or 'none of them'}"
            ": go on with the --opt that it was saved under"
        )


def _warn_of_changes(mine: dict[str, Any], saved: dict[str, Any], where: str) -> None:
    for key in _HYPERPARAMETERS:
        if key in mine and key in saved and not _equal(mine[key], saved[key]):
            logger.warning(
                f"checkpoint {where}: optimizer: goes on with its {key} of {saved[key]}, not the "
                f"{mine[key]} asked for, as in open_clip"
            )


def _equal(a: Any, b: Any) -> bool:
    return tuple(a) == tuple(b) if isinstance(a, (list, tuple)) else a == b
