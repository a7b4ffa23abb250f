"""The references of the actor's gradient, and what is made of them."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from flowmbpo.config.task import TaskConfig
from flowmbpo.diagnostics.gradient.diagnosis import align_means, align_rows, compare_gradients, told
from flowmbpo.diagnostics.gradient.objective import (
    FixedNoise,
    RealObjective,
    Starts,
    acting,
    collect_starts,
    model_gradient,
)
from flowmbpo.diagnostics.gradient.reference import difference_gradient, displaced, exact_gradient
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.statistics import resample_counts
from flowmbpo.envs.batch import BatchSimulator, BatchVectorEnv
from flowmbpo.envs.contract import BatchOutcome, DifferentiableEnvs
from flowmbpo.envs.make import make_env
from flowmbpo.errors import DataError
from flowmbpo.spec import TaskInfo
from flowmbpo.training.updates import actor_objective, frozen

EFFORT = Effort(resamples=200)


def setting(subject, env, *, moments=2, horizon=4, seed=0):
    """Starts in `env` with the real objective from them."""
    generator = subject.generator("test")
    starts = collect_starts(
        lambda obs, task: subject.agent.act(obs, task, generator),
        env,
        moments=moments,
        horizon=horizon,
        seed=seed,
        generator=generator,
    )
    context = subject.agent.world_model.context(starts.task)
    seeds = torch.arange(starts.horizon * starts.moments).view(starts.horizon, starts.moments)
    policy = FixedNoise(subject.agent.actor, seeds, starts.copies)
    gamma = torch.full((starts.copies,), 0.9)
    return SimpleNamespace(
        starts=starts,
        policy=policy,
        objective=RealObjective(subject.agent, policy, context, gamma, starts.horizon),
        generator=generator,
    )


def test_differences_agree_with_exact_differentiation_on_the_pendulum(make_subject):
    """1% of the size of all slopes: delta^2 of a smooth map and float32's rounding over delta."""
    subject = make_subject()
    env = subject.open_env(8)
    at = setting(subject, env)
    exact = exact_gradient(at.objective, env, at.starts)
    found = difference_gradient(at.objective, env, at.starts, directions=1, generator=at.generator)
    torch.testing.assert_close(found.returns, exact.returns, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.actions, exact.actions, rtol=0.0, atol=1e-5)
    assert (found.slopes[0] - exact.slopes[0]).norm() < 0.01 * exact.slopes[0].norm()
    one, other = (reference.parameters(at.objective)[0, 0] for reference in (exact, found))
    assert (one - other).norm() < 0.01 * one.norm()
    assert (found.slopes[1] - exact.slopes[1]).norm() < 0.01 * exact.slopes[1].norm()
    assert not torch.allclose(exact.slopes[1], exact.slopes[0], rtol=0.01)
    assert found.bend < 1.0


def test_the_reference_is_backpropagation_through_environment_encoder_and_actor(make_subject):
    """The parameters' gradient, assembled from slopes, against plain autograd of one unbroken rollout."""
    subject = make_subject()
    env = subject.open_env(3)
    at = setting(subject, env, moments=1)
    reference = exact_gradient(at.objective, env, at.starts)
    found = reference.parameters(at.objective)[0, 0]
    env.load_state_dict(at.starts.states[0])
    copies, total = env.differentiable(), 0.0
    obs = copies.observe()
    for step in range(4):
        done = copies.step(at.objective.act(step, 0, obs))
        obs = done.obs
        total = total + 0.9**step * subject.agent.reward_normalizer(done.reward)
    total = total + 0.9**4 * at.objective.value(obs)
    parameters = [p for p in subject.agent.actor.parameters() if p.requires_grad]
    for copy, row in enumerate(found):
        expected = torch.autograd.grad(total[copy], parameters, retain_graph=True)
        torch.testing.assert_close(row, torch.cat([part.flatten() for part in expected]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("input_gradient", ["through", "detached"])
@pytest.mark.parametrize("preset", ["quickstart", "quickstart-baseline", "mini-cartpole-genflow"])
def test_the_models_gradient_is_that_of_the_actor_update(make_subject, preset, input_gradient):
    """Assembled copy by copy, it means to what backpropagation through `actor_objective` gives."""
    subject = make_subject(f"training.actor_input_gradient={input_gradient}", preset=preset)
    agent, training = subject.agent, subject.config.training
    at = setting(subject, subject.open_env(3))
    start, context = subject.encode(at.starts.obs.flatten(0, 1), at.starts.task.repeat(2))
    sound = torch.ones(2, 3, dtype=torch.bool)
    generator = subject.generator("model")
    state = generator.get_state()
    found = model_gradient(agent, at.policy, start, context, sound, training, 4, generator)
    assert found.replicas == (8 if preset == "mini-cartpole-genflow" else 1)
    generator.set_state(state)
    at.policy.rewind()
    with frozen(agent.world_model, agent.critic), acting(agent, at.policy):
        options = training.model_copy(update={"noise_replicas": found.replicas})
        loss = actor_objective(agent, start, context, options, generator, 4).loss
    parameters = [p for p in agent.actor.parameters() if p.requires_grad]
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(-loss, parameters)])
    rows = found.through if input_gradient == "through" else found.detached
    torch.testing.assert_close(rows.mean(0), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert not torch.allclose(found.through, found.detached, rtol=0.01)
    assert float(found.returns.mean()) == pytest.approx(-float(loss.detach()), rel=1e-5)


def test_misleading_critics_are_told_from_misleading_models(make_regulator):
    """The model is perfect and the value random: with it the cosine is still 1, and one that only the model's
    rewards share stays; a wrong model shows in both."""
    perfect, wrong = make_regulator(), make_regulator(control=-1.0)
    for subject in (perfect, wrong):
        with torch.no_grad():
            for parameter in subject.agent.critic.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found = compare_gradients(perfect, perfect.open_env(8), EFFORT)
    assert found.through.cosine.value > 0.999
    assert found.rewards.cosine.value > 0.9999
    assert abs(found.through.model_norm / found.rewards.model_norm - 1.0) > 0.1  # the value was left out
    assert compare_gradients(wrong, wrong.open_env(8), EFFORT).rewards.cosine.high < 0.0


def test_the_agents_own_actor_is_back_after_a_measurement(make_subject):
    subject = make_subject()
    actor = subject.agent.actor
    compare_gradients(subject, subject.open_env(8), EFFORT)
    assert subject.agent.actor is actor
    assert all(p.grad is None and p.requires_grad for p in subject.agent.world_model.parameters())


def test_random_signs_estimate_the_differences_without_bias(make_subject):
    """Two signs a step on the three actions of the hopper: means over 20 draws within 4 standard errors.

    Of 48 slopes, 4 standard errors are passed by chance with probability .003.
    """
    subject = make_subject("task.name=mujoco-hopper")
    env = subject.open_env(8)
    at = setting(subject, env, moments=1, horizon=2)
    every = difference_gradient(at.objective, env, at.starts, directions=3, generator=at.generator).slopes[0, 0]
    draws = [
        difference_gradient(at.objective, env, at.starts, directions=2, generator=at.generator).slopes[0]
        for _ in range(10)
    ]
    assert not draws[0][0].equal(draws[0][1])
    samples = torch.stack(draws).flatten(0, 1)
    error = samples.mean(0) - every
    standard = samples.std(0) / math.sqrt(len(samples))
    # The even part of a direction's curvature stays: 1e-3 of the largest slope.
    assert (error.abs() <= 4.0 * standard + 1e-3 * every.abs().max()).all()
    env.close()


class Sharp(DifferentiableEnvs):
    """x' = x + a, reward x'; ends above `stop`, and behind that its derivatives are not finite."""

    def __init__(self, x, stop):
        self.x, self.stop = x, stop

    def observe(self):
        return torch.stack((self.x, self.x), dim=-1)

    def step(self, action):
        behind, before = self.x > self.stop, self.x
        self.x = before + action[:, 0]
        self.x[behind] = self.x[behind] + (before - before.detach())[behind].sqrt()
        return BatchOutcome(self.observe(), self.x, self.x.detach() > self.stop)


def test_what_follows_a_termination_does_not_discard_a_start(counter):
    """Copy 1 ends in its first step and copy 2 in a later one: their slopes are those of the steps they lived."""
    subject, _ = counter([0.0])
    first, stop = torch.tensor([0.0, 5.0, 3.4]), 3.5
    env = SimpleNamespace(load_state_dict=lambda state: None, differentiable=lambda: Sharp(first.clone(), stop))
    task = torch.zeros(3, dtype=torch.long)
    policy = FixedNoise(subject.agent.actor, torch.zeros(3, 1, dtype=torch.long), 3)
    context = subject.agent.world_model.context(task)
    objective = RealObjective(subject.agent, policy, context, torch.full((3,), 0.9), 3)
    starts = Starts(({},), torch.zeros(1, 3, 2), task, 3)
    found = exact_gradient(objective, env, starts)
    assert found.sound.tolist() == [[True, True, True]]
    assert found.terminated[0, :2].tolist() == [False, True]
    a = found.actions[:, 0, :, 0]
    assert float(found.returns[0, 1]) == pytest.approx(5.0 + float(a[0, 1]), abs=1e-5)
    slopes = found.slopes[0, 0, :, 0, 1, 0]
    assert float(slopes[0]) == pytest.approx(1.0 - float(a[0, 1]) ** 2, abs=1e-5)
    assert slopes[1:].tolist() == [0.0, 0.0]
    assert (found.slopes[0, 0, :, 0, 0, 0] != 0.0).all()


def test_the_gradient_has_the_horizon_that_training_trusts(make_subject):
    subject = make_subject("training.adaptive_horizon={tolerance: 1.0e-9, minimum: 2}")
    found = compare_gradients(subject, subject.open_env(8), EFFORT)
    assert found.to_dict()["horizon"] == len(found.steps) == 2


def test_real_rewards_are_in_the_units_of_a_symlog_head(make_subject):
    """log(1 + 3) of a reward of 3: the model's return is a sum of such, and the critic learns it."""
    head = "{kind: two_hot, units: [8], decode: %s}"
    reward, context = torch.tensor([3.0, -3.0]), None
    for decode, expected in (("symlog", [math.log(4.0), -math.log(4.0)]), ("symexp", [3.0, -3.0])):
        subject = make_subject(f"model.reward={head % decode}", "training.reward_normalization=none")
        objective = RealObjective(subject.agent, None, context, torch.ones(2), 1)
        assert objective.reward(reward).tolist() == pytest.approx(expected)


class Counter(BatchSimulator):
    """x' = x + a; reward x', observation [x, x]; ends above `stop`; breaks where x passes `rupture`."""

    def __init__(self, num_envs, start, stop=1e3, rupture=1e4):
        self.task = TaskInfo("counter", "scripted", 2, 1, 10, 1, 0.9, can_terminate=True)
        self.num_envs = num_envs
        self.first, self.stop, self.rupture = start, stop, rupture
        self.x = torch.zeros(num_envs)

    def start(self, indices, seeds):
        self.x[list(indices)] = self.first[list(indices)]

    def observe(self):
        return torch.stack((self.x, self.x), dim=-1)

    def step(self, action):
        self.x = self.x + action[:, 0]
        reward = torch.where(self.x > self.rupture, torch.nan, self.x)
        return BatchOutcome(self.observe(), reward, self.x > self.stop)

    def state_dict(self):
        return {"x": self.x.clone()}

    def load_state_dict(self, state):
        self.x = state["x"].clone()

    def describe(self, index):
        return f"x {float(self.x[index])}"

    def render(self, index):
        return np.zeros((2, 2, 3), dtype=np.uint8)


@pytest.fixture
def counter(make_subject):
    """A subject with two observations and one action, and what its policy does in a `Counter`."""

    def make(start, **limits):
        options = ("task.name=toy-gust", "training.reward_normalization=none", "training.horizon=3")
        subject = make_subject(*options)
        return subject, BatchVectorEnv(Counter(len(start), torch.tensor(start), **limits))

    return make


def test_a_termination_ends_the_reward_and_the_bootstrap(counter):
    """Copy 0 goes on; copy 1 passes the limit in its first step and earns that step's reward alone."""
    subject, env = counter([0.0, 5.0], stop=3.5)
    at = setting(subject, env, moments=1, horizon=3)
    found = difference_gradient(at.objective, env, at.starts, directions=1, generator=at.generator)
    a = found.actions[:, 0, :, 0]
    assert found.terminated.tolist() == [[False, True]]
    assert float(found.returns[0, 1]) == pytest.approx(5.0 + float(a[0, 1]), abs=1e-5)
    x = at.starts.obs[0, 0, 0] + torch.cumsum(a[:, 0], dim=0)
    value = at.objective.value(torch.stack((torch.stack((x[2], x[2])), torch.zeros(2))))[0]
    expected = x[0] + 0.9 * x[1] + 0.81 * x[2] + 0.729 * value
    assert float(found.returns[0, 0]) == pytest.approx(float(expected.detach()), abs=1e-5)
    # dJ/du = (1 - a^2) dJ/da, and J is x + a where the episode ends there: later actions do nothing.
    slopes = found.slopes[0, 0, :, 0, 1, 0]
    assert float(slopes[0]) == pytest.approx(1.0 - float(a[0, 1]) ** 2, abs=2e-3)
    assert slopes[1:].tolist() == [0.0, 0.0]


def test_a_start_whose_simulator_breaks_is_left_out_and_counted(counter):
    subject, env = counter([0.0] * 9 + [5.0], rupture=3.5)
    found = compare_gradients(subject, env, EFFORT)
    whole, env = counter([0.0] * 10, rupture=3.5)
    assert found.broken == found.moments
    assert found.starts == 9 * found.moments
    assert compare_gradients(whole, env, EFFORT).broken == 0


def test_too_few_sound_episodes_are_refused(counter):
    subject, env = counter([0.0] * 7 + [5.0] * 3, rupture=3.5)
    with pytest.raises(DataError, match=r"needs 8 sound episodes and 7 of 10 are"):
        compare_gradients(subject, env, EFFORT)


def test_an_imagined_rollout_that_overflows_is_refused(make_regulator):
    subject = make_regulator(control=1e30)
    with pytest.raises(DataError, match="the actor's gradient is not finite"):
        compare_gradients(subject, subject.open_env(8), EFFORT)


def test_starts_spread_over_episodes_and_stay_clear_of_limits(make_subject):
    subject = make_subject(longest=100)
    at = setting(subject, subject.open_env(3), moments=4, horizon=8)
    elapsed = [int(state["elapsed"][0]) for state in at.starts.states]
    room = 100 - 8 + 1  # toy-pendulum-swingup has 100 agent steps
    assert [time * 4 // room for time in elapsed] == [0, 1, 2, 3]
    short = setting(subject, subject.open_env(3), moments=4, horizon=200)
    assert short.starts.horizon == 100
    assert [int(state["elapsed"][0]) for state in short.starts.states] == [0]


@pytest.mark.parametrize("task", ["toy-pendulum-swingup", "toy-gust", "toy-pendulum-hidden", "toy-bounce-soft"])
def test_differentiable_copies_match_the_environment_and_leave_it_alone(task):
    env = make_env(TaskConfig(name=task, num_envs=5))
    env.reset(1)
    actions = torch.rand(20, 5, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for action in actions[:3]:
        env.step(action)
    copies, untouched = env.differentiable(), env.state_dict()
    for action in actions[3:]:
        done, step = copies.step(action), env.step(action)
        assert done.obs.equal(step.final_obs)
        assert done.reward.equal(step.reward)
        assert done.terminated.equal(step.terminated)
    env.load_state_dict(untouched)
    env.differentiable().step(actions[0])
    assert env.state_dict()["simulator"]["state"].equal(untouched["simulator"]["state"])


def test_a_set_of_tasks_is_measured_by_differences(make_pair):
    subject = make_pair()
    found = compare_gradients(subject, subject.open_env(8), EFFORT)
    assert found.reference == "differences"
    assert found.copies == 8
    assert found.through.reference_norm > 0.0


@pytest.mark.slow
def test_states_reached_by_replay_mean_fewer_starts(make_subject):
    subject = make_subject("task.name=cartpole-swingup", "task.workers=1", "training.horizon=2")
    env = subject.open_env(8)
    assert env.restores_by_replay
    found = compare_gradients(subject, env, EFFORT)
    assert (found.copies, found.moments, found.directions) == (8, 2, 0)
    assert found.broken == 0
    assert found.through.reference_norm > 0.0
    env.close()


def test_simulators_without_derivatives_say_so():
    env = make_env(TaskConfig(name="mujoco-hopper", num_envs=1), workers=1)
    env.reset(0)
    assert env.differentiable() is None
    assert not env.restores_by_replay
    env.close()


def test_displaced_actions_stay_in_bounds_and_move_by_delta():
    moved = displaced(torch.tensor([[0.0, 1.0, -1.0, 0.5]]), torch.tensor([[0.05, 0.5, 0.5, 0.0]]))
    assert moved[0].tolist() == pytest.approx([math.tanh(0.05), 1.0, -1.0, 0.5], abs=1e-5)
    assert moved.abs().max() <= 1.0


def test_alignment_of_hand_made_gradients():
    """Products of different copies: 2 of the model, 1 of the reference, (2 - 1) / 2 between them."""
    model = torch.tensor([[2.0, 0.0], [1.0, 2.0]])
    reference = torch.tensor([[1.0, -1.0], [1.0, 0.0]]).expand(2, 2, 2)
    counts = resample_counts(2, 50, torch.Generator())
    means = align_means(model, reference, counts)
    assert means.cosine.value == pytest.approx(0.5 / math.sqrt(2.0))
    assert means.norm_ratio.value == pytest.approx(math.sqrt(2.0))
    assert means.cosine.low == pytest.approx(means.cosine.high)  # both copies, or one that has no pair
    model = torch.tensor([[2.0, 0.0], [2.0, 2.0]])
    reference = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).expand(2, 2, 2)
    rows = align_rows(model, reference, counts)  # 2 + 0 over sqrt(12 * 4)
    assert rows.cosine.value == pytest.approx(2.0 / math.sqrt(48.0))
    assert rows.cosine.low == pytest.approx(0.0, abs=1e-6)  # the second row alone
    assert rows.cosine.high == pytest.approx(2.0 / math.sqrt(4.0 * 2.0), abs=1e-6)  # the first


@pytest.mark.parametrize(("common", "own", "truth"), [(True, False, 0.0), (False, True, 1.0), (True, True, 0.5)])
def test_noise_of_start_states_does_not_move_the_cosine(common, own, truth):
    """32 copies at ESNR .1 each: the plain means' cosine is .76 where both sides' noise differs and the truth is 1.

    Expected coverage .95; 34 of 40 is five repeats, or 3 standard deviations, below 38. The mean of 40
    cosines has a standard error below .01, clipping at 1 included.
    """
    copies, size, repeats = 32, 200, 40
    generator = torch.Generator().manual_seed(0)
    scale = math.sqrt(10.0 / size / (common + own))
    model, real = torch.zeros(size), torch.zeros(size)
    model[0], real[0], real[1] = 1.0, truth, math.sqrt(1.0 - truth**2)

    def noise(present):
        return present * scale * torch.randn(copies, size, generator=generator)

    found = []
    for _ in range(repeats):
        shared = noise(common)
        reference = (real + shared + noise(own)).expand(2, -1, -1)
        found.append(align_means(model + shared + noise(own), reference, resample_counts(copies, 200, generator)))
    for figure, true in (("cosine", truth), ("norm_ratio", 1.0)):
        intervals = [getattr(each, figure) for each in found]
        assert all(each.low <= each.value <= each.high for each in intervals)
        assert sum(each.low - 1e-9 <= true <= each.high + 1e-9 for each in intervals) >= 34
        assert sum(each.value for each in intervals) / repeats == pytest.approx(true, abs=0.04)


def test_a_perfect_model_without_noise_agrees_exactly():
    rows = 1.0 + 0.1 * torch.randn(8, 20, generator=torch.Generator().manual_seed(0))
    found = align_means(rows, rows.expand(2, -1, -1), resample_counts(8, 100, torch.Generator()))
    assert found.cosine.value == found.cosine.low == found.cosine.high == 1.0
    assert found.norm_ratio.value == pytest.approx(1.0, abs=1e-12)


def test_measurement_noise_of_the_reference_does_not_lower_the_cosine():
    """Truth e_1, model e_1, two noisy halves: the naive cosine is 1/sqrt(1 + 50/2) = .2; here 1 within sampling."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(400, 50)
    truth[:, 0] = 1.0
    halves = truth + torch.randn(2, 400, 50, generator=generator)
    counts = resample_counts(400, 200, generator)
    found = align_rows(truth, halves, counts)
    assert found.cosine.value == pytest.approx(1.0, abs=0.15)
    assert found.norm_ratio.value == pytest.approx(1.0, abs=0.25)
    naive = align_rows(truth, halves.mean(0).expand(2, -1, -1), counts)
    assert naive.cosine.value == pytest.approx(0.2, abs=0.05)


def test_what_is_lost_in_noise_has_no_number():
    counts = resample_counts(4, 20, torch.Generator())
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # mean over pairs: -4 / 12
    halves = torch.stack((torch.ones(4, 2), -torch.ones(4, 2)))  # the two measurements contradict each other
    for found in (
        align_means(torch.ones(4, 2), apart.expand(2, -1, -1), counts),
        align_rows(torch.ones(4, 2), halves, counts),
    ):
        assert math.isnan(found.cosine.value)
        assert math.isnan(found.norm_ratio.value)
        assert told(found.cosine) == told(found.norm_ratio) == "not distinguishable from noise"
        document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert (document["cosine"], document["norm_ratio"]) == (None, None)
        assert document["note"] == "not distinguishable from noise"
    found = align_means(apart, torch.ones(2, 4, 2), counts)
    assert math.isnan(found.cosine.value)
    assert found.norm_ratio.value == 0.0


def test_model_without_a_gradient_has_no_angle():
    counts = resample_counts(3, 20, torch.Generator())
    found = align_means(torch.zeros(3, 2), torch.ones(2, 3, 2), counts)
    assert math.isnan(found.cosine.value)
    assert found.norm_ratio.value == found.norm_ratio.high == 0.0


def test_equal_seeds_give_equal_figures_and_the_report_is_whole(make_subject):
    subjects = [make_subject() for _ in range(2)]
    first, second = (compare_gradients(subject, subject.open_env(8), EFFORT) for subject in subjects)
    assert first.to_dict() == second.to_dict()
    document = json.loads(json.dumps(first.to_dict()))
    assert document["horizon"] == len(document["steps"]) == 4
    assert document["starts"] == document["copies"] * document["moments"]
    told = dict(first.rows())
    assert "exact" in told["reference"]
    figure = Figure()
    first.draw(figure)
    assert len(figure.axes) == 2
