"""From flags to the model that is trained: its precision, what is locked, what is recomputed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch

from clipfast.errors import UserError
from clipfast.models.clip import TwoTowers
from clipfast.models.factory import create_model
from clipfast.models.locking import (
    is_constant,
    is_locked,
    parameters_of,
    text_parts,
    unlock_layer_norms,
)


def make_model(args: argparse.Namespace, device: torch.device) -> Any:
    """The model on its device, with its towers locked.

    Raises:
        UserError: unknown model, weights that do not fit it, or a flag that it cannot honour.
    """
    model = create_model(
        args.model,
        args.pretrained or None,
        precision=computed_precision(args, device),
        force_quick_gelu=args.force_quick_gelu,
        force_image_size=args.force_image_size,
        force_context_length=args.force_context_length,
        force_patch_dropout=args.force_patch_dropout,
    ).to(device)
    if args.lock_image:
        _lock_image(model, args)
    if args.lock_text:
        _lock_text(model, args.lock_text_unlocked_layers, args.lock_text_freeze_layer_norm)
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    return model


def computed_precision(args: argparse.Namespace, device: torch.device) -> str:
    """`--precision`, but fp32 for amp on a CPU, unless the command line has both `--precision amp`
    and `--device cpu`: float16 is slow there."""
    if args.precision == "amp" and device.type == "cpu" and not args.amp_on_cpu:
        return "fp32"
    return str(args.precision)


def warnings_of(args: argparse.Namespace, device: torch.device) -> Iterator[str]:
    """Lines of the log: flags that do something else than one may expect."""
    if computed_precision(args, device) != args.precision:
        yield "--precision amp: a CPU computes in fp32"
    if args.precision in ("fp16", "pure_fp16"):
        yield (
            f"--precision {args.precision}: float16 rounds small gradients, AdamW's squares of "
            "them and an --eps below 6e-8 to 0; amp scales the loss and keeps float32 weights"
        )
    for lock in ("lock_image", "lock_text"):
        for name, value in vars(args).items():
            if name.startswith(f"{lock}_") and value and not getattr(args, lock):
                yield f"{_flag(name)}: without {_flag(lock)} it changes nothing, as in open_clip"


def describe(args: argparse.Namespace, model: Any, device: torch.device) -> Iterator[str]:
    """Lines of the log: what is computed how, and what trains."""
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    share = "" if trained == total else f", of which {trained:,} train"
    yield f"model: {args.model}, {total:,} parameters{share}, on {device}"
    yield (
        f"precision: {computed_precision(args, device)}"
        + ", gradient checkpointing" * args.grad_checkpointing
        + ", torch.compile" * args.torchcompile
    )
    if args.lock_image:
        yield f"locked: image tower, {_how_locked([model.visual])}{_statistics(model.visual)}"
    if args.lock_text:
        yield f"locked: text tower, {_how_locked(text_parts(model))}"


def _lock_image(model: Any, args: argparse.Namespace) -> None:
    try:
        model.lock_image_tower(args.lock_image_unlocked_groups, args.lock_image_freeze_bn_stats)
    except AssertionError as error:  # open_clip's way to say that it has no groups
        raise UserError(
            f"--lock-image-unlocked-groups: expected 0 for {args.model}; "
            f"got {args.lock_image_unlocked_groups}: {error}"
        ) from None


def _lock_text(model: Any, unlocked_layers: int, freeze_layer_norm: bool) -> None:
    if isinstance(model, TwoTowers):
        model.lock_text_tower(unlocked_layers, freeze_layer_norm)
        return
    model.lock_text_tower(unlocked_layers, True)  # open_clip's refuse False
    if not freeze_layer_norm:
        unlock_layer_norms(text_parts(model))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _how_locked(parts: list[Any]) -> str:
    if is_locked(parts):
        return "all of it"
    trained = sum(p.numel() for p in parameters_of(parts) if p.requires_grad)
    return f"but for {trained:,} parameters"


def _statistics(visual: Any) -> str:
    moving = is_locked([visual]) and not is_constant(visual)
    return "; its BatchNorms go on collecting statistics" if moving else ""
