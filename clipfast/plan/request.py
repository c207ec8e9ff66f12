"""What is to be planned, and what cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from clipfast.errors import UserError
from clipfast.models.precision import PRECISIONS, computed_dtype
from clipfast.plan.calibration import Calibration
from clipfast.plan.counting import (
    Flops,
    Saved,
    Tensors,
    flops,
    kept_precision,
    open_clip_flops,
    parameters,
    saved,
)
from clipfast.plan.hardware import Gpu
from clipfast.plan.towers import PlannedModel


@dataclass(frozen=True)
class Choice:
    """How a step is computed, which changes what it takes and not what it is.

    Attributes:
        zero_stage: None is the trainer without DeepSpeed.
        checkpointing: blocks are computed again in the backward.
        micro_batches: `--accum-freq`, K.
    """

    zero_stage: int | None
    checkpointing: bool
    micro_batches: int

    @property
    def flags(self) -> str:
        """The trainer's."""
        stage = "" if self.zero_stage is None else f"--zero-stage {self.zero_stage} "
        parts = stage + "--grad-checkpointing " * self.checkpointing
        return (parts + f"--accum-freq {self.micro_batches}" * (self.micro_batches > 1)).strip()


@dataclass(frozen=True)
class Request:
    """Attributes:
    batch: pairs of a step on all GPUs.
    samples: seen in all.
    caption_tokens: of a caption on the average, start and end included.
    network_bytes: per second, of one GPU, one direction.
    utilisation, decode_rate, image_kb: None where they are not said.
    cores: of all machines.
    epochs: in how many `samples` come; None where it does not matter.
    """

    model: Model
    gpu: Gpu
    gpus: int
    batch: int
    samples: float
    precision: str
    choice: Choice
    caption_tokens: float
    network_bytes: float
    cores: float
    epochs: float
    sigmoid: bool = False
    utilisation: float | None = None
    decode_rate: float | None = None
    image_kb: float | None = None
    calibration: Calibration | None = None

    @property
    def step_pairs(self) -> int:
        """n, of one GPU's step."""
        return self.batch // self.gpus

    @property
    def peak(self) -> float:
        """FLOP/s of one GPU in the towers' matrix products."""
        return self.gpu.peak(computed_dtype(self.precision).itemsize)


class Model:
    """What a model costs, counted when it is asked for.

    Args:
        name: as `--model` of training.
        caption_tokens: of a caption on the average.
        context_length: in place of the configuration's.

    Raises:
        UserError: no such model, or one that cannot be counted, or captions that it does not take.
    """

    def __init__(self, name: str, caption_tokens: float, context_length: int | None = None) -> None:
        self._given, self._context = name, context_length
        self._plain = PlannedModel(name, "fp32", context_length)
        self.name, self.caption_tokens = self._plain.name, caption_tokens
        self.image_size: int = self._plain.model.image_size
        self.context_length: int = self._plain.model.context_length
        self.features: int = self._plain.config.embed_dim
        if not 2 <= caption_tokens <= self.context_length:
            raise UserError(
                f"--caption-tokens: expected 2 to {self.context_length}, start and end among them; "
                f"got {caption_tokens:g}"
            )
        self.flops: Flops = flops(self._plain, caption_tokens)
        self.open_clip_flops: Flops = open_clip_flops(self._plain)
        self._kept = cache(self._kept_by)
        self._tensors = cache(self._tensors_of)

    def saved(self, precision: str, zero_stage: int | None) -> Saved:
        return self._kept(kept_precision(precision, zero_stage))

    def tensors(self, precision: str) -> Tensors:
        return self._tensors(precision)

    def check_checkpointing(self) -> None:
        """Raises:
        UserError: it has no blocks to compute again.
        """
        self._plain.visual.set_grad_checkpointing(True)
        self._plain.visual.set_grad_checkpointing(False)

    def _kept_by(self, kept: str) -> Saved:
        return saved(PlannedModel(self._given, kept, self._context), self.caption_tokens)

    def _tensors_of(self, precision: str) -> Tensors:
        return parameters(PlannedModel(self._given, precision, self._context).model, precision)


def check_precision(precision: str, gpu: Gpu) -> None:
    """Raises:
    UserError: no such precision, or none that the GPU's tensor cores take.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision: expected one of {', '.join(PRECISIONS)}; got {precision!r}")
    if not gpu.bfloat16 and "bf" in precision:
        raise UserError(
            f"--precision: expected amp, fp16, pure_fp16 or fp32 on a {gpu.name}, whose tensor "
            f"cores take no bfloat16; got {precision}"
        )


def check_batch(batch: int, gpus: int, micro_batches: int) -> None:
    """The lanes that training deals samples to fit every number of GPUs that passes.

    Raises:
        UserError: GPUs and their micro-batches cannot share it evenly.
    """
    of_each = gpus * micro_batches
    if batch >= 1 and batch % of_each == 0:
        return
    below = batch // of_each * of_each
    near = [n for n in (below, below + of_each) if n > 0]
    nearest = min(near, key=lambda n: abs(n - batch))
    what = f"{gpus:,} GPUs" + f" × {micro_batches} micro-batches" * (micro_batches > 1)
    raise UserError(
        f"--batch: expected a multiple of {of_each:,}, as there are {what}; got {batch:,}; "
        f"the nearest is {nearest:,}"
    )
