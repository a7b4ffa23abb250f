"""Whether the encoder learns."""

import pytest
import torch

from flowmbpo.diagnostics.health.experience import within_tasks
from flowmbpo.diagnostics.health.probes.encoder import encoder_gradient, observation_kept, optimiser_memory


@pytest.fixture
def reasons(examine):
    """What is found in a subject's encoder, in words."""

    def find(subject):
        _, found = examine(subject, "encoder")
        return " ".join(finding.message for finding in found if finding.name == "frozen-encoder")

    return find


def encoder_names(subject):
    named = subject.agent.world_model.named_parameters()
    return {index: name for index, (name, _) in enumerate(named) if name.startswith("encoder.")}


def test_a_trained_encoder_learns(sound_health):
    figures = sound_health.checks["encoder"]
    assert figures["unreached"] == []
    assert figures["gradient_by_chain_rule"] == pytest.approx(1.0, abs=1e-3)  # float32 sums
    assert figures["optimiser_steps_over_others"] == 1.0
    assert figures["least_movement_over_dynamics"] > 0.1


def test_what_is_measured_changes_nothing(load_small, reasons):
    subject = load_small()
    before = {name: value.clone() for name, value in subject.agent.state_dict().items()}
    assert reasons(subject) == ""
    assert all(torch.equal(before[name], value) for name, value in subject.agent.state_dict().items())
    assert all(p.grad is None for p in subject.agent.parameters())


def test_a_detached_encoder_is_frozen(load_small, monkeypatch, reasons):
    subject = load_small()
    model = subject.agent.world_model
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda obs, context: encode(obs, context).detach())
    assert "reaches 8 tensors: encoder.0.linear.weight" in reasons(subject)


def test_one_layer_without_gradient_is_found(load_small, reasons):
    subject = load_small()
    subject.agent.world_model.encoder[0].requires_grad_(False)
    assert "reaches 4 tensors: encoder.0.linear.weight" in reasons(subject)


@pytest.mark.parametrize("share", [0.3, 0.01])
def test_hooks_that_shrink_its_gradient_are_found(share, load_small, reasons):
    subject = load_small()
    for parameter in subject.agent.world_model.encoder.parameters():
        parameter.register_hook(lambda gradient: share * gradient)
    assert encoder_gradient(subject)["gradient_by_chain_rule"] == pytest.approx(share, rel=1e-3)
    assert "its gradient is" in reasons(subject)


def test_an_encoder_the_optimiser_never_saw_is_frozen(load_small, reasons):
    subject = load_small()
    names = encoder_names(subject)
    model = subject.optimisers["model"]
    kept = {index: state for index, state in model["state"].items() if index not in names}
    subject.optimisers = {**subject.optimisers, "model": {**model, "state": kept}}
    assert "holds nothing of it" in reasons(subject)


def test_an_optimiser_that_was_made_without_the_encoder_is_found(load_small, reasons):
    """Its tensors are numbered without the encoder's: the count betrays it."""
    subject = load_small()
    names = encoder_names(subject)
    model = subject.optimisers["model"]
    (group,) = model["param_groups"]
    rest = group["params"][: len(group["params"]) - len(names)]
    subject.optimisers = {**subject.optimisers, "model": {**model, "param_groups": [{**group, "params": rest}]}}
    assert "holds nothing of it" in reasons(subject)


def test_an_optimiser_lacking_other_tensors_says_nothing_of_it(load_small, reasons):
    subject = load_small()
    model = subject.optimisers["model"]
    (group,) = model["param_groups"]
    fewer = {**group, "params": group["params"][:-1]}
    subject.optimisers = {**subject.optimisers, "model": {**model, "param_groups": [fewer]}}
    assert optimiser_memory(subject) == {} and reasons(subject) == ""


def test_a_model_all_of_which_is_frozen_has_a_frozen_encoder(load_small, reasons):
    subject = load_small()
    subject.agent.world_model.requires_grad_(False)
    assert "reaches 8 tensors: encoder.0.linear.weight" in reasons(subject)


def test_an_encoder_frozen_half_way_is_behind(load_small, reasons):
    subject = load_small()
    model = subject.optimisers["model"]
    state = dict(model["state"])
    for index in encoder_names(subject):
        state[index] = {**state[index], "step": state[index]["step"] * 0.4}
    subject.optimisers = {**subject.optimisers, "model": {**model, "state": state}}
    assert "0.4 times as often" in reasons(subject)


def test_an_encoder_that_has_hardly_moved_is_frozen(load_small, reasons):
    subject = load_small()
    start = subject.initial().world_model.encoder
    with torch.no_grad():
        for now, before in zip(subject.agent.world_model.encoder.parameters(), start.parameters(), strict=True):
            now.copy_(before + 1e-3 * (now - before))
    assert "has moved" in reasons(subject)


def test_an_encoder_made_anew_is_told_by_its_values(load_small, reasons):
    """Other random weights than the run began with: only what construction sets to 0 and 1 betrays them."""
    subject = load_small()
    subject.optimisers, subject.initial = None, None
    with torch.no_grad():
        for layer in subject.agent.world_model.encoder:
            layer.norm.reset_parameters()
            layer.linear.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(5))
            layer.linear.bias.zero_()
    assert "6 tensors are still exactly as constructed: encoder.0.linear.bias" in reasons(subject)


def test_a_run_not_begun_is_judged_by_its_gradient(make_subject, examine):
    """Memory and movement are of runs that have had an epoch."""
    subject = make_subject()
    assert subject.origin.epoch == 0
    figures, found = examine(subject, "encoder")
    assert found == [] and "least_movement_over_dynamics" not in figures


def test_an_observation_that_is_the_state_has_no_encoder(make_subject, examine):
    subject = make_subject(
        "model.encoder={kind: identity}",
        "model.latent_dim=3",
        "model.dynamics={kind: residual, units: [24], geometry: euclidean}",
        preset="quickstart-baseline",
    )
    figures, found = examine(subject, "encoder")
    assert found == [] and figures.keys() == {"judged"}


def test_what_a_latent_keeps_of_the_observation(load_small, monkeypatch):
    """All of it where the latent is the observation; nothing where it is a code of the row or of the task alone."""
    subject = load_small()
    monkeypatch.setattr(subject.agent.world_model, "latent", lambda s: s)
    monkeypatch.setattr(subject, "encode", lambda obs, task: (obs, None))
    assert observation_kept(subject)["observation_r2"] == pytest.approx(1.0, abs=1e-6)
    wave = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)) * 1e4
    monkeypatch.setattr(subject, "encode", lambda obs, task: ((obs @ wave).sin(), None))
    assert observation_kept(subject)["observation_r2"] < 0.1


def test_tasks_are_told_apart_before_anything_is_read_back():
    x, task = torch.tensor([[1.0], [3.0], [10.0], [14.0]]), torch.tensor([0, 0, 1, 1])
    assert within_tasks(x, task).flatten().tolist() == [-1.0, 1.0, -2.0, 2.0]
    assert x[0, 0] == 1.0
