"""Every shipped preset describes a run: it parses, is built small, and each distinct method learns a step."""

import json
import math

import pytest
import torch

from flowmbpo.presets.library import Library
from flowmbpo.presets.load import load_experiment, override
from flowmbpo.runs.train import run_epoch

SMALL = (
    "task.set=null",
    "task.name=toy-pendulum-swingup",
    "task.num_envs=2",
    "model.latent_dim=16",
    "model.encoder.units=[16]",
    "model.dynamics.units=[16, 16]",
    "model.reward.units=[16]",
    "actor.units=[16, 16]",
    "critic.units=[16]",
    "training.mode=online",
    "training.learn=all",
    "training.horizon=4",
    "training.rounds=1",
    "training.wm_iterations=1",
    "training.wm_batch_size=4",
    "training.wm_buffer_size=1000",
    "training.warmup_model_updates=0",
    "training.random_episodes=0",
    "training.actor_batch_size=4",
    "training.critic_iterations=1",
    "training.critic_batches=2",
    "device=cpu",
)
pytestmark = pytest.mark.slow


def small(config):
    """The preset at the sizes of `SMALL`; where the observation is the state, they follow the pendulum's three."""
    if config.model.encoder.kind == "mlp":
        return override(config, SMALL)
    sizes = [setting for setting in SMALL if not setting.startswith(("model.latent_dim", "model.encoder"))]
    return override(config, [*sizes, "model.latent_dim=3"])


def architecture(config):
    """What distinguishes a preset once its sizes, weights and rates are taken away."""
    training = config.training
    parts = (
        config.model.dynamics.model_dump(mode="json", exclude={"substeps"}),
        (config.model.encoder.kind, config.model.reward.kind, config.model.termination is None),
        config.actor.model_dump(mode="json", include={"kind", "integrator"}),
        (training.actor_input_gradient, training.reward_normalization, training.actor_horizon),
        training.adaptive_horizon is None,
    )
    return json.dumps(parts)


@pytest.fixture(scope="module")
def distinct():
    """One small config for each architecture among the shipped presets."""
    configs = [small(load_experiment(name)) for name in Library().names()]
    chosen = list({architecture(config): config for config in reversed(configs)}.values())
    assert 20 < len(chosen) < len(configs) / 2
    return chosen


def test_every_distinct_preset_built_small_learns_a_step_with_finite_numbers(distinct, assemble):
    for config in distinct:
        learner, collector = assemble(config)
        before = {key: value.clone() for key, value in learner.agent.named_parameters()}
        metrics = run_epoch(learner, collector)
        assert all(math.isfinite(value) for value in metrics.values()), config.name
        assert metrics["nonfinite/count"] == 0, config.name
        moved = {
            key.split(".")[0] for key, value in learner.agent.named_parameters() if not torch.equal(value, before[key])
        }
        assert moved == {"world_model", "actor", "critic"}, config.name


def test_presets_of_every_kind_are_among_the_distinct_ones(distinct):
    assert {config.model.dynamics.kind for config in distinct} == {"mlp", "residual", "gaussian", "flow", "neural_ode"}
    assert {config.model.encoder.kind for config in distinct} == {"mlp", "identity"}
    assert {config.actor.kind for config in distinct} == {"gaussian", "flow"}
    assert {config.model.reward.kind for config in distinct} == {"scalar", "two_hot"}
