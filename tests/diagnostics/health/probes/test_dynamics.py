"""Dynamics against predictors that know nothing, latents through imagination, the velocity's head, returns."""

import pytest
import torch
from torch import nn

from flowmbpo.diagnostics.health.experience import fresh_windows
from flowmbpo.diagnostics.health.probes.dynamics import (
    HIGH_ERROR,
    describe,
    error_over_trivial,
    measure_errors,
    measure_imagined_return,
    observe_velocity,
    spread_share,
)
from flowmbpo.diagnostics.subject import Origin
from flowmbpo.evaluation.episodes import Episodes
from flowmbpo.nets.simnorm import simnorm


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_points_of_a_simplex_are_told_from_displacements():
    points = simnorm(normal(50, 16), 8)
    assert describe(points)["on_simplex"] and describe(points)["total"] == pytest.approx(2.0)
    assert describe(0.1 * points)["on_simplex"]
    assert not describe(points[1:] - points[:-1])["on_simplex"]
    assert not describe(normal(50, 16).abs())["on_simplex"]
    assert not describe(torch.zeros(50, 16))["on_simplex"]  # an untrained head


def test_spread_share_is_the_variance_in_the_mean_square():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert spread_share(z) == pytest.approx(0.5)
    assert spread_share(torch.ones(10, 4)) == 0.0
    assert spread_share(torch.zeros(10, 4)) == 0.0


@pytest.mark.parametrize("kind", ["flow", "residual", "gaussian", "neural_ode", "mlp"])
@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_every_sound_dynamics_keeps_its_sums(kind, geometry, make_subject, examine):
    dynamics = f"model.dynamics={{kind: {kind}, units: [24], geometry: {geometry}}}"
    figures, _ = examine(make_subject(dynamics, preset="quickstart-baseline"), "latents")
    assert figures["largest_sum_error"] < 1e-4  # rounding of 50 steps
    assert figures["largest_logit_drift"] < 1e-4
    assert len(figures["curves"]["violation"]) == 51


@pytest.mark.parametrize("kind", ["flow", "residual", "neural_ode"])
def test_a_sound_velocity_is_what_its_linear_head_puts_out(kind, make_subject):
    subject = make_subject(f"model.dynamics={{kind: {kind}, units: [24]}}", preset="quickstart-baseline")
    state, context = subject.starts(32, subject.generator("test"))
    action = subject.agent.actor(subject.agent.world_model.latent(state), context, None)
    assert observe_velocity(subject.agent.world_model, state, action, context)["deviation"] < 1e-5


class Mixed(nn.Module):
    """A head with a share of SimNorm behind it."""

    def __init__(self, head, share):
        super().__init__()
        self.head, self.share = head, share

    def forward(self, x):
        out = self.head(x)
        return (1.0 - self.share) * out + self.share * simnorm(out, 8)


@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_a_simnorm_behind_a_projected_head_is_found(share, geometry, make_subject, examine):
    """Projected, it keeps every sum and never leaves the simplex in logit geometry: only the head betrays it."""
    subject = make_subject(f"model.dynamics.geometry={geometry}")
    velocity = subject.agent.world_model.dynamics.velocity
    velocity.network = Mixed(velocity.network, share)
    figures, found = examine(subject, "latents")
    assert "simnorm-velocity" in {finding.name for finding in found}
    assert figures["largest_sum_error"] < 1e-3


@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("geometry", ["tangent", "logit"])
def test_what_every_step_adds_to_every_group_is_found(share, geometry, make_subject, monkeypatch, examine):
    subject = make_subject(f"model.dynamics.geometry={geometry}")
    model = subject.agent.world_model
    step = model.next
    monkeypatch.setattr(model, "next", lambda s, *rest: step(s, *rest) + share * simnorm(s, 8))
    figures, found = examine(subject, "latents")
    assert {"simnorm-velocity", "latents-leave-simplex"} <= {finding.name for finding in found}
    assert figures["equal_gain"] == pytest.approx(share, rel=1e-3)


def test_a_head_trained_behind_a_simnorm_is_found_without_it(load_small, examine):
    """The checkpoint of a program with that fault, judged by one without it."""
    subject = load_small()
    model = subject.agent.world_model
    batch = subject.replay.sample(256, 1, subject.generator("train"))
    state, context = subject.encode(batch.obs[0], batch.task)
    target, _ = subject.encode(batch.obs[1], batch.task)
    adam = torch.optim.Adam(model.dynamics.parameters(), lr=3e-3)
    with model.dynamics.network[-1].register_forward_hook(lambda module, inputs, output: simnorm(output, 8)):
        for _ in range(300):
            loss = (model.latent(model.next(state, batch.action[0], context)) - model.latent(target)).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    figures, found = examine(subject, "latents")
    assert figures["error_with_simnorm_head"]["effect"] < -0.5
    assert "simnorm-velocity" in {finding.name for finding in found}


def test_an_encoder_that_maps_everything_to_one_point_has_collapsed(load_small, named):
    subject = load_small()
    with torch.no_grad():
        subject.agent.world_model.encoder[-1].norm.weight.mul_(1e-3)
    assert "latent-collapse" in named(subject, "latents")


def test_imagination_starts_on_the_simplex(sound_health):
    violation = sound_health.curves["latents"]["violation"]
    assert max(violation) < 1e-3 and len(violation) == 51


def test_an_observation_that_is_the_state_has_no_simplex(make_subject, examine):
    subject = make_subject(
        "model.encoder={kind: identity}",
        "model.latent_dim=3",
        "model.dynamics={kind: residual, units: [24], geometry: euclidean}",
        preset="quickstart-baseline",
    )
    figures, found = examine(subject, "latents")
    assert "curves" not in figures and "spread_share" not in figures
    assert found == []


def test_the_error_is_over_the_better_trivial_predictors(load_small, monkeypatch):
    """Latents 0, 1, 4 in every row and a model that stays: 1 after a step, where the mean state (5/3) is off by 4/9."""
    subject = load_small()
    rows = fresh_windows(subject.explored, width=2, limit=64, generator=subject.generator("test"))
    latents = iter([torch.full((64, 32), value) for value in (0.0, 1.0, 4.0, 0.0)])
    monkeypatch.setattr(subject, "encode", lambda obs, task: (next(latents), None))
    monkeypatch.setattr(subject.agent.world_model, "next", lambda s, *rest: s)
    monkeypatch.setattr(subject.agent.world_model, "latent", lambda s: s)
    assert error_over_trivial(subject, rows, 1) == pytest.approx(9.0 / 4.0)


def test_a_latent_that_never_moves_has_no_ratio(load_small, monkeypatch):
    subject = load_small()
    rows = fresh_windows(subject.explored, width=2, limit=64, generator=subject.generator("test"))
    monkeypatch.setattr(subject, "encode", lambda obs, task: (torch.ones(64, 32), None))
    monkeypatch.setattr(subject.agent.world_model, "next", lambda s, *rest: 2.0 * s)
    assert error_over_trivial(subject, rows, 1) == 0.0


def test_sound_dynamics_beat_standing_still(sound_health):
    assert sound_health.checks["dynamics"]["error_over_trivial"] < 0.7


@pytest.mark.parametrize("broken", [lambda z: z.roll(1, -1), lambda z: z * torch.nan])
def test_dynamics_worse_than_nothing_are_called_so(broken, load_small, monkeypatch, examine):
    subject = load_small()
    model = subject.agent.world_model
    step = model.next
    monkeypatch.setattr(model, "next", lambda *a: broken(step(*a)))
    _, (finding,) = examine(subject, "dynamics")
    assert finding.name == "dynamics-worse-than-trivial" and finding.severity == "broken"


def test_dynamics_that_stand_still_are_trivial_and_no_worse(load_small, monkeypatch, examine):
    subject = load_small()
    monkeypatch.setattr(subject.agent.world_model, "next", lambda s, *rest: s)
    figures, found = examine(subject, "dynamics")
    assert figures["error_over_trivial"] >= 1.0
    assert found == []


def test_a_model_that_promises_too_much_is_found(make_subject, examine):
    subject = make_subject("training.reward_normalization=none", "training.gamma=1.0")
    subject.__dict__["episodes"] = Episodes(
        obs=torch.zeros(41, 4, 3),
        action=torch.zeros(40, 4, 1),
        reward=torch.ones(40, 4),
        length=torch.full((4,), 40),
        terminated=torch.zeros(4, dtype=torch.bool),
        broken=torch.zeros(4, dtype=torch.bool),
        task=torch.zeros(4, dtype=torch.long),
    )
    head = subject.agent.world_model.reward_head.network[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(1.0)
    figures = measure_imagined_return(subject)
    # Windows cut by the limit are compared over what they have.
    assert figures["imagined_return"] == figures["earned_return"]
    assert examine(subject, "imagined_return")[1] == []
    with torch.no_grad():
        head.bias.fill_(1.8)
    _, (note,) = examine(subject, "imagined_return")
    assert (note.name, note.severity) == ("model-return-off", "note")
    with torch.no_grad():
        head.bias.fill_(20.0)
    assert examine(subject, "imagined_return")[1][0].severity == "broken"


@pytest.mark.parametrize(
    ("share", "error", "found"), [(0.02, 0.8, ["too-few-updates"]), (0.02, 0.3, []), (0.25, 0.8, [])]
)
def test_few_updates_are_named_where_the_model_is_poor(share, error, found, found_in):
    figures = {"error_over_trivial": error, "error_is_high": error > HIGH_ERROR, "updates_per_step": share}
    assert [name for name, _ in found_in("dynamics", figures)] == found


@pytest.mark.parametrize(
    ("epoch", "key", "share"),
    [(3, "training.updates_per_step=0.25", 0.25), (3, "training.wm_iterations=2", 2 / 16), (0, "seed=0", None)],
)
def test_updates_per_collected_step(epoch, key, share, make_subject):
    copies = ("task.num_envs=4", "training.horizon=4", "training.rounds=1", key)
    subject = make_subject(*copies, preset="quickstart-baseline")
    subject.origin = Origin(epoch=epoch)
    assert measure_errors(subject)["updates_per_step"] == share
