"""Linear layers by oneDNN: F.linear, whoever computes it."""

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_within_tolerance
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import clipfast.models.linear as subject
from clipfast.models.linear import Linear, linear, linear_then

INPUTS, OUTPUTS = 48, 80


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch):
    """Whatever processor this is, and however small. Gives the products that it was asked for."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    asked, product = [], subject._product

    def recorded(x, weight, bias, then="none"):
        asked.append(then)
        return product(x, weight, bias, then)

    monkeypatch.setattr(subject, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(subject, "_product", recorded)
    monkeypatch.setattr(subject, "_LEAST", {True: 1, False: 1})
    return asked


def answer(function, x, weight, bias, d_out):
    tensors = [t.detach().clone().requires_grad_() for t in (x, weight, bias) if t is not None]
    out = function(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, d_out)]


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [(1,), (7,), (3, 5), (600,)])
def test_value_and_gradients_are_those_of_f_linear(rows, biased, by_onednn):
    x, weight = torch.randn(*rows, INPUTS), torch.randn(OUTPUTS, INPUTS)
    bias = torch.randn(OUTPUTS) if biased else None
    d_out = torch.randn(*rows, OUTPUTS)
    doubles = [t if t is None else t.double() for t in (x, weight, bias, d_out)]
    assert_within_tolerance(
        answer(linear, x, weight, bias, d_out),
        answer(F.linear, x, weight, bias, d_out),
        answer(F.linear, *doubles),
        ["y", "d_x", "d_weight", "d_bias"][: 4 if biased else 3],
    )
    assert by_onednn == ["none"] * 2  # forward, and the input's gradient


def test_rows_of_a_larger_weight_and_inputs_in_another_order_are_taken_as_they_are():
    weight, x = torch.randn(3 * OUTPUTS, INPUTS), torch.randn(INPUTS, 9).t()
    part = weight[OUTPUTS : 2 * OUTPUTS]
    torch.testing.assert_close(linear(x, part), F.linear(x, part))
    d_out = torch.randn(OUTPUTS, 9).t()
    ours, theirs = (answer(f, x, part, None, d_out) for f in (linear, F.linear))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_costs_none(frozen, by_onednn):
    layer, x = Linear(INPUTS, OUTPUTS), torch.randn(5, INPUTS, requires_grad=True)
    leaves = {"x": x, "weight": layer.weight, "bias": layer.bias}
    leaves[frozen].requires_grad_(False)
    layer(x).sum().backward()
    assert [name for name, leaf in leaves.items() if leaf.grad is None] == [frozen]
    assert len(by_onednn) == (1 if frozen == "x" else 2)


@pytest.mark.parametrize("grad", [True, False])
def test_the_activation_comes_after_the_layer(grad, by_onednn):
    layer, x = Linear(INPUTS, OUTPUTS), torch.randn(5, 3, INPUTS)
    with torch.set_grad_enabled(grad):
        out = linear_then(nn.GELU(), x, layer)
    torch.testing.assert_close(out, F.gelu(F.linear(x, layer.weight, layer.bias)))
    assert by_onednn == ["none" if grad else "gelu"]


@torch.no_grad()
def test_other_activations_are_called():
    layer, x = Linear(INPUTS, OUTPUTS), torch.randn(5, INPUTS)
    for activation in (nn.GELU(approximate="tanh"), nn.ReLU()):
        torch.testing.assert_close(linear_then(activation, x, layer), activation(layer(x)))


@torch.no_grad()
def test_a_layer_that_somebody_has_replaced_or_hooked_is_called_as_it_is():
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x) + 1

    layer, x = Linear(INPUTS, OUTPUTS), torch.randn(5, INPUTS)
    expected = F.gelu(layer(x) + 1)
    torch.testing.assert_close(linear_then(nn.GELU(), x, Adapted(layer)), expected)
    layer.register_forward_hook(lambda module, args, out: out + 1)
    torch.testing.assert_close(linear_then(nn.GELU(), x, layer), expected)


def test_what_onednn_is_not_asked_for_goes_to_torch(by_onednn):
    layer = Linear(INPUTS, OUTPUTS)
    x = torch.randn(5, INPUTS)
    assert linear(x[:0], layer.weight, layer.bias).shape == (0, OUTPUTS)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 5 * INPUTS * OUTPUTS
    assert layer.double()(x.double()).dtype == torch.float64
    assert by_onednn == []
