"""Agents of a config: what the seed decides."""

import torch

from flowmbpo.envs.resolve import resolve
from flowmbpo.models.agent import seeded_agent
from flowmbpo.presets.load import load_experiment


def weights(seed):
    config = load_experiment("quickstart", seed=seed)
    return list(seeded_agent(config, resolve(config.task).spec).parameters())


def test_the_seed_decides_the_initial_weights():
    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
