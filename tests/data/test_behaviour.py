"""Policies that need no learning."""

from __future__ import annotations

import math

import pytest
import torch

from flowmbpo.data.behaviour import NoiseBehaviour, RandomBehaviour


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def roll(behaviour, copies, steps, starts=()):
    """Actions [T, N, A]; copies begin an episode at step 0 and at (step, copy) of `starts`."""
    actions = []
    for step in range(steps):
        first = torch.full((copies,), step == 0)
        for at, copy in starts:
            first[copy] |= at == step
        actions.append(behaviour.act(torch.zeros(copies, 1), first))
    return torch.stack(actions)


def test_random_actions_are_uniform():
    own = roll(RandomBehaviour((50, 2), generator()), copies=50, steps=200)
    assert own.shape == (200, 50, 2)
    # 20,000 draws of variance 1/3: their mean has a standard error of 0.004, their variance of 0.002.
    assert float(own.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(own.var()) == pytest.approx(1 / 3, abs=0.01)


def test_noise_is_bounded_smooth_and_other_in_every_episode():
    own = roll(NoiseBehaviour((20, 3), generator()), copies=20, steps=300)
    assert float(own.abs().max()) <= 1.0
    # Uniform noise has a mean square step of 2/3; here most episodes vary slowly.
    assert float(own.diff(dim=0).square().mean()) < 0.2
    assert float(own.var(dim=0).mean()) > 0.1
    spread = own.mean(dim=0).std(dim=0)
    assert (spread > 0.1).all()


def test_an_ornstein_uhlenbeck_part_keeps_its_standard_deviation():
    """With the sine's share at 0 and the mean at 0, an action is x_t alone, which is N(0, std^2) at every step."""
    copies = 4000
    behaviour = NoiseBehaviour((copies, 1), generator())
    roll(behaviour, copies, 1)
    behaviour._drawn[:] = 0.0
    behaviour._drawn[5], behaviour._drawn[6] = 0.25, 0.3  # std, theta
    behaviour._state = 0.25 * torch.randn(copies, 1, generator=generator(1))
    actions = torch.stack([behaviour.act(torch.zeros(copies, 1), torch.zeros(copies).bool()) for _ in range(30)])[
        ..., 0
    ]
    # 4,000 copies: the standard error of a standard deviation of 0.25 is 0.003.
    torch.testing.assert_close(actions.std(dim=1), torch.full((30,), 0.25), atol=0.015, rtol=0.0)
    correlation = float((actions[-1] * actions[-2]).mean() / 0.25**2)
    assert correlation == pytest.approx(0.7, abs=0.08)  # 1 - theta; standard error 0.016


def test_the_sine_has_its_amplitude_frequency_and_phase():
    behaviour = NoiseBehaviour((1, 1), generator())
    roll(behaviour, 1, 1)
    behaviour._drawn[:] = torch.tensor([1.0, 0.8, 0.1, 0.5, 0.0, 0.0, 0.5])[:, None, None]
    actions = [float(behaviour.act(torch.zeros(1, 1), torch.zeros(1).bool())) for _ in range(5)]
    assert actions == pytest.approx([0.8 * math.sin(2 * math.pi * 0.1 * t + 0.5) for t in range(1, 6)], abs=1e-6)


def test_a_new_episode_of_one_copy_leaves_the_others_parameters():
    behaviour = NoiseBehaviour((3, 2), generator())
    roll(behaviour, 3, 5)
    before = behaviour._drawn.clone()
    behaviour.act(torch.zeros(3, 1), torch.tensor([False, True, False]))
    assert torch.equal(behaviour._drawn[:, [0, 2]], before[:, [0, 2]])
    assert not torch.equal(behaviour._drawn[:, 1], before[:, 1])


@pytest.mark.parametrize("make", [RandomBehaviour, NoiseBehaviour])
def test_equal_seeds_give_equal_actions_and_leave_the_global_generator(make):
    state = torch.get_rng_state()
    actions = [roll(make((4, 2), generator(seed)), 4, 20, starts=[(7, 1)]) for seed in (5, 5, 6)]
    assert torch.equal(actions[0], actions[1])
    assert not torch.equal(actions[0], actions[2])
    assert torch.equal(torch.get_rng_state(), state)
