"""sigmoid_loss against the dense float64 formula, and its behaviour as a torch operator."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from clipfast_kernels import sigmoid_loss
from clipfast_kernels.ops.contrastive import reference
from pairs import (
    features,
    gradient_conditions,
    leaves,
    logits_and_sizes,
    several_tiles,
    skip_unless_served,
    usable,
)
from tolerance import assert_within_tolerance

NATIVE = usable("sigmoid_loss")
KERNELS = [name for name in NATIVE if name != "reference"]
SHAPES = [(1, 1), (1, 8), (2, 3), (3, 64), (7, 5), (17, 33), (129, 100)]
NAMES = ["loss", "d_image", "d_text", "d_logit_scale", "d_logit_bias"]


def value_and_gradients(image, text, scale, bias, dtype, backend, upstream=1.0, **options):
    image, text = leaves(dtype, image, text)
    skip_unless_served("sigmoid_loss", backend, image)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scalars = leaves(wide, torch.tensor(scale), torch.tensor(bias))
    loss = sigmoid_loss(image, text, *scalars, backend=backend, **options)
    (upstream * loss).backward()
    return [loss.detach(), image.grad, text.grad, *(x.grad for x in scalars)]


def check(backend, image, text, scale, bias, dtype=torch.float32, **options):
    image, text = image.to(dtype), text.to(dtype)
    actual = value_and_gradients(image, text, scale, bias, dtype, backend, **options)
    low = value_and_gradients(image, text, scale, bias, dtype, "reference", **options)
    exact = value_and_gradients(image, text, scale, bias, torch.float64, "reference", **options)
    how = conditions(image, text, scale, bias, **options)
    assert_within_tolerance(actual, low, exact, NAMES, how)


def conditions(image, text, scale, bias, normalize=True, ids=None):
    """Name to condition number (tolerance.py): g = σ(±z) moves by g·(1 − g) times its logit's."""
    z, cosine_terms, z_moves = logits_and_sizes(image, text, scale, bias, normalize)
    z = z * (1 - 2 * torch.eye(len(z), dtype=z.dtype))
    kept, g = reference.kept_pairs(z, ids), torch.sigmoid(z)
    # Below `tiny` float32 has no normal numbers, and a kernel none at all.
    smallest = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps
    moves = (g * (1 + (1 - g) * z_moves) + smallest) * kept / len(z)
    return {
        "loss": ((F.softplus(z) + g * z_moves + smallest) * kept).sum().item() / len(z),
        "d_logit_scale": (moves * cosine_terms).sum().item(),
        "d_logit_bias": moves.sum().item(),
        **gradient_conditions(image, text, scale, moves, normalize),
    }


@pytest.mark.parametrize("ids", [None, torch.tensor([5, 7, 5, 9, 7, 5])])
def test_the_reference_is_the_textbook_formula(ids):
    image, text = features(6, 5, torch.float64)
    total = 0.0
    for i in range(6):
        for j in range(6):
            logit = 3 * F.cosine_similarity(image[i], text[j], dim=0) - 2
            if i == j:
                total -= F.logsigmoid(logit)
            elif ids is None or ids[i] != ids[j]:
                total -= F.logsigmoid(-logit)
    actual = sigmoid_loss(image, text, 3.0, -2.0, ids=ids, backend="reference")
    torch.testing.assert_close(actual, total / 6, rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(
    ("shape", "scale_and_bias"),
    [
        *itertools.product(SHAPES, [(10.0, -10.0), (1.0, 0.0), (100.0, 20.0)]),
        ((513, 64), (10.0, -10.0)),
    ],
)
def test_value_and_gradients_at_odd_shapes_scales_and_biases(backend, shape, scale_and_bias):
    check(backend, *features(*shape), *scale_and_bias)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype(backend, dtype):
    check(backend, *features(65, 24), 20.0, -10.0, dtype)


@pytest.mark.parametrize("backend", KERNELS)
def test_rows_taken_as_they_are_and_logits_of_any_size(backend):
    check(backend, *features(33, 16), 2.0, -5.0, normalize=False)
    check(backend, *features(33, 8, size=30.0), 5.0, -10.0, normalize=False)


@pytest.mark.parametrize("backend", KERNELS)
def test_equal_ids_leave_the_sum(backend):
    ids = torch.randint(0, 20, (50,), generator=torch.Generator().manual_seed(3))
    check(backend, *features(50, 12), 10.0, -3.0, ids=ids)
    check(backend, *features(50, 12), 10.0, -3.0, ids=torch.zeros(50, dtype=torch.int64))


@pytest.mark.parametrize("backend", KERNELS)
def test_duplicate_pairs_and_a_scale_of_zero(backend):
    image, text = features(9, 8)
    check(backend, image.repeat(3, 1), text.repeat(3, 1), 100.0, -10.0)
    check(backend, image, text, 0.0, -1.0)


@pytest.mark.parametrize("backend", KERNELS)
def test_tiny_terms_far_from_their_pairs_are_not_lost(backend):
    check(backend, *features(200, 16), 1.0, -25.0)


@pytest.mark.parametrize("backend", NATIVE)
def test_a_zero_row_gets_no_gradient(backend):
    image, text = features(10, 6)
    image[3], text[7] = 0, 0
    found = value_and_gradients(image, text, 10.0, -10.0, torch.float32, backend)
    assert all(x.isfinite().all() for x in found)
    assert not found[1][3].any()
    assert not found[2][7].any()


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_feature_gives_a_nan_loss_and_is_not_hidden(backend, bad):
    image, text = features(20, 6)
    image[11, 2] = bad
    assert sigmoid_loss(image, text, 10.0, -10.0, backend=backend).isnan()


@pytest.mark.parametrize("backend", NATIVE)
def test_autocast_does_not_round_the_logits(backend):
    image, text = features(30, 16)
    expected = sigmoid_loss(image, text, 50.0, -10.0, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        actual = sigmoid_loss(image, text, 50.0, -10.0, backend=backend)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", KERNELS)
def test_without_gradients_wanted_the_value_is_the_same(backend):
    image, text = features(40, 9)
    with_gradients = value_and_gradients(image, text, 10.0, -10.0, torch.float32, backend)[0]
    without = sigmoid_loss(image, text, 10.0, -10.0, backend=backend)
    torch.testing.assert_close(without, with_gradients, rtol=1e-6, atol=0)
    assert without.grad_fn is None


@pytest.mark.parametrize("backend", KERNELS)
def test_rows_that_are_not_contiguous(backend):
    image, text = (x.T.contiguous().T for x in features(21, 10))
    check(backend, image, text, 10.0, -10.0)


@pytest.mark.parametrize("backend", KERNELS)
def test_the_upstream_gradient_multiplies_every_gradient(backend):
    image, text = features(24, 9)
    once = value_and_gradients(image, text, 10.0, -5.0, torch.float32, backend)
    thrice = value_and_gradients(image, text, 10.0, -5.0, torch.float32, backend, upstream=3.0)
    for a, b in zip(once[1:], thrice[1:], strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("mutated", range(1, 5))
@pytest.mark.parametrize("wrong", [0.0, 1.001])
def test_the_rule_notices_a_gradient_that_is_zero_or_a_thousandth_off(backend, mutated, wrong):
    image, text = features(32, 8)
    runs = [
        value_and_gradients(image, text, 14.3, -10.0, dtype, name)
        for dtype, name in (
            (torch.float32, backend),
            (torch.float32, "reference"),
            (torch.float64, "reference"),
        )
    ]
    runs[0][mutated] = wrong * runs[0][mutated]
    with pytest.raises(AssertionError, match=NAMES[mutated]):
        assert_within_tolerance(*runs, NAMES, conditions(image, text, 14.3, -10.0))


@pytest.mark.parametrize("backend", KERNELS)
def test_two_runs_give_the_same_bits(backend):
    image, text = features(several_tiles(backend), 64)
    runs = [value_and_gradients(image, text, 10.0, -10.0, torch.float32, backend) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_are_those_of_finite_differences(backend, normalize):
    image, text = (x.requires_grad_() for x in features(7, 5, torch.float64))
    skip_unless_served("sigmoid_loss", backend, image)
    scalars = leaves(torch.float64, torch.tensor(3.0), torch.tensor(-2.0))
    ids = torch.tensor([0, 1, 2, 0, 4, 5, 6])

    def loss(i, t, s, b):
        return sigmoid_loss(i, t, s, b, normalize=normalize, ids=ids, backend=backend)

    assert torch.autograd.gradcheck(loss, (image, text, *scalars))


@pytest.mark.parametrize("backend", KERNELS)
def test_it_compiles_whole_with_a_batch_size_that_varies(backend):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def loss(image, text, scale, bias):
        return sigmoid_loss(image, text, scale, bias, backend=backend)

    for n in (4, 9, 30):
        image, text = (x.requires_grad_() for x in features(n, 8))
        compiled = loss(image, text, torch.tensor(10.0), torch.tensor(-3.0))
        compiled.backward()
        expected = value_and_gradients(image, text, 10.0, -3.0, torch.float32, backend)
        torch.testing.assert_close(compiled.detach(), expected[0], rtol=0, atol=0)
        torch.testing.assert_close(image.grad, expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operator_keeps_its_contract_with_torch(backend, dtype):
    image, text = (x.requires_grad_() for x in features(6, 4, dtype))
    skip_unless_served("sigmoid_loss", backend, image)
    scalars = leaves(dtype, torch.tensor(3.0), torch.tensor(-2.0))
    for ids in (None, torch.arange(6) // 2):
        torch.library.opcheck(
            torch.ops.clipfast_kernels.sigmoid_fwd.default,
            (image, text, None, None, *scalars, ids, True, backend, "", 0, True),
        )


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_keeps_the_tolerance(level, simd_level):
    simd_level(level)
    for n, d in [(1, 3), (7, 5), (17, 33), (129, 100)]:
        check("cpu", *features(n, d), 10.0, -10.0)
        check("cpu", *features(n, d, size=10.0), 1.0, 0.0, normalize=False)
        check("cpu", *features(n, d), 14.3, -3.0, ids=torch.arange(n) // 3)


@pytest.mark.skipif("cpu" not in NATIVE, reason="the compiled extension is missing")
def test_more_pairs_than_one_tile_holds():
    check("cpu", *features(2100, 16), 10.0, -10.0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_features": torch.ones(4)}, r"image_features: expected shape \(N, D\)"),
        ({"text_features": torch.ones(5, 3)}, r"text_features: expected .*\(4, 3\); got \(5, 3\)"),
        ({"logit_scale": torch.ones(2)}, "logit_scale: expected one"),
        ({"logit_bias": "1"}, "logit_bias: expected a number"),
        ({"logit_bias": torch.ones((), device="meta")}, "logit_bias: .* cpu; got meta"),
        ({"ids": torch.ones(3, dtype=torch.int64)}, r"ids: expected int64 of shape \(4,\)"),
        ({"backend": "fast"}, "sigmoid_loss: backend: expected one of auto, .*; got 'fast'"),
        ({"group": 3}, "group: expected a torch.distributed process group .* got int"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(change, sentence):
    arguments = {
        "image_features": torch.ones(4, 3),
        "text_features": torch.ones(4, 3),
        "logit_scale": 1.0,
        "logit_bias": -1.0,
    } | change
    with pytest.raises((TypeError, ValueError), match=sentence):
        sigmoid_loss(**arguments)
