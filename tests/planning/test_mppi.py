"""The search: known optima, the plan's memory, masks, batches, and values that are no numbers."""

import logging
import math
from dataclasses import asdict, replace

import pytest
import torch

from flowmbpo.planning.mppi import PlanNoise, select_elites, shifted

TASKS = torch.zeros(3, dtype=torch.long)


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(-1)


def riccati(cost, gamma, gain=0.5):
    """Price p of -p x^2 and gain k of a = -k x, for x' = x + gain a and reward -(x^2 + cost a^2)."""
    price = 1.0
    for _ in range(1000):
        k = gamma * gain * price / (cost + gamma * gain**2 * price)
        price = 1.0 + gamma * price - k * gamma * gain * price
    return price, k


@pytest.mark.parametrize("horizon", [1, 3])
def test_linear_quadratic_optimum_is_found_at_every_horizon(line, plan, horizon):
    """With the infinite horizon's value at its end, the best first action is -k x whatever the horizon."""
    price, k = riccati(0.1, 0.9)
    start = column(-0.4, 0.1, 0.5)
    sharp = {"samples": 512, "elites": 32, "iterations": 12, "min_std": 1e-3, "horizon": horizon}
    action = plan(line(cost=0.1, price=price), **sharp).act(start, TASKS)
    # An elite is drawn: it differs from the optimum by the last std, 1e-3 (at most 6e-4 in ten seeds).
    torch.testing.assert_close(action, -k * start, atol=5e-3, rtol=0)


def test_what_comes_after_the_horizon_decides_through_the_terminal_value(line, plan):
    """One step whose reward does not see where it leads: without a value the best action is 0, with one it moves."""
    blind, seeing = (plan(line(price=p), horizon=1, samples=256).act(column(0.5), TASKS[:1]) for p in (0.0, 10.0))
    assert abs(float(blind)) < 0.1  # the std's floor is 0.05
    # -gamma 0.5 p x / (c + gamma 0.25 p) = -2.25 / 2.35 of a one-step problem
    assert float(seeing) == pytest.approx(-2.25 / 2.35, abs=0.1)


def test_optimum_outside_the_bounds_is_taken_to_the_bound(line, plan):
    action = plan(line(price=10.0), samples=256).act(column(30.0, -30.0, 30.0), TASKS)
    torch.testing.assert_close(action, column(-1.0, 1.0, -1.0), atol=1e-9, rtol=0)


def test_plan_is_shifted_by_one_and_ends_in_zero():
    mean = torch.arange(1.0, 7.0).view(3, 2, 1)
    assert shifted(mean).flatten().tolist() == [3.0, 4.0, 5.0, 6.0, 0.0, 0.0]
    assert shifted(mean[:1]).flatten().tolist() == [0.0, 0.0]


def test_next_plan_begins_at_shifted_mean_and_whole_std(line, plan, monkeypatch):
    planner = plan(line(price=1.0))
    planner.act(column(0.4, -0.2, 0.1), TASKS)
    before, noises = planner.mean.clone(), []
    make_noise = planner._noise
    monkeypatch.setattr(planner, "_noise", lambda context: noises.append(make_noise(context)) or noises[-1])
    planner.start(torch.tensor([False, True, False]))
    planner.objective.seen.clear()
    planner.act(column(0.4, -0.2, 0.1), TASKS)
    mean = shifted(before)
    assert mean[0].abs().min() > 0
    mean[:, 1] = 0.0  # this copy began an episode
    expected = (mean.unsqueeze(2) + 2.0 * noises[0].proposals[0]).clamp(-1.0, 1.0)
    first = planner.objective.seen[0].view(3, 3, 32, 1)
    assert torch.equal(first[:, :, 4:], expected)
    assert (first[:, :, :4] == 0.25).all()  # the policy's


def test_the_policys_sequences_compete_in_every_iteration(line, plan):
    planner = plan(line(habit=-0.125), iterations=5)
    planner.act(column(0.4), TASKS[:1])
    assert len(planner.objective.seen) == 5
    assert all((seen.view(3, 1, 32)[:, :, :4] == -0.125).all() for seen in planner.objective.seen)


def test_elites_weights_moments_and_choice_by_hand():
    """Values 1, 1 - 2 ln 2 and -9 at temperature 0.5: weights 1 : 1/2, the third is no elite."""
    values = torch.tensor([[-9.0, 1.0, 1.0 - 2.0 * math.log(2.0)]], dtype=torch.float64)
    actions = torch.tensor([0.7, 1.0, -0.5], dtype=torch.float64).view(1, 1, 3, 1)
    elites = select_elites(actions, values, 2, 0.5)
    torch.testing.assert_close(elites.weights, torch.tensor([[2.0, 1.0]], dtype=torch.float64) / 3.0)
    mean, std = elites.moments()
    assert float(mean) == pytest.approx(0.5)
    assert float(std) == pytest.approx(math.sqrt(2 / 3 * 0.25 + 1 / 3 * 1.0))
    drawn = [float(elites.choose(torch.tensor([u], dtype=torch.float64))) for u in (0.0, 0.66, 0.67, 0.999999)]
    assert drawn == [1.0, 1.0, -0.5, -0.5]


def test_an_elite_of_weight_zero_never_counts():
    values = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    actions = torch.tensor([0.5, torch.nan, torch.nan]).view(1, 1, 3, 1)
    elites = select_elites(actions, values, 3, 0.5)
    assert elites.weights.tolist() == [[1.0, 0.0, 0.0]]
    assert [float(x) for x in elites.moments()] == [0.5, 0.0]
    assert float(elites.choose(torch.tensor([1.0 - 2.0**-24]))) == 0.5


def test_std_stays_between_its_bounds_and_masked_dimensions_stay_zero(line, plan):
    objective = line(width=2, price=1.0)
    open_context = objective.model.context

    def narrow(task):
        context = open_context(task)
        mask = context.action_mask.clone()
        mask[1:, 1] = 0.0
        return replace(context, action_mask=mask)

    objective.model.context = narrow
    planner = plan(objective, explore=True, max_std=0.5)
    start = torch.tensor([[0.5, 0.5], [0.5, 0.5], [-0.5, 0.5]], dtype=torch.float64)
    for _ in range(3):
        action = planner.act(start, TASKS)
        assert (action[1:, 1] == 0).all() and (action[0] != 0).all() and (action[1:, 0] != 0).all()
    for seen in objective.seen:
        sequences = seen.view(3, 3, 32, 2)
        assert (sequences[:, 1:, :, 1] == 0).all() and (sequences[:, 0, 4:] != 0).any()
    assert (planner.mean[:, 1:, 1] == 0).all()


def test_exploration_adds_the_plans_last_std_times_the_noise(line, plan):
    objective = line(price=1.0)
    start, context = column(0.1), objective.model.context(TASKS[:1])
    noise = plan(objective)._noise(context)
    quiet, noisy = (
        plan(objective, explore=flag).search(start, context, torch.zeros(3, 1, 1, dtype=torch.float64), noise)[0]
        for flag in (False, True)
    )
    step = float(noisy - quiet) / float(noise.action)
    assert 0.05 - 1e-9 <= step <= 2.0  # one of the stds that are allowed


def sliced(noise, copy):
    return PlanNoise(
        noise.proposals[:, :, copy : copy + 1], noise.choice[copy : copy + 1], noise.action[copy : copy + 1]
    )


@pytest.mark.parametrize("rows", [1, 64, 10_000])
def test_environments_planned_together_are_planned_as_if_alone(make_agent, plan, rows):
    """Same noise, same plans; float64, where a batch's matrix products differ by rounding alone."""
    from flowmbpo.planning.values import critic_objective

    objective = critic_objective(make_agent(), None)
    planner = plan(objective, rows=rows, policy_samples=0, explore=True)
    context = objective.model.context(torch.tensor([0, 1, 0]))
    start = objective.model.encode(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double(), context)
    mean = torch.zeros(3, 3, 3, dtype=torch.float64)
    noise = planner._noise(context)
    with torch.no_grad():
        action, plans = planner.search(start, context, mean, noise)
        for copy in range(3):
            row = torch.tensor([copy])
            alone = planner.search(start[row], context.rows(row), mean[:, row], sliced(noise, copy))
            torch.testing.assert_close(alone[0], action[row], atol=1e-9, rtol=0)
            torch.testing.assert_close(alone[1], plans[:, row], atol=1e-9, rtol=0)
    assert (action[0] - action[2]).abs().max() > 1e-3  # the copies do differ


def test_sequences_without_a_number_lose_and_are_counted(line, plan):
    objective = line(price=1.0)
    plain = objective.reward

    def broken(z, action, context):
        bad = torch.where(action[:, 0] < -0.9, torch.nan, torch.where(action[:, 0] > 0.9, torch.inf, 0.0))
        return plain(z, action, context) + bad

    objective.reward = broken
    planner = plan(objective, samples=64)
    action = planner.act(column(5.0, -5.0, 0.0), TASKS)  # the optimum lies among the broken ones
    bad = sum(int((seen.abs() > 0.9).any(0).any(-1).sum()) for seen in objective.seen)
    assert action.isfinite().all() and (action.abs() <= 0.9).all()
    counts = planner.counts
    assert bad > 100
    assert asdict(counts) == {"plans": 3, "sequences": 3 * 64 * 6, "nonfinite": bad, "fallbacks": 0}


def test_without_a_finite_value_the_policy_acts_and_warns(line, plan, caplog):
    objective = line(price=1.0)
    plain = objective.reward
    objective.reward = lambda z, action, context: torch.where(z[:, 0] > 100.0, torch.nan, plain(z, action, context))
    planner = plan(objective)
    planner.act(column(0.3, 0.2, 0.1), TASKS)
    assert (planner.mean[:, 0] != 0).all()  # a plan, to be forgotten
    with caplog.at_level(logging.WARNING, logger="flowmbpo"):
        action = planner.act(column(200.0, 0.2, 0.1), TASKS)
        planner.act(column(200.0, 0.2, 0.1), TASKS)
    assert float(action[0]) == 0.25  # the policy's
    assert float(action[1]) < 0.0
    assert planner.counts.fallbacks == 2
    assert (planner.mean[:, 0] == 0).all() and (planner.mean[:, 1] != 0).all()
    (said,) = caplog.messages
    assert said.startswith("no action sequence of a plan has a finite value")


def test_a_policy_that_proposes_no_numbers_does_no_harm(line, plan):
    objective = line(price=1.0, habit=float("nan"))
    planner = plan(objective)
    action = planner.act(column(0.5), TASKS[:1])
    assert action.isfinite().all() and planner.mean.isfinite().all()
    assert planner.counts.nonfinite == 4 * 6


def test_equal_seeds_plan_alike_without_the_global_generator(make_agent, plan):
    from flowmbpo.planning.values import critic_objective

    agent = make_agent(model={"dynamics": {"kind": "gaussian", "units": [16]}})
    obs = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()
    before = torch.get_rng_state()

    def three(seed):
        planner = plan(critic_objective(agent, None), seed=seed)
        return torch.stack([planner.act(obs, torch.tensor([0, 1])) for _ in range(3)])

    first, again, other = three(1), three(1), three(2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not first.requires_grad
    assert torch.equal(before, torch.get_rng_state())


def test_another_number_of_environments_is_refused(line, plan):
    planner = plan(line())
    planner.act(column(0.1, 0.2, 0.3), TASKS)
    with pytest.raises(ValueError, match=r"plans of shape \(3, 3, 1\); these observations need \(3, 2, 1\)"):
        planner.act(column(0.1, 0.2), TASKS[:2])
