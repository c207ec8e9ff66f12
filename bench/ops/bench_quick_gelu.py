"""QuickGELU forward and backward at the size of MLPs, beside open_clip's module and transformers'.

Liger has GELU and SwiGLU in fused pairs of products, and no QuickGELU.
"""

from __future__ import annotations

from functools import partial

import pytest
from clipfast_bench import peers
from clipfast_bench.harness.cases import FIRST, LARGE, case
from clipfast_bench.harness.operation import Question, Way, compiled, hold_question, leaves
from clipfast_bench.harness.place import CPU, Place
from clipfast_kernels import quick_gelu
from clipfast_kernels.ops.quick_gelu.reference import quick_gelu as formula
from clipfast_kernels.ops.trial import normal

WIDTH = 3072  # of ViT-B's MLP


def open_clip_module():
    from open_clip.transformer import QuickGELU

    return QuickGELU()


def transformers_module():
    from transformers.activations import QuickGELUActivation

    return QuickGELUActivation()


WAYS = [
    Way("ours", lambda: quick_gelu),
    Way("open_clip", open_clip_module, peers.open_clip),
    Way("transformers", transformers_module, peers.transformers, heavy=True),
    Way("torch.compile", compiled(lambda: formula), peers.torch_compile, compiled=True),
]


def ask(rows: int, seed: int, place: Place = CPU) -> Question:
    x, d_y = normal(seed, place.dtype, place.device, (rows, WIDTH), (rows, WIDTH))
    return Question(
        inputs=leaves(x=x),
        ways=WAYS,
        reference=formula,
        d_out=d_y,
        # x read and y written; x and d_y read and d_x written.
        nbytes=5 * x.nbytes,
    )


@pytest.mark.parametrize(
    "rows",
    [
        case(1600, id="1600x3072", tier=FIRST, work=1600),
        case(12608, id="12608x3072", tier=LARGE, work=12608),
    ],
)
def test_quick_gelu(contest, place, rows):
    """32 images of ViT-B-32, and 64 of ViT-B-16."""
    ask_here = partial(ask, place=place)
    hold_question(contest, "quick_gelu", ask_here, rows, rounds=15, dtype=place.dtype_name)
