"""Stated calls of the ops, what they need at least, and how long that takes on paper.

FLOPs and bytes are those of `clipfast_kernels.ops.*.cost`, rates those of the makers' data sheets.
A floor is arithmetic on paper, never a measurement.
"""

from __future__ import annotations

from typing import NamedTuple

from clipfast_kernels.ops.attention.cost import attention_bytes, attention_flops, seen_pairs
from clipfast_kernels.ops.contrastive.cost import contrastive_flops, contrastive_hbm_bytes
from clipfast_kernels.ops.quick_gelu.cost import quick_gelu_hbm_bytes
from clipfast_kernels.ops.sigmoid.cost import sigmoid_flops, sigmoid_hbm_bytes
from clipfast_kernels.ops.similarity.cost import similarity_flops, similarity_hbm_bytes

from clipfast.plan.hardware import GPUS, Gpu

PAPER = tuple(GPUS[name] for name in ("A100", "H100"))
PAIRS, FEATURES, TOPK = 65536, 512, 10
RANKS, RANK_PAIRS = 256, 128
ACTIVATIONS = 256 * 50 * 3072  # a ViT-B-32's MLP, 256 images
_SIZES = {"fp16": 2, "bf16": 2, "fp32": 4}


class Sequences(NamedTuple):
    """Attributes:
    words: how the page calls them.
    lengths: (queries, keys) of each.
    """

    words: str
    lengths: tuple[tuple[int, int], ...]
    heads: int
    causal: bool = False


def _images(tokens: int, batch: int, heads: int) -> Sequences:
    words = f"{batch} images of {tokens} tokens, {heads} heads"
    return Sequences(words, ((tokens, tokens),) * batch, heads)


_SHORT = tuple(5 + i % 26 for i in range(4096))
_ONE_EACH = "one query each"
SEQUENCES = {
    "50": _images(50, 256, 12),
    "197": _images(197, 128, 12),
    "257": _images(257, 64, 16),
    "577": _images(577, 32, 16),
    "captions": Sequences(
        "4,096 packed causal captions of 5 to 30 tokens, 8 heads",
        tuple((n, n) for n in _SHORT),
        8,
        True,
    ),
    "long captions": Sequences(
        "1,024 packed causal captions of 77 tokens, 8 heads", ((77, 77),) * 1024, 8, True
    ),
    "257, one query": Sequences(
        f"64 images of 257 tokens, {_ONE_EACH}, 16 heads", ((1, 257),) * 64, 16
    ),
    "captions, one query": Sequences(
        f"4,096 packed captions of 5 to 30 tokens, {_ONE_EACH}, 8 heads",
        tuple((1, n) for n in _SHORT),
        8,
    ),
}


class Call(NamedTuple):
    """Attributes:
    words: op, direction and sizes.
    dtype: "fp16", "bf16" or "fp32"; the first two have the same floors.
    flops: None where bytes are the limit by far.
    """

    words: str
    dtype: str
    flops: int | None
    hbm_bytes: int

    @property
    def key(self) -> str:
        return f"{self.words}, {'16-bit' if _SIZES[self.dtype] == 2 else 'fp32'}"

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte."""
        return None if self.flops is None else self.flops / self.hbm_bytes

    def peak(self, gpu: Gpu) -> float:
        """FLOP/s: of the tensor cores, or of the ordinary ones, which is where float32 is exact."""
        return gpu.tensor_flops if _SIZES[self.dtype] == 2 else gpu.fp32_flops

    def floor(self, gpu: Gpu) -> float:
        """Seconds: the longer of arithmetic and memory at the data sheet's rates."""
        return max((self.flops or 0) / self.peak(gpu), self.hbm_bytes / gpu.hbm_bytes)

    def bound_by(self, gpu: Gpu) -> str:
        arithmetic = (self.flops or 0) / self.peak(gpu)
        return "arithmetic" if arithmetic >= self.hbm_bytes / gpu.hbm_bytes else "memory"


def contrastive(dtype: str) -> Call:
    return Call(
        f"contrastive_loss forward + backward, N = {PAIRS:,}, D = {FEATURES}",
        dtype,
        contrastive_flops(PAIRS, FEATURES),
        contrastive_hbm_bytes(PAIRS, FEATURES, _SIZES[dtype]),
    )


def contrastive_of_a_rank(dtype: str) -> Call:
    """The part of one of 256 GPUs."""
    n, rows = RANKS * RANK_PAIRS, RANK_PAIRS
    return Call(
        f"contrastive_loss forward + backward, {rows} of N = {n:,} on a rank, D = {FEATURES}",
        dtype,
        contrastive_flops(n, FEATURES, rows=rows),
        contrastive_hbm_bytes(n, FEATURES, _SIZES[dtype], rows=rows),
    )


def sigmoid(dtype: str) -> Call:
    return Call(
        f"sigmoid_loss forward + backward, N = {PAIRS:,}, D = {FEATURES}",
        dtype,
        sigmoid_flops(PAIRS, FEATURES),
        sigmoid_hbm_bytes(PAIRS, FEATURES, _SIZES[dtype]),
    )


def similarity(dtype: str) -> Call:
    return Call(
        f"gathered_similarity, top {TOPK}, {PAIRS:,} × {PAIRS:,}, D = {FEATURES}",
        dtype,
        similarity_flops(PAIRS, PAIRS, FEATURES),
        similarity_hbm_bytes(PAIRS, PAIRS, FEATURES, _SIZES[dtype], TOPK),
    )


def quick_gelu(dtype: str, backward: bool) -> Call:
    return Call(
        f"quick_gelu {_direction(backward)}, {ACTIVATIONS:,} numbers",
        dtype,
        None,
        quick_gelu_hbm_bytes(ACTIVATIONS, _SIZES[dtype], backward),
    )


def attention(name: str, width: int, dtype: str, backward: bool) -> Call:
    """Args:
    name: one of SEQUENCES.
    width: of a head.
    backward: the backward alone; else the forward.
    """
    sequences, size = SEQUENCES[name], _SIZES[dtype]
    pairs = sum(seen_pairs(n_q, n_k, sequences.causal) for n_q, n_k in sequences.lengths)
    flops = attention_flops(pairs, sequences.heads, width, False)
    moved = attention_bytes(sequences.lengths, sequences.heads, width, size, False)
    if backward:
        flops = attention_flops(pairs, sequences.heads, width) - flops
        moved = attention_bytes(sequences.lengths, sequences.heads, width, size) - moved
    words = f"attention {_direction(backward)}, {sequences.words} of {width}"
    return Call(words, dtype, flops, moved)


def _direction(backward: bool) -> str:
    return "backward" if backward else "forward"
