"""A run that diagnoses itself is the same run, pays for it outside its clock, and warns once."""

import json
import logging
import time
from pathlib import Path

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.diagnostics.health.engine import HealthFinding
from flowmbpo.errors import DataError
from flowmbpo.runs import subjects as self_diagnosis
from flowmbpo.runs.session import TrainingSession
from flowmbpo.runs.subjects import SelfDiagnosis
from flowmbpo.runs.train import run_epoch
from flowmbpo.tracking.sink import read_rows

KEYS = {
    *(f"esnr/{part}" for part in ("actor", "model")),
    *(f"jacobian/{side}" for side in ("z", "a")),
    *(f"rollout_error/{k}" for k in (1, 4, 8, 16)),
    "health/findings",
    "diagnostics/seconds",
    "diagnostics/share",
}
EVERY = {"diagnostics.every": 1}


def rows_of(outcome):
    return [row for row in read_rows(Path(outcome.run_dir) / "metrics.jsonl") if "loss/actor" in row]


@pytest.fixture
def measured(monkeypatch):
    """Replace what is measured by a function of the subject."""
    return lambda function: monkeypatch.setattr(self_diagnosis, "measure_light", lambda s, e: function(s))


def found(*names):
    return {}, [HealthFinding(name, "broken", f"{name} is broken.") for name in names]


@pytest.mark.parametrize("variant", ["config", "flow_config"])
def test_run_is_bit_equal_with_and_without(request, train, figures, same, tmp_path, uninterrupted, variant):
    config = request.getfixturevalue(variant)
    without = figures(uninterrupted(variant))
    with_them = figures(train(config(**EVERY), out=tmp_path / "with"))
    assert same(without[0], with_them[0])
    assert [row for row in without[1] if KEYS & row.keys()] == []
    kept = [{key: value for key, value in row.items() if key not in KEYS} for row in with_them[1]]
    assert same(without[1], kept)
    assert sum(bool(KEYS & row.keys()) for row in with_them[1]) == 4


def test_resumed_run_measures_the_same(train, flow_config, figures, same, tmp_path):
    changes = {
        "diagnostics.every": 2,
        "training.lr_schedule": "constant",
    }  # a linear one would depend on the number of epochs
    whole = train(flow_config(**changes), out=tmp_path / "whole")
    train(flow_config(**changes, **{"training.epochs": 2}), out=tmp_path / "parts")
    resumed = train(flow_config(**changes), resume=tmp_path / "parts")
    assert same(figures(whole), figures(resumed))
    assert resumed.findings == whole.findings


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3, 4]), (3, [3]), (0, [])])
def test_metrics_come_every_so_many_epochs_also_where_no_row_is_due(train, config, measured, every, epochs):
    measured(lambda subject: ({"esnr/actor": 0.5}, []))
    outcome = train(config(**{"diagnostics.every": every, "tracking.every": 100, "evaluation.every": 0}))
    assert [row["epoch"] for row in rows_of(outcome) if row.get("esnr/actor") == 0.5] == epochs


def test_row_holds_every_key_and_the_cost_in_share_of_training(train, config):
    outcome = train(config(**EVERY))
    rows = rows_of(outcome)
    assert rows[-1].keys() >= KEYS
    seconds = [row["diagnostics/seconds"] for row in rows]
    assert all(second > 0 for second in seconds)
    assert outcome.diagnostics_s == pytest.approx(sum(seconds))
    for index, row in enumerate(rows):  # the clock runs on for an instant between the row's reading and the share's
        assert row["diagnostics/share"] * row["wall_s"] == pytest.approx(sum(seconds[: index + 1]), rel=0.5)


def test_training_clock_stands_still_meanwhile(train, config, measured, monkeypatch):
    whole, counted = TrainingSession._diagnose, []

    def timed(session):
        before = session.clock.times["wall_s"]
        metrics = whole(session)
        counted.append(session.clock.times["wall_s"] - before)
        return metrics

    monkeypatch.setattr(TrainingSession, "_diagnose", timed)
    measured(lambda subject: time.sleep(1.0) or found())
    outcome = train(config(**{"diagnostics.every": 4}))
    assert outcome.diagnostics_s >= 1.0
    assert len(counted) == 1 and counted[0] < 0.5  # of a whole second: what a busy machine may add


def test_finding_is_warned_of_once_and_listed_in_the_run(train, config, measured, caplog):
    measured(lambda subject: found("dead-critic", "saturated-policy") if subject.origin.epoch > 1 else found())
    caplog.set_level(logging.WARNING, logger="flowmbpo")
    outcome = train(config(**EVERY))
    assert outcome.findings == ("dead-critic", "saturated-policy")
    warned = [record.getMessage() for record in caplog.records if "dead-critic" in record.getMessage()]
    assert warned == ["epoch 2: dead-critic: dead-critic is broken."]
    run = Path(outcome.run_dir)
    assert "WARNING epoch 2: dead-critic: dead-critic is broken." in (run / "logs" / "train.log").read_text()
    assert json.loads((run / "run.json").read_text())["outcome"]["findings"] == ["dead-critic", "saturated-policy"]
    assert [row["health/findings"] for row in rows_of(outcome)] == [0, 2, 2, 2]


def test_resume_does_not_repeat_a_warning_and_keeps_the_cost(train, config, measured, caplog):
    measured(lambda subject: found("dead-critic"))
    first = train(config(**EVERY, **{"training.epochs": 2}))
    caplog.clear()
    second = train(config(**EVERY), resume=Path(first.run_dir))
    assert second.findings == ("dead-critic",)
    assert "dead-critic" not in caplog.text
    assert second.diagnostics_s > first.diagnostics_s
    stored = load(Path(second.checkpoint)).payload["self_diagnosis"]
    assert stored == {"findings": ["dead-critic"], "seconds": second.diagnostics_s}


@pytest.mark.parametrize("error", [DataError, RuntimeError])
def test_measurement_that_fails_costs_no_training(train, config, measured, caplog, error):
    def fail(subject):
        raise error("no window is long enough")

    measured(fail)
    caplog.set_level(logging.WARNING, logger="flowmbpo")
    outcome = train(config(**EVERY))
    assert (outcome.status, outcome.epochs) == ("done", 4)
    assert "could not be diagnosed" in caplog.text and "no window is long enough" in caplog.text
    assert all("diagnostics/seconds" in row for row in rows_of(outcome))


def test_agent_is_in_evaluation_mode_meanwhile_and_back_after(config, measured, assemble):
    learner, collector = assemble(config())
    run_epoch(learner, collector)
    modes = []
    measured(lambda subject: modes.append(subject.agent.training) or found())
    for mode in (True, False):
        learner.agent.train(mode)
        SelfDiagnosis(config(), learner).measure()
        assert learner.agent.training is mode
    assert modes == [False, False]


def test_draws_depend_on_seed_and_epoch_alone(config, measured, assemble):
    draws = []
    measured(lambda subject: draws.append(torch.rand(1, generator=subject.generator("x")).item()) or found())
    for seed, epoch in ((0, 50), (0, 50), (0, 100), (1, 50)):
        learner, collector = assemble(config(seed=seed))
        run_epoch(learner, collector)
        learner.epoch = epoch
        SelfDiagnosis(config(seed=seed), learner).measure()
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


def test_measuring_leaves_weights_gradients_buffer_and_generators_alone(flow_config, assemble, tmp_path, same):
    from flowmbpo.checkpoints.payload import capture_rng

    config = flow_config()
    learner, collector = assemble(config)
    run_epoch(learner, collector)

    def state():
        gradients = {name: None if p.grad is None else p.grad.clone() for name, p in learner.agent.named_parameters()}
        whole = [*(part.state_dict() for part in (learner, collector, collector.replay)), gradients]
        whole.append(capture_rng(learner.generators))
        wanted = {name: p.requires_grad for name, p in learner.agent.named_parameters()}
        return torch.save([whole, wanted], tmp_path / "state.pt") or torch.load(tmp_path / "state.pt")

    before = state()
    metrics = SelfDiagnosis(config, learner).measure()
    assert len(metrics) > 2
    assert same(before, state())
