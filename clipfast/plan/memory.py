"""What lies in one GPU's memory, part by part.

P numbers in all parameters, W GPUs, b pairs of a micro-batch, n of a GPU's step, N of all GPUs', D
features.
"""

from __future__ import annotations

from typing import NamedTuple

from clipfast_kernels.ops.panel import PANEL_ELEMENTS

from clipfast.models.precision import computed_dtype
from clipfast.plan.counting import Saved, Tensors
from clipfast.plan.hardware import Gpu

GIB = 2**30
# Of a GPU's memory: the driver's context, the libraries' workspaces and communication buffers, and
# what lies between blocks of memory in use.
RESERVE = 0.08
# DeepSpeed's: what its trainer's configuration says, and how many gathered weights it keeps.
_BUCKET = 50_000_000
_LIVE = 1_000_000_000
_MASTER, _MOMENTS, _COUNTER = 4, 8, 4  # bytes of AdamW in float32: of a number, and of a tensor
_PANELS = 4  # of the loss's sweep by plain torch; our kernels need fewer


class State(NamedTuple):
    """In bytes.

    Attributes:
        weights: with BatchNorm's statistics and autocast's copies.
        optimizer: moments, counters, and float32 masters where there are any.
    """

    weights: float
    gradients: float
    optimizer: float


class Memory(NamedTuple):
    """Of one GPU at its fullest, in bytes.

    Attributes:
        activations: kept for the backward of one micro-batch; with checkpointing its blocks'
            inputs, and what one block keeps.
        loss: features of all GPUs, what the loss keeps, and its panels.
        working: an allowance: gradients inside one block, as many bytes as it keeps, and the images
            of this step and the next.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    working: float

    @property
    def total(self) -> float:
        return sum(self)


def usable(gpu: Gpu) -> float:
    """Bytes."""
    return gpu.memory_gib * GIB * (1 - RESERVE)


def state(tensors: Tensors, precision: str, zero_stage: int | None, ranks: int) -> State:
    """What training holds, whatever the batch.

    Plain: parameters and gradients as they are kept, AdamW's two moments like them and a counter
    per tensor. ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, §3 and §5): with weights of h
    bytes, P·h weights, as much of gradients, 12·P of masters and moments; stage 1 cuts the last by
    W, stage 2 gradients too, stage 3 weights too. At the step a share's gradients become float32.

    Args:
        tensors: of the model in the precision that its parameters are kept in.
        zero_stage: None is the trainer without DeepSpeed.
        ranks: W.
    """
    if zero_stage is None:
        optimizer = 2 * tensors.bytes + _COUNTER * tensors.tensors
        kept = tensors.bytes + tensors.cast_bytes + tensors.buffer_bytes
        return State(kept, tensors.bytes, optimizer)
    size, numbers = computed_dtype(precision).itemsize, tensors.numbers
    if zero_stage == 0 and size == 4:
        optimizer = _MOMENTS * numbers + _COUNTER * tensors.tensors
        return State(tensors.bytes + tensors.buffer_bytes, tensors.bytes, optimizer)
    share = numbers / (1 if zero_stage == 0 else ranks)
    bucket = size * min(numbers, _BUCKET)
    weights, gradients = float(size * numbers), float(size * numbers)
    if zero_stage >= 2:
        gradients = size * share + bucket
    if zero_stage == 3:
        weights = size * (share + min(numbers, _LIVE))
    return State(
        weights + tensors.buffer_bytes,
        gradients + _MASTER * share,
        (_MASTER + _MOMENTS) * share,
    )


def activations(saved: Saved, pairs: float, *, checkpointing: bool) -> float:
    """Bytes kept of a micro-batch of b = `pairs`."""
    if not checkpointing:
        return saved.all.at(pairs)
    return saved.checkpointed.at(pairs) + saved.block.at(pairs)


def working(saved: Saved, pairs: float, step_pairs: float, image_size: int) -> float:
    """Args:
    pairs: b.
    step_pairs: n; its images are there as bytes, and the next step's too.
    image_size: side in pixels.
    """
    return saved.block.at(pairs) + 2 * step_pairs * 3 * image_size**2


def loss(rows: float, pairs: float, features: int, *, ranks: int, size: int = 4) -> float:
    """Bytes of clipfast's loss: never n×N.

    Both towers' local features and their gradients, 4·n·D; those of all GPUs, 2·N·D; seven vectors
    of N float64 at most; panels of float32.

    Args:
        rows: n.
        pairs: N.
        features: D.
        size: bytes of a number of theirs (`feature_bytes`).
    """
    local = 4 * rows * features * size
    gathered = 2 * pairs * features * size if ranks > 1 else 0
    panel = min(PANEL_ELEMENTS, rows * pairs)
    return local + gathered + 7 * pairs * 8 + _PANELS * panel * 4


def dense_loss(rows: float, pairs: float, features: int, *, ranks: int) -> float:
    """Bytes of open_clip's loss: four arrays of n×N float32, those of the logits of either side and
    their log-softmax, whose gradients take their places; features as ours.

    Measured on a CPU: 1,066 MiB at n = N = 8,192 (formula 1,024), 4,170 at 16,384 (4,096).
    Published (Inf-CL, arXiv 2410.17243, 8 GPUs): 2.3 GB at N = 32,768 (2.1), 33.6 at 131,072
    (34.4).

    Args:
        rows: n with `--local-loss`, N without, as each GPU then computes every row.
    """
    gathered = 4 * pairs * features * 4 if ranks > 1 else 0
    return 4 * rows * pairs * 4 + gathered + 4 * rows * features * 4
