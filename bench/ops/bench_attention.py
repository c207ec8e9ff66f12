"""Attention, forward and backward, beside what people use instead.

Every contender begins with one qkv tensor as the projection gives it and ends with its gradient, so
each pays for its own layout.

B sequences, L tokens of each, T of all, H heads of width D.
"""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from clipfast_bench import peers
from clipfast_bench.harness.cases import FIRST, LARGE, MORE, case
from clipfast_bench.harness.operation import (
    Function,
    Question,
    Way,
    compiled,
    hold_question,
    leaves,
)
from clipfast_bench.harness.place import Place
from clipfast_kernels import attention_kv, attention_qkv
from clipfast_kernels.ops.attention.cost import attention_bytes, attention_flops, seen_pairs
from clipfast_kernels.ops.trial import normal
from torch import Tensor

WIDTH = 64
ROUNDS = 25


def sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """(B, L, H, D) each."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def formula(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D) v, of (B, L, H, D) each."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * WIDTH**-0.5
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def flash_attn_qkv() -> Function:
    from flash_attn import flash_attn_qkvpacked_func

    return flash_attn_qkvpacked_func


class TransformersAttention:
    """Its CLIP towers' eager attention, whose masks are not asked for here."""

    training = False
    num_key_value_groups = 1

    def __init__(self) -> None:
        from transformers.models.clip.modeling_clip import eager_attention_forward

        self.forward = eager_attention_forward

    def __call__(self, qkv: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
        return self.forward(self, q, k, v, None, scaling=WIDTH**-0.5, dropout=0.0)[0]


def of_images(qkv: Tensor) -> Tensor:
    return sdpa(*qkv.unbind(2))


IMAGE_WAYS = [
    Way("ours", lambda: attention_qkv),
    Way("SDPA", lambda: of_images, peers.sdpa),
    Way("SDPA, torch.compile", compiled(lambda: of_images), peers.torch_compile, compiled=True),
    Way("flash-attn", flash_attn_qkv, peers.flash_attn),
    Way("transformers, eager", TransformersAttention, peers.transformers, heavy=True),
]


def ask_images(batch: int, seed: int, length: int, heads: int, place: Place) -> Question:
    shape = (batch, length, heads, WIDTH)
    qkv, d_out = normal(seed, place.dtype, place.device, (batch, length, 3, heads, WIDTH), shape)
    lengths = [(length, length)] * batch
    return Question(
        inputs=leaves(qkv=qkv),
        ways=IMAGE_WAYS,
        reference=lambda qkv: formula(*qkv.unbind(2)),
        d_out=d_out,
        flops=attention_flops(batch * length**2, heads, WIDTH),
        nbytes=attention_bytes(lengths, heads, WIDTH, place.dtype.itemsize),
    )


@pytest.mark.parametrize(
    ("batch", "length", "heads"),
    [
        case(
            b,
            length,
            heads,
            id=f"{b}x{length}x{heads}x64 {model}",
            tier=tier,
            work=b * heads * length**2,
        )
        for b, length, heads, model, tier in (
            (32, 50, 12, "ViT-B-32", FIRST),
            (16, 197, 12, "ViT-B-16", MORE),
            (8, 257, 16, "ViT-L-14", MORE),
            (4, 577, 16, "ViT-L-14-336", LARGE),
        )
    ],
)
def test_attention_images(contest, place, batch, length, heads):
    hold_question(
        contest,
        "attention",
        partial(ask_images, length=length, heads=heads, place=place),
        batch,
        rounds=ROUNDS,
        dtype=place.dtype_name,
    )


class Captions:
    """128 packed causal captions of 5 to 30 tokens, 8 heads, and people's ways with them."""

    def __init__(self, batch: int, device: torch.device) -> None:
        rng = random.Random(0)
        self.lengths = [rng.randint(5, 30) for _ in range(batch)]
        self.batch, self.longest = batch, max(self.lengths)
        starts = torch.tensor([0, *self.lengths]).cumsum(0)
        row = torch.arange(int(starts[-1]))
        before = torch.arange(batch) * self.longest - starts[:-1]
        places = row + before.repeat_interleave(torch.tensor(self.lengths))
        self.cu_seqlens = starts.to(torch.int32).to(device)
        self.places, self.tokens = places.to(device), len(row)

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

    def flash_attn(self) -> Function:
        from flash_attn import flash_attn_varlen_qkvpacked_func as function

        return partial(function, cu_seqlens=self.cu_seqlens, max_seqlen=self.longest, causal=True)

    def formula(self, qkv: Tensor) -> Tensor:
        outs = []
        for x in qkv.split(self.lengths):
            seen = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).tril()
            outs.append(formula(*x[None].unbind(2), seen=seen)[0])
        return torch.cat(outs)

    @property
    def ways(self) -> list[Way]:
        return [
            Way("ours", lambda: self.ours),
            Way("SDPA, padded", lambda: self.padded, peers.sdpa),
            Way(
                "SDPA, padded, torch.compile",
                compiled(lambda: self.padded),
                peers.torch_compile,
                compiled=True,
            ),
            Way("SDPA, one by one", lambda: self.one_by_one, peers.sdpa),
            Way("SDPA, nested tensors", lambda: self.nested, peers.sdpa_of_nested_tensors),
            Way("flash-attn", self.flash_attn, peers.flash_attn),
        ]


def ask_captions(batch: int, seed: int, place: Place) -> Question:
    captions, heads = Captions(batch, place.device), 8
    shape = (captions.tokens, heads, WIDTH)
    qkv, d_out = normal(seed, place.dtype, place.device, (captions.tokens, 3, heads, WIDTH), shape)
    seen = sum(seen_pairs(n, n, causal=True) for n in captions.lengths)
    lengths = [(n, n) for n in captions.lengths]
    return Question(
        inputs=leaves(qkv=qkv),
        ways=captions.ways,
        reference=captions.formula,
        d_out=d_out,
        flops=attention_flops(seen, heads, WIDTH),
        nbytes=attention_bytes(lengths, heads, WIDTH, place.dtype.itemsize),
    )


@pytest.mark.parametrize(
    "batch",
    [
        case(128, id="128 captions", tier=FIRST, work=128),
        case(512, id="512 captions", tier=LARGE, work=512),
    ],
)
def test_attention_packed(contest, place, batch):
    hold_question(
        contest,
        "attention",
        partial(ask_captions, place=place),
        batch,
        rounds=ROUNDS,
        dtype=place.dtype_name,
    )


def one_query(q: Tensor, kv: Tensor) -> Tensor:
    return sdpa(q, *kv.unbind(2))


QUERY_WAYS = [
    Way("ours", lambda: attention_kv),
    Way("SDPA", lambda: one_query, peers.sdpa),
    Way("SDPA, torch.compile", compiled(lambda: one_query), peers.torch_compile, compiled=True),
]


def ask_queries(batch: int, seed: int, length: int, heads: int, place: Place) -> Question:
    q, kv, d_out = normal(
        seed,
        place.dtype,
        place.device,
        (batch, 1, heads, WIDTH),
        (batch, length, 2, heads, WIDTH),
        (batch, 1, heads, WIDTH),
    )
    return Question(
        inputs=leaves(q=q, kv=kv),
        ways=QUERY_WAYS,
        reference=lambda q, kv: formula(q, *kv.unbind(2)),
        d_out=d_out,
        flops=attention_flops(batch * length, heads, WIDTH),
        nbytes=attention_bytes([(1, length)] * batch, heads, WIDTH, place.dtype.itemsize),
    )


@pytest.mark.parametrize(
    ("batch", "length", "heads"),
    [
        case(64, 50, 12, id="64x50x12x64", tier=FIRST, work=64 * 50 * 12),
        case(16, 257, 16, id="16x257x16x64", tier=MORE, work=16 * 257 * 16),
    ],
)
def test_attention_one_query(contest, place, batch, length, heads):
    """As the last block has it: one query an image."""
    hold_question(
        contest,
        "attention",
        partial(ask_queries, length=length, heads=heads, place=place),
        batch,
        rounds=ROUNDS,
        dtype=place.dtype_name,
    )
