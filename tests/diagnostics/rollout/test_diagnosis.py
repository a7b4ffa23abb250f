"""Open-loop errors: exact models, the trivial predictor, windows that end, and hand-computed cases."""

import json
import math

import pytest
import torch
from torch import nn

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.rollout.diagnosis import (
    NOISE_SCALES,
    l1_errors,
    light_rollout,
    measure_rollout,
    observation_std,
    step_errors,
)
from flowmbpo.diagnostics.statistics import ratio_intervals, resample_counts, share_interval
from flowmbpo.envs.toy.lqr import regulator
from flowmbpo.models.open_loop import RealWindows, encode_windows, squared_errors, unroll

EFFORT = Effort(windows=48, horizon=8, resamples=50)
REGULATOR = (
    "task.name=toy-lqr",
    "model.latent_dim=4",
    "model.encoder={kind: identity}",
    "model.dynamics={kind: residual, units: [8], geometry: euclidean}",
)


class TrueDynamics(nn.Module):
    """x' = A x + B u, the regulator's own."""

    stochastic = False

    def forward(self, s, action, task, generator=None):
        problem = regulator()
        return (s.double() @ problem.transition.T + action.double() @ problem.control.T).to(s.dtype)


class TrueReward(nn.Module):
    """-(x'Qx + u'Ru)."""

    def forward(self, inputs):
        problem = regulator()
        x, u = inputs[:, :4].double(), inputs[:, 4:].double()
        return -(x.square() @ problem.state_cost.diagonal() + u.square() @ problem.action_cost.diagonal()).float()


class NoChange(nn.Module):
    """The trivial predictor."""

    stochastic = False

    def forward(self, s, action, task, generator=None):
        return s


@pytest.fixture
def regulated(make_subject):
    """An agent that knows the regulator exactly."""
    subject = make_subject(*REGULATOR, preset="mini-cartpole-residual")
    subject.agent.world_model.dynamics = TrueDynamics()
    subject.agent.world_model.reward_head = TrueReward()
    return subject


def by_hand(z, valid, reward=None):
    """Windows of one latent dimension: z [T + 1, B], valid [T, B]."""
    z = torch.tensor(z).unsqueeze(-1)
    valid = torch.tensor(valid)
    batch = Batch(
        obs=z,
        action=torch.zeros(*valid.shape, 1),
        reward=torch.zeros(valid.shape) if reward is None else torch.tensor(reward),
        terminated=torch.zeros_like(valid),
        valid=valid,
        task=torch.zeros(valid.shape[1], dtype=torch.long),
    )
    return RealWindows(batch, None, z, z)


def counts(n):
    return resample_counts(n, 50, torch.Generator().manual_seed(0))


def test_a_perfect_model_has_no_error(regulated):
    found = measure_rollout(regulated, EFFORT)
    assert [step.step for step in found.steps] == list(range(1, 9))
    for step in found.steps:
        assert step.relative.value < 1e-10  # float32 rounding of the real states
        assert step.reward_rmse.value < 1e-5
        assert step.reward_correlation.value == pytest.approx(1.0)
    assert found.noise[0].relative_l1.value < 1e-4
    assert not found.stochastic


def test_more_observation_noise_costs_a_perfect_model_more(regulated):
    found = measure_rollout(regulated, EFFORT)
    errors = [noise.relative_l1.value for noise in found.noise]
    assert [noise.scale for noise in found.noise] == list(NOISE_SCALES)
    assert errors == sorted(errors)
    # The regulator is linear: beyond rounding, the error is proportional to the noise.
    assert errors[-1] == pytest.approx(8.0 * errors[1], rel=1e-3)


def test_the_trivial_predictor_has_ratio_1(regulated):
    regulated.agent.world_model.dynamics = NoChange()
    found = measure_rollout(regulated, EFFORT)
    for step in found.steps:
        assert (step.relative.value, step.relative.low, step.relative.high) == (1.0, 1.0, 1.0)
        assert step.error == step.trivial
    for noise in found.noise:
        assert noise.relative_l1 == noise.trivial


def test_windows_are_cut_where_their_episode_ends():
    real = by_hand([[0.0, 0.0], [1.0, 2.0], [3.0, 9.0]], [[True, True], [True, False]], [[1.0, 2.0], [3.0, 7.0]])
    predicted = torch.tensor([[0.0, 0.0], [2.0, 3.0], [1.0, math.nan]]).unsqueeze(-1)
    error, trivial = squared_errors(predicted, real.z, real.batch.valid)
    assert error.tolist() == [[1.0, 1.0], [4.0, 0.0]]
    assert trivial.tolist() == [[1.0, 4.0], [9.0, 0.0]]
    rewards = torch.tensor([[2.0, 4.0], [0.0, math.nan]])
    first, second = step_errors(predicted, real, rewards, counts(2))
    assert (first.n, second.n) == (2, 1)
    assert first.relative.value == pytest.approx(2.0 / 5.0)
    assert second.relative.value == pytest.approx(4.0 / 9.0)
    assert (first.error, second.error) == (1.0, 4.0)
    assert first.reward_rmse.value == pytest.approx(math.sqrt((1.0 + 4.0) / 2.0))
    assert second.reward_rmse.value == 3.0
    assert first.reward_std == 0.5


def test_steps_that_no_window_reaches_are_left_out():
    real = by_hand([[0.0], [1.0], [1.0]], [[True], [False]])
    assert [step.step for step in step_errors(real.z, real, torch.zeros(2, 1), counts(1))] == [1]


def test_what_never_changes_has_no_ratio():
    real = by_hand([[2.0, 2.0], [2.0, 2.0]], [[True, True]])
    (step,) = step_errors(real.z, real, torch.zeros(1, 2), counts(2))
    assert math.isnan(step.relative.value)
    assert math.isnan(step.reward_correlation.value)


def test_reward_correlation_and_its_interval():
    n = 400
    rng = torch.Generator().manual_seed(1)
    truth = torch.randn(n, generator=rng)
    guess = 0.6 * truth + 0.8 * torch.randn(n, generator=rng)
    real = by_hand([[0.0] * n, [1.0] * n], [[True] * n], [truth.tolist()])
    found = step_errors(real.z, real, guess.unsqueeze(0), resample_counts(n, 1000, rng))[0].reward_correlation
    assert found.low < 0.6 < found.high
    # Fisher's interval: atanh r +- 1.96 / sqrt(n - 3).
    half = 1.96 / math.sqrt(n - 3)
    assert found.low == pytest.approx(math.tanh(math.atanh(found.value) - half), abs=0.02)
    assert found.high == pytest.approx(math.tanh(math.atanh(found.value) + half), abs=0.02)


def test_l1_errors_by_hand():
    z = torch.tensor([[[1.0, 1.0]], [[3.0, -1.0]], [[0.0, 0.0]]])
    real = RealWindows(by_hand([[0.0], [0.0], [0.0]], [[True], [False]]).batch, None, z, z)
    predicted = torch.tensor([[[1.0, 1.0]], [[2.0, 1.0]], [[5.0, 5.0]]])
    error, norm = l1_errors(predicted, real)
    assert error.tolist() == [[1.0 + 2.0], [0.0]]
    assert norm.tolist() == [[4.0], [0.0]]


def test_relative_l1_is_the_mean_of_ratios_on_the_simplex(make_subject):
    subject = make_subject(preset="mini-cartpole-residual")
    found = measure_rollout(subject, EFFORT)
    batch = subject.windows.sample(EFFORT.windows, EFFORT.horizon, subject.generator("rollout"))
    model = subject.agent.world_model
    real = encode_windows(model, batch)
    error, norm = l1_errors(unroll(model, real.states[0], batch.action, real.context), real)
    mean_of_ratios = float((error / norm)[batch.valid].mean())
    assert found.noise[0].relative_l1.value == pytest.approx(mean_of_ratios, rel=1e-5)  # norms are 1 to float32


def test_observation_std_is_the_tasks_own_and_ignores_padding():
    obs = torch.tensor([[0.0, 5.0, 1.0], [2.0, 5.0, 3.0], [100.0, 7.0, 5.0]]).unsqueeze(-1)
    batch = Batch(
        obs=obs,
        action=torch.zeros(2, 3, 1),
        reward=torch.zeros(2, 3),
        terminated=torch.zeros(2, 3, dtype=torch.bool),
        valid=torch.tensor([[True, True, True], [False, True, True]]),
        task=torch.tensor([0, 1, 1]),
    )
    own = torch.tensor([5.0, 5.0, 7.0, 1.0, 3.0, 5.0]).std(correction=0)
    assert observation_std(batch)[:, 0].tolist() == pytest.approx([1.0, float(own), float(own)])


@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_errors_are_on_the_latent_in_either_geometry(make_subject, geometry):
    subject = make_subject(
        "model.dynamics={kind: residual, units: [24], geometry: " + geometry + "}", preset="mini-cartpole-residual"
    )
    model = subject.agent.world_model
    batch = subject.windows.sample(16, 4, subject.generator("test"))
    real = encode_windows(model, batch)
    predicted = unroll(model, real.states[0], batch.action, real.context)
    assert float(model.geometry.violation(real.z)) < 1e-5  # of states that are logits it is of order 1
    state = real.states[0]
    for t in range(4):
        state = model.next(state, batch.action[t], real.context)
    expected = (model.latent(state) - model.latent(model.encode(batch.obs[4], real.context))).square().mean(-1)
    found, _ = squared_errors(predicted, real.z, real.batch.valid)
    assert torch.allclose(found[3].float(), expected * batch.valid[3], atol=1e-7)


def test_a_symlog_head_is_read_in_real_units(make_subject):
    subject = make_subject("model.reward={kind: two_hot, units: [8], decode: symlog}", preset="mini-cartpole-residual")
    start, context = subject.starts(4, subject.generator("test"))
    model = subject.agent.world_model
    z, action = model.latent(start), torch.zeros(4, 1)
    symlog = model.reward(z, action, context)
    expected = subject.agent.reward_normalizer.inverse(symlog.sign() * (symlog.abs().exp() - 1.0))
    assert torch.allclose(subject.agent.predict_reward(z, action, context), expected, atol=1e-6)


@pytest.mark.parametrize("preset", ["quickstart", "mini-cartpole-gaussian"])
def test_light_figures_are_the_full_ones(make_subject, preset):
    effort = Effort(windows=32, horizon=8, resamples=10)
    found = light_rollout(make_subject(preset=preset), effort)
    assert set(found) == {"rollout_error/1", "rollout_error/4", "rollout_error/8"}  # 16 lies beyond the horizon
    steps = {step.step: step.relative.value for step in measure_rollout(make_subject(preset=preset), effort).steps}
    for k in (1, 4, 8):
        assert found[f"rollout_error/{k}"] == pytest.approx(steps[k], rel=1e-9)


def test_light_figures_leave_out_what_is_undefined(make_subject):
    subject = make_subject(*REGULATOR, preset="mini-cartpole-residual")
    for parameter in subject.agent.world_model.encoder.parameters():
        parameter.data.zero_()
    subject.agent.world_model.encoder.forward = lambda x: torch.zeros(len(x), 4)
    assert light_rollout(subject, Effort(windows=8, horizon=4)) == {}


@pytest.mark.parametrize("preset", ["mini-cartpole-residual", "mini-cartpole-gaussian"])
def test_a_diagnosis_repeats_and_can_be_written_and_drawn(make_subject, preset):
    from matplotlib.figure import Figure

    effort = Effort(windows=24, horizon=20, resamples=20)
    first, second = (measure_rollout(make_subject(preset=preset), effort) for _ in range(2))
    assert first.stochastic is (preset == "mini-cartpole-gaussian")
    assert json.dumps(first.to_dict()) == json.dumps(second.to_dict())
    assert first.rows()
    first.draw(Figure())


def test_ratio_intervals_are_of_ratios_of_sums():
    numerator, denominator = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    first, second = ratio_intervals(numerator, denominator, counts(2))
    assert first.value == 1.0
    assert (first.low, first.high) == (0.5, 1.5)  # either row twice
    assert math.isnan(second.value)


def test_share_interval_is_wilsons():
    found = share_interval(0, 10)
    z = 1.959963984540054
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(z**2 / (10 + z**2))
