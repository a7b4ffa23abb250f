"""Layer orders, initial outputs and parameter counts of the two kinds of MLP."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flowmbpo.nets.mlp import NormedLinear, normed_mlp, policy_mlp
from flowmbpo.nets.widths import mlp_parameters

SIZES = {
    "in_dim": st.integers(1, 40),
    "units": st.lists(st.integers(1, 40), max_size=4),
    "out_dim": st.integers(1, 40),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@given(**SIZES, normed_output=st.booleans())
def test_mlp_parameters_is_the_real_count(in_dim, units, out_dim, normed_output):
    network = normed_mlp(in_dim, units, out_dim, normed_output=normed_output)
    parameters = mlp_parameters(in_dim, units, out_dim)
    assert parameters == count(network) - 2 * out_dim * normed_output
    assert parameters == count(policy_mlp(in_dim, units, out_dim, last_layer_scale=1))


def test_normed_linear_normalises_before_it_activates():
    torch.manual_seed(0)
    layer = NormedLinear(5, 7)
    x = torch.randn(3, 5)
    linear = x @ layer.linear.weight.T
    mean, variance = linear.mean(-1, keepdim=True), linear.var(-1, keepdim=True, correction=0)
    normed = (linear - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), normed * nn.functional.softplus(normed).tanh())


def test_policy_mlp_activates_before_it_normalises():
    torch.manual_seed(0)
    network = policy_mlp(5, [7], 2, last_layer_scale=1.0)
    x = torch.randn(3, 5)
    hidden = nn.functional.mish(network[0](x))
    expected = network[-1](
        (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    )
    torch.testing.assert_close(network(x), expected)


def test_a_plain_head_starts_at_zero_and_a_normed_one_does_not():
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    assert normed_mlp(6, [8], 3, normed_output=False)(x).eq(0.0).all()
    normed = normed_mlp(6, [8], 16, normed_output=True)(x)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(4), rtol=0, atol=1e-6)
    assert (normed.std(-1, correction=0) > 0.9).all()
    assert (normed < 0.0).any()  # no activation on the output


def test_world_model_layers_start_with_weights_of_std_two_hundredths():
    torch.manual_seed(0)
    layer = NormedLinear(200, 200)
    assert layer.linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert layer.linear.bias.eq(0.0).all()


def test_the_policy_head_scales_by_its_factor():
    torch.manual_seed(0)
    plain = policy_mlp(5, [7], 2, last_layer_scale=1.0)
    torch.manual_seed(0)
    small = policy_mlp(5, [7], 2, last_layer_scale=0.01)
    x = torch.randn(3, 5)
    torch.testing.assert_close(small(x), 0.01 * plain(x))
