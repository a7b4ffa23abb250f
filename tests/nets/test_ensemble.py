"""The batched ensemble computes what its members would one by one."""

import pytest
import torch
from torch import nn

from flowmbpo.nets.ensemble import EnsembleMLP


def ensemble(units=(7, 5), zero_head=False):
    torch.manual_seed(0)
    network = EnsembleMLP(3, 6, units, 2, zero_head=zero_head).double()
    for parameter in network.parameters():  # biases and norms too, so that a swap of them shows
        nn.init.normal_(parameter, std=0.5)
    return network


def member(network, n, units):
    """Member n as an ordinary network holding the same numbers."""
    layers = []
    width = 6
    for unit in units:
        layers += [nn.Linear(width, unit), nn.Mish(), nn.LayerNorm(unit)]
        width = unit
    layers.append(nn.Linear(width, 2))
    single = nn.Sequential(*layers).double()
    with torch.no_grad():
        for layer in range(len(units) + 1):
            single[3 * layer].weight.copy_(network.weights[layer][n].T)
            single[3 * layer].bias.copy_(network.biases[layer][n, 0])
        for layer in range(len(units)):
            single[3 * layer + 2].weight.copy_(network.norm_weights[layer][n, 0])
            single[3 * layer + 2].bias.copy_(network.norm_biases[layer][n, 0])
    return single


@pytest.mark.parametrize("units", [(7, 5), (7,), (4, 4, 4)])
def test_outputs_and_gradients_equal_those_of_separate_networks(units):
    network = ensemble(units)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    outputs = network(x)
    assert outputs.shape == (3, 4, 2)
    cotangent = torch.randn_like(outputs)
    outputs.backward(cotangent)
    x_grad = torch.zeros_like(x)
    for n in range(3):
        single = member(network, n, units)
        x_single = x.detach().clone().requires_grad_()
        expected = single(x_single)
        torch.testing.assert_close(outputs[n], expected)
        expected.backward(cotangent[n])
        x_grad += x_single.grad
        for layer in range(len(units) + 1):
            torch.testing.assert_close(network.weights[layer].grad[n], single[3 * layer].weight.grad.T)
            torch.testing.assert_close(network.biases[layer].grad[n, 0], single[3 * layer].bias.grad)
        for layer in range(len(units)):
            torch.testing.assert_close(network.norm_weights[layer].grad[n, 0], single[3 * layer + 2].weight.grad)
            torch.testing.assert_close(network.norm_biases[layer].grad[n, 0], single[3 * layer + 2].bias.grad)
    torch.testing.assert_close(x.grad, x_grad)


def test_members_start_different_and_orthogonal_with_gain_root_two():
    torch.manual_seed(0)
    weight = EnsembleMLP(3, 6, (4,), 1, zero_head=False).weights[0]
    assert not torch.equal(weight[0], weight[1])
    for single in weight:
        torch.testing.assert_close(single.T @ single, 2.0 * torch.eye(4), rtol=0, atol=1e-5)


def test_a_zero_head_starts_every_member_at_zero():
    torch.manual_seed(0)
    network = EnsembleMLP(3, 6, (7, 5), 2, zero_head=True)
    assert network(torch.randn(4, 6)).eq(0.0).all()
    assert network.weights[0].ne(0.0).any()
