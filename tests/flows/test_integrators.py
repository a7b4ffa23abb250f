"""Integrators: order of convergence, agreement with another implementation, and what they cost."""

import math

import pytest
import torch
from torch import nn
from torchdiffeq import odeint

from flowmbpo.config.dynamics import STAGES
from flowmbpo.flows.integrators import STEPS, integrate

ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4}
PEERS = {"euler": "euler", "heun": "heun2", "midpoint": "midpoint"}  # torchdiffeq's rk4 is the 3/8 rule
PROBLEMS = {
    "autonomous": (lambda y, tau: y, math.e),
    "time dependent": (lambda y, tau: -2.0 * (tau + 0.5) * y, math.exp(-2.0)),
}


def test_every_method_has_its_order_and_stage_count_tested():
    assert set(STEPS) == set(STAGES) == set(ORDERS)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", ORDERS)
def test_integrator_converges_at_its_order(method, problem):
    velocity, exact = PROBLEMS[problem]
    one = torch.ones(1, 1, dtype=torch.float64)
    coarse, fine = ((integrate(velocity, one, method=method, substeps=k) - exact).abs().item() for k in (32, 64))
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[method], abs=0.1)


def test_one_step_of_rk4_is_the_taylor_polynomial_of_degree_four():
    end = integrate(lambda y, tau: y, torch.ones(1, 1, dtype=torch.float64), method="rk4", substeps=1)
    assert end.item() == pytest.approx(1 + 1 + 1 / 2 + 1 / 6 + 1 / 24, rel=1e-14)


def test_heun_evaluates_at_both_ends_and_midpoint_in_the_middle():
    # On dy/dtau = tau^2 (no y), one step is the trapezoidal rule (1/2) and the midpoint rule (1/4).
    zero = torch.zeros(1, 1, dtype=torch.float64)
    ends = {m: integrate(lambda y, tau: y * 0 + tau**2, zero, method=m, substeps=1).item() for m in STEPS}
    assert ends == pytest.approx({"euler": 0.0, "heun": 0.5, "midpoint": 0.25, "rk4": 1 / 3})


class Network(nn.Module):
    """A smooth nonlinear field of state and time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    def forward(self, y, tau):
        column = torch.full((y.shape[0], 1), float(tau), dtype=y.dtype)
        return self.layers(torch.cat([y, column], dim=-1))


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("substeps", [1, 4])
def test_end_point_and_gradients_equal_torchdiffeq(method, substeps):
    network = Network()
    start = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    results = []
    for ours in (True, False):
        y = start.clone().requires_grad_()
        if ours:
            end = integrate(network, y, method=method, substeps=substeps)
        else:
            grid = torch.linspace(0.0, 1.0, substeps + 1, dtype=torch.float64)
            end = odeint(lambda tau, y: network(y, tau), y, grid, method=PEERS[method])[-1]
        gradients = torch.autograd.grad((weights * end).sum(), [y, *network.parameters()])
        results.append([end, *gradients])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("substeps", [1, 2, 5])
def test_cost_is_substeps_times_stages(method, substeps):
    times = []

    def velocity(y, tau):
        times.append(tau)
        return -y

    integrate(velocity, torch.ones(2, 3), method=method, substeps=substeps)
    assert len(times) == substeps * STAGES[method]
    assert min(times) == 0.0
    assert max(times) <= 1.0 + 1e-12


def test_integration_is_differentiable_to_second_order():
    network = Network()
    y = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    run = lambda y: integrate(network, y, method="heun", substeps=2)  # noqa: E731
    assert torch.autograd.gradcheck(run, (y,))
    assert torch.autograd.gradgradcheck(run, (y,))


def test_perturbation_follows_every_substep():
    # dy/dtau = 0 and +1 after each of 3 substeps.
    end = integrate(lambda y, tau: 0 * y, torch.zeros(1, 2), method="euler", substeps=3, perturb=lambda y: y + 1)
    assert end.tolist() == [[3.0, 3.0]]
