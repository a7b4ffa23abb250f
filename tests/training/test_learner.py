"""A non-finite number anywhere never reaches a weight, is counted and kept, and too many stop the run."""

import copy
import math

import pytest
import torch

from flowmbpo.errors import NonFiniteError

STATISTICS = ("gaussian", "generative")
DYNAMICS = {
    "mlp": {"kind": "mlp", "units": [16]},
    "gaussian": {"kind": "gaussian", "units": [16]},
    "generative": {"kind": "flow", "mode": "generative", "units": [16], "substeps": 1},
}


def snapshot(trainer):
    return copy.deepcopy(trainer.agent.state_dict())


def changed(trainer, before):
    after = trainer.agent.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture
def poisoned(make_trainer, make_agent):
    """A trainer whose stored rewards or observations are all NaN."""

    def make(field, dynamics="mlp", **changes):
        env = make_trainer().env
        agent = make_agent(spec=env.spec, model={"dynamics": DYNAMICS[dynamics]}, normalization="scale")
        trainer = make_trainer(env=env, agent=agent, **changes)
        trainer.start()
        getattr(trainer.replay, field).fill_(math.nan)
        return trainer

    return make


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("field", ["reward", "obs"])
def test_model_update_on_a_poisoned_batch_changes_nothing_and_is_dumped(poisoned, field, dynamics):
    trainer = poisoned(field, dynamics)
    before = snapshot(trainer)
    metrics = trainer.update_model()
    assert not math.isfinite(metrics["grad_norm/model"])
    assert trainer.nonfinite == 1
    statistics = {name for name in changed(trainer, before) if ".scale." in name}
    assert changed(trainer, before) == (statistics if field == "reward" else set())
    ((name, tensors),) = trainer.dumped
    assert name == "epoch000000-model-1"
    assert set(tensors) == {"obs", "action", "reward", "terminated", "valid", "task"}
    assert tensors[field].isnan().any()


def test_policy_update_from_poisoned_starts_touches_neither_actor_nor_critic_nor_scale(poisoned):
    trainer = poisoned("obs")
    before = snapshot(trainer)
    metrics = trainer.update_policy()
    assert changed(trainer, before) == set()
    assert "loss/critic" not in metrics
    assert trainer.nonfinite == 1
    assert trainer.agent.return_scale.std.item() == 1.0
    ((name, tensors),) = trainer.dumped
    assert name == "epoch000000-actor-1"
    assert set(tensors) == {"obs", "task"}


def test_training_recovers_once_the_numbers_are_finite_again(poisoned):
    trainer = poisoned("obs", "gaussian")
    trainer.update_model()
    trainer.update_policy()
    trainer.replay.obs.normal_(generator=torch.Generator().manual_seed(0))
    before = snapshot(trainer)
    metrics = trainer.update_model() | trainer.update_policy()
    assert all(math.isfinite(value) for value in metrics.values())
    assert trainer.nonfinite == 2
    assert {name.split(".")[0] for name in changed(trainer, before)} >= {"world_model", "actor", "critic"}


def test_one_bad_row_is_enough_to_refuse_the_batch(make_trainer):
    trainer = make_trainer(wm_batch_size=64)
    trainer.start()
    trainer.replay.reward[5, 2] = math.inf
    before = snapshot(trainer)
    while not trainer.nonfinite:
        before = snapshot(trainer)
        trainer.update_model()
    assert changed(trainer, before) == set()


def test_too_many_stop_the_run_with_the_key_that_allows_them(poisoned):
    trainer = poisoned("reward", max_nonfinite=3, wm_iterations=10)
    with pytest.raises(NonFiniteError, match=r"4 non-finite updates .*model.*training\.max_nonfinite allows 3"):
        trainer.run_epoch()
    assert len(trainer.dumped) == 4


def test_as_many_as_allowed_are_counted_in_the_metrics(poisoned):
    trainer = poisoned("reward", max_nonfinite=3, wm_iterations=3)
    metrics = trainer.run_epoch()
    assert metrics["nonfinite/count"] == 3.0
    assert math.isnan(metrics["loss/reward"])
    assert math.isfinite(metrics["loss/actor"])


def test_a_policy_update_leaves_no_gradient_in_the_model_or_its_encoder(make_trainer):
    trainer = make_trainer()
    trainer.start()
    parameters = list(trainer.agent.world_model.parameters())
    for parameter in parameters:
        parameter.grad = None
    trainer.update_policy()
    assert all(parameter.grad is None for parameter in parameters)


def test_a_policy_update_leaves_no_gradient_in_the_world_model(make_trainer):
    trainer = make_trainer()
    trainer.start()
    trainer.agent.world_model.zero_grad()
    trainer.update_policy()
    assert all(parameter.grad is None for parameter in trainer.agent.world_model.parameters())
