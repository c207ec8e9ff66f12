"""From flags to the model that is trained, and to its teacher: precision, what is locked, what is
recomputed, and how images are shown."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, equal

from clipfast.data.images.preprocess import Preprocess
from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.errors import UserError
from clipfast.models.clip import TwoTowers
from clipfast.models.factory import create_model, image_size, preprocess_of
from clipfast.models.locking import (
    is_constant,
    is_locked,
    parameters_of,
    text_parts,
    unlock_layer_norms,
)
from clipfast.models.sync_batch_norm import synchronize_batch_norms
from clipfast.train.random_state import RandomState

# SigLIP's, in place of the configuration's, as open_clip has it.
_SIGLIP: dict[str, Any] = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}


def make_model(
    args: argparse.Namespace, device: torch.device, group: dist.ProcessGroup | None = None
) -> Any:
    """The model on its device, with its towers locked.

    Args:
        group: of all ranks, over which `--use-bn-sync` synchronises; None for a process alone.

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
        force_custom_text=args.force_custom_text,
        pretrained_image=args.pretrained_image,
        cache_dir=args.cache_dir,
        **(_SIGLIP if args.siglip else {}),
    ).to(device)
    if hasattr(model, "text_decoder"):
        raise UserError(
            "--model: expected a model of two towers; CoCa's captioning decoder is not supported; "
            f"got {args.model!r}"
        )
    if args.lock_image:
        _lock_image(model, args)
    if args.lock_text:
        _lock_text(model, args.lock_text_unlocked_layers, args.lock_text_freeze_layer_norm)
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    if args.use_bn_sync and group is not None:
        synchronize_batch_norms(model, group)
    return model


def make_teacher(args: argparse.Namespace, student: Any, device: torch.device) -> Any:
    """The model of `--distill-model`, which is shown the student's batches and never trained.

    Raises:
        UserError: no such model or weights, or it takes images of another size, or other tokens.
    """
    with RandomState.now(device).restored():  # the student's dropout draws as without a teacher
        teacher = create_model(
            args.distill_model,
            args.distill_pretrained,
            precision=computed_precision(args, device),
            cache_dir=args.cache_dir,
        ).to(device)
    sizes = image_size(student), image_size(teacher)
    if sizes[0] != sizes[1]:
        raise UserError(
            f"--distill-model: expected a teacher of the student's image size, {sizes[0]}; "
            f"got {sizes[1]} of {args.distill_model}"
        )
    if not _read_alike(student, teacher):
        raise UserError(
            "--distill-model: expected a teacher of the student's tokenizer and context length; "
            f"{args.distill_model} reads captions in another way than {args.model}"
        )
    return teacher.eval().requires_grad_(False)


def preprocess(args: argparse.Namespace) -> Preprocess:
    """How images are shown: as the pretrained model wants them, but for what flags say.

    Raises:
        UserError: the model's configuration cannot be read or honoured.
    """
    return preprocess_of(args.model, args.pretrained or None).changed(
        "--image",
        mean=args.image_mean,
        std=args.image_std,
        interpolation=args.image_interpolation,
        resize_mode=args.image_resize_mode,
    )


def preprocess_of_teacher(args: argparse.Namespace) -> Preprocess:
    """Of which mean and std count: it sees what the student is shown."""
    return preprocess_of(args.distill_model, args.distill_pretrained)


def computed_precision(args: argparse.Namespace, device: torch.device) -> str:
    """`--precision`, but fp32 for amp on a CPU, unless the command line has both `--precision amp`
    and `--device cpu`: float16 is slow there."""
    if args.precision == "amp" and device.type == "cpu" and not args.amp_on_cpu:
        return "fp32"
    return str(args.precision)


def forward_precision(args: argparse.Namespace, device: torch.device) -> str:
    """In which the towers compute; DeepSpeed keeps all of their weights in one kind of number."""
    if args.zero_stage is None:
        return computed_precision(args, device)
    from clipfast.train.engines.deepspeed import config

    return config.forward_precision(args, device)


def warnings_of(args: argparse.Namespace, device: torch.device) -> Iterator[str]:
    """Lines of the log: flags that do something else than one may expect."""
    if computed_precision(args, device) != args.precision:
        yield "--precision amp: a CPU computes in fp32"
    if args.precision in ("fp16", "pure_fp16"):
        yield (
            f"--precision {args.precision}: float16 rounds small gradients, AdamW's squares of "
            "them and an --eps below 6e-8 to 0; amp scales the loss and keeps float32 weights"
        )
    coca = (args.coca_caption_loss_weight, args.coca_contrastive_loss_weight)
    if coca != (2.0, 1.0):
        yield "--coca-*-loss-weight: without a CoCa model they change nothing, as in open_clip"
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
    if args.pretrained_image and (args.pretrained or not hasattr(model.visual, "trunk")):
        yield (
            "--pretrained-image: with --pretrained, or without a timm image tower, it changes "
            "nothing, as in open_clip"
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


def _read_alike(student: Any, teacher: Any) -> bool:
    """Whether both turn captions, an overlong one among them, into the same ids."""
    captions = ["A dog's naïve café, No. 42!", "", "word " * 1000]
    first, second = (tokenizer_for(model)(captions) for model in (student, teacher))
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return isinstance(first, Tensor) and isinstance(second, Tensor) and equal(first, second)
    return equal(first.tokens, second.tokens) and equal(first.cu_seqlens, second.cu_seqlens)


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
