"""A perfect model of the linear-quadratic regulator: every gradient has a closed form."""

from types import SimpleNamespace

import pytest
import torch

from flowmbpo.diagnostics.gradient.diagnosis import compare_gradients, measure_gradient
from flowmbpo.diagnostics.gradient.objective import FixedNoise, RealObjective, collect_starts
from flowmbpo.diagnostics.gradient.reference import difference_gradient, exact_gradient
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.envs.toy.lqr import LinearQuadratic, regulator
from flowmbpo.training.updates import actor_objective, frozen


def return_gradient(
    problem: LinearQuadratic,
    gain: torch.Tensor,
    state: torch.Tensor,
    horizon: int,
    discount: float = 1.0,
) -> torch.Tensor:
    """d/dK of the H-step return of u = -K x, meant over the states, in closed form.

    -2 sum_t g^t (R K - g B' P_t+1 (A - BK)) X_t, where X_t is the mean of x_t x_t' and P_t the cost
    matrix of this policy's remaining steps, P_t = Q + K'RK + g (A - BK)'P_t+1(A - BK), P_H = 0
    (after Fazel et al. 2018, lemma 1, for a finite horizon).
    """
    closed = problem.transition - problem.control @ gain
    paid = problem.state_cost + gain.T @ problem.action_cost @ gain
    values = [torch.zeros_like(paid)]
    for _ in range(horizon - 1):
        values.append(paid + discount * closed.T @ values[-1] @ closed)
    moment = state.T @ state / len(state)
    gradient = torch.zeros_like(gain)
    for step, value in enumerate(reversed(values)):
        advantage = problem.action_cost @ gain - discount * problem.control.T @ value @ closed
        gradient = gradient - 2.0 * discount**step * advantage @ moment
        moment = closed @ moment @ closed.T
    return gradient


GAMMA, HORIZON = 0.97, 8
EFFORT = Effort(resamples=200)


def model_gradient_of(subject, state, horizon=HORIZON):
    """The gradient that an actor update takes: backpropagation through `actor_objective`."""
    agent, training = subject.agent, subject.config.training
    context = agent.world_model.context(torch.zeros(len(state), dtype=torch.long))
    with frozen(agent.world_model, agent.critic):
        start = agent.world_model.encode(state, context)
        objective = actor_objective(agent, start, context, training, torch.Generator(), horizon)
        (slope,) = torch.autograd.grad(objective.loss, agent.actor.gain)
    return -slope


@pytest.mark.parametrize("horizon", [1, 2, 8, 16])
def test_actor_gradient_of_a_perfect_model_is_the_closed_form(make_regulator, gain, horizon):
    """To 1e-10 where 1e-5 is asked: nothing but float64's rounding is between the two."""
    subject = make_regulator("training.horizon=16", dtype=torch.float64)
    state = torch.randn(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3
    found = model_gradient_of(subject, state, horizon)
    exact = return_gradient(regulator(), gain.double(), state, horizon, GAMMA)
    assert (found - exact).norm() <= 1e-10 * exact.norm()


def test_detached_input_leaves_out_responses_of_later_actions(make_regulator, gain):
    state = torch.full((1, 4), 0.3, dtype=torch.float64)
    subject = make_regulator("training.actor_input_gradient=detached", dtype=torch.float64)
    exact = return_gradient(regulator(), gain.double(), state, HORIZON, GAMMA)
    cut = model_gradient_of(subject, state)
    assert (cut - exact).norm() > 0.05 * exact.norm()
    one_step = return_gradient(regulator(), gain.double(), state, 1, GAMMA)
    assert torch.allclose(model_gradient_of(subject, state, 1), one_step)  # one action has no later one


def real_gradients(subject, env, reference, **options):
    """A reference in the real environment, the closed form at its start states, and the starts."""
    generator = subject.generator("test")
    starts = collect_starts(subject.agent.act, env, moments=2, horizon=HORIZON, seed=3, generator=generator)
    context = subject.agent.world_model.context(starts.task)
    policy = FixedNoise(subject.agent.actor, torch.zeros(HORIZON, 2, dtype=torch.long), starts.copies)
    objective = RealObjective(subject.agent, policy, context, torch.full((starts.copies,), GAMMA), HORIZON)
    found = reference(objective, env, starts, **options)
    gain = subject.agent.actor.gain.detach().double()
    rows = [return_gradient(regulator(), gain, starts.obs[:, copy].double(), HORIZON, GAMMA) for copy in range(4)]
    return SimpleNamespace(
        found=found,
        parameters=found.parameters(objective)[0],
        closed=torch.stack(rows).flatten(1),
        starts=starts,
    )


def test_the_exact_reference_is_the_closed_form_copy_by_copy(make_regulator):
    """The environment computes in float32: 8 steps of rounding at 6e-8 leave well below 1e-4."""
    subject = make_regulator()
    got = real_gradients(subject, subject.open_env(4), exact_gradient)
    for half in got.parameters:
        assert torch.allclose(half.double(), got.closed, rtol=1e-4, atol=1e-5 * float(got.closed.abs().max()))


def test_differences_approach_the_closed_form_with_delta_squared(make_regulator):
    """The objective is quadratic in the action, tanh is not. 2% at the default: terms that cancel carry the error."""
    subject = make_regulator()
    errors = {}
    for delta in (0.1, 0.05):
        options = {"directions": 2, "generator": torch.Generator(), "delta": delta}
        got = real_gradients(subject, subject.open_env(4), difference_gradient, **options)
        assert got.parameters[0].equal(got.parameters[1])  # both action dimensions: nothing is random
        assert got.found.sound.all()
        errors[delta] = float((got.parameters[0].double() - got.closed).norm() / got.closed.norm())
    assert errors[0.05] < 0.02
    assert errors[0.1] / errors[0.05] == pytest.approx(4.0, rel=0.2)  # rounding and fourth order take the rest


@pytest.mark.parametrize("exact", [True, False])
def test_a_perfect_model_has_cosine_1_and_norm_ratio_1(make_regulator, exact):
    subject = make_regulator()
    found = compare_gradients(subject, subject.open_env(8), EFFORT, exact=exact)
    assert found.reference == ("autodiff" if exact else "differences")
    for alignment in (found.through, found.actions, *found.steps):
        assert alignment.cosine.value > 0.9999
        assert alignment.cosine.low > 0.999
        assert alignment.norm_ratio.value == pytest.approx(1.0, abs=0.01)
    assert found.objective["gap"].value == pytest.approx(0.0, abs=1e-5)
    assert found.objective["real"].value < 0.0


def test_actions_that_push_the_wrong_way_have_negative_cosine(make_regulator):
    found = measure_gradient(make_regulator(control=-1.0), EFFORT)
    assert found.reference == "autodiff"
    assert found.through.cosine.high < 0.0
    assert found.actions.cosine.high < 0.0


def test_actions_that_do_half_have_right_direction_and_short_gradient(make_regulator):
    found = measure_gradient(make_regulator(control=0.5), EFFORT)
    assert found.actions.cosine.low > 0.5
    assert found.actions.norm_ratio.high < 0.8


def test_detached_gradient_is_told_from_the_through_one(make_regulator):
    found = measure_gradient(make_regulator("training.actor_input_gradient=detached"), EFFORT)
    assert found.input_gradient == "detached"
    assert found.gradient is found.detached
    assert found.through.cosine.value > 0.9999
    assert found.detached.cosine.high < 0.995  # 8 steps of small gains: later responses are 1% of it
