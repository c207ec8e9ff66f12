"""Attention's Triton backend, interpreted, against the reference in float64."""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: make test sets it", allow_module_level=True)
pytest.importorskip("triton")

from attention_inputs import Answer, batched, conditions, packed, reference_answer, tensors
from clipfast_kernels.ops.attention import triton as backend
from clipfast_kernels.ops.attention import triton_rows
from tolerance import assert_within_tolerance

DTYPES = [torch.float32, torch.float16]


def answer(q, k, v, d_out, sequences, *, gradients=None):
    """The backend's answer. Gradients are written where they are asked to be, over NaN."""
    assert backend.unusable(q, k, v) == []
    out, lse = backend.forward(q, k, v, sequences)
    if gradients is None:
        gradients = tuple(torch.full(x.shape, torch.nan, dtype=x.dtype) for x in (q, k, v))
    backend.backward(d_out, q, k, v, out, lse, *gradients, sequences)
    return Answer(out, lse, *gradients)


def check(sequences, *, heads=2, width=64, dtype=torch.float32, size=1.0):
    inputs = tensors(sequences, heads, width, dtype, size=size)
    actual = answer(*inputs, sequences)
    assert actual.out.is_contiguous()
    assert actual.lse.dtype == torch.float32
    assert_answers(actual, inputs, sequences)
    return actual


def assert_answers(actual, inputs, sequences):
    low = reference_answer(*inputs, sequences)
    exact = reference_answer(*inputs, sequences, torch.float64)
    assert torch.equal(actual.lse == -torch.inf, exact.lse == -torch.inf)
    # The log-sum-exp is float32 whatever the inputs are.
    low = low._replace(lse=low.lse.float())
    finite = [
        a._replace(lse=a.lse.masked_fill(a.lse == -torch.inf, 0.0)) for a in (actual, low, exact)
    ]
    assert_within_tolerance(*finite, Answer._fields, conditions(*inputs, sequences))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [5, 16, 17, 50, 77])
def test_triton_matches_the_reference_at_one_length(length, causal, dtype):
    check(batched(2, length, causal=causal), heads=1, dtype=dtype)


@pytest.mark.parametrize("length", [64, 65, 197])
def test_triton_matches_the_reference_over_several_tiles(length):
    check(batched(1, length), heads=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(2, 128), (2, 197), (2, 257), (1, 577)])
def test_triton_matches_the_reference_at_long_lengths(batch, length, causal, dtype):
    check(batched(batch, length, causal=causal), heads=1, dtype=dtype)


# Packs short enough that a tile takes several sequences, and packs that are not.
SHORT = [5, 16, 17, 1, 7, 30, 3, 12, 9]
LONG = [77, 5, 64, 33]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [SHORT, LONG])
def test_triton_matches_the_reference_on_a_pack(lengths, causal, dtype):
    check(packed(lengths, causal=causal), dtype=dtype)


def test_triton_takes_several_short_sequences_to_a_tile():
    def of_several(lengths, dtype=torch.float16):
        sequences = packed(lengths)
        q, k, *_ = tensors(sequences, 1, 64, dtype)
        config = backend.bwd_config(q.element_size(), 64)
        return backend._plan(q, k, sequences, config).of_several

    assert of_several(SHORT)
    assert of_several(SHORT, torch.float32)
    assert not of_several(LONG)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("lengths", "lengths_k"),
    [
        ([0, 5, 0, 0, 12, 3, 0], None),
        ([0, 5, 0, 2, 12, 3, 0], [4, 0, 0, 7, 5, 3, 0]),
        ([0, 70, 0, 65], None),
        ([0, 70, 3, 65], [66, 0, 0, 70]),
    ],
)
def test_triton_leaves_sequences_of_no_tokens_out(lengths, lengths_k, causal, dtype):
    check(packed(lengths, lengths_k, causal=causal), heads=1, dtype=dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("lengths", "lengths_k"),
    [([3, 20, 9], [11, 4, 9]), ([66, 3, 40], [5, 80, 90])],
)
def test_triton_aligns_causal_queries_with_the_last_key(lengths, lengths_k, causal):
    check(packed(lengths, lengths_k, causal=causal))


@pytest.mark.parametrize("causal", [False, True])
def test_triton_serves_queries_and_keys_of_which_one_side_is_packed(causal):
    keys = packed([10, 10, 10], [30, 0, 65], causal=causal)
    check(keys._replace(cu_q=None))
    queries = packed([30, 2, 65], [10, 10, 10], causal=causal)
    check(queries._replace(cu_k=None))


@pytest.mark.parametrize("lengths", [SHORT, LONG])
def test_triton_does_not_rely_on_the_longest_length_being_exact(lengths):
    check(packed(lengths, causal=True)._replace(max_q=200, max_k=140))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sequences",
    [
        batched(3, 1, 5),
        batched(2, 1, 197),
        batched(2, 1),
        packed([1, 1, 1, 1], [30, 77, 1, 5], causal=True),
        packed([1, 0, 1, 1], [30, 5, 0, 65]),
        packed([1, 1, 1], [30, 5, 64])._replace(cu_q=None),
    ],
    ids=["5 keys", "197 keys", "itself", "pack", "no query or no keys", "queries unpacked"],
)
def test_triton_matches_the_reference_for_a_single_query(sequences, dtype):
    check(sequences, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [32, 80, 96, 128])
@pytest.mark.parametrize(
    "sequences",
    [batched(1, 50), packed(SHORT, causal=True), batched(2, 1, 50)],
    ids=["one length", "pack", "single query"],
)
def test_triton_matches_the_reference_at_every_head_width(sequences, width, dtype):
    check(sequences, width=width, dtype=dtype)


def test_triton_leaves_only_rounding_where_the_gradient_is_zero():
    # Of one key the probability is 1 whatever q is: d_p − δ is a difference of two equal sums, and
    # the reference's, where autograd takes one sum from itself, is no measure for it.
    sequences = batched(3, 12, 1)
    q, k, v, d_out = tensors(sequences, 2, 64)
    found = answer(q, k, v, d_out, sequences)
    torch.testing.assert_close(found.out, v.repeat_interleave(12, dim=0))
    torch.testing.assert_close(found.d_v, d_out.unflatten(0, (3, 12)).sum(1))
    d_p = (d_out * v.repeat_interleave(12, dim=0)).abs().sum(2).max()
    rounding = 4 * torch.finfo(torch.float32).eps * sequences.scale * d_p
    assert found.d_q.abs().max() <= rounding * k.abs().max()
    assert found.d_k.abs().max() <= 12 * rounding * q.abs().max()


def test_triton_survives_scores_that_overflow_without_a_maximum():
    check(batched(1, 50, scale=20.0), size=3.0)
    check(batched(1, 1, 50, scale=20.0), size=3.0)


@pytest.mark.parametrize(
    "sequences",
    [batched(2, 50), packed(SHORT), batched(17, 1)],
    ids=["one length", "pack", "single query"],
)
def test_triton_writes_gradients_in_place_and_nothing_beside_them(sequences):
    q, k, v, d_out = tensors(sequences, 2, 80)
    rows = len(q)
    # Room around the rows, around the three, and after each head's end.
    room = torch.full((rows + 2, 5, 2, 80), 7.0)
    room[1:-1, 1:4] = torch.nan
    gradients = room[1:-1, 1:4].unbind(1)
    actual = answer(q, k, v, d_out, sequences, gradients=gradients)
    assert_answers(actual, (q, k, v, d_out), sequences)
    neighbours = torch.ones(room.shape, dtype=torch.bool)
    neighbours[1:-1, 1:4] = False
    assert (room[neighbours] == 7.0).all()


@pytest.mark.parametrize(
    "sequences",
    [batched(2, 50), packed(SHORT, causal=True), batched(3, 1, 30)],
    ids=["one length", "pack", "single query"],
)
def test_triton_gives_the_same_bits_for_copies_of_its_inputs(sequences):
    inputs = tensors(sequences, 2, 64, torch.float16)
    first = answer(*inputs, sequences)
    # Contiguous: other strides than the slices'.
    second = answer(*(x.contiguous().clone() for x in inputs), sequences)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_triton_gives_a_sequence_the_same_bits_whatever_stands_before_it_unpacked():
    sequences = batched(3, 50)
    q, k, v, d_out = tensors(sequences, 1, 64)
    together = answer(q, k, v, d_out, sequences)
    alone = answer(*(x[100:] for x in (q, k, v, d_out)), batched(1, 50))
    assert torch.equal(together.out[100:], alone.out)
    assert torch.equal(together.d_k[100:], alone.d_k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_is_held_to_a_rule_that_zeros_fail(dtype):
    sequences = packed(SHORT)
    inputs = tensors(sequences, 2, 64, dtype)
    actual = answer(*inputs, sequences)
    for name, x in actual._asdict().items():
        with pytest.raises(AssertionError, match=f"^{name}: error"):
            assert_answers(actual._replace(**{name: torch.zeros_like(x)}), inputs, sequences)


def test_triton_gives_nothing_for_nothing():
    none = packed([0, 0], [3, 4])
    for sequences in (none, none._replace(max_q=20)):
        actual = answer(*tensors(sequences, 2, 64), sequences)
        assert actual.out.shape == (0, 2, 64)
        assert not actual.d_k.any()
        assert not actual.d_v.any()
    check_lse = answer(*tensors(packed([3, 4], [0, 0]), 2, 64), packed([3, 4], [0, 0]))
    assert (check_lse.lse == -torch.inf).all()
    assert not check_lse.out.any()
    assert not check_lse.d_q.any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("of_keys", [False, True])
def test_triton_finds_every_row_its_span(of_keys, causal):
    sequences = packed([0, 3, 0, 2, 140, 1], [2, 5, 0, 1, 130, 4], causal=causal)
    wanted = []
    for q0, q1, k0, k1 in sequences.bounds():
        shift = (k1 - k0) - (q1 - q0)
        for q in range(q1 - q0) if not of_keys else ():
            wanted.append(set(range(k0, min(k1, k0 + q + shift + 1) if causal else k1)))
        for k in range(k1 - k0) if of_keys else ():
            wanted.append(set(range(q0 + max(0, k - shift) if causal else q0, q1)))
    table = triton_rows.span_table(len(wanted), sequences, of_keys=of_keys)
    assert [set(range(*span)) for span in table.tolist()] == wanted


def test_triton_says_why_it_cannot_serve():
    q = torch.zeros(2, 1, 48)
    assert backend.unusable(q) == [
        "the heads are 48 wide, and this backend takes 32, 64, 80, 96, 128"
    ]
    (reason,) = backend.unusable(torch.zeros(2, 1, 64, dtype=torch.float64))
    assert "float64" in reason
    assert backend.unusable(torch.zeros(2, 1, 64), torch.zeros(3, dtype=torch.int32)) == []
