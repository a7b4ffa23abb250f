"""The Jacobian penalty estimates the squared norm it claims, and shapes the dynamics only."""

from dataclasses import replace

import pytest
import torch

from flowmbpo.nets.simnorm import center

KINDS = {
    "mlp": {"kind": "mlp"},
    "residual": {"kind": "residual"},
    "flow": {"kind": "flow", "substeps": 1, "fm_source_grad": "none"},
    "neural_ode": {"kind": "neural_ode", "integrator": "euler", "substeps": 2},
}
SAMPLED = {
    "gaussian": {"kind": "gaussian", "max_logstd": 0.5},
    "generative": {"kind": "flow", "mode": "generative", "integrator": "euler", "substeps": 2},
    "noisy source": {"kind": "flow", "substeps": 1, "fm_source_grad": "none", "source_noise": 0.3},
    "noisy substeps": {"kind": "neural_ode", "integrator": "euler", "substeps": 2, "substep_noise": 0.3},
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(make_dynamics, kind, geometry, weight):
    options = {"scrambled": True, "geometry": geometry, **KINDS[kind]}
    return make_dynamics(**options), make_dynamics(**options, jacobian_penalty=weight)


@pytest.mark.parametrize("geometry", ["tangent", "logit"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_averages_to_the_tangent_jacobian_s_squared_norm(kind, geometry, make_dynamics, make_transition):
    plain, penalised = pair(make_dynamics, kind, geometry, 0.5)
    t = make_transition(plain.geometry, batch=1)
    probes = 6000
    many = replace(t, **{name: getattr(t, name).expand(probes, -1) for name in ("source", "action", "task", "target")})
    base, _ = plain.loss(many, rng(), need_next=False)
    total, _ = penalised.loss(many, rng(), need_next=False)
    estimates = (total - base).detach() / 0.5
    jacobian = torch.func.jacrev(lambda s: plain(s[None], t.action, t.task)[0])(t.source[0])
    exact = (jacobian @ center(torch.eye(24, dtype=torch.float64), 8)).square().sum() / 24
    standard_error = estimates.std() / probes**0.5
    assert (estimates.mean() - exact).abs() < 4 * standard_error
    assert standard_error < 0.02 * exact  # else the line above says little


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_gives_the_dynamics_gradient_and_the_source_none(kind, make_dynamics, make_transition):
    plain, penalised = pair(make_dynamics, kind, "tangent", 10.0)
    t = make_transition()

    def gradients(dynamics):
        source = t.source.clone().requires_grad_()
        loss, s_next = dynamics.loss(replace(t, source=source), rng(), need_next=True)
        total = loss.sum() + s_next.square().sum()
        return torch.autograd.grad(total, [source, *dynamics.parameters()])

    without, with_penalty = gradients(plain), gradients(penalised)
    torch.testing.assert_close(with_penalty[0], without[0])
    moved = [not torch.allclose(a, b) for a, b in zip(without[1:], with_penalty[1:], strict=True)]
    assert any(moved)


@pytest.mark.parametrize("kind", SAMPLED)
def test_a_sampled_step_s_estimate_averages_to_the_mean_over_its_noise(kind, make_dynamics, make_transition):
    options = {"scrambled": True, **SAMPLED[kind]}
    plain, penalised = make_dynamics(**options), make_dynamics(**options, jacobian_penalty=0.5)
    t = make_transition(batch=1)
    draws = 6000
    many = replace(t, **{name: getattr(t, name).expand(draws, -1) for name in ("source", "action", "task", "target")})
    base, _ = plain.loss(many, rng(), need_next=False)
    total, _ = penalised.loss(many, rng(), need_next=False)
    estimates = (total - base).detach() / 0.5

    source = many.source.clone().requires_grad_()
    s_next = plain(source, many.action, many.task, rng(1))  # other noise: the means must agree, not the draws
    rows = [torch.autograd.grad(s_next[:, i].sum(), source, retain_graph=True)[0] for i in range(24)]
    exact = torch.stack([center(row, 8).square().sum(-1) for row in rows]).sum(0) / 24
    standard_error = ((estimates.var() + exact.var()) / draws).sqrt()
    assert (estimates.mean() - exact.mean()).abs() < 4 * standard_error
    assert standard_error < 0.03 * exact.mean()  # else the line above says little


@pytest.mark.parametrize("kind", SAMPLED)
def test_stochastic_dynamics_learn_from_the_penalty(kind, make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, **SAMPLED[kind], jacobian_penalty=1.0)
    loss, _ = dynamics.loss(make_transition(), rng(), need_next=False)
    gradients = torch.autograd.grad(loss.sum(), list(dynamics.parameters()), allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert max(gradient.abs().max() for gradient in gradients if gradient is not None) > 0


def test_descending_the_penalty_contracts_the_step(make_dynamics, make_transition):
    dynamics = make_dynamics(scrambled=True, kind="mlp", jacobian_penalty=1.0)
    t = make_transition(batch=32)
    generator = rng()
    optimiser = torch.optim.Adam(dynamics.parameters(), lr=1e-2)

    def spread():
        with torch.no_grad():
            pushed = t.source + 1e-4 * center(torch.randn_like(t.source), 8)
            change = dynamics(pushed, t.action, t.task) - dynamics(t.source, t.action, t.task)
            return change.norm() / (pushed - t.source).norm()

    before = spread()
    for _ in range(40):
        loss, _ = dynamics.loss(t, generator, need_next=False)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    assert spread() < 0.5 * before
