"""Attention forward and backward beside what people use instead, in float32 on the CPU.

Every contender begins with one qkv tensor as the projection gives it and ends with its gradient, so
each pays for its own layout. g is the rate in useful GFLOP/s, of which `torch.mm` of the same run
gives the ceiling.
"""

from __future__ import annotations

import random
import time

import pytest
import torch
import torch.nn.functional as F
from clipfast_bench.compare import interleave
from clipfast_kernels import attention_kv, attention_qkv
from clipfast_kernels.ops.attention.cost import attention_flops, seen_pairs
from torch import Tensor

WIDTH = 64
ROUNDS = 25


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """(B, L, H, D) each."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def compiled(function):
    return torch.compile(function, dynamic=False)


def gradient(function, inputs: list[Tensor], d_out: Tensor):
    """A step of `function`: its output and the inputs' gradients."""

    def step() -> list[Tensor]:
        out = function(*inputs)
        return [out.detach(), *torch.autograd.grad(out, inputs, d_out)]

    return step


def time_beside(benchmark, ours, peers, flops: int) -> None:
    """Checks that all give the same, then times them."""
    expected = ours()
    for name, peer in peers.items():
        for a, b in zip(peer(), expected, strict=True):
            error = (a - b).abs().max().item()
            assert error < 2e-5, f"{name} differs by {error:.1e}: nothing is timed"
    interleave(benchmark, ours, peers, rounds=ROUNDS, warmup=3)
    if benchmark.stats is None:
        return
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["figures"] = {"g": flops / seconds / 1e9, "g of mm": mm_rate()}


def mm_rate() -> float:
    x = torch.randn(1536, 1536)
    out = torch.empty_like(x)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        torch.mm(x, x, out=out)
        times.append(time.perf_counter() - began)
    return 2 * 1536**3 / min(times) / 1e9


@pytest.mark.parametrize(
    ("batch", "length", "heads"),
    [(32, 50, 12), (16, 197, 12), (8, 257, 16), (4, 577, 16)],
    ids=["50 (ViT-B-32)", "197 (ViT-B-16)", "257 (ViT-L-14)", "577 (ViT-L-14-336)"],
)
def test_images(benchmark, batch, length, heads):
    torch.manual_seed(0)
    qkv = torch.randn(batch, length, 3, heads, WIDTH, requires_grad=True)
    d_out = torch.randn(batch, length, heads, WIDTH)

    def eager(x: Tensor) -> Tensor:
        return sdpa(*x.unbind(2))

    time_beside(
        benchmark,
        gradient(attention_qkv, [qkv], d_out),
        {
            "SDPA": gradient(eager, [qkv], d_out),
            "SDPA under torch.compile": gradient(compiled(eager), [qkv], d_out),
        },
        attention_flops(batch * seen_pairs(length, length, causal=False), heads, WIDTH),
    )


class Captions:
    """128 packed causal captions of 5 to 30 tokens, 8 heads, and torch's ways with them."""

    def __init__(self) -> None:
        rng = random.Random(0)
        self.lengths = [rng.randint(5, 30) for _ in range(128)]
        self.batch, self.longest = len(self.lengths), max(self.lengths)
        starts = torch.tensor([0, *self.lengths]).cumsum(0)
        self.cu_seqlens = starts.to(torch.int32)
        tokens, row = int(starts[-1]), torch.arange(int(starts[-1]))
        before = torch.arange(self.batch) * self.longest - starts[:-1]
        self.places = row + before.repeat_interleave(torch.tensor(self.lengths))
        torch.manual_seed(0)
        self.qkv = torch.randn(tokens, 3, 8, WIDTH, requires_grad=True)
        self.d_out = torch.randn(tokens, 8, WIDTH)

    def ours(self, qkv: Tensor) -> Tensor:
        return attention_qkv(qkv, self.cu_seqlens, max_seqlen=self.longest, causal=True)

    def padded(self, qkv: Tensor) -> Tensor:
        rows = qkv.new_zeros(self.batch * self.longest, *qkv.shape[1:])
        rows = rows.index_copy(0, self.places, qkv).unflatten(0, (self.batch, self.longest))
        out = sdpa(*rows.unbind(2), causal=True)
        return out.flatten(0, 1).index_select(0, self.places)

    def one_by_one(self, qkv: Tensor) -> Tensor:
        parts = qkv.split(self.lengths)
        return torch.cat([sdpa(*x[None].unbind(2), causal=True)[0] for x in parts])

    def nested(self, qkv: Tensor) -> Tensor:
        offsets = self.cu_seqlens.long()
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(x, offsets).transpose(1, 2)
            for x in qkv.unbind(1)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).values()


def test_packed_captions(benchmark):
    captions = Captions()
    inputs = [captions.qkv], captions.d_out
    peers = {
        "padded SDPA": gradient(captions.padded, *inputs),
        "padded SDPA under torch.compile": gradient(compiled(captions.padded), *inputs),
        "SDPA one by one": gradient(captions.one_by_one, *inputs),
    }
    nested = gradient(captions.nested, *inputs)
    try:
        nested()
        peers["nested tensors"] = nested
    except (RuntimeError, NotImplementedError) as error:
        benchmark.extra_info["nested tensors"] = f"not served: {str(error).splitlines()[0]}"
    pairs = sum(seen_pairs(n, n, causal=True) for n in captions.lengths)
    flops = attention_flops(pairs, 8, WIDTH)
    time_beside(benchmark, gradient(captions.ours, *inputs), peers, flops)


@pytest.mark.parametrize(("batch", "length", "heads"), [(64, 50, 12), (16, 257, 16)])
def test_one_query_per_image(benchmark, batch, length, heads):
    """As the last block has it."""
    torch.manual_seed(0)
    q = torch.randn(batch, 1, heads, WIDTH, requires_grad=True)
    kv = torch.randn(batch, length, 2, heads, WIDTH, requires_grad=True)
    d_out = torch.randn(batch, 1, heads, WIDTH)
    time_beside(
        benchmark,
        gradient(attention_kv, [q, kv], d_out),
        {"SDPA": gradient(lambda q, kv: sdpa(q, *kv.unbind(2)), [q, kv], d_out)},
        attention_flops(batch * length, heads, WIDTH),
    )
