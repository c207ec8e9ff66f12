"""DeepSpeed's configuration: made from the flags, with what the user's own file adds.

Nothing here imports DeepSpeed: the command line is checked where it is not installed too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clipfast.errors import UserError
from clipfast.train.model import computed_precision

_HALF = {
    **dict.fromkeys(("amp_bf16", "amp_bfloat16", "bf16", "pure_bf16"), "bf16"),
    **dict.fromkeys(("amp", "fp16", "pure_fp16"), "fp16"),
}

HALVES = ("bf16", "fp16")

# Keys of a user's file that change nothing in how steps, states and checkpoints are laid out.
_OF_THE_FILE = {
    "zero_optimization",
    "bf16",
    "fp16",
    "gradient_clipping",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "prescale_gradients",
    "gradient_predivide_factor",
    "communication_data_type",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "steps_per_print",
    "dump_state",
}
_INSTEAD = {
    "optimizer": "--opt and its flags",
    "scheduler": "--lr-scheduler, --lr and --warmup",
    "amp": "--precision",
    "torch_autocast": "--precision",
    "tensorboard": "--report-to tensorboard",
    "wandb": "--report-to wandb",
    "checkpoint": "the flags of checkpoints",
}
# Of the section zero_optimization: states laid out as nothing here can read.
_NOT_OF_ZERO = (
    "zenflow",
    "zero_hpz_partition_size",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
    "elastic_checkpoint",
)
_OF_BF16 = ("enabled", "check_grad_overflow")  # others keep masters or moments in 16 bits
_STAGES = (0, 1, 2, 3)


def half_precision(args: argparse.Namespace, device: torch.device) -> str | None:
    """ "bf16" or "fp16": what weights, features and gradients are kept in, beside float32 masters;
    None for float32."""
    return _HALF.get(computed_precision(args, device))


def forward_precision(args: argparse.Namespace, device: torch.device) -> str:
    """open_clip's name of the precision that the towers compute in, all of their weights."""
    half = half_precision(args, device)
    return "fp32" if half is None else f"pure_{half}"


def read_file(path: str) -> dict[str, Any]:
    """A user's own configuration.

    Raises:
        UserError: it cannot be read, is no JSON object, or asks for what only flags can say.
    """
    name = f"--deepspeed-config {path}"
    try:
        given = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{name}: expected JSON; got {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("zero_optimization", {}), dict):
        raise UserError(f"{name}: expected a JSON object, its zero_optimization one too")
    for key in given:
        if key.startswith("stage3_") or key in ("stage", "offload_optimizer", "offload_param"):
            raise UserError(f"{name}: expected {key} inside zero_optimization; got it beside")
        if key in _INSTEAD:
            raise UserError(f"{name}: expected no {key!r}: {_INSTEAD[key]} say it")
        if key not in _OF_THE_FILE:
            raise UserError(
                f"{name}: expected keys among {', '.join(sorted(_OF_THE_FILE))}; got {key!r}"
            )
    for key in given.get("bf16", {}):
        if key not in _OF_BF16:
            raise UserError(f"{name}: bf16: expected {' and '.join(_OF_BF16)} alone; got {key!r}")
    _check_zero(given.get("zero_optimization", {}), name)
    return given


def _check_zero(zero: Mapping[str, Any], name: str) -> None:
    if (stage := zero.get("stage", 0)) not in _STAGES:
        raise UserError(f"{name}: zero_optimization.stage: expected 0, 1, 2 or 3; got {stage!r}")
    for key in _NOT_OF_ZERO:
        if zero.get(key) not in (None, False, 1):
            raise UserError(f"{name}: zero_optimization.{key}: expected none; got {zero[key]!r}")
    for key in ("offload_optimizer", "offload_param"):
        device = (zero.get(key) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise UserError(
                f"{name}: zero_optimization.{key}.device: expected none or cpu; got {device!r}"
            )


def stage_of(args: argparse.Namespace) -> int | None:
    """What `--zero-stage` or the user's file says; None for neither.

    Raises:
        UserError: they contradict each other.
    """
    if args.deepspeed_config is None:
        return args.zero_stage
    stage = read_file(args.deepspeed_config).get("zero_optimization", {}).get("stage")
    if stage is not None and args.zero_stage not in (None, stage):
        raise _contradiction(args, "zero_optimization.stage", stage, args.zero_stage)
    return stage or args.zero_stage or 0


def make_config(
    args: argparse.Namespace, device: torch.device, world_size: int, trained: int
) -> dict[str, Any]:
    """What `deepspeed.initialize` takes.

    Args:
        trained: how many weights train.

    Raises:
        UserError: the user's file contradicts a flag.
    """
    given = {} if args.deepspeed_config is None else read_file(args.deepspeed_config)
    half = half_precision(args, device)
    ours = {
        "train_micro_batch_size_per_gpu": args.batch_size,
        "gradient_accumulation_steps": args.accum_freq,
        "train_batch_size": args.batch_size * args.accum_freq * world_size,
    }
    if args.grad_clip_norm is not None:
        ours["gradient_clipping"] = args.grad_clip_norm
    for key, value in ours.items():
        if given.get(key, "auto") not in ("auto", value):
            raise _contradiction(args, key, given[key], value)
    for kind in HALVES:
        enabled = given.get(kind, {}).get("enabled", "auto")
        if enabled not in ("auto", kind == half):
            raise _contradiction(args, f"{kind}.enabled", enabled, kind == half)
    config = {key: value for key, value in given.items() if value != "auto"} | ours
    for kind in HALVES:
        config[kind] = given.get(kind, {}) | {"enabled": kind == half}
    config["zero_optimization"] = _zero_section(args, given, device, trained)
    config.setdefault("gradient_clipping", 0.0)  # its own default is 1
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    return config


def _zero_section(
    args: argparse.Namespace, given: Mapping[str, Any], device: torch.device, trained: int
) -> dict[str, Any]:
    bucket = max(2, min(trained + trained % 2, 50_000_000))
    section: dict[str, Any] = {
        # Open races, and NaN that it brings: deepspeed issues 5545, 7188, 8061.
        "overlap_comm": False,
        # The default of 5e8 elements is a buffer larger than most of these models.
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    offload = {"device": "cpu", "pin_memory": device.type != "cpu"}
    if args.zero_offload != "none":
        section["offload_optimizer"] = offload
    if args.zero_offload == "param":
        section["offload_param"] = offload
    section |= given.get("zero_optimization", {})
    for key in ("offload_optimizer", "offload_param"):
        wanted: dict[str, Any] = section.get(key) or {}
        if wanted.get("device", "none") == "none":
            section.pop(key, None)
    return section | {"stage": args.zero_stage}


def _contradiction(args: argparse.Namespace, key: str, got: Any, expected: Any) -> UserError:
    return UserError(
        f"--deepspeed-config {args.deepspeed_config}: {key}: expected {json.dumps(expected)}, as "
        f"the flags say, or no such key; got {json.dumps(got)}"
    )
