"""A network widened to a flow's FLOPs: matched in FLOPs as they are counted, not in parameters."""

import pytest
import torch
from pydantic import TypeAdapter

from flowmbpo.config.dynamics import DynamicsConfig, DynamicsDims
from flowmbpo.models.build import build_dynamics
from flowmbpo.nets.widths import mlp_flops
from flowmbpo.parity.flops import FlopCount

SIZES = {
    "mini": (DynamicsDims(64, 8, 0, 1), (128, 128)),
    "5M": (DynamicsDims(512, 8, 0, 8), (512, 512)),
    "narrowing": (DynamicsDims(128, 8, 4, 2), (256, 128)),
}
FLOWS = {
    "heun 4": {"kind": "flow", "integrator": "heun", "substeps": 4},
    "euler 2": {"kind": "flow", "integrator": "euler", "substeps": 2},
    "midpoint 2, fourier": {"kind": "flow", "integrator": "midpoint", "substeps": 2, "tau_features": "fourier"},
    "rk4 1": {"kind": "neural_ode", "integrator": "rk4", "substeps": 1},
}


def build(dims, **options):
    with torch.random.fork_rng(devices=[]):
        return build_dynamics(TypeAdapter(DynamicsConfig).validate_python(options), dims)


def counted(dynamics, dims, rows=2):
    """FLOPs of one macro step, as torch counts them."""
    inputs = [torch.zeros(rows, width) for width in (dims.latent_dim, dims.action_dim, dims.task_dim)]
    with FlopCount() as count:
        dynamics(*inputs)
    return count.flops / rows


def test_flops_of_a_row_are_two_per_weight():
    assert mlp_flops(3, (5, 7), 2) == 2 * (3 * 5 + 5 * 7 + 7 * 2)


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_hand_count_agrees_with_the_counter(kind):
    dims, units = SIZES["mini"]
    dynamics = build(dims, kind=kind, units=units, widen_nfe=8)
    assert counted(dynamics, dims) == mlp_flops(65, dynamics.hidden_units, 64)


@pytest.mark.parametrize("kind", ["mlp", "residual"])
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("size", SIZES)
def test_one_evaluation_costs_what_the_flow_s_macro_step_does(size, flow, kind):
    dims, units = SIZES[size]
    reference = build(dims, units=units, **FLOWS[flow])
    widened = build(dims, kind=kind, units=units, widen_nfe=reference.nfe)
    assert widened.nfe == 1
    # Not exact: the flow's own widths are solved for parameters, of which norms and biases cost no product.
    assert counted(widened, dims) / counted(reference, dims) == pytest.approx(1.0, abs=0.01)


def test_whole_widths_stop_a_small_network_short_of_its_target():
    """One unit of a network 8 wide is several percent of it; what is built is the nearest there is."""
    dims = DynamicsDims(8, 8, 0, 1)
    widened = build(dims, kind="mlp", units=(8, 8), widen_nfe=2)
    target = 2 * mlp_flops(9, (8, 8), 8)
    gap = mlp_flops(9, widened.hidden_units, 8) / target - 1.0
    assert 0.0 < abs(gap) < 0.05
    a, b = widened.hidden_units
    assert all(abs(mlp_flops(9, w, 8) - target) >= abs(gap) * target for w in ((a + 1, b), (a - 1, b)))


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_one_evaluation_s_worth_is_the_network_as_it_was(kind):
    dims, units = SIZES["mini"]
    plain, widened = (build(dims, kind=kind, units=units, **more) for more in ({}, {"widen_nfe": 1}))
    assert plain.hidden_units == widened.hidden_units


def test_widening_is_not_parity():
    dims, units = SIZES["5M"]
    with torch.device("meta"):
        plain, wide = (build(dims, kind="mlp", units=units, widen_nfe=nfe) for nfe in (1, 8))
    counts = [sum(p.numel() for p in dynamics.parameters()) for dynamics in (plain, wide)]
    assert counts[1] > 7 * counts[0]
