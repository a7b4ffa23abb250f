"""Rows applied to figures: verdicts, what a terminal shows, pictures; a sound run is healthy."""

import math
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from flowmbpo.diagnostics.health.engine import HealthDiagnosis, in_range, judge, light_health, measure_health
from flowmbpo.diagnostics.health.rules import Rule
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.subjects import load_subject
from flowmbpo.runs.train import train

DEAD = Rule("dead-critic", "critic", "spread", (0.5, math.inf), "Dead: {value:.2g}.")
OFF = Rule("critic-off", "critic", "offset", (-1.0, 1.0), "Off.", severity="note")


def diagnosis(rules=(OFF, DEAD), **figures):
    checks = {"critic": figures}
    return HealthDiagnosis(checks, tuple(judge(checks, rules)))


def test_the_verdict_names_what_is_broken_before_notes():
    health = diagnosis(states=3, spread=0.12345, offset=1.5)
    assert not health.healthy
    assert health.verdict == "broken: dead-critic"
    assert health.rows() == [
        ("verdict", "broken: dead-critic"),
        ("broken: dead-critic", "Dead: 0.12."),
        ("note: critic-off", "Off."),
        ("critic: states", "3"),
        ("critic: spread", "0.1235"),
        ("critic: offset", "1.5"),
    ]
    document = health.to_dict()
    assert document["checks"] == {"critic": {"states": 3, "spread": 0.12345, "offset": 1.5}}
    assert document["findings"][0] == {
        "name": "dead-critic",
        "severity": "broken",
        "message": "Dead: 0.12.",
        "figures": {"spread": 0.12345},
    }
    assert document["rules"][0] == {
        "finding": "critic-off",
        "check": "critic",
        "figure": "offset",
        "value": 1.5,
        "low": -1.0,
        "high": 1.0,
        "verdict": "note",
    }


def test_notes_leave_a_run_healthy():
    health = diagnosis(offset=1.5)
    assert health.healthy
    assert health.verdict == "healthy; worth knowing: critic-off"


def test_the_first_row_of_a_topic_speaks():
    rules = (replace(OFF, sound=(-5.0, 5.0), severity="broken", topic="level"), replace(OFF, topic="level"))
    assert [row.verdict for row in diagnosis(rules, offset=9.0).judged] == ["broken", "sound"]
    assert [row.verdict for row in diagnosis(rules, offset=2.0).judged] == ["sound", "note"]


def test_what_was_not_measured_is_not_judged():
    assert [row.verdict for row in diagnosis(spread=None).judged] == ["not judged", "not judged"]
    when = replace(DEAD, when="grown")
    assert [row.verdict for row in diagnosis((when,), spread=0.1, grown=False).judged] == ["not judged"]


def test_a_nan_is_outside_of_every_range():
    assert diagnosis(spread=math.nan).verdict == "broken: dead-critic"


@pytest.mark.parametrize(
    ("sound", "words"),
    [((0.0, 0.0), "none"), ((-math.inf, 2.0), "<= 2"), ((0.5, math.inf), ">= 0.5"), ((0.5, 2.0), "0.5 to 2")],
)
def test_ranges_in_words(sound, words):
    assert in_range(replace(DEAD, sound=sound)) == words


def test_a_terminal_shows_findings_then_what_is_nearest_to_its_limit():
    rules = [replace(DEAD, name="far"), replace(DEAD, name="near", figure="near"), OFF]
    brief = diagnosis(rules, spread=5.0, near=0.6, offset=2.0).brief()
    assert [row[0] for row in brief.rows] == ["critic-off", "near", "far"]
    assert brief.rows[1] == ("near", "near", "0.6", ">= 0.5", "sound")
    assert brief.title == "health: healthy; worth knowing: critic-off"
    assert brief.remarks[0] == "critic-off: Off."


@pytest.mark.parametrize("curves", [{}, {"reward": {"real": [0.0, 1.0], "predicted": [0.1, 0.9]}}])
def test_pictures_say_what_was_not_measured(curves):
    figure = Figure()
    HealthDiagnosis({}, (), curves=curves).draw(figure)
    said = sum(text.get_text() == "not measured" for axes in figure.axes for text in axes.texts)
    assert len(figure.axes) == 4
    assert said == (4 if not curves else 3)


def broken(findings):
    return [finding.message for finding in findings if finding.severity == "broken"]


def test_a_sound_run_is_healthy(sound_health):
    assert broken(sound_health.findings) == []
    assert sound_health.healthy and sound_health.verdict.startswith("healthy")


def test_a_sound_run_is_healthy_whatever_episodes_judge_it(small_run):
    subject = load_subject(small_run, task=None, device="cpu", seed=1, episodes=8)
    assert broken(measure_health(subject, Effort()).findings) == []


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
    assert broken(light_health(subject)) == []


def test_the_light_form_is_silent_on_a_sound_run_and_touches_nothing(load_small):
    subject = load_small()
    subject.make_env = None
    before = {name: tensor.clone() for name, tensor in subject.agent.state_dict().items()}
    pointers = {name: parameter.data_ptr() for name, parameter in subject.agent.named_parameters()}
    random = torch.get_rng_state()
    assert light_health(subject) == []
    after = subject.agent.state_dict()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert pointers == {name: parameter.data_ptr() for name, parameter in subject.agent.named_parameters()}
    assert all(parameter.grad is None for parameter in subject.agent.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_what_was_measured_before_does_not_matter(load_small, sound_health):
    subject = load_small()
    light_health(subject)
    assert measure_health(subject, Effort()).to_dict() == sound_health.to_dict()
