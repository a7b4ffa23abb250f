"""Compiled updates compute what eager ones do, from the same random numbers."""

import copy

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from flowmbpo.training.compiled import compiled, compiler_fault
from flowmbpo.training.updates import EAGER

KINDS = {
    "residual": {"kind": "residual", "error_scale": "change"},
    "gaussian": {"kind": "gaussian", "source": "teacher"},
    "neural_ode": {"kind": "neural_ode", "jacobian_penalty": 0.1},
    "flow": {"kind": "flow", "endpoint_weight": 1.0, "source_noise": 0.1, "substep_noise": 0.1},
    "genflow": {"kind": "flow", "mode": "generative", "source": "teacher"},
}


@pytest.mark.parametrize("actor", ["gaussian", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_drawn_ahead_are_those_that_would_have_been_drawn(kind, actor, make_trainer, make_agent, monkeypatch):
    """Without the compiler, so that every bit must be equal."""
    monkeypatch.setattr("flowmbpo.training.compiled._whole", lambda function: function)
    (eager, eager_draws), (ahead, ahead_draws) = ten_updates(kind, actor, make_trainer, make_agent)
    assert torch.equal(eager, ahead)
    assert all(torch.equal(one, other) for one, other in zip(eager_draws, ahead_draws, strict=True))


@pytest.mark.skipif(compiler_fault() is not None, reason="no C++ compiler")
@pytest.mark.slow
@pytest.mark.parametrize("actor", ["gaussian", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_ten_updates_agree_with_eager_ones(kind, actor, make_trainer, make_agent, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setitem(KINDS, "neural_ode", {"kind": "neural_ode"})  # a penalty cannot be compiled, and is refused
    (eager, eager_draws), (fast, fast_draws) = ten_updates(kind, actor, make_trainer, make_agent)
    assert (eager - fast).norm() < 1e-5 * eager.norm()
    assert all(torch.equal(one, other) for one, other in zip(eager_draws, fast_draws, strict=True))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Programs of the tests' own."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def ten_updates(kind, actor, make_trainer, make_agent):
    """Parameters and generators after ten rounds from one state, uncompiled and by `compiled`."""
    env = make_trainer().env
    agent = make_agent(
        spec=env.spec,
        model={"dynamics": {"units": [16, 16]} | KINDS[kind], "termination": {"units": [16]}},
        actor={"kind": actor},
        critic={"target_decay": 0.9, "bins": 11, "ensemble": 2},
        normalization="scale",
    )
    trainer = make_trainer(
        env=env, agent=agent, horizon=2, critic_replay=1.0, critic_batches=1, preactivation_penalty=0.1
    )
    trainer.start()
    states = copy.deepcopy(trainer.state_dict())
    drawn = {name: generator.get_state() for name, generator in trainer.generators.items()}
    ends = []
    for passes in (EAGER, compiled(1)):
        trainer.load_state_dict(copy.deepcopy(states))
        for name, generator in trainer.generators.items():
            generator.set_state(drawn[name])
        trainer.learner.passes = passes
        for _ in range(10):
            trainer.update_model()
            trainer.update_policy()
        draws = [generator.get_state() for generator in trainer.generators.values()]
        ends.append((parameters_to_vector(agent.parameters()).detach().clone(), draws))
    return ends
