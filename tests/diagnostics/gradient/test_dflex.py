"""Exact derivatives through dflex, where it is installed."""

import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.diagnostics.gradient.diagnosis import compare_gradients
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.envs.make import make_env
from flowmbpo.envs.simulators import SIMULATORS

pytestmark = [
    pytest.mark.dflex,
    pytest.mark.skipif(not SIMULATORS["dflex"].installed, reason="dflex is not installed (docs/dflex.md says how to)"),
]


@pytest.mark.parametrize("task", ["dflex-cartpole", "dflex-ant", "dflex-hopper"])
def test_differentiable_copies_do_what_the_environment_does(task):
    """The last action among the Ant's observations included."""
    env = make_env(TaskConfig(name=task, num_envs=3))
    env.reset(0)
    width = env.spec.action_dim
    actions = torch.rand(8, 3, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for action in actions[:3]:
        env.step(action)
    copies = env.differentiable()
    for action in actions[3:]:
        action.requires_grad_()
        done, step = copies.step(action), env.step(action)
        torch.testing.assert_close(done.obs.detach(), step.final_obs, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(done.reward.detach(), step.reward, rtol=0.0, atol=1e-6)
        assert done.terminated.equal(step.terminated)
        assert done.obs.requires_grad
    env.close()


def test_both_references_agree_on_the_cart_pole(make_subject):
    """2%: dflex computes in float32 with a mass matrix held over substeps."""
    subject = make_subject("task.name=dflex-cartpole", "training.horizon=4")
    exact = compare_gradients(subject, subject.open_env(8), Effort(resamples=50))
    found = compare_gradients(subject, subject.open_env(8), Effort(resamples=50), exact=False)
    assert (exact.reference, found.reference) == ("autodiff", "differences")
    assert found.actions.reference_norm == pytest.approx(exact.actions.reference_norm, rel=0.02)
    assert found.through.cosine.value == pytest.approx(exact.through.cosine.value, abs=0.02)
    assert found.through.reference_norm == pytest.approx(exact.through.reference_norm, rel=0.02)
