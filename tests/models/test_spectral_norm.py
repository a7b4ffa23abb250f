"""The cap on the last layer's spectral norm: what it bounds, what it leaves alone, and what is stored."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from flowmbpo.config.dynamics import MLPDynamicsConfig
from flowmbpo.models.dynamics.spectral import cap_spectral_norm_

KINDS = {
    "residual": {"kind": "residual"},
    "gaussian": {"kind": "gaussian"},
    "neural_ode": {"kind": "neural_ode"},
    "flow": {"kind": "flow"},
    "generative": {"kind": "flow", "mode": "generative"},
}


def capped(matrix):
    """A layer that holds `matrix`, its singular vectors followed until they no longer move."""
    linear = nn.Linear(matrix.shape[1], matrix.shape[0]).double()
    linear.weight.data.copy_(matrix)
    cap_spectral_norm_(linear)
    for _ in range(500):
        _ = linear.weight
    return linear


def matrix(scale, rows=5, columns=7):
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def head(dynamics):
    return [module for module in dynamics.modules() if isinstance(module, nn.Linear)][-1]


def test_a_large_weight_is_divided_by_its_spectral_norm():
    large = matrix(4.0)
    expected = large / torch.linalg.matrix_norm(large, ord=2)
    torch.testing.assert_close(capped(large).weight, expected, rtol=1e-9, atol=1e-9)  # power iteration converged


def test_a_weight_below_the_cap_is_left_as_it_is():
    small = matrix(0.05)
    assert torch.linalg.matrix_norm(small, ord=2) < 1
    assert torch.equal(capped(small).weight, small)


def test_the_gradient_is_that_of_the_division_by_the_largest_singular_value():
    large = matrix(4.0)
    linear = capped(large)
    target = matrix(1.0)
    (found,) = torch.autograd.grad((linear.weight * target).sum(), linear.parametrizations.weight.original)
    weight = large.clone().requires_grad_()
    (expected,) = torch.autograd.grad((weight / torch.linalg.matrix_norm(weight, ord=2) * target).sum(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_vectors_rest_in_evaluation_mode():
    linear = capped(matrix(4.0)).eval()
    linear.parametrizations.weight.original.data.mul_(-1.0)
    before = linear.parametrizations.weight[0].left.clone()
    _ = linear.weight
    assert torch.equal(linear.parametrizations.weight[0].left, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_initialised_head_starts_where_it_would_without_the_cap(kind, make_dynamics, make_transition):
    capped_one = make_dynamics(spectral_norm=True, **KINDS[kind])
    plain = make_dynamics(**KINDS[kind])
    t = make_transition(dtype=torch.float32)
    first, second = (d(t.source, t.action, t.task) for d in (capped_one, plain))
    assert first.isfinite().all() and torch.equal(first, second)
    losses = [d.loss(t, torch.Generator().manual_seed(0), need_next=True)[0] for d in (capped_one, plain)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("kind", KINDS)
def test_training_a_zero_initialised_head_stops_at_the_cap(kind, make_dynamics, make_transition):
    dynamics = make_dynamics(spectral_norm=True, **KINDS[kind])
    t = make_transition(batch=32, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(dynamics.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        dynamics.loss(t, generator, need_next=False)[0].mean().backward()
        optimiser.step()
    stored = head(dynamics).parametrizations.weight.original
    with torch.no_grad():
        for _ in range(50):
            used = head(dynamics).weight
    assert torch.linalg.matrix_norm(stored, ord=2) > 1.2  # without the cap it would be larger than 1
    assert torch.linalg.matrix_norm(used, ord=2) <= 1.001  # the estimate lags by what power iteration has left
    assert all(parameter.isfinite().all() for parameter in dynamics.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_parameter_count_is_unaffected(kind, make_dynamics):
    counts = [
        sum(p.numel() for p in make_dynamics(spectral_norm=capped, **KINDS[kind]).parameters())
        for capped in (False, True)
    ]
    assert counts[0] == counts[1]


def test_a_stored_model_continues_exactly(make_dynamics, make_transition):
    trained, fresh = (make_dynamics(spectral_norm=True, kind="flow", seed=seed) for seed in (0, 1))
    t = make_transition(dtype=torch.float32)
    optimiser = torch.optim.Adam(trained.parameters(), lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        trained.loss(t, torch.Generator().manual_seed(0), need_next=False)[0].mean().backward()
        optimiser.step()
    fresh.load_state_dict(trained.state_dict())
    for _ in range(3):  # each pass moves the vectors: they must start at the same place
        assert torch.equal(trained(t.source, t.action, t.task), fresh(t.source, t.action, t.task))


def test_no_random_number_is_drawn():
    linear = nn.Linear(4, 4)
    before = torch.get_rng_state()
    cap_spectral_norm_(linear)
    assert torch.equal(before, torch.get_rng_state())


def test_the_mlp_refuses_it_and_says_why():
    with pytest.raises(ValidationError, match="ends in a LayerNorm, which undoes any scaling"):
        MLPDynamicsConfig(spectral_norm=True)
