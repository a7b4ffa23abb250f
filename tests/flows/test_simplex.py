"""Both geometries of the latent: what moves keep, where retraction lands, and the logit chart."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowmbpo.flows.simplex import (
    LogitGeometry,
    TangentGeometry,
    make_geometry,
    project_to_simplex,
    simplex_violation,
)
from flowmbpo.nets.simnorm import center, simnorm

GROUP, DIM = 8, 24


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def group_sums(x, group=GROUP):
    return torch.stack([x[..., g :: x.shape[-1] // group].sum(-1) for g in range(x.shape[-1] // group)], dim=-1)


def nearest_by_active_sets(point):
    """The nearest simplex point by trying every set of positive coordinates: a quadratic programme by hand."""
    best, distance = None, float("inf")
    for size in range(1, len(point) + 1):
        for support in itertools.combinations(range(len(point)), size):
            candidate = torch.zeros_like(point)
            index = list(support)
            candidate[index] = point[index] - (point[index].sum() - 1.0) / size
            if (candidate >= 0).all() and (candidate - point).norm() < distance:
                best, distance = candidate, (candidate - point).norm()
    return best


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.01, 1.0, 100.0]))
def test_projection_finds_the_nearest_point_of_the_simplex(seed, scale):
    point = normal(4, seed=seed, scale=scale)
    torch.testing.assert_close(project_to_simplex(point, 4), nearest_by_active_sets(point), rtol=0, atol=1e-12)


def test_projection_works_on_interleaved_groups():
    x = normal(5, DIM)
    projected = project_to_simplex(x, GROUP)
    for g in range(DIM // GROUP):
        torch.testing.assert_close(projected[:, g :: DIM // GROUP], project_to_simplex(x[:, g :: DIM // GROUP], GROUP))


def test_projection_leaves_the_simplex_alone_and_ties_too():
    z = simnorm(normal(5, DIM), GROUP)
    torch.testing.assert_close(project_to_simplex(z, GROUP), z, rtol=0, atol=1e-15)
    ties = torch.full((1, 8), 3.0, dtype=torch.float64)
    torch.testing.assert_close(project_to_simplex(ties, 8), torch.full_like(ties, 1 / 8))


def test_projection_passes_numbers_that_are_none_on_and_survives_huge_ones():
    x = torch.zeros(2, 8)
    x[0, 3] = float("nan")
    assert project_to_simplex(x, 8)[0].isnan().any()
    assert project_to_simplex(x, 8)[1].tolist() == [0.125] * 8
    huge = torch.tensor([[1e9, 0.0, 0.0, 0.0]])  # float32 cannot tell 1e9 from 1e9 - 1
    assert project_to_simplex(huge, 4).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_projection_keeps_its_precision_far_from_the_simplex():
    far = center(normal(64, 64, scale=100.0).float(), GROUP)
    assert simplex_violation(project_to_simplex(far, GROUP), GROUP) < 1e-6


def test_projection_has_the_gradient_of_the_active_face():
    x = torch.tensor([[0.9, 0.6, -2.0]], dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda x: project_to_simplex(x, 3), x)[0, :, 0]
    expected = torch.tensor([[0.5, -0.5, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(jacobian, expected)


def test_tangent_moves_keep_group_sums_and_retraction_keeps_the_simplex():
    z = simnorm(normal(5, DIM), GROUP)
    push = normal(5, DIM, seed=1, scale=10.0)
    plain = TangentGeometry(GROUP, retract=False).move(z, push)
    torch.testing.assert_close(group_sums(plain), torch.ones(5, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (plain < 0).any()  # that far, only retraction keeps z positive
    retracted = TangentGeometry(GROUP, retract=True).move(z, push)
    assert simplex_violation(retracted, GROUP) < 1e-12
    torch.testing.assert_close(retracted, project_to_simplex(plain, GROUP))


def test_logit_moves_stay_centred_and_their_latents_on_the_simplex():
    geometry = LogitGeometry(GROUP)
    y = geometry.move(geometry.from_logits(normal(5, DIM)), normal(5, DIM, seed=1, scale=10.0))
    assert group_sums(y).abs().max() < 1e-12
    assert simplex_violation(geometry.latent(y), GROUP) < 1e-12


@pytest.mark.parametrize("name", ["tangent", "logit"])
def test_both_geometries_give_the_same_latent_of_the_same_logits(name):
    geometry = make_geometry(name, GROUP, retraction="none")
    logits = normal(5, DIM)
    torch.testing.assert_close(geometry.latent(geometry.from_logits(logits)), simnorm(logits, GROUP))


@pytest.mark.parametrize("name", ["tangent", "logit"])
def test_states_and_latents_map_onto_each_other(name):
    geometry = make_geometry(name, GROUP, retraction="none")
    state = geometry.from_logits(normal(5, DIM))
    z = geometry.latent(state)
    torch.testing.assert_close(geometry.from_latent(z), state, rtol=0, atol=1e-12)
    torch.testing.assert_close(geometry.latent(geometry.from_latent(z)), z, rtol=0, atol=1e-12)


def test_a_latent_at_the_corner_has_finite_logits():
    corner = torch.zeros(1, 8, dtype=torch.float64)
    corner[0, 2] = 1.0
    geometry = LogitGeometry(8)
    y = geometry.from_latent(corner)
    assert y.isfinite().all()
    torch.testing.assert_close(geometry.latent(y), corner, rtol=0, atol=1e-5)


def test_logit_pushforward_is_the_derivative_of_the_softmax():
    geometry = LogitGeometry(GROUP)
    y, v = center(normal(5, DIM), GROUP), normal(5, DIM, seed=1)
    _, expected = torch.func.jvp(geometry.latent, (y,), (v,))
    torch.testing.assert_close(geometry.pushforward(y, v), expected, rtol=0, atol=1e-14)


def test_tangent_pushforward_is_the_velocity_itself():
    v = normal(5, DIM)
    assert torch.equal(TangentGeometry(GROUP, retract=False).pushforward(normal(5, DIM, seed=1), v), v)


def test_retraction_is_chosen_by_name():
    z, push = simnorm(normal(5, DIM), GROUP), normal(5, DIM, seed=1, scale=10.0)
    assert simplex_violation(make_geometry("tangent", GROUP, retraction="none").move(z, push), GROUP) > 1.0
    assert simplex_violation(make_geometry("tangent", GROUP, retraction="project").move(z, push), GROUP) < 1e-12


def test_violation_is_the_largest_wrong_sum_or_negative_part():
    z = torch.tensor([[0.5, 0.2, 0.5, 0.9], [0.5, 0.0, 0.5, 1.0]])  # groups (0, 2) and (1, 3)
    assert simplex_violation(z, 2).item() == pytest.approx(0.1)
    z = torch.tensor([[1.3, 0.5, -0.3, 0.5]])
    assert simplex_violation(z, 2).item() == pytest.approx(0.3)
    assert simplex_violation(torch.tensor([[0.5, 1.0, 0.5, 0.0]]), 2).item() == 0.0
