"""Attention against the reference in float64, per backend; Triton's own sizes are tested apart."""

import copy

import pytest
import torch
from attention_inputs import Answer, batched, conditions, packed, reference_answer, tensors
from clipfast_kernels import attention, attention_kv, attention_qkv, backends
from clipfast_kernels.ops.attention import cpu
from pairs import usable
from tolerance import assert_within_tolerance

BACKENDS = [name for name in usable("attention") if name not in ("triton", "cuda")]
KERNELS = [name for name in BACKENDS if name == "cpu"]
NAMES = ["out", "d_q", "d_k", "d_v"]

CASES = {
    "one token": batched(3, 1),
    "an image of ViT-B-32": batched(2, 50),
    "ragged tiles": batched(2, 67),
    "an image of ViT-B-16": batched(1, 197),
    "causal": batched(2, 77, causal=True),
    "several strips, causal": batched(1, 150, causal=True),
    "captions": packed([5, 17, 30, 1, 16, 33], causal=True),
    "empty sequences": packed([0, 5, 0, 0, 17, 0], causal=True),
    "nothing but empty sequences": packed([0, 0]),
    "more keys than queries, causal": packed([3, 1, 20], [9, 4, 70], causal=True),
    "more queries than keys, causal": packed([9, 70, 3], [3, 20, 0], causal=True),
    "other lengths of keys": packed([4, 0, 66, 2], [7, 3, 20, 0]),
    "one query each": packed([1, 1, 1], [5, 50, 17]),
    "one query each, none of a key": packed([1, 1], [0, 3]),
    "one query of images": batched(2, 1, 50),
    "a scale of its own": batched(2, 20, scale=0.7),
}


def run(backend, q, k, v, d_out, sequences):
    """out and the gradients of the public functions, by the form that fits the tensors."""
    how = {"causal": sequences.causal, "scale": sequences.scale, "backend": backend}
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    if sequences.cu_q is None:
        leaves_in = [x.unflatten(0, (sequences.batch, -1)) for x in leaves]
        out = attention(*leaves_in, **how).flatten(0, 1)
    else:
        out = attention(*leaves, sequences.cu_q, sequences.cu_k, **how)
    out.backward(d_out)
    return [out.detach(), *(x.grad for x in leaves)]


def without_lse(answer: Answer):
    return [answer.out, answer.d_q, answer.d_k, answer.d_v]


def check(backend, sequences, heads, width, dtype=torch.float32, size=1.0):
    q, k, v, d_out = tensors(sequences, heads, width, dtype, size=size)
    low = reference_answer(q, k, v, d_out, sequences)
    exact = reference_answer(*(x.double() for x in (q, k, v, d_out)), sequences)
    actual = run(backend, q, k, v, d_out, sequences)
    if out_is_empty := len(q) == 0:
        assert all(len(x) == 0 or not x.any() for x in actual)
    if not out_is_empty and len(k):
        how = conditions(q, k, v, d_out, sequences)
        assert_within_tolerance(actual, without_lse(low), without_lse(exact), NAMES, how)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_output_and_every_gradient_are_the_references(backend, case):
    check(backend, CASES[case], heads=3, width=64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [32, 64, 80, 96, 128])
def test_every_head_width_of_clip_and_its_kin(backend, width):
    check(backend, packed([5, 17, 66, 1, 30], causal=True), 2, width)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_within_their_own_spacing(backend, dtype):
    check(backend, batched(2, 50), 2, 64, dtype)
    check(backend, packed([5, 17, 33], causal=True), 2, 64, dtype)


@pytest.mark.parametrize("level", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("size", [1.0, 4.0])
def test_every_instruction_set_gives_the_references_answer(level, size, simd_level):
    simd_level(level)
    for length in [*range(1, 35), 47, 48, 49, 50, 63, 64, 65, 77, 129, 197, 257]:
        for causal in (False, True):
            check("cpu", batched(1, length, causal=causal), 2, 64, size=size)
    for case in CASES.values():
        check("cpu", case, 2, 80)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_cpu_at_every_length_of_a_caption_and_of_vit_l_14_at_336(causal):
    for length in [*range(1, 81), 577]:
        check("cpu", batched(1, length, causal=causal), 2, 64)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("scale", [0.125, 0.7])
@pytest.mark.parametrize("wrong", [0.0, 1.001])
def test_a_gradient_that_is_left_out_or_a_thousandth_off_fails_the_rule(backend, scale, wrong):
    sequences = batched(1, 20, scale=scale)
    q, k, v, d_out = tensors(sequences, 2, 64)
    low = without_lse(reference_answer(q, k, v, d_out, sequences))
    exact = without_lse(reference_answer(*(x.double() for x in (q, k, v, d_out)), sequences))
    actual = run(backend, q, k, v, d_out, sequences)
    how = conditions(q, k, v, d_out, sequences)
    for i in range(1, 4):
        mutated = copy.copy(actual)
        mutated[i] = wrong * mutated[i]
        with pytest.raises(AssertionError, match=NAMES[i]):
            assert_within_tolerance(mutated, low, exact, NAMES, how)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[50, 50], [5, 1, 30]], ids=["images", "captions"])
def test_the_packed_forms_are_the_separate_one(backend, lengths):
    sequences = packed(lengths, causal=True)
    q, k, v, d_out = tensors(sequences, 2, 64)
    expected = run(backend, q, k, v, d_out, sequences)
    how = {"causal": True, "scale": sequences.scale, "backend": backend}
    qkv = torch.stack([q, k, v], dim=1).requires_grad_()
    out = attention_qkv(qkv, sequences.cu_q, **how)
    out.backward(d_out)
    q_only, kv = q.clone().requires_grad_(), torch.stack([k, v], dim=1).requires_grad_()
    also = attention_kv(q_only, kv, sequences.cu_q, sequences.cu_k, **how)
    also.backward(d_out)
    torch.testing.assert_close([out.detach(), *qkv.grad.unbind(1)], expected)
    torch.testing.assert_close([also.detach(), q_only.grad, *kv.grad.unbind(1)], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batched_images_are_the_same_sequences_packed(backend):
    qkv = torch.randn(3, 50, 3, 2, 64)
    cu = torch.arange(4, dtype=torch.int32) * 50
    torch.testing.assert_close(
        attention_qkv(qkv, backend=backend).flatten(0, 1),
        attention_qkv(qkv.flatten(0, 1), cu, max_seqlen=50, backend=backend),
    )


def test_the_cpu_kernel_reads_and_writes_slices_in_place_and_nothing_beside_them():
    sequences = packed([5, 0, 17], causal=True)
    q, k, v, d_out = tensors(sequences, 2, 64)
    wide = torch.full((22, 5, 2, 64), torch.nan)
    wide[:, 1], wide[:, 2], wide[:, 3] = q, k, v
    out, lse = cpu.forward(*wide[:, 1:4].unbind(1), sequences)
    gradients = torch.full((22, 5, 2, 64), torch.nan)
    cpu.backward(d_out, *wide[:, 1:4].unbind(1), out, lse, *gradients[:, 1:4].unbind(1), sequences)
    expected = reference_answer(q, k, v, d_out, sequences)
    torch.testing.assert_close(
        [out, lse, *gradients[:, 1:4].unbind(1)], list(expected), atol=1e-5, rtol=1e-5
    )
    assert gradients[:, [0, 4]].isnan().all()


def test_non_contiguous_inputs_are_read_as_they_stand():
    qkv = torch.randn(2, 3, 2, 20, 64).permute(0, 3, 1, 2, 4).requires_grad_()
    out = attention_qkv(qkv)
    d_out = torch.randn(2, 2, 20, 64).transpose(1, 2)
    (d_qkv,) = torch.autograd.grad(out, qkv, d_out)
    plain = qkv.detach().contiguous().requires_grad_()
    expected = attention_qkv(plain, backend="reference")
    (d_plain,) = torch.autograd.grad(expected, plain, d_out.contiguous())
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(d_qkv, d_plain)


@pytest.mark.parametrize("backend", KERNELS)
def test_the_same_bits_every_time_and_on_any_number_of_threads(backend):
    sequences = packed([50, 5, 77, 1, 30, 64, 65], causal=True)
    inputs = tensors(sequences, 4, 64)
    before = torch.get_num_threads()
    first = run(backend, *inputs, sequences)
    try:
        torch.set_num_threads(1)
        alone = run(backend, *inputs, sequences)
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(first, alone, run(backend, *inputs, sequences), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("backend", KERNELS)
def test_extreme_scores_neither_overflow_nor_vanish(backend):
    qkv = torch.randn(1, 40, 3, 1, 64, dtype=torch.float64)
    qkv[:, :, :2] *= 30  # scores of thousands
    low = qkv.float().requires_grad_()
    exact = qkv.requires_grad_()
    out, expected = attention_qkv(low, backend=backend), attention_qkv(exact, backend="reference")
    out.sum().backward()
    expected.sum().backward()
    assert (out - expected).abs().max() < 1e-3
    assert low.grad.isfinite().all()


def test_a_nan_stays_in_its_own_sequence_and_head():
    qkv = torch.randn(2, 20, 3, 2, 64)
    qkv[0, 7, 0, 1, 3] = torch.nan
    out = attention_qkv(qkv)
    bad = out.isnan().any(dim=-1)
    assert bad[0, 7, 1]
    bad[0, 7, 1] = False
    assert not bad.any()


@pytest.mark.parametrize("backend", KERNELS)
def test_gradcheck_in_float64(backend):
    sequences = packed([3, 0, 6], [4, 2, 9], causal=True)
    q, k, v, _ = tensors(sequences, 1, 16, torch.float64)
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(
        lambda *x: attention(*x, sequences.cu_q, sequences.cu_k, causal=True, backend=backend),
        leaves,
    )


@pytest.mark.parametrize("backend", KERNELS)
def test_opcheck_of_both_operators(backend):
    sequences = packed([3, 0, 6], causal=True)
    qkv = torch.randn(9, 3, 2, 16, requires_grad=True)
    where = (sequences.cu_q, sequences.cu_q, 3, 6, 6, True, 0.25, backend)
    torch.library.opcheck(torch.ops.clipfast_kernels.attention_fwd.default, ([qkv], *where))
    plain = qkv.detach()
    out, lse = torch.ops.clipfast_kernels.attention_fwd([plain], *where)
    torch.library.opcheck(
        torch.ops.clipfast_kernels.attention_bwd.default,
        (torch.randn_like(out), [plain], out, lse, *where),
    )


@pytest.mark.parametrize("backend", [None, *KERNELS])
def test_compiles_whole_with_a_number_of_tokens_that_varies(backend):
    compiled_for = []

    def count(module, inputs):
        compiled_for.append(1)
        return module.forward

    def call(qkv, cu):
        return attention_qkv(qkv * 1, cu, max_seqlen=77, causal=True, backend=backend or "auto")

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=count)
    for lengths in ([5, 17], [30, 1], [77, 6], [12, 50]):
        sequences = packed(lengths, causal=True)
        qkv = torch.randn(sum(lengths), 3, 2, 64)
        torch.testing.assert_close(compiled(qkv, sequences.cu_q), call(qkv, sequences.cu_q))
    assert len(compiled_for) == 1


@pytest.mark.parametrize("backend", KERNELS)
def test_compiled_gradient_is_the_eager_one(backend):
    qkv = torch.randn(2, 20, 3, 2, 64, requires_grad=True)

    def loss(x):
        return attention_qkv(x, causal=True, backend=backend).square().sum()

    (expected,) = torch.autograd.grad(loss(qkv), qkv)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(qkv), qkv)
    torch.testing.assert_close(found, expected)


def test_the_gradient_of_the_gradient_is_refused_in_a_sentence():
    qkv = torch.randn(1, 5, 3, 1, 16, requires_grad=True)
    out = attention_qkv(qkv, backend=KERNELS[0] if KERNELS else "reference")
    if not KERNELS:
        pytest.skip("no kernel here")
    (d_qkv,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference' has it"):
        d_qkv.sum().backward()


def test_autocast_leaves_the_inputs_dtype():
    qkv = torch.randn(1, 5, 3, 1, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention_qkv(qkv).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 2, 3, 64),), r"qkv: expected shape \(B, L, 3, H, D\) without cu_seqlens"),
        (
            (torch.zeros(4, 2, 3, 64), torch.tensor([0, 4], dtype=torch.int32)),
            r"qkv: expected shape \(T, 3, H, D\) with cu_seqlens",
        ),
        ((torch.zeros(4, 3, 2, 64), torch.tensor([0, 4])), "cu_seqlens: expected int32"),
        ((torch.zeros(4, 3, 2, 64), [0, 4]), "cu_seqlens: expected a tensor"),
        ((torch.zeros(1, 4, 3, 2, 64, dtype=torch.int64),), "qkv: expected a floating-point dtype"),
        (([1.0],), "qkv: expected a tensor"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected_and_what_came(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        attention_qkv(*arguments)


@pytest.mark.skipif(not KERNELS, reason="the compiled kernel checks the numbers")
@pytest.mark.parametrize("cu", [[0, 3], [1, 4], [0, 5, 4], [0, 4, 3, 4]])
def test_bounds_that_are_no_bounds_are_refused(cu):
    with pytest.raises(RuntimeError, match="cu_seqlens_q: expected numbers"):
        attention_qkv(torch.zeros(4, 3, 2, 64), torch.tensor(cu, dtype=torch.int32), backend="cpu")


def test_keys_that_do_not_fit_the_queries_are_named():
    q, k = torch.zeros(1, 4, 2, 64), torch.zeros(1, 4, 2, 32)
    with pytest.raises(ValueError, match="k: expected q's heads and width"):
        attention(q, k, k)
    with pytest.raises(ValueError, match="v: expected k's shape"):
        attention(q, q, k)
    with pytest.raises(ValueError, match="k: expected q's 1 sequences; got 2"):
        attention(q, torch.zeros(2, 4, 2, 64), torch.zeros(2, 4, 2, 64))


def test_backends_says_why_one_cannot_serve():
    found = backends("attention", torch.zeros(1, 4, 3, 2, 40))
    assert any("multiples of 16" in why for why in found.reasons["cpu"]) or not KERNELS
    assert found.auto == "torch"
    assert "flash-attn" in " ".join(found.reasons["flash_attn"])
    with pytest.raises(RuntimeError, match="'cpu' cannot serve this call"):
        attention_qkv(torch.zeros(1, 4, 3, 2, 40), backend="cpu")
