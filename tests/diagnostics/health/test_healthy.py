"""Sound runs are called healthy."""

import pytest
import torch

from flowmbpo.config.sections import DiagnosticsConfig
from flowmbpo.diagnostics.health.light import light_health
from flowmbpo.diagnostics.health.verdict import measure_health
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.subjects import load_subject
from flowmbpo.runs.train import train

LIGHT = Effort.light(DiagnosticsConfig())


def broken(findings):
    return [finding.message for finding in findings if finding.severity == "broken"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sound_run_is_healthy_whatever_episodes_judge_it(seed, small_run):
    subject = load_subject(small_run, task=None, device="cpu", seed=seed, episodes=8)
    health = measure_health(subject, Effort())
    assert broken(health.findings) == []
    assert health.healthy and health.verdict.startswith("healthy")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("quickstart", ()),
        ("quickstart-baseline", ()),
        ("quickstart", ("training.epochs=10",)),
        ("quickstart-baseline", ("task.name=toy-bounce-soft",)),
        ("quickstart", ("model.reward.kind=two_hot",)),
        ("quickstart", ("model.dynamics.geometry=tangent", "training.actor_input_gradient=detached")),
        ("mini-cartpole-genflow", ("task.name=toy-rare-push", "training.epochs=60")),
        ("mini-cartpole-gaussian", ("task.name=toy-pillar", "training.epochs=60")),
    ],
)
def test_sound_runs_of_other_presets_and_tasks_are_healthy(preset, overrides, tmp_path):
    train(
        load_experiment(preset, (*overrides, "diagnostics.every=0", "tracking.sinks=[]")), out=tmp_path, console=False
    )
    subject = load_subject(tmp_path, task=None, device="cpu", seed=0, episodes=8)
    assert broken(measure_health(subject, Effort()).findings) == []
    assert broken(light_health(subject, LIGHT)) == []


def test_the_light_form_is_silent_on_a_sound_run_and_touches_nothing(load_small):
    subject = load_small()
    subject.make_env = None
    before = {name: tensor.clone() for name, tensor in subject.agent.state_dict().items()}
    pointers = {name: parameter.data_ptr() for name, parameter in subject.agent.named_parameters()}
    random = torch.get_rng_state()
    assert light_health(subject, LIGHT) == []
    after = subject.agent.state_dict()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert pointers == {name: parameter.data_ptr() for name, parameter in subject.agent.named_parameters()}
    assert all(parameter.grad is None for parameter in subject.agent.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_what_is_measured_does_not_depend_on_what_was_measured_before(load_small):
    first, second = load_small(), load_small()
    light_health(second, LIGHT)
    assert measure_health(first, Effort()).to_dict() == measure_health(second, Effort()).to_dict()
