"""Before the first step: whether DeepSpeed can do here what is asked of it.

Each thing that is known to end in a traceback, or in another model than the one asked for, is
looked at first, and ends in one sentence with the remedy.
"""

from __future__ import annotations

import logging
import os
import shutil
from typing import Any

import torch
import torch.distributed as dist

from clipfast.errors import UserError
from clipfast.ranks.world import World

# By what they keep: two moments for each weight, and the number of steps.
_OPTIMIZERS = ("Adam", "AdamW", "FusedAdam", "DeepSpeedCPUAdam")
_WHOLE_LAYERS = ("Lamb",)
_VERSIONS = ((0, 19), (0, 20))  # from the first on, before the second


def open_deepspeed(world: World) -> Any:
    """Imports it, quietly, for this run's device and processes.

    Raises:
        UserError: it is missing, of a release that was not tested, or serves another device.
    """
    # Both are read when it is imported, or at its first collective.
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(
            f"--zero-stage: expected the package deepspeed; got {error}: pip install "
            f"'deepspeed>={_text(_VERSIONS[0])},<{_text(_VERSIONS[1])}'"
        ) from None
    # It warns of every step that is left out, and of its own choices.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    check_version(deepspeed.__version__)
    serves = deepspeed.get_accelerator().device_name()
    if serves != world.device.type:
        raise UserError(
            f"--device {world.device.type}: deepspeed serves {serves}: unset DS_ACCELERATOR, or "
            f"set it to {world.device.type}"
        )
    # Its own all-reduce on a CPU is compiled for a minute at the first start; gloo's serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():  # it has no notion of a process alone
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return deepspeed


def check_version(version: str) -> None:
    """Raises UserError for a release whose insides are not those that were tested."""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if not _VERSIONS[0] <= numbers < _VERSIONS[1]:
        first, beyond = map(_text, _VERSIONS)
        raise UserError(
            f"deepspeed: expected {first} or later, before {beyond}; got {version}: pip install "
            f"'deepspeed>={first},<{beyond}'"
        )


def check_precision(deepspeed: Any, half: str | None, precision: str, stage: int) -> None:
    """Raises UserError for a precision that this device, or this stage, does not have."""
    accelerator = deepspeed.get_accelerator()
    device = accelerator.device_name()
    if half == "fp16" and (device == "cpu" or not accelerator.is_fp16_supported()):
        raise UserError(
            f"--precision {precision}: deepspeed has no float16 on this {device}: take amp_bf16 or "
            "fp32"
        )
    if half == "bf16" and not accelerator.is_bf16_supported():
        raise UserError(
            f"--precision {precision}: this {device} has no bfloat16: take fp32"
            + ", or amp" * (device != "cpu")
        )
    if half == "fp16" and stage == 0:
        raise UserError(
            f"--precision {precision}: deepspeed scales no loss at --zero-stage 0, and float16 "
            "needs it: take --zero-stage 1"
        )


def check_zero_section(deepspeed: Any, section: dict[str, Any], file: str | None) -> None:
    """Raises UserError for a key, or a value, that DeepSpeed does not know."""
    try:
        deepspeed.runtime.zero.config.DeepSpeedZeroConfig(**section)
    except ValueError as error:
        first = error.errors()[0]  # type: ignore[attr-defined]  # pydantic's
        key = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise UserError(
            f"--deepspeed-config {file}: {key}: {first['msg']}; got {first['input']!r}"
        ) from None


def check_builds(optimizer: str) -> None:
    """Raises UserError where an optimizer that is compiled at its first use cannot be.

    Args:
        optimizer: its name, for the message.
    """
    for tool, remedy in (("ninja", "pip install ninja"), ("c++", "install g++")):
        if shutil.which(tool) is None:
            raise UserError(
                f"--opt {optimizer}: deepspeed compiles it at its first use: expected {tool} on "
                f"PATH; got none: {remedy}, or take --opt adamw"
            )


def check_optimizer(optimizer: torch.optim.Optimizer, stage: int) -> None:
    """Raises UserError for one that needs whole layers, which ZeRO cuts anywhere."""
    name = type(optimizer).__name__
    if name not in _OPTIMIZERS + _WHOLE_LAYERS * (stage == 0):
        raise UserError(
            f"--zero-stage {stage}: expected an optimizer that updates each weight by itself, as "
            f"AdamW does; got {name}: take --opt adamw"
            + ", or --zero-stage 0"
            * (name in _WHOLE_LAYERS)
        )


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
