"""Verdicts, episodes that end early, promises that are not kept, and training that never happened."""

import copy

import pytest
import torch
from matplotlib.figure import Figure

from flowmbpo.diagnostics.health.endings import check_endings
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.health.history import read_history
from flowmbpo.diagnostics.health.promise import check_promise, measure_promise
from flowmbpo.diagnostics.health.verdict import HealthDiagnosis
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Origin
from flowmbpo.evaluation.episodes import Episodes

NOTE = Finding("critic-off", "note", "Off.", {"offset_over_size": 1.5})
BROKEN = Finding("dead-critic", "broken", "Dead.", {"spread_over_targets": 0.0})


def test_the_verdict_names_what_is_broken_before_notes():
    health = HealthDiagnosis((Check("critic", {"states": 3, "spread": 0.12345}, (NOTE, BROKEN)),))
    assert not health.healthy
    assert health.verdict == "broken: dead-critic"
    assert health.rows()[:3] == [
        ("verdict", "broken: dead-critic"),
        ("broken: dead-critic", "Dead."),
        ("note: critic-off", "Off."),
    ]
    assert health.rows()[3:] == [("critic: states", "3"), ("critic: spread", "0.1235")]
    assert health.to_dict() == {
        "healthy": False,
        "verdict": "broken: dead-critic",
        "findings": [BROKEN.to_dict(), NOTE.to_dict()],
        "checks": {"critic": {"states": 3, "spread": 0.12345}},
    }


def test_notes_leave_a_run_healthy():
    health = HealthDiagnosis((Check("critic", {}, (NOTE,)),))
    assert health.healthy
    assert health.verdict == "healthy; worth knowing: critic-off"


@pytest.mark.parametrize("curves", [{}, {"real": [0.0, 1.0], "predicted": [0.1, 0.9]}])
def test_pictures_say_what_was_not_measured(curves):
    figure = Figure()
    HealthDiagnosis((Check("reward", {}, (), curves),)).draw(figure)
    said = sum(text.get_text() == "not measured" for axes in figure.axes for text in axes.texts)
    assert len(figure.axes) == 4
    assert said == (4 if not curves else 3)


def falling(subject, steps, *, ended):
    """Four episodes of a pendulum that last `steps`."""
    subject.__dict__["episodes"] = Episodes(
        obs=torch.zeros(steps + 1, 4, 3),
        action=torch.zeros(steps, 4, 1),
        reward=torch.ones(steps, 4),
        length=torch.full((4,), steps),
        terminated=torch.full((4,), ended),
        broken=torch.zeros(4, dtype=torch.bool),
        task=torch.zeros(4, dtype=torch.long),
    )
    return subject


@pytest.mark.parametrize(
    ("steps", "ended", "epoch", "found"),
    [
        (17, True, 15_000, [("episodes-end-early", "broken")]),
        (17, True, 1, [("episodes-end-early", "note")]),  # a young run may fall
        (17, False, 15_000, []),  # a short time limit is no fall
        (60, True, 15_000, []),
    ],
)
def test_episodes_that_the_task_ends_early_are_found(steps, ended, epoch, found, make_subject):
    subject = falling(make_subject(), steps, ended=ended)  # the limit is 100
    subject.origin = Origin(epoch=epoch)
    check = check_endings(subject, Effort())
    assert [(finding.name, finding.severity) for finding in check.findings] == found
    assert check.figures["length_mean"] == steps


def test_a_model_that_promises_too_much_is_found(make_subject):
    subject = falling(make_subject("training.reward_normalization=none", "training.gamma=1.0"), 40, ended=False)
    head = subject.agent.world_model.reward_head.network[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(1.0)
    promise = measure_promise(subject, 64)
    assert torch.equal(promise.imagined, promise.earned)  # windows cut by the limit are compared over what they have
    assert check_promise(subject, Effort(windows=64)).findings == ()
    with torch.no_grad():
        head.bias.fill_(1.8)
    (note,) = check_promise(subject, Effort(windows=64)).findings
    assert (note.name, note.severity) == ("model-return-off", "note")
    with torch.no_grad():
        head.bias.fill_(20.0)
    assert check_promise(subject, Effort(windows=64)).findings[0].severity == "broken"


def test_a_trained_part_shows_its_training(load_small):
    subject = load_small()
    for part in ("actor", "critic"):
        history = read_history(subject, part, part)
        assert (history.unlisted, history.idle, history.initial) == (0, [], [])
        assert history.gradient_rms > 0.0


def test_what_was_never_trained_is_named(load_small):
    subject = load_small()
    subject.optimisers = copy.deepcopy(dict(subject.optimisers))
    del subject.optimisers["actor"]["state"][1]
    subject.optimisers["actor"]["state"][2]["step"] = torch.tensor(0.0)
    names = [name for name, _ in subject.agent.actor.named_parameters()]
    assert read_history(subject, "actor", "actor").idle == names[1:3]
    subject.optimisers["actor"]["param_groups"][0]["params"].pop()
    assert read_history(subject, "actor", "actor").unlisted == 1
    subject.agent.critic.load_state_dict(subject.initial().critic.state_dict())
    assert read_history(subject, "critic", "critic").initial == [n for n, _ in subject.agent.critic.named_parameters()]


def test_a_run_of_no_epochs_misses_no_training(make_subject):
    subject = make_subject()
    subject.optimisers = {}
    history = read_history(subject, "actor", "actor")
    assert (history.unlisted, history.idle, history.initial) == (0, [], [])
