"""batch_norm against its formula in float64, per backend."""

import pytest
import torch
import torch.nn.functional as F
from clipfast_kernels import batch_norm
from pairs import leaves, skip_unless_served, usable
from tolerance import assert_within_tolerance

SHAPES = [(2, 3), (300, 17), (1, 5, 1, 2), (3, 7, 5, 3), (4, 64, 9, 9), (9, 70, 12, 12)]
NAMES = ["y", "d_x", "d_weight", "d_bias", "running_mean", "running_var"]


def inputs(shape, dtype, offset=0.5):
    x, d_y = torch.randn(2, *shape, dtype=torch.float64)
    x = x + offset
    if len(shape) == 4:
        x, d_y = (t.contiguous(memory_format=torch.channels_last) for t in (x, d_y))
    weight, bias, mean = torch.randn(3, shape[1], dtype=torch.float64)
    return [t.to(dtype) for t in (x, d_y, weight, bias, mean, mean.exp())]


def answer(given, backend, **options):
    x, d_y, weight, bias, mean, var = given
    leaf = leaves(x.dtype, x, weight, bias)
    statistics = mean.clone(), var.clone()
    y = batch_norm(*leaf, *statistics, backend=backend, **options)
    return [y.detach(), *torch.autograd.grad(y, leaf, d_y), *statistics]


def check(backend, given, **options):
    exact = answer([t.double() for t in given], "reference", **options)
    low = answer(given, "reference", **options)
    assert_within_tolerance(answer(given, backend, **options), low, exact, NAMES)


@pytest.mark.parametrize("backend", usable("batch_norm"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_statistics_and_every_gradient_are_the_formulas(backend, dtype, training, shape):
    given = inputs(shape, dtype)
    skip_unless_served("batch_norm", backend, given[0])
    if backend == "torch":
        if dtype == torch.bfloat16:
            pytest.skip("torch's own rounding in half precision is another")
        given[:2] = (t.contiguous() for t in given[:2])  # channels-last, it loses a digit
    check(backend, given, training=training, momentum=0.3, eps=1e-3)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("backend", usable("batch_norm"))
def test_the_relu_in_the_same_pass_stops_what_it_stops(backend, training):
    given = inputs((4, 33, 9, 9), torch.float64)
    check(backend, given, training=training, relu=True)


@pytest.mark.parametrize("level", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("channels", [1, 15, 16, 17, 64])
def test_every_instruction_set_from_tail_to_tail(level, channels, simd_level):
    simd_level(level)
    check("cpu", inputs((5, channels, 8, 8), torch.float32), training=True, relu=True)


def test_a_large_batch_loses_no_digit_however_far_its_mean_is():
    """Where torch's channels-last kernel adds 100,000 values one after the other."""
    given = inputs((16, 8, 112, 112), torch.float32, offset=30.0)
    check("cpu", given, training=True)


def test_torchs_own_function_gives_the_same():
    x, _, weight, bias, mean, var = inputs((4, 33, 9, 9), torch.float64)
    expected = [mean.clone(), var.clone()]
    y = F.relu(F.batch_norm(x, *expected, weight, bias, True, 0.2, 1e-4))
    actual = [mean.clone(), var.clone()]
    ours = batch_norm(
        x, weight, bias, *actual, training=True, momentum=0.2, eps=1e-4, relu=True, backend="cpu"
    )
    torch.testing.assert_close([ours, *actual], [y, *expected], rtol=1e-12, atol=1e-12)


def test_any_number_of_threads_gives_the_same_bits():
    given, found = inputs((9, 70, 12, 12), torch.float32), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(answer(given, "cpu", training=True, relu=True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_zeroed_gradient_would_be_seen():
    given = inputs((4, 8, 5, 5), torch.float32)
    exact = answer([t.double() for t in given], "reference", training=True)
    low = answer(given, "reference", training=True)
    for wrong in range(1, 4):
        actual = answer(given, "cpu", training=True)
        actual[wrong] = torch.zeros_like(actual[wrong])
        with pytest.raises(AssertionError, match=NAMES[wrong]):
            assert_within_tolerance(actual, low, exact, NAMES)


def test_gradcheck_of_both_modes():
    x, _, weight, bias, mean, var = inputs((3, 4, 3, 2), torch.float64)
    x = x.requires_grad_()
    for training in (True, False):

        def call(x, weight, bias, training=training):
            statistics = mean.clone(), var.clone()
            return batch_norm(x, weight, bias, *statistics, training=training, backend="cpu")

        torch.autograd.gradcheck(call, (x, weight.requires_grad_(), bias.requires_grad_()))


def test_nan_goes_through_the_relu():
    x, _, weight, bias, mean, var = inputs((2, 3, 4, 4), torch.float32)
    x[0, 1, 2, 3] = torch.nan
    y = batch_norm(x, weight, bias, mean, var, relu=True, backend="cpu")
    assert y.isnan().sum() == 1


def test_compiles_whole_and_the_operators_pass_opcheck():
    x, d_y, weight, bias, mean, var = inputs((3, 4, 3, 2), torch.float32)
    ops = torch.ops.clipfast_kernels
    torch.library.opcheck(
        ops.batch_norm_fwd.default, (x, weight, bias, None, None, 1e-5, True, "cpu")
    )
    torch.library.opcheck(
        ops.batch_norm_bwd.default, (d_y, x, weight, bias, mean, var, 1e-5, True, True, "cpu")
    )

    def loss(x, weight, bias):
        return batch_norm(x, weight, bias, training=True, relu=True, backend="cpu").square().sum()

    leaf = leaves(torch.float32, x, weight, bias)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*leaf), leaf), torch.autograd.grad(loss(*leaf), leaf)
    )


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"x": torch.ones(2, 3, 4)}, ValueError, r"x: expected \(B, C, h, w\) or \(B, C\)"),
        ({"x": torch.ones(2, 3).long()}, TypeError, "x: expected a floating-point dtype"),
        ({"weight": torch.ones(4)}, ValueError, r"weight: expected \(3,\); got \(4,\)"),
        ({"x": torch.ones(1, 3)}, ValueError, "x: expected 2 values or more per channel"),
    ],
)
def test_wrong_arguments_are_named(change, error, sentence):
    given = {"x": torch.ones(2, 3), "weight": torch.ones(3), "bias": torch.ones(3)} | change
    with pytest.raises(error, match=sentence):
        batch_norm(**given, training=True)


def test_another_layout_is_refused_with_the_reason():
    x, ones = torch.ones(2, 3, 4, 4), torch.ones(3)
    with pytest.raises(RuntimeError, match="x is not channels-last"):
        batch_norm(x, ones, ones, training=True, backend="cpu")
