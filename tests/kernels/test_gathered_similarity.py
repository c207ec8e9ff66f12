"""gathered_similarity against the dense formula, its ties, its NaN, and its memory."""

import math
import os
import subprocess
import sys

import pytest
import torch
from clipfast_kernels import gathered_similarity
from pairs import features, skip_unless_served, usable

NATIVE = usable("gathered_similarity")
KERNELS = [name for name in NATIVE if name != "reference"]


def whole(n, m, d, seed=0):
    """Features of small whole numbers: every dot product is exact, and there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    queries, keys = (
        torch.randint(-2, 3, (rows, d), generator=generator).float() for rows in (n, m)
    )
    return queries, keys, torch.randint(0, m, (n,), generator=generator)


def by_hand(queries, keys, positives, topk, scale=1.0):
    """Rank and top k by Python's own sort, in float64."""
    similarities = (scale * queries.double() @ keys.double().T).tolist()
    ranks, values, indices = [], [], []
    for row, positive in zip(similarities, positives.tolist(), strict=True):
        ranks.append(sum(z > row[positive] for z in row))
        best = sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:topk]
        indices.append(best)
        values.append([row[j] for j in best])
    return torch.tensor(ranks), torch.tensor(values, dtype=torch.float64), torch.tensor(indices)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize(
    ("n", "m", "d", "topk"),
    [(1, 1, 1, 1), (1, 9, 4, 3), (7, 5, 3, 5), (33, 65, 12, 10), (130, 257, 20, 17)],
)
def test_rank_and_top_k_are_exact_with_ties_to_the_lowest_index(backend, n, m, d, topk):
    queries, keys, positives = whole(n, m, d)
    found = gathered_similarity(
        queries, keys, scale=0.5, positives=positives, topk=topk, backend=backend
    )
    rank, values, indices = by_hand(queries, keys, positives, topk, 0.5)
    torch.testing.assert_close(found.rank, rank)
    torch.testing.assert_close(found.topk_values.double(), values)
    torch.testing.assert_close(found.topk_indices, indices)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 8.0])
def test_log_sum_exp_and_positive_are_those_of_float64(backend, dtype, size):
    queries, keys = (x.to(dtype) for x in features(65, 24, size=size))
    skip_unless_served("gathered_similarity", backend, queries)
    positives = torch.arange(65).flip(0)
    found = gathered_similarity(queries, keys, scale=2.0, positives=positives, backend=backend)
    z = 2 * queries.double() @ keys.double().T
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.logsumexp.dtype == found.positive.dtype == wide
    tolerance = 1e-12 if dtype == torch.float64 else 4e-6
    for actual, exact in (
        (found.logsumexp, z.logsumexp(1)),
        (found.positive, z.gather(1, positives[:, None])[:, 0]),
    ):
        assert (actual - exact).abs().max() <= tolerance * z.abs().max()


@pytest.mark.parametrize("backend", NATIVE)
def test_equal_keys_everywhere_rank_first_and_are_taken_in_order(backend):
    ones = torch.ones(40, 6)
    positives = torch.arange(40)
    found = gathered_similarity(ones, ones, positives=positives, topk=4, backend=backend)
    assert not found.rank.any()
    assert torch.equal(found.topk_indices, torch.arange(4).expand(40, 4))
    torch.testing.assert_close(found.logsumexp, torch.full((40,), 6 + math.log(40)))


@pytest.mark.parametrize("backend", NATIVE)
def test_a_nan_never_ranks_first(backend):
    queries, keys = features(20, 6)
    queries[3], keys[7] = math.nan, math.nan
    positives = torch.arange(20)
    found = gathered_similarity(queries, keys, positives=positives, topk=20, backend=backend)
    assert found.logsumexp.isnan().all()
    assert found.rank[3] == found.rank[7] == 20
    others = [i for i in range(20) if i not in (3, 7)]
    kept = [j for j in range(20) if j != 7]
    z = queries[others] @ keys.T
    expected = (z[:, kept] > z.gather(1, positives[others, None])).sum(1)
    assert torch.equal(found.rank[others], expected)
    assert (found.topk_indices[others, -1] == -1).all()
    assert (found.topk_values[others, -1] == -math.inf).all()
    assert not (found.topk_indices[others, :-1] == 7).any()
    assert (found.topk_indices[3] == -1).all()


@pytest.mark.parametrize("backend", NATIVE)
def test_what_was_not_asked_for_is_none_and_nothing_has_a_gradient(backend):
    queries, keys = (x.requires_grad_() for x in features(5, 3))
    found = gathered_similarity(queries, keys, backend=backend)
    assert found[1:] == (None, None, None, None)
    assert not found.logsumexp.requires_grad


@pytest.mark.parametrize("backend", KERNELS)
def test_more_queries_and_keys_than_one_tile_holds(backend):
    if backend == "triton":
        pytest.skip("the interpreter would take minutes")
    queries, keys, positives = whole(2100, 4500, 16)
    found = gathered_similarity(queries, keys, positives=positives, topk=12, backend=backend)
    dense = gathered_similarity(queries, keys, positives=positives, topk=12, backend="reference")
    for actual, expected in zip(found[1:], dense[1:], strict=True):
        assert torch.equal(actual, expected)
    torch.testing.assert_close(found.logsumexp, dense.logsumexp)


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_finds_the_same(level, simd_level):
    simd_level(level)
    for n, m, d, topk in [(1, 1, 1, 1), (7, 5, 3, 5), (33, 65, 12, 10), (130, 257, 20, 17)]:
        test_rank_and_top_k_are_exact_with_ties_to_the_lowest_index("cpu", n, m, d, topk)
    test_log_sum_exp_and_positive_are_those_of_float64("cpu", torch.float32, 8.0)
    test_a_nan_never_ranks_first("cpu")


@pytest.mark.parametrize("backend", KERNELS)
def test_it_compiles_whole_with_sizes_that_vary(backend):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def search(queries, keys, positives):
        return gathered_similarity(queries, keys, positives=positives, topk=2, backend=backend)

    for n, m in ((4, 9), (7, 5), (30, 31)):
        inputs = whole(n, m, 8)
        expected = gathered_similarity(*inputs[:2], positives=inputs[2], topk=2, backend=backend)
        for actual, e in zip(search(*inputs), expected, strict=True):
            assert torch.equal(actual, e)


@pytest.mark.parametrize("backend", NATIVE)
def test_the_operator_keeps_its_contract_with_torch(backend):
    queries, keys, positives = whole(6, 9, 4)
    op = torch.ops.clipfast_kernels.gathered_similarity.default
    for given, topk in ((positives, 3), (None, 3), (positives, 0), (None, 0)):
        torch.library.opcheck(op, (queries, keys, torch.tensor(2.0), given, topk, backend))


_MEMORY = """
import torch
from clipfast_kernels import gathered_similarity
torch.set_num_threads(1)
q, k = torch.randn(2, {n}, 8).unbind()
gathered_similarity(q[:64], k[:64], positives=torch.arange(64), topk=10, backend={backend!r})
def kib(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith(field)).split()[1])
open("/proc/self/clear_refs", "w").write("5")
before = kib("VmRSS")
gathered_similarity(q, k, positives=torch.arange({n}), topk=10, backend={backend!r})
print(kib("VmHWM") - before)
"""


@pytest.mark.parametrize("backend", [name for name in KERNELS if name != "triton"])
def test_memory_does_not_grow_with_the_square(backend):
    """12,000² similarities are 549 MiB in float32, a panel of them 16 MiB."""
    code = _MEMORY.format(n=12_000, backend=backend)
    # Every array is mapped, and given back, by itself: the peak is what lives at once, not what a
    # heap keeps of arrays that are gone, which differs between machines by a factor of three.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < 5 * 16


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"queries": torch.ones(4)}, r"queries: expected shape \(N, D\)"),
        ({"keys": [1.0]}, "keys: expected a tensor"),
        ({"keys": torch.ones(5, 2)}, "keys: expected queries' width 3; got 2"),
        ({"keys": torch.ones(5, 3).double()}, "keys: expected queries' dtype torch.float32"),
        ({"scale": "1"}, "scale: expected a number"),
        ({"positives": torch.ones(3, dtype=torch.int64)}, r"positives: expected int64 of .*\(4,\)"),
        ({"positives": torch.full((4,), 5)}, "positives: expected .* from 0 to 4; got 5 to 5"),
        ({"positives": torch.full((4,), -1)}, "positives: expected .* from 0 to 4; got -1 to -1"),
        ({"topk": 6}, "topk: expected 0 to 5, the number of keys; got 6"),
        ({"topk": 1.0}, "topk: expected an integer; got float"),
        ({"backend": "fast"}, "gathered_similarity: backend: expected one of auto"),
        ({"group": "world"}, "group: expected a torch.distributed process group"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(change, sentence):
    arguments = {"queries": torch.ones(4, 3), "keys": torch.ones(5, 3)} | change
    with pytest.raises((TypeError, ValueError), match=sentence):
        gathered_similarity(**arguments)
