"""Agents of a config: what the seed decides."""

import torch

from flowmbpo.envs.resolve import resolve
from flowmbpo.models.agent import seeded_agent
from flowmbpo.nets.activations import ACTIVATIONS, Activated
from flowmbpo.presets.load import load_experiment


def weights(seed):
    config = load_experiment("quickstart", seed=seed)
    return list(seeded_agent(config, resolve(config.task).spec).parameters())


def test_the_seed_decides_the_initial_weights():
    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_every_hidden_layer_has_the_activation_of_its_section():
    names = {"world_model": "silu", "actor": "mish", "critic": "silu", "target_critic": "silu"}
    config = load_experiment(
        "dmc-latent-cheetah-run-fullflow", ["actor.activation=mish", "critic.activation=silu", "model.activation=silu"]
    )
    agent = seeded_agent(config, resolve(config.task).spec)
    for part, name in names.items():
        layers = [layer for layer in getattr(agent, part).modules() if isinstance(layer, Activated)]
        assert layers and all(layer.activation is ACTIVATIONS[name] for layer in layers), part
