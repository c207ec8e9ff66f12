"""quick_gelu against its formula in float64, per backend."""

import pytest
import torch
from clipfast_kernels import quick_gelu
from pairs import leaves, skip_unless_served, usable
from tolerance import assert_within_tolerance


def answer(x, d_y, backend):
    (x,) = leaves(x.dtype, x)
    y = quick_gelu(x, backend=backend)
    (d_x,) = torch.autograd.grad(y, x, d_y)
    return [y.detach(), d_x]


def check(backend, x, d_y):
    exact = answer(x.double(), d_y.double(), "reference")
    low = answer(x, d_y, "reference")
    assert_within_tolerance(answer(x, d_y, backend), low, exact, ["y", "d_x"])


@pytest.mark.parametrize("backend", usable("quick_gelu"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 67), (5, 7, 1000)])
def test_value_and_gradient_are_the_formulas(backend, dtype, shape):
    x, d_y = (3 * torch.randn(2, *shape, dtype=torch.float64)).to(dtype)
    skip_unless_served("quick_gelu", backend, x)
    check(backend, x, d_y)


@pytest.mark.parametrize("level", ["avx512", "avx2", "baseline"])
def test_every_instruction_set_from_tail_to_tail(level, simd_level):
    simd_level(level)
    x = torch.linspace(-60, 60, 4001)
    check("cpu", x, torch.randn(4001))


@pytest.mark.parametrize("backend", usable("quick_gelu"))
def test_infinities_and_nan_end_as_in_the_formula(backend):
    x = torch.tensor([1e30, -1e30, torch.nan])
    y = quick_gelu(x, backend=backend)
    assert y[0] == pytest.approx(1e30)
    assert y[1].abs() < 1e-4  # the formula's is 0, a kernel's -1e30 times e^-84
    assert y[2].isnan()


@pytest.mark.parametrize("backend", usable("quick_gelu"))
def test_a_transposed_input_keeps_its_order(backend):
    x, d_y = torch.randn(2, 6, 5)
    check(backend, x.T, d_y.T)


def test_compiles_whole_and_the_operators_pass_opcheck():
    if "cpu" not in usable("quick_gelu"):
        pytest.skip("the compiled extension is missing")
    x = torch.randn(4, 5)
    ops = torch.ops.clipfast_kernels
    torch.library.opcheck(ops.quick_gelu_fwd.default, (x, "cpu"))
    torch.library.opcheck(ops.quick_gelu_bwd.default, (x, x, "cpu"))

    def loss(x):
        return quick_gelu(x, backend="cpu").square().sum()

    x.requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), torch.autograd.grad(loss(x), x))


def test_integers_are_refused_by_name():
    with pytest.raises(TypeError, match="x: expected a floating-point dtype"):
        quick_gelu(torch.ones(3, dtype=torch.int64))
