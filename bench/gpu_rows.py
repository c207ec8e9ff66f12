"""The rows that need a GPU: their floors on paper, and "not measured" where a time would stand."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from clipfast_kernels.ops.contrastive.cost import contrastive_flops, contrastive_hbm_bytes
from clipfast_kernels.ops.sigmoid.cost import sigmoid_flops, sigmoid_hbm_bytes
from clipfast_kernels.ops.similarity.cost import similarity_flops, similarity_hbm_bytes

# bfloat16 FLOP/s and bytes/s of the manufacturer's data sheets.
GPUS = {"A100": (312e12, 2.0e12), "H100": (989e12, 3.35e12)}
_D, _SIZE = 512, 2


def floors() -> Iterator[tuple[str, float, float, str]]:
    """Per row: what it is, FLOPs, HBM bytes, and the peers that run there."""
    n = 65536
    yield (
        f"contrastive_loss f+b, bf16, N={n:,}",
        contrastive_flops(n, _D),
        contrastive_hbm_bytes(n, _D, _SIZE),
        "memeff",
    )
    yield (
        "contrastive_loss f+b, bf16, 128 of N=32,768 rows per rank",
        contrastive_flops(32768, _D, rows=128),
        contrastive_hbm_bytes(32768, _D, _SIZE, rows=128),
        "Inf-CL, which needs a process group",
    )
    yield (
        f"sigmoid_loss f+b, bf16, N={n:,}",
        sigmoid_flops(n, _D),
        sigmoid_hbm_bytes(n, _D, _SIZE),
        "siglip-kernel",
    )
    yield (
        f"gathered_similarity top 10, bf16, {n:,} × {n:,}",
        similarity_flops(n, n, _D),
        similarity_hbm_bytes(n, n, _D, _SIZE, topk=10),
        "",
    )


def rows() -> Iterator[str]:
    """One line per row. A floor is arithmetic on paper, never a measurement."""
    where = "not measured" if not torch.cuda.is_available() else "bench_gpu_losses.py times it"
    for what, flops, nbytes, peers in floors():
        paper = ", ".join(
            f"{gpu} {1000 * max(flops / speed, nbytes / bandwidth):.2f} ms"
            for gpu, (speed, bandwidth) in GPUS.items()
        )
        others = f"; peers where installed: {peers}" if peers else ""
        yield f"{what}: {where}; floor on paper {paper}{others}"
