"""Imported Q functions and prior, against an evaluation straight from the raw tensors."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from flowmbpo.errors import CheckpointError
from flowmbpo.planning.q_ensemble import imported_objective

LATENT, TASK, ACTION, MLP, BINS = 16, 4, 3, 24, 11
LOW, HIGH = -10.0, 2.0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(in_dim, out_dim, seed, members=()):
    """Raw tensors of Linear, LayerNorm, Mish twice and Linear, every one of them random."""
    draw = generator(seed)
    state = {}
    for layer, (i, o) in enumerate([(in_dim, MLP), (MLP, MLP), (MLP, out_dim)]):
        linear = f"{layer}.linear" if layer < 2 else f"{layer}"
        state[f"{linear}.weight"] = torch.randn(*members, o, i, generator=draw) * 0.25
        state[f"{linear}.bias"] = torch.randn(*members, o, generator=draw) * 0.2
        if layer < 2:
            state[f"{layer}.norm.weight"] = 1 + 0.1 * torch.randn(*members, o, generator=draw)
            state[f"{layer}.norm.bias"] = 0.1 * torch.randn(*members, o, generator=draw)
    return state


def evaluated(state, x):
    """The same network from its formula, float64."""
    state = {name: value.double() for name, value in state.items()}
    x = x.double()
    for layer in range(2):
        x = x @ state[f"{layer}.linear.weight"].T + state[f"{layer}.linear.bias"]
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        x = x * state[f"{layer}.norm.weight"] + state[f"{layer}.norm.bias"]
        x = x * torch.tanh(F.softplus(x))
    return x @ state["2.weight"].T + state["2.bias"]


def decoded(logits):
    expectation = (logits.softmax(-1) * torch.linspace(-10, 10, BINS).double()).sum(-1)
    return expectation.sign() * (expectation.abs().exp() - 1)


def saved(members=5, seed=0):
    return {
        "kind": "tdmpc2",
        "pi": network(LATENT + TASK, 2 * ACTION, seed + 1),
        "q": network(LATENT + TASK + ACTION, BINS, seed + 2, (members,)),
        "log_std_min": LOW,
        "log_std_max": HIGH,
        "bins": BINS,
        "low": -10.0,
        "high": 10.0,
    }


@pytest.fixture
def agent(make_agent):
    return make_agent().float()


@pytest.fixture
def rows(agent):
    """Latents and contexts of both tasks."""
    agent.requires_grad_(False)
    context = agent.world_model.context(torch.tensor([0, 1, 0, 1]))
    obs = torch.randn(4, 3, generator=generator(7))
    return agent.world_model.latent(agent.world_model.encode(obs, context)), context


def test_prior_is_the_squashed_gaussian_of_the_raw_tensors(agent, rows):
    z, context = rows
    entry = saved()
    objective = imported_objective(agent, entry, "x.pt")
    mean, raw = evaluated(entry["pi"], torch.cat([z, context.embedding], -1)).chunk(2, -1)
    mask = context.action_mask.double()
    with torch.no_grad():
        likely, sample = objective.policy(z, context, None), objective.policy(z, context, generator(3))
    torch.testing.assert_close(likely.double(), mean.tanh() * mask, atol=1e-5, rtol=0)
    eps = torch.randn(mean.shape, generator=generator(3)).double()
    std = (LOW + 0.5 * (HIGH - LOW) * (raw.tanh() + 1)).exp()
    torch.testing.assert_close(sample.double(), ((mean + std * eps) * mask).tanh(), atol=1e-5, rtol=0)
    assert (sample[1::2, 2] == 0).all()


def test_value_averages_two_members_at_the_priors_action(agent, rows):
    z, context = rows
    entry = saved()
    objective = imported_objective(agent, entry, "x.pt")
    pairs = set()
    for seed in range(20):
        with torch.no_grad():
            value = objective.terminal(z, context, generator(seed)).double()
            action = objective.policy(z, context, generator(seed))
        inputs = torch.cat([z, context.embedding, action], -1)
        values = torch.stack([decoded(evaluated({k: v[m] for k, v in entry["q"].items()}, inputs)) for m in range(5)])
        means = {pair: values[list(pair)].mean(0) for pair in itertools.combinations(range(5), 2)}
        error = {pair: float(((value - mean) / (1 + mean.abs())).abs().max()) for pair, mean in means.items()}
        pair = min(error, key=error.get)
        assert error[pair] <= 1e-5
        pairs.add(pair)
    assert len(pairs) > 5  # ten there are


@pytest.mark.parametrize("members", [1, 2])
def test_small_ensembles_average_all_they_have(agent, rows, members):
    z, context = rows
    entry = saved(members)
    objective = imported_objective(agent, entry, "x.pt")
    with torch.no_grad():
        value = objective.terminal(z, context, generator(1)).double()
        inputs = torch.cat([z, context.embedding, objective.policy(z, context, generator(1))], -1)
    own = [decoded(evaluated({k: v[m] for k, v in entry["q"].items()}, inputs)) for m in range(members)]
    torch.testing.assert_close(value, torch.stack(own).mean(0), atol=1e-5, rtol=1e-5)


def test_rewards_are_real_ones_and_gamma_is_each_tasks_own(make_agent):
    agent = make_agent(normalization="scale").float()
    agent.reward_normalizer.update(torch.tensor([3.0, -3.0]))
    objective = imported_objective(agent, saved(), "x.pt")
    context = agent.world_model.context(torch.tensor([0, 1]))
    z = torch.full((2, LATENT), 1 / 8)
    action = torch.full((2, ACTION), 0.5)
    learning = agent.world_model.reward(z, action, context)
    torch.testing.assert_close(objective.reward(z, action, context), 3.0 * learning)
    torch.testing.assert_close(objective.gamma(context), torch.tensor([0.9, 0.5]))


def test_an_imported_planner_plans_for_tasks_of_a_set(agent, plan):
    planner = plan(imported_objective(agent, saved(), "x.pt"))
    action = planner.act(torch.randn(2, 3, generator=generator(2)), torch.tensor([0, 1]))
    assert action.isfinite().all() and (action.abs() <= 1).all()
    assert float(action[1, 2]) == 0.0 and math.fabs(float(action[0, 2])) > 0.0


def test_single_task_networks_have_no_embedding(make_agent):
    agent = make_agent(model={"task_dim": 0}, tasks=1).float()
    entry = saved() | {"pi": network(LATENT, 2 * ACTION, 1), "q": network(LATENT + ACTION, BINS, 2, (2,))}
    objective = imported_objective(agent, entry, "x.pt")
    context = agent.world_model.context(torch.tensor([0]))
    z = torch.full((1, LATENT), 1 / 8)
    with torch.no_grad():
        mean = evaluated(entry["pi"], z).chunk(2, -1)[0]
        torch.testing.assert_close(objective.policy(z, context, None).double(), mean.tanh(), atol=1e-5, rtol=0)


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e | {"kind": "cem"}, r"x\.pt: its planner is of kind 'cem'"),
        (lambda e: without(e, "log_std_min"), r"planner is incomplete \('log_std_min'\)"),
        (lambda e: e | {"q": without(e["q"], "0.linear.weight")}, r"planner is incomplete"),
        (lambda e: e | {"pi": without(e["pi"], "2.bias")}, r"planner\.pi: .*1 missing: 2\.bias"),
        (lambda e: e | {"bins": 7}, r"planner\.q: .*2\.weight is \(11, 24\), needed \(7, 24\)"),
        (
            lambda e: e | {"pi": network(LATENT, 6, 1)},
            r"planner\.pi: .*0\.linear\.weight is \(24, 16\), needed \(24, 20\)",
        ),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_by_name(agent, change, message):
    with pytest.raises(CheckpointError, match=message):
        imported_objective(agent, change(saved()), "x.pt")


def test_building_the_networks_leaves_the_global_generator_alone(agent):
    before = torch.get_rng_state()
    imported_objective(agent, saved(), "x.pt")
    assert torch.equal(before, torch.get_rng_state())
