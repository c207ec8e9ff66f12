"""contrastive_loss against the dense float64 formula, and its behaviour as a torch operator."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from clipfast_kernels import contrastive_loss, contrastive_loss_with_metrics
from clipfast_kernels.ops.contrastive import reference
from pairs import (
    features,
    gradient_conditions,
    logits_and_sizes,
    several_tiles,
    skip_unless_served,
    usable,
)
from tolerance import assert_within_tolerance

NATIVE = usable("contrastive_loss")
KERNELS = [name for name in NATIVE if name != "reference"]
SHAPES = [(1, 1), (1, 8), (2, 3), (3, 64), (7, 5), (16, 16), (17, 33), (129, 100)]
SCALES = [1.0, 14.3, 100.0]
NAMES = ["loss", "d_image", "d_text", "d_logit_scale"]


def value_and_gradients(image, text, scale, dtype, backend, upstream=1.0, **options):
    inputs = [x.detach().to(dtype).requires_grad_() for x in (image, text)]
    skip_unless_served("contrastive_loss", backend, *inputs)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logit_scale = torch.tensor(scale, dtype=wide, requires_grad=True)
    loss = contrastive_loss(*inputs, logit_scale, backend=backend, **options)
    (upstream * loss).backward()
    return [loss.detach(), *(x.grad for x in inputs), logit_scale.grad]


def check(backend, image, text, scale, dtype=torch.float32, **options):
    image, text = image.to(dtype), text.to(dtype)
    actual = value_and_gradients(image, text, scale, dtype, backend, **options)
    low = value_and_gradients(image, text, scale, dtype, "reference", **options)
    exact = value_and_gradients(image, text, scale, torch.float64, "reference", **options)
    how = conditions(image, text, scale, **options)
    assert_within_tolerance(actual, low, exact, NAMES, how)


def conditions(image, text, scale, normalize=True, ids=None, label_smoothing=0.0):
    """Name to condition number (tolerance.py): a probability p moves by p times its exponent's."""
    z, cosine_terms, z_moves = logits_and_sizes(image, text, scale, 0.0, normalize)
    kept = reference.kept_pairs(z, ids)
    eye = torch.eye(len(z), dtype=z.dtype)
    p_and_target, moves = 0.0, 0.0
    for dim in (1, 0):
        p = z.masked_fill(~kept, -torch.inf).softmax(dim)
        target = (1 - label_smoothing) * eye + label_smoothing * kept / kept.sum(dim, keepdim=True)
        lse_moves = (p * z_moves).sum(dim, keepdim=True)
        p_and_target = p_and_target + (p + target) / (2 * len(z))
        moves = moves + (p * (1 + z_moves + lse_moves) + target) / (2 * len(z))
    return {
        "loss": (p_and_target * z_moves).sum().item(),
        "d_logit_scale": (moves * cosine_terms).sum().item(),
        **gradient_conditions(image, text, scale, moves, normalize),
    }


def test_the_reference_is_the_textbook_formula():
    image, text = features(12, 5, torch.float64)
    unit_image, unit_text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    logits = 14.3 * unit_image @ unit_text.T
    labels = torch.arange(12)
    for epsilon in (0.0, 0.1):
        expected = sum(
            F.cross_entropy(side, labels, label_smoothing=epsilon) for side in (logits, logits.T)
        )
        actual = contrastive_loss(image, text, 14.3, label_smoothing=epsilon, backend="reference")
        torch.testing.assert_close(actual, expected / 2, rtol=1e-13, atol=0)


def test_the_reference_leaves_pairs_of_equal_ids_out_of_both_denominators():
    image, text = features(6, 4, torch.float64)
    ids = torch.tensor([5, 7, 5, 9, 7, 5])
    logits = 10 * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    total = 0.0
    for i in range(6):
        kept = [j for j in range(6) if j == i or ids[j] != ids[i]]
        for side in (logits, logits.T):
            total += torch.logsumexp(side[i, kept], 0) - side[i, i]
    actual = contrastive_loss(image, text, 10.0, ids=ids, backend="reference")
    torch.testing.assert_close(actual, total / 12, rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(
    ("shape", "scale"), [*itertools.product(SHAPES, SCALES), ((513, 64), 100.0)]
)
def test_value_and_gradients_at_odd_shapes_and_scales(backend, shape, scale):
    check(backend, *features(*shape), scale)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype(backend, dtype):
    check(backend, *features(65, 24), 20.0, dtype)


@pytest.mark.parametrize("backend", KERNELS)
def test_rows_taken_as_they_are_without_normalisation(backend):
    check(backend, *features(33, 16), 2.0, normalize=False)


@pytest.mark.parametrize("backend", KERNELS)
def test_logits_far_apart_neither_overflow_nor_vanish(backend):
    image, text = features(40, 8, size=30.0)
    check(backend, image, text, 5.0, normalize=False)


@pytest.mark.parametrize("backend", KERNELS)
def test_equal_ids_and_label_smoothing_together(backend):
    image, text = features(50, 12)
    ids = torch.randint(0, 20, (50,), generator=torch.Generator().manual_seed(3))
    check(backend, image, text, 30.0, ids=ids, label_smoothing=0.1)
    check(backend, image, text, 30.0, ids=torch.zeros(50, dtype=torch.int64))


@pytest.mark.parametrize("backend", KERNELS)
def test_duplicate_pairs_and_all_equal_rows(backend):
    image, text = features(9, 8)
    check(backend, image.repeat(3, 1), text.repeat(3, 1), 100.0)
    ones = torch.ones(20, 6)
    loss = contrastive_loss(ones, ones, 100.0, backend=backend)
    assert loss.item() == pytest.approx(math.log(20), abs=1e-5)


@pytest.mark.parametrize("backend", NATIVE)
def test_a_zero_row_is_similar_to_nothing_and_gets_no_gradient(backend):
    image, text = features(10, 6)
    image[3], text[7] = 0, 0
    loss, d_image, d_text, d_scale = value_and_gradients(image, text, 10.0, torch.float32, backend)
    assert all(x.isfinite().all() for x in (loss, d_image, d_text, d_scale))
    assert not d_image[3].any()
    assert not d_text[7].any()
    if backend != "reference":
        check(backend, image, text, 10.0)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_feature_gives_a_nan_loss_and_is_not_hidden(backend, bad):
    image, text = features(20, 6)
    image[11, 2] = bad
    assert contrastive_loss(image, text, 10.0, backend=backend).isnan()


@pytest.mark.parametrize("backend", NATIVE)
def test_autocast_does_not_round_the_logits(backend):
    image, text = features(30, 16)
    expected = contrastive_loss(image, text, 50.0, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        actual = contrastive_loss(image, text, 50.0, backend=backend)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", KERNELS)
def test_one_pair_alone_costs_nothing(backend):
    loss, *gradients = value_and_gradients(*features(1, 4), 100.0, torch.float32, backend)
    assert abs(loss.item()) < 1e-6
    assert max(g.abs().max() for g in gradients) < 1e-4


@pytest.mark.parametrize("backend", KERNELS)
def test_a_scale_of_zero_still_has_its_gradient(backend):
    check(backend, *features(30, 7), 0.0)


@pytest.mark.parametrize("backend", KERNELS)
def test_rows_that_are_not_contiguous(backend):
    image, text = (x.T.contiguous().T for x in features(21, 10))
    check(backend, image, text, 10.0)


@pytest.mark.parametrize("backend", KERNELS)
def test_the_upstream_gradient_multiplies_every_gradient(backend):
    image, text = features(24, 9)
    once = value_and_gradients(image, text, 10.0, torch.float64, backend)
    thrice = value_and_gradients(image, text, 10.0, torch.float64, backend, upstream=3.0)
    for a, b in zip(once[1:], thrice[1:], strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("mutated", range(1, 4))
@pytest.mark.parametrize("wrong", [0.0, 1.001])
def test_the_rule_notices_a_gradient_that_is_zero_or_a_thousandth_off(backend, mutated, wrong):
    image, text = features(32, 8)
    actual = value_and_gradients(image, text, 14.3, torch.float32, backend)
    low = value_and_gradients(image, text, 14.3, torch.float32, "reference")
    exact = value_and_gradients(image, text, 14.3, torch.float64, "reference")
    actual[mutated] = wrong * actual[mutated]
    with pytest.raises(AssertionError, match=NAMES[mutated]):
        assert_within_tolerance(actual, low, exact, NAMES, conditions(image, text, 14.3))


@pytest.mark.parametrize("backend", KERNELS)
def test_two_runs_give_the_same_bits(backend):
    image, text = features(several_tiles(backend), 64)
    runs = [value_and_gradients(image, text, 50.0, torch.float32, backend) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_gradients_are_those_of_finite_differences(backend, normalize, epsilon):
    image, text = (x.requires_grad_() for x in features(7, 5, torch.float64))
    logit_scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 2, 0, 4, 5, 6])

    skip_unless_served("contrastive_loss", backend, image)

    def loss(i, t, s):
        return contrastive_loss(
            i, t, s, normalize=normalize, ids=ids, label_smoothing=epsilon, backend=backend
        )

    assert torch.autograd.gradcheck(loss, (image, text, logit_scale))


@pytest.mark.parametrize("backend", KERNELS)
def test_it_compiles_whole_with_a_batch_size_that_varies(backend):
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def loss(image, text, scale):
        return contrastive_loss(image, text, scale, backend=backend)

    for n in (4, 9, 30):
        image, text = (x.requires_grad_() for x in features(n, 8))
        compiled = loss(image, text, torch.tensor(10.0))
        compiled.backward()
        expected = value_and_gradients(image, text, 10.0, torch.float32, backend)
        torch.testing.assert_close(compiled.detach(), expected[0], rtol=0, atol=0)
        torch.testing.assert_close(image.grad, expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operators_keep_their_contract_with_torch(backend, dtype):
    image, text = (x.requires_grad_() for x in features(6, 4, dtype))
    skip_unless_served("contrastive_loss", backend, image)
    scale = torch.tensor(5.0, dtype=dtype, requires_grad=True)
    ops = torch.ops.clipfast_kernels
    for ids in (None, torch.arange(6) // 2):
        for metrics in (False, True):
            arguments = (image, text, None, None, scale, ids, True, 0.1, backend, "", 0, metrics)
            torch.library.opcheck(ops.contrastive_fwd.default, arguments)
        saved = ops.contrastive_fwd(*arguments)[2:]
        upstream = torch.ones((), dtype=dtype)
        arguments = (upstream, image, text, None, None, scale, ids, True, 0.1, backend, 0, *saved)
        torch.library.opcheck(
            ops.contrastive_bwd.default,
            [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments],
        )


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("ids", [None, torch.arange(37) // 2])
def test_metrics_are_those_of_the_dense_logits_and_the_loss_keeps_its_bits(backend, ids):
    image, text = features(37, 10)
    text = image + text
    found = contrastive_loss_with_metrics(image, text, 20.0, ids=ids, backend=backend)
    logits = 20 * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    logits = logits.masked_fill(~reference.kept_pairs(logits, ids), -torch.inf)
    own = logits.diagonal()
    assert 0.1 < found.image_top1 < 1
    torch.testing.assert_close(found.image_top1, (own >= logits.amax(1)).float().mean())
    torch.testing.assert_close(found.text_top1, (own >= logits.amax(0)).float().mean())
    torch.testing.assert_close(found.positive_logit, own.mean())
    loss = contrastive_loss(image, text, 20.0, ids=ids, backend=backend)
    torch.testing.assert_close(found.loss, loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", NATIVE)
def test_metrics_of_one_pair_of_ties_and_of_nan(backend):
    one = contrastive_loss_with_metrics(*features(1, 4), 10.0, backend=backend)
    assert one.image_top1 == one.text_top1 == 1
    ones = torch.ones(8, 4)
    tied = contrastive_loss_with_metrics(ones, ones, 10.0, backend=backend)
    assert tied.image_top1 == tied.text_top1 == 1
    image, text = features(8, 4)
    image[3] = math.nan
    lost = contrastive_loss_with_metrics(image, text, 10.0, backend=backend)
    assert lost.loss.isnan()
    assert lost.image_top1 < 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_features": torch.ones(4)}, r"image_features: expected shape \(N, D\)"),
        ({"image_features": torch.ones(0, 3)}, r"image_features: .* got \(0, 3\)"),
        ({"image_features": [1.0]}, "image_features: expected a tensor"),
        ({"text_features": torch.ones(5, 3)}, r"text_features: expected .*\(4, 3\); got \(5, 3\)"),
        ({"text_features": torch.ones(4, 3).double()}, "text_features: expected .*float32"),
        ({"text_features": torch.ones(4, 3).int()}, "text_features: expected a floating-point"),
        ({"logit_scale": torch.ones(2)}, "logit_scale: expected one"),
        ({"logit_scale": "1"}, "logit_scale: expected a number"),
        ({"ids": torch.ones(3, dtype=torch.int64)}, r"ids: expected int64 of shape \(4,\)"),
        ({"ids": torch.ones(4)}, "ids: expected int64"),
        ({"ids": [0] * 4}, r"ids: expected a tensor \(N,\) or None; got list"),
        ({"ids": torch.ones(4, dtype=torch.int64, device="meta")}, "ids: .* device cpu; got meta"),
        ({"text_features": torch.ones(4, 3, device="meta")}, "text_features: .* got meta"),
        ({"logit_scale": torch.ones((), device="meta")}, "logit_scale: .* cpu; got meta"),
        ({"label_smoothing": "a"}, "label_smoothing: expected a number; got str"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected 0 ≤ ε < 1; got 1.0"),
        ({"backend": "fast"}, "backend: expected one of auto, .*; got 'fast'"),
        ({"group": object()}, "group: expected a torch.distributed process group .* got object"),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(change, sentence):
    arguments = {
        "image_features": torch.ones(4, 3),
        "text_features": torch.ones(4, 3),
        "logit_scale": 1.0,
    } | change
    with pytest.raises((TypeError, ValueError), match=sentence):
        contrastive_loss(**arguments)


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_instruction_set_keeps_the_tolerance(level, simd_level):
    simd_level(level)
    for n, d in [(1, 3), (7, 5), (17, 33), (129, 100)]:
        check("cpu", *features(n, d), 100.0)
        check("cpu", *features(n, d, size=10.0), 1.0, normalize=False)
        ids = torch.arange(n) // 3
        check("cpu", *features(n, d), 14.3, ids=ids, label_smoothing=0.1)


@pytest.mark.skipif("cpu" not in NATIVE, reason="the compiled extension is missing")
def test_more_pairs_than_one_tile_holds():
    check("cpu", *features(2100, 16), 50.0)
    check("cpu", *features(2100, 16, size=10.0), 1.0, normalize=False)
