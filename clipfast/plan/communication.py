"""What GPUs exchange in a step, and how long that takes at a stated bandwidth.

P numbers in all parameters, W GPUs, N pairs of all, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from clipfast_kernels.ops.contrastive.cost import contrastive_gathered_bytes
from clipfast_kernels.ops.sigmoid.cost import sigmoid_gathered_bytes

from clipfast.models.precision import computed_dtype, is_autocast
from clipfast.plan.counting import Tensors, feature_bytes
from clipfast.plan.hardware import Gpu

# Of a ring, what each GPU sends for each byte of a collective's output, in units of (W − 1)/W.
_RING = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "broadcast": 1}


class Collective(NamedTuple):
    """Of one step.

    Attributes:
        what: travels.
        kind: "all-reduce", "all-gather", "reduce-scatter" or "broadcast".
        bytes: of the whole tensor that it is of.
        hidden: behind the backward's arithmetic, as far as that lasts.
    """

    what: str
    kind: str
    bytes: float
    hidden: bool = False

    def sent(self, ranks: int) -> float:
        """Bytes that each GPU sends, and receives, in a ring. Source: Patarasuk and Yuan 2009, JPDC
        69(2), bandwidth-optimal all-reduce."""
        return _RING[self.kind] * self.bytes * (ranks - 1) / ranks


def step_exchanges(
    tensors: Tensors,
    precision: str,
    zero_stage: int | None,
    *,
    ranks: int,
    pairs: float,
    features: int,
    sigmoid: bool = False,
    micro_batches: int = 1,
) -> list[Collective]:
    """All of a step, however many micro-batches it has: gradients travel once.

    Args:
        ranks: W; one GPU exchanges nothing.
        pairs: N.
        features: D.
        sigmoid: SigLIP's loss.
        micro_batches: forwards, of which each makes BatchNorm's statistics the first GPU's.
    """
    if ranks == 1:
        return []
    size = feature_bytes(precision)
    gathered = (
        sigmoid_gathered_bytes(int(pairs), features, size, ranks)
        if sigmoid
        else contrastive_gathered_bytes(int(pairs), features, size)
    )
    return [
        *_of_weights(tensors, precision, zero_stage, micro_batches),
        Collective("features and log-sum-exps", "all-gather", gathered),
    ]


def _of_weights(
    tensors: Tensors, precision: str, zero_stage: int | None, micro_batches: int
) -> Iterator[Collective]:
    if zero_stage is None:
        yield Collective("gradients", "all-reduce", tensors.bytes, hidden=True)
        if tensors.buffer_bytes:
            forwards = 1 if micro_batches == 1 else 2 * micro_batches - 1
            size = forwards * tensors.buffer_bytes
            yield Collective("BatchNorm's statistics", "broadcast", size)
        return
    # DeepSpeed, without its overlap_comm: open races there.
    size = computed_dtype(precision).itemsize * tensors.numbers
    if zero_stage < 3:
        yield Collective("gradients", "all-reduce", size)
    else:
        yield Collective("gradients", "reduce-scatter", size)
    if zero_stage > 0:
        yield Collective("weights", "all-gather", size)


def open_clip_features(pairs: float, features: int, precision: str) -> float:
    """Bytes that a rank receives with `--gather-with-grad`: features forward, as much of gradients
    back; under autocast in float32, which is how it normalises. Counted as collectives' output."""
    size = 4 if is_autocast(precision) else computed_dtype(precision).itemsize
    return 4 * pairs * features * size


def bus(gpu: Gpu, ranks: int, network_bytes: float) -> float:
    """Bytes/s at which a ring over all GPUs sends from each of them, at peak.

    Inside a machine NVLink's one direction. Between machines as many rings run side by side as a
    machine has GPUs, each over a port of its own and over every GPU (NCCL), so each GPU sends at
    the pace of all ports of its machine, or of NVLink if that is slower.

    Args:
        network_bytes: share of one GPU, one direction.
    """
    inside = gpu.nvlink_bytes / 2
    return inside if ranks <= gpu.per_machine else min(inside, gpu.per_machine * network_bytes)


class Exchange(NamedTuple):
    """Of one step.

    Attributes:
        sent: bytes by each GPU.
        seconds: at peak.
        exposed: of them, what is not behind the backward.
    """

    sent: float
    seconds: float
    exposed: float


def timed(
    collectives: list[Collective], ranks: int, bus_bytes: float, backward_seconds: float
) -> Exchange:
    """Args: backward_seconds: of one micro-batch, the last, during which gradients travel."""
    hidden, plain = (
        sum(c.sent(ranks) for c in collectives if c.hidden == which) for which in (True, False)
    )
    exposed = plain / bus_bytes + max(0.0, hidden / bus_bytes - backward_seconds)
    return Exchange(hidden + plain, (hidden + plain) / bus_bytes, exposed)
