"""The norm of the gradients, and whether all of them are numbers."""

import math

import pytest
import torch

from clipfast.train.optim.finite import finite_norm


def some_gradients():
    return [torch.randn(37, 5), torch.randn(()), torch.randn(2, 3, 4).transpose(0, 2)]


def test_the_norm_is_torchs():
    gradients = some_gradients()
    exact = torch.cat([g.double().flatten() for g in gradients]).norm().item()
    assert finite_norm(gradients) == pytest.approx(exact, rel=1e-6)
    assert finite_norm(gradients) == torch.nn.utils.get_total_norm(gradients).item()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", range(3))
def test_one_bad_element_anywhere_is_found(bad, which):
    gradients = some_gradients()
    gradients[which][(-1,) * gradients[which].ndim] = bad
    assert finite_norm(gradients) is None


def test_infinities_of_both_signs_do_not_cancel():
    assert finite_norm([torch.tensor([math.inf, -math.inf])]) is None


@pytest.mark.parametrize("largest", [1e19, 1e30, 3e38])
def test_finite_gradients_whose_squares_overflow_are_finite(largest):
    norm = finite_norm([torch.full((2, 2), largest), torch.ones(3)])
    assert norm == pytest.approx(2 * largest, rel=1e-6)
    assert math.isfinite(norm)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_beside_float32_is_summed_in_float32(dtype):
    gradients = [torch.full((4096,), 300.0, dtype=dtype), torch.ones(1)]
    assert finite_norm(gradients) == pytest.approx(math.hypot(300 * 64, 1), rel=1e-6)


def test_no_gradients_have_a_norm_of_0():
    assert finite_norm([]) == 0.0
