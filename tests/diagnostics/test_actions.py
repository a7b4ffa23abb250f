"""Figures of actions: saturation, spread, modes and shape, and returns against a Gaussian of equal moments."""

import json
import math
from dataclasses import replace

import pytest
import torch

from flowmbpo.diagnostics.action_modes import SAMPLES, SIGNIFICANCE
from flowmbpo.diagnostics.actions import (
    act_matched,
    draw_preactivations,
    match_gaussian,
    measure_actions,
    measure_dimensions,
    spread_across,
)
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.statistics import resample_counts
from flowmbpo.models.agent import build_agent

EFFORT = Effort(rows=48, resamples=50)
GAUSSIAN = "actor={kind: gaussian, units: [16]}"
FLOW = "actor={kind: flow, units: [16]}"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def figures(agent, u, task=None):
    task = torch.zeros(u.shape[1], dtype=torch.long) if task is None else task
    return measure_dimensions(agent, u, match_gaussian(u, SAMPLES, generator()), task, 50, generator(1))


@pytest.fixture
def agent(make_subject):
    return make_subject(GAUSSIAN, preset="mini-cartpole-residual").agent


def test_saturation_and_slope_by_hand(agent):
    u = torch.full((SAMPLES, 3, 1), 10.0)
    u[:, 0] = 0.0
    u[: SAMPLES // 2, 2] = -10.0
    (found,) = figures(agent, u)
    assert found.saturation.value == pytest.approx(2 / 3)
    assert found.tanh_slope.value == pytest.approx(1 / 3, abs=1e-6)
    assert found.preactivation.value == pytest.approx(20 / 3)
    assert found.mean.value == pytest.approx((0 + 1 + 0) / 3, abs=1e-6)
    assert found.states == 3


def test_gaussian_policy_is_unimodal_and_has_its_own_noise(make_subject):
    subject = make_subject(GAUSSIAN, preset="mini-cartpole-residual")
    (found,) = measure_actions(subject, EFFORT).dimensions
    assert found.multimodal.low <= SIGNIFICANCE
    assert found.multimodal.value <= SIGNIFICANCE
    # The mean std of 128 samples is .2% low; 48 states know it to .9%.
    assert found.source_ratio.value == pytest.approx(1.0, abs=0.03)
    assert abs(found.negentropy.value) < 0.02  # .03 of spread per state over sqrt(48), and more
    assert found.matched_std.value == pytest.approx(found.std_within.value, rel=0.05)


def test_a_policy_of_two_modes_is_called_multimodal(agent):
    sides = 2.5 * (torch.randint(0, 2, (SAMPLES, 40, 1), generator=generator()) * 2.0 - 1.0)
    u = 0.1 * (sides + torch.randn(SAMPLES, 40, 1, generator=generator(1)))
    (found,) = figures(agent, u)
    assert found.multimodal.low > 0.8
    # Negentropy of this mixture: its entropy is a Gaussian's plus nearly log 2, its variance 7.25 times as large.
    assert found.negentropy.value == pytest.approx(0.5 * math.log(7.25) - math.log(2.0), abs=0.06)


def test_a_wide_gaussian_saturates_but_has_one_mode(agent):
    (found,) = figures(agent, 10.0 * torch.randn(SAMPLES, 40, 1, generator=generator()))
    assert found.multimodal.low <= SIGNIFICANCE
    # P(|u| > atanh .99 = 2.647) with standard deviation 10.
    assert found.saturation.value == pytest.approx(math.erfc(0.2647 / math.sqrt(2.0)), abs=0.03)


def test_a_flow_that_contracts_its_noise_shows(make_subject):
    subject = make_subject(FLOW, preset="mini-cartpole-residual")
    actor = subject.agent.actor
    with torch.no_grad():
        for parameter in actor.velocity.parameters():
            parameter.zero_()
    (unmoved,) = measure_actions(subject, EFFORT).dimensions
    assert unmoved.source_ratio.value == pytest.approx(1.0, abs=0.03)

    def pull(inputs):  # da/dtau = -a
        return -inputs[:, -2:-1]

    actor.velocity.forward = pull
    (contracted,) = measure_actions(subject, EFFORT).dimensions
    # Two Heun steps of 1/2 on da/dtau = -a: (1 - 1/2 + 1/8)^2.
    assert contracted.source_ratio.value == pytest.approx(0.625**2, rel=0.03)


def test_the_noise_floor_is_part_of_the_spread(make_subject):
    subject = make_subject("actor={kind: gaussian, units: [16], noise_floor: 2.0}", preset="mini-cartpole-residual")
    start, context = subject.starts(50, generator())
    z = subject.agent.world_model.latent(start)
    u = draw_preactivations(subject.agent.actor, z, context, SAMPLES, generator())
    expected = math.sqrt(float(subject.agent.actor.logstd.detach().exp()) ** 2 + 4.0)
    assert float(u.std(0).mean()) == pytest.approx(expected, rel=0.03)  # .9% of sampling error


def test_spread_across_states_leaves_out_the_noise_within_them():
    n = 400
    counts = resample_counts(n, 200, generator())
    noise = torch.randn(SAMPLES, n, 2, generator=generator(), dtype=torch.float64)
    means = torch.randn(n, generator=generator(1), dtype=torch.float64)
    action = noise + torch.stack((0.5 * means, torch.zeros(n, dtype=torch.float64)), dim=-1)
    moving, still = spread_across(action, counts)
    assert moving.low < 0.5 < moving.high
    assert still.value < 0.04  # the uncorrected figure is 1/sqrt(128) = .088


def test_the_matched_gaussian_has_the_policys_mean_and_variance():
    states, few = 20_000, 4  # so few samples that the error of their mean would show
    u = 3.0 + 0.5 * torch.randn(few, states, 1, generator=generator(), dtype=torch.float64)
    drawn = match_gaussian(u, 1, generator(1)).flatten()
    assert float(drawn.mean()) == pytest.approx(3.0, abs=4.0 * 0.5 / math.sqrt(states))
    # 4 standard errors of heavier than Gaussian draws; without the correction it is a quarter more.
    assert float((drawn - 3.0).square().mean()) == pytest.approx(0.25, abs=4.0 * 0.25 * math.sqrt(3.2 / states))


def test_matched_actions_respect_the_mask(make_subject):
    subject = make_subject(FLOW, preset="mini-cartpole-residual")
    start, context = subject.starts(5, generator())
    z = subject.agent.world_model.latent(start)
    masked = replace(context, action_mask=torch.zeros_like(context.action_mask))
    assert act_matched(subject.agent.actor, z, masked, generator()).eq(0.0).all()
    assert act_matched(subject.agent.actor, z, context, generator()).abs().gt(0.0).all()


def test_every_task_of_a_set_has_its_own_dimensions_only(make_subject):
    subject = make_subject(GAUSSIAN, preset="mini-cartpole-residual")
    (task,) = subject.agent.spec.tasks
    spec = replace(subject.agent.spec, tasks=(replace(task, name="one"), replace(task, name="two", action_dim=2)))
    with torch.random.fork_rng(devices=[]):
        agent = build_agent(subject.config, spec).eval()
    u = torch.zeros(SAMPLES, 6, 2)
    u[:, 3:, 1] = 10.0
    found = figures(agent, u, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert [(one.task, one.dimension, one.states) for one in found] == [("one", 0, 3), ("two", 0, 3), ("two", 1, 3)]
    assert [one.saturation.value for one in found] == [0.0, 0.0, 1.0]
    assert found[0].std_within.value == 0.0


def test_a_gaussian_policy_earns_what_its_matched_gaussian_does(make_subject):
    subject = make_subject(GAUSSIAN, preset="mini-cartpole-residual")
    subject.episode_count = 16
    returns = measure_actions(subject, Effort(rows=8, resamples=10)).returns
    assert returns.n == 16
    assert returns.mean_action is None
    # One distribution: a t interval wider by half, for one look.
    difference = returns.sampled_minus_gaussian
    assert abs(difference.value) <= 1.5 * (difference.high - difference.low) / 2.0
    assert returns.sampled.value - returns.gaussian.value == pytest.approx(difference.value)


def test_without_noise_the_three_policies_are_one(make_subject):
    subject = make_subject(FLOW, preset="mini-cartpole-residual")
    with torch.no_grad():
        subject.agent.actor.log_noise_std.fill_(-30.0)
    returns = measure_actions(subject, Effort(rows=8, resamples=10)).returns
    assert returns.sampled_minus_deterministic.value == pytest.approx(0.0, abs=1e-2)
    assert returns.mean_action.value == pytest.approx(returns.deterministic.value, abs=1e-2)
    assert returns.sampled_minus_gaussian.value == pytest.approx(0.0, abs=1e-2)


def test_no_environment_no_returns(make_subject):
    subject = make_subject(preset="mini-cartpole-residual")
    assert subject.windows is subject.episodes  # the states come from episodes that were run before
    subject.make_env = None
    assert measure_actions(subject, EFFORT).returns is None


@pytest.mark.parametrize("actor", [GAUSSIAN, FLOW])
def test_a_diagnosis_repeats_and_can_be_written_and_drawn(make_subject, actor):
    from matplotlib.figure import Figure

    first, second = (measure_actions(make_subject(actor, preset="mini-cartpole-residual"), EFFORT) for _ in range(2))
    assert json.dumps(first.to_dict()) == json.dumps(second.to_dict())
    assert first.actor in ("gaussian", "flow")
    assert first.rows()
    first.draw(Figure())
