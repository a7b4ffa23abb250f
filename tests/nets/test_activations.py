"""Mish with one exponential against torch's, in value and in every kind of derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from flowmbpo.nets.activations import PIECE, SMALLEST, ActivationLayer, mish, use_activation_

torch_mish = nn.functional.mish


def values(dtype: torch.dtype = torch.float64) -> Tensor:
    """From -30 to 60, in more than one piece, the last of them short."""
    return torch.linspace(-30.0, 60.0, PIECE + SMALLEST + 7, dtype=dtype)


def test_value_is_torchs_to_double_precision():
    torch.testing.assert_close(mish(values()), torch_mish(values()), rtol=1e-13, atol=0.0)


def test_single_precision_is_as_accurate_as_torchs():
    x = values(torch.float32)
    exact = torch_mish(x.double())

    def error(found: Tensor) -> float:
        return float(((found.double() - exact).abs() / exact.abs().clamp(min=1e-30)).max())

    assert error(mish(x)) <= 1.5 * error(torch_mish(x))


def test_slope_is_torchs_to_double_precision():
    slopes = []
    for function in (mish, torch_mish):
        x = values().requires_grad_()
        function(x).sum().backward()
        slopes.append(x.grad)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=1e-15)


def test_second_derivative_is_torchs():
    found = []
    for function in (mish, torch_mish):
        x = values().requires_grad_()
        (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), x)[0])
    assert found[0].abs().max() > 0.1
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode_derivative_is_torchs(requires_grad):
    x = values().requires_grad_(requires_grad)
    tangent = torch.linspace(1.0, 2.0, len(x), dtype=x.dtype)
    found, expected = (jvp(function, (x,), (tangent,))[1].detach() for function in (mish, torch_mish))
    assert expected.abs().max() > 1.0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_transforms_compose():
    x = values().unflatten(0, (-1, 1)).expand(-1, 2).t().contiguous()

    def slopes(function):
        return vmap(lambda row: vjp(function, row)[1](torch.ones_like(row))[0])(x)

    torch.testing.assert_close(slopes(mish), slopes(torch_mish), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(vmap(mish)(x), torch_mish(x), rtol=1e-13, atol=0.0)


def test_strided_input_and_its_gradient():
    x = values()[: 2 * SMALLEST].view(64, -1).t().requires_grad_()
    assert not x.is_contiguous()
    y = mish(x)
    y.sum().backward()
    torch.testing.assert_close(y, torch_mish(x), rtol=1e-13, atol=0.0)
    y_torch = x.detach().clone().requires_grad_()
    torch_mish(y_torch).sum().backward()
    torch.testing.assert_close(x.grad, y_torch.grad, rtol=1e-12, atol=1e-15)


def test_extremes_and_nan_pass_through():
    large = torch.full((SMALLEST,), 1e30, requires_grad=True)
    y = mish(large)
    y.sum().backward()
    assert torch.equal(y, large)
    assert torch.equal(large.grad, torch.ones(SMALLEST))
    assert torch.equal(mish(torch.full((SMALLEST,), -200.0)).abs(), torch.zeros(SMALLEST))
    assert mish(torch.full((SMALLEST,), torch.nan)).isnan().all()


def test_small_inputs_are_torchs_own():
    x = values(torch.float32)[: SMALLEST - 1]
    assert torch.equal(mish(x), torch_mish(x))


def test_layer_is_the_function():
    layer = ActivationLayer()
    assert torch.equal(layer(values()), mish(values()))
    use_activation_(layer, "silu")
    assert torch.equal(layer(values()), nn.functional.silu(values()))
