"""Rewards of parts of a replay buffer against each other."""

import torch

from flowmbpo.diagnostics.health.alignment import check_alignment
from flowmbpo.diagnostics.health.experience import Stretches
from flowmbpo.diagnostics.health.stored_rewards import find_disagreement
from flowmbpo.diagnostics.interface import Effort

WIDTH, STEPS = 7, 600


def lane(seed, late=0):
    """A damped walk whose reward is obs + action, stored `late` rows late."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.rand(STEPS, 1, generator=generator) * 2.0 - 1.0
    obs = torch.zeros(STEPS + 1, 1)
    for step in range(STEPS):
        obs[step + 1] = 0.8 * obs[step] + action[step]
    reward = (obs[:-1] + action).squeeze(-1).roll(late)
    starts = torch.arange(10, STEPS - WIDTH - 10)
    steps = starts + torch.arange(WIDTH + 1).unsqueeze(1)
    zero = torch.zeros_like(starts)
    return Stretches(obs[steps], action[steps[:-1]], reward[steps[:-1]], zero, zero, starts)


def test_lanes_that_agree_are_left_alone():
    assert find_disagreement({f"lane {seed}": lane(seed) for seed in range(4)}) is None


def test_the_later_of_two_lanes_is_named_with_its_distance():
    found = find_disagreement({"a": lane(0), "b": lane(1, late=1), "c": lane(2)})
    assert found.late == "b" and found.early in "ac" and found.steps == 1
    swapped = find_disagreement({"b": lane(1, late=1), "a": lane(0)})
    assert (swapped.late, swapped.early) == ("b", "a")


def test_lanes_that_are_all_late_do_not_contradict_each_other():
    """That is for the comparison with fresh episodes."""
    assert find_disagreement({"a": lane(0, late=1), "b": lane(1, late=1)}) is None


def test_rewards_of_noise_contradict_nothing():
    parts = {}
    for seed in range(6):
        rows = lane(seed)
        rows.reward.copy_(torch.randn(rows.reward.shape, generator=torch.Generator().manual_seed(seed)))
        parts[str(seed)] = rows
    assert find_disagreement(parts) is None


def test_rewards_one_row_late_in_half_the_lanes_of_a_run_are_found(load_small):
    subject = load_small()
    replay = subject.replay
    replay.reward[:, ::2] = replay.reward[:, ::2].roll(1, 0)
    assert [finding.name for finding in check_alignment(subject, Effort()).findings] == ["off-by-one-replay"]
