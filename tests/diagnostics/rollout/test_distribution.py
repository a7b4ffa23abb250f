"""Distributions of futures against real ones: a true model, one that sees no chance, endings, and events."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.rollout.distribution import known_outcomes, measure_distribution
from flowmbpo.diagnostics.rollout.futures import (
    FUTURE_STEPS,
    live_through,
    measure_conditional,
    sample_futures,
    squared_difference,
)
from flowmbpo.envs.make import make_env
from flowmbpo.envs.toy.risk import Gust
from flowmbpo.models.open_loop import RealWindows, encode_windows, unroll

EFFORT = Effort(windows=64, horizon=16, resamples=100)
GUST = (
    "task.name=toy-gust",
    "model.latent_dim=2",
    "model.encoder={kind: identity}",
    "model.dynamics={kind: residual, units: [8], geometry: euclidean}",
)


class TrueGust(nn.Module):
    """The gust's own transition, with its own noise: none at all without a generator."""

    def __init__(self, system, calm):
        super().__init__()
        self.system, self.stochastic = system, not calm

    def forward(self, s, action, task, generator=None):
        noise = torch.full((len(s), 1), 0.5)
        if generator is not None and self.stochastic:
            noise = torch.rand(len(s), 1, generator=generator)
        reached, _ = self.system.transition(s[:, :1], action, noise)
        return self.system.observe(reached)


class RewardOfState(nn.Module):
    """-y^2 of the state that is left: known before the noise, so that a model can be exact."""

    def forward(self, inputs):
        return -inputs[:, 0].square()


@pytest.fixture
def gusty(make_subject, monkeypatch):
    """A subject whose model is the gust itself (calm: without its pushes), reward of the state that is left."""

    def transition(self, state, action, noise):
        reached, _ = original(self, state, action, noise)
        return reached, -state[:, 0].square()

    original = Gust.transition
    monkeypatch.setattr(Gust, "transition", transition)

    def make(calm=False):
        subject = make_subject(*GUST, preset="mini-cartpole-residual")
        system = make_env(subject.config.task, num_envs=1).simulator.system
        subject.agent.world_model.dynamics = TrueGust(system, calm)
        subject.agent.world_model.reward_head = RewardOfState()
        return subject

    return make


def measured(subject):
    batch = subject.windows.sample(EFFORT.windows, EFFORT.horizon, subject.generator("test"))
    real = encode_windows(subject.agent.world_model, batch)
    return measure_distribution(subject, real, EFFORT)


def test_true_model_is_at_distance_0_from_true_futures(gusty):
    for step in measure_conditional(gusty(), {1: -0.1, 4: -1.0, 16: -10.0}):
        for interval in (step.states, step.low_bias, step.low_error):
            # 99.7% rather than 95%: nine intervals are looked at together.
            half = 1.5 * (interval.high - interval.low) / 2.0
            assert abs(interval.value) <= half
        if step.step == 1:  # the first reward is known: no distance, and no spread either
            assert abs(step.rewards.value) < 1e-6
        else:
            assert abs(step.rewards.value) <= 1.5 * (step.rewards.high - step.rewards.low) / 2.0


def test_a_model_that_sees_no_chance_is_found_out(gusty):
    for step in measure_conditional(gusty(calm=True), {4: -1.0, 16: -10.0}):
        assert step.states.low > 0.0
        assert step.rewards.low > 0.0


def test_a_calm_model_scores_worse_on_real_windows(gusty):
    true, calm = measured(gusty()), measured(gusty(calm=True))
    assert (true.samples, calm.samples) == (32, 1)
    for a, b in zip(true.steps, calm.steps, strict=True):
        assert a.state_score.value < b.state_score.value
    assert true.steps[-1].reward_score.value < calm.steps[-1].reward_score.value


def test_a_deterministic_model_predicts_0_or_1(gusty):
    found = measured(gusty(calm=True))
    assert {event.step for event in found.events} == {4, 16}
    for event in found.events:
        assert event.calibration.fair_brier == event.calibration.brier.value
        assert {part.predicted for part in event.calibration.bins} <= {0.0, 1.0}


def test_a_system_without_noise_has_no_other_futures(make_subject):
    assert measure_conditional(make_subject(), {1: 0.0}) is None


def test_a_system_that_can_end_is_not_lived_through(gusty, monkeypatch):
    subject = gusty()
    system = make_env(subject.config.task, num_envs=1).simulator.system
    ending = replace(system.task, can_terminate=True)
    monkeypatch.setattr(Gust, "task", property(lambda self: ending, lambda self, value: None), raising=False)
    assert measure_conditional(subject, {1: 0.0}) is None


def test_a_subject_without_environment_has_no_true_futures(gusty):
    subject = gusty()
    subject.make_env = None
    assert measure_conditional(subject, {1: 0.0}) is None


def test_live_through_follows_the_system(gusty):
    system = make_env(gusty().config.task, num_envs=1).simulator.system
    system.push = 0.0
    observed, summed = live_through(
        system, torch.tensor([[1.0]]), torch.full((4, 1, 1), 1.0), 2, torch.Generator().manual_seed(0)
    )
    assert tuple(observed) == (1, 4)
    assert observed[1][:, 0, 0].tolist() == pytest.approx([1.15, 1.15])
    assert observed[4][:, 0, 0].tolist() == pytest.approx([1.6, 1.6])
    assert summed[4][:, 0].tolist() == pytest.approx([-(1.0 + 1.15**2 + 1.3**2 + 1.45**2)] * 2, rel=1e-6)


def test_squared_difference_has_no_bias():
    n, repeats = 8, 20_000
    rng = torch.Generator().manual_seed(0)
    p = (torch.rand(repeats, n, generator=rng) < 0.3).double().mean(1)
    q = (torch.rand(repeats, n, generator=rng) < 0.5).double().mean(1)
    found = squared_difference(p, q, n)
    assert float(found.mean()) == pytest.approx(0.04, abs=4.0 * float(found.std()) / repeats**0.5)


class AlwaysEnds(nn.Module):
    """Logits of certain termination."""

    def forward(self, inputs):
        return torch.full((len(inputs), 1), 50.0)


def test_no_reward_is_predicted_behind_a_predicted_ending(gusty):
    subject = gusty(calm=True)
    agent = subject.agent
    start, context = subject.encode(torch.tensor([[1.0, 0.0]]), torch.zeros(1, dtype=torch.long))
    action = torch.zeros(16, 1, 1)
    going = sample_futures(agent, start, action, context, 3, subject.generator("test"))
    agent.world_model.termination_head = AlwaysEnds()
    ending = sample_futures(agent, start, action, context, 3, subject.generator("test"))
    assert tuple(going) == FUTURE_STEPS
    for k in FUTURE_STEPS:
        assert going[k].reward_sum.flatten().tolist() == pytest.approx([-float(k)] * 3)
        assert ending[k].reward_sum.flatten().tolist() == pytest.approx([-1.0] * 3)
        assert not going[k].ended.any()
        assert ending[k].ended.all()


class Constant(nn.Module):
    """The same output everywhere: of width `columns`, or none."""

    def __init__(self, value, *columns):
        super().__init__()
        self.value, self.columns = value, columns

    def forward(self, inputs):
        return torch.full((len(inputs), *self.columns), self.value)


def lives(subject, count, chance, seed):
    """Windows of a system that is the subject's calm model: reward 1 a step, each the last with `chance`."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.rand(16, count, generator=generator) < chance
    valid = torch.cat((torch.ones(1, count, dtype=torch.bool), ends.cumsum(0)[:-1] == 0))
    obs = subject.agent.world_model.dynamics.system.observe(torch.randn(count, 1, generator=generator))
    states, context = subject.encode(obs, torch.zeros(count, dtype=torch.long))
    action = torch.zeros(16, count, 1)
    z = unroll(subject.agent.world_model, states, action, context)
    batch = Batch(z, action, valid.float(), ends & valid, valid, torch.zeros(count, dtype=torch.long))
    return RealWindows(batch, context, z, z)


def test_true_model_of_endings_is_at_distance_0(gusty):
    """The perfect energy distance is 0: its interval leaves 0 out in 5% of cases at most, here in none of 8.

    With the windows alone whose real episode went on, the reward sums' distance would be 3.8 at step 16.
    """
    subject = gusty(calm=True)
    subject.agent.world_model.termination_head = Constant(math.log(0.05 / 0.95), 1)
    subject.agent.world_model.reward_head = Constant(1.0)
    found = measure_distribution(subject, lives(subject, 256, 0.05, seed=0), EFFORT)
    assert [step.step for step in found.steps] == list(FUTURE_STEPS)
    for step in found.steps:
        assert step.rewards.distance.low <= 1e-9
        assert step.states.distance.low <= 1e-9
        assert step.rewards.n == 256  # endings are outcomes too
        assert step.states.n == pytest.approx(256 * 0.95**step.step, abs=32)  # 4 standard deviations of the survivors
        assert step.state_score.value == pytest.approx(0.0, abs=1e-6)  # who lives is where the model says
    # CRPS of the true distribution of min(G, 16), G geometric: sum over k < 16 of F(k) (1 - F(k)).
    share = [1.0 - 0.95**k for k in range(1, 16)]
    score = found.steps[-1].reward_score
    assert score.low <= sum(f * (1.0 - f) for f in share) <= score.high


def test_states_are_left_out_where_nothing_goes_on(gusty):
    subject = gusty(calm=True)
    subject.agent.world_model.termination_head = Constant(0.0, 1)
    subject.agent.world_model.reward_head = Constant(1.0)
    last = measure_distribution(subject, lives(subject, 64, 0.5, seed=0), EFFORT).steps[-1]
    assert (last.states, last.state_score) == (None, None)
    assert last.rewards.distance.low <= 0.0 <= last.rewards.distance.high


def test_outcomes_are_known_inside_episodes_and_behind_terminations():
    valid = torch.tensor([[True, True, True], [True, False, False]])
    terminated = torch.tensor([[False, True, False], [False, False, False]])
    batch = Batch(
        torch.zeros(3, 3, 1), torch.zeros(2, 3, 1), torch.zeros(2, 3), terminated, valid, torch.zeros(3).long()
    )
    real = RealWindows(batch, None, batch.obs, batch.obs)
    assert known_outcomes(real.batch, 1).tolist() == [True, True, True]
    assert known_outcomes(real.batch, 2).tolist() == [True, True, False]  # the last was cut by the time limit


def test_terminations_are_an_event_where_the_task_has_them(gusty):
    subject = gusty(calm=True)
    subject.agent.spec = replace(
        subject.agent.spec, tasks=tuple(replace(task, can_terminate=True) for task in subject.agent.spec.tasks)
    )
    found = [event for event in measured(subject).events if event.event == "termination"]
    assert [event.step for event in found] == [4, 16]
    assert all(event.calibration.base_rate.value == 0.0 == event.calibration.predicted_rate for event in found)


def test_it_can_be_written_and_read(gusty):
    found = measured(gusty())
    assert json.loads(json.dumps(found.to_dict()))["samples"] == 32
    assert any("true futures" in name for name, _ in found.rows())
