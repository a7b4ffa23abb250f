"""Equal seeds give bit-equal runs, also through any interruption."""

import pytest


@pytest.mark.parametrize("variant", ["config", "flow_config"])
def test_same_seed_is_bit_equal_and_another_seed_is_not(
    request, train, figures, same, tmp_path, uninterrupted, variant
):
    config = request.getfixturevalue(variant)
    first, second = uninterrupted(variant), train(config(), out=tmp_path / "b")
    other = train(config(seed=1), out=tmp_path / "c")
    assert same(figures(first), figures(second))
    assert first.final_return_mean == second.final_return_mean
    assert not same(figures(first)[0]["agent"], figures(other)[0]["agent"])


@pytest.mark.parametrize(("variant", "epoch"), [("config", 2), ("flow_config", 1), ("flow_config", 3)])
def test_resumed_run_equals_an_uninterrupted_one(
    request, train, figures, same, tmp_path, stop_after, uninterrupted, variant, epoch
):
    config, whole = request.getfixturevalue(variant)(), uninterrupted(variant)
    assert config.training.lr_schedule == "linear"
    stop_after(epoch)
    stopped = train(config, out=tmp_path / "parts")
    assert (stopped.status, stopped.epochs, stopped.final_return_mean) == ("interrupted", epoch, None)
    stop_after(None)
    resumed = train(config, resume=tmp_path / "parts")
    assert (resumed.status, resumed.agent_steps) == ("done", whole.agent_steps)
    assert same(figures(whole), figures(resumed))
    assert resumed.final_return_mean == whole.final_return_mean


def test_rows_of_a_future_that_was_not_saved_are_measured_again(
    train, config, figures, same, tmp_path, stop_after, uninterrupted
):
    settings, whole = config(), uninterrupted("config")
    assert settings.checkpoint.every == 2
    stop_after(2)
    train(settings, out=tmp_path / "parts")
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "agent_steps": 1}\n{"epo')
    stop_after(None)
    assert same(figures(whole), figures(train(settings, resume=tmp_path / "parts")))


def test_longer_training_goes_on_from_a_finished_run(train, config, figures, same, tmp_path):
    constant = {"training.lr_schedule": "constant"}
    whole = train(config(**constant), out=tmp_path / "whole")
    train(config(**constant, **{"training.epochs": 2}), out=tmp_path / "parts")
    longer = train(config(**constant), resume=tmp_path / "parts")
    assert same(figures(whole), figures(longer))
    assert longer.final_return_mean == whole.final_return_mean


def test_learning_rate_goes_on_falling_from_where_the_run_stopped(train, config, figures, tmp_path, stop_after):
    settings = config(**{"training.actor_lr": 4.1e-4, "training.final_lr": 1e-5})
    stop_after(2)
    train(settings, out=tmp_path / "run")
    stop_after(None)
    _, rows = figures(train(settings, resume=tmp_path / "run"))
    rates = [row["lr/actor"] for row in rows if "lr/actor" in row]
    assert rates == pytest.approx([4.1e-4, 3.1e-4, 2.1e-4, 1.1e-4])


def test_finished_run_resumed_again_stays_as_it_is(train, config, figures, same, tmp_path):
    first = train(config(), out=tmp_path / "run")
    before = figures(first)
    again = train(config(), resume=tmp_path / "run")
    assert same(before, figures(again))
    assert again.final_return_mean == first.final_return_mean


def test_evaluation_cadence_changes_nothing_that_is_learned(train, config, figures, same, tmp_path):
    often = train(config(**{"evaluation.every": 1, "evaluation.episodes": 3}), out=tmp_path / "often")
    never = train(config(**{"evaluation.every": 0}), out=tmp_path / "never")
    assert same(figures(often)[0]["agent"], figures(never)[0]["agent"])


@pytest.mark.slow
def test_walkers_in_worker_processes_resume_bit_equally(train, config, figures, same, tmp_path, stop_after):
    settings = config(**{"task": {"name": "walker-stand", "num_envs": 4, "workers": 2}, "training.epochs": 3})
    whole = train(settings, out=tmp_path / "whole")
    again = train(settings, out=tmp_path / "again")
    assert same(figures(whole), figures(again))
    stop_after(2)
    train(settings, out=tmp_path / "parts")
    stop_after(None)
    assert same(figures(whole), figures(train(settings, resume=tmp_path / "parts")))
