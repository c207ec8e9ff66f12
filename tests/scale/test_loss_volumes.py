"""What the losses move between ranks: the formulas, at 2 to 8 real ranks and at 256 faked ones.

The fake group proves which collectives a rank calls and how large they are, not a value. That its
count is the real one's is shown where both can be had.
"""

import pytest
import torch
import torch.distributed as dist
from clipfast_kernels import contrastive_loss, sigmoid_loss
from clipfast_kernels.ops.contrastive.cost import contrastive_gathered_bytes
from clipfast_kernels.ops.sigmoid.cost import sigmoid_gathered_bytes
from fake_group import Counting, one_of
from ranks import run_ranks

D = 16
DTYPES = [torch.bfloat16, torch.float32, torch.float64]


def features(b, dtype=torch.float32, d=D):
    """Of a rank; nobody asks what they are."""
    return [torch.randn(b, d).to(dtype).requires_grad_() for _ in range(2)]


def softmax(image, text, group, ids=None):
    contrastive_loss(image, text, torch.tensor(9.0), ids=ids, group=group).backward()


def sigmoid(image, text, group, ids=None):
    scale, bias = torch.tensor(9.0), torch.tensor(-3.0)
    sigmoid_loss(image, text, scale, bias, ids=ids, group=group).backward()


def moved_by(loss, b, dtype, group, with_ids):
    """Of the second step: the first one also compares the ranks' shapes, once for all steps."""
    ids = torch.arange(b) if with_ids else None
    for _ in range(2):
        with Counting() as counting:
            loss(*features(b, dtype), group, ids)
    return counting.moved


def expected_bytes(loss, n, ranks, dtype, with_ids):
    size = dtype.itemsize
    if loss is sigmoid:
        return sigmoid_gathered_bytes(n, D, size, ranks, with_ids)
    return contrastive_gathered_bytes(n, D, size, with_ids)


CASES = [
    (loss, dtype, with_ids)
    for loss in (softmax, sigmoid)
    for dtype in DTYPES
    for with_ids in (False, True)
]


def all_cases(b):
    return [moved_by(loss, b, dtype, dist.group.WORLD, ids) for loss, dtype, ids in CASES]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_fake_ranks_collectives_are_a_real_ones(ranks):
    with one_of(ranks):
        fake = all_cases(3)
    for real in run_ranks(ranks, all_cases, 3):
        assert real == fake
    for moved, (loss, dtype, with_ids) in zip(fake, CASES, strict=True):
        expected = expected_bytes(loss, 3 * ranks, ranks, dtype, with_ids)
        assert sum(collective.got for collective in moved) == expected


@pytest.mark.parametrize("ranks", [16, 256])
@pytest.mark.parametrize(("loss", "dtype", "with_ids"), CASES)
def test_a_rank_of_256_receives_what_the_formula_says(ranks, loss, dtype, with_ids):
    b = 4
    with one_of(ranks, ranks - 1) as world:
        moved = moved_by(loss, b, dtype, world.group, with_ids)
    assert sum(m.got for m in moved) == expected_bytes(loss, b * ranks, ranks, dtype, with_ids)
    assert {m.name for m in moved} == {"_allgather_base_"}  # no gradient is exchanged
    assert sum(m.given for m in moved) * ranks == sum(m.got for m in moved)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*all_gather is deprecated:FutureWarning")
def test_a_batch_of_32768_on_256_ranks_moves_67_megabytes_where_open_clip_moves_134_or_268():
    """128 pairs of width 512 on each rank: ours and open_clip's loss, counted alike."""
    b, ranks, d = 128, 256, 512
    n = b * ranks
    open_clip = pytest.importorskip("open_clip.loss")
    theirs = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, rank=0, world_size=ranks)
    counted = {}
    with one_of(ranks) as world:
        for _ in range(2):
            with Counting() as ours:
                softmax(*features(b, torch.bfloat16, d), world.group)
        for dtype in (torch.bfloat16, torch.float32):
            with Counting() as counted[dtype]:
                theirs(*features(b, dtype, d), torch.tensor(9.0, dtype=dtype)).backward()
    assert ours.got() == 2 * n * d * 2 + 8 * n == 67_371_008
    assert counted[torch.bfloat16].got() == 4 * n * d * 2 == 134_217_728
    assert counted[torch.float32].got() == 4 * n * d * 4 == 268_435_456
