"""`eval --planner`: what the engine is asked for."""

import pytest

from flowmbpo.config.planner import MPPIConfig


@pytest.fixture
def checkpoint(tmp_path):
    """A file where `eval` looks for one; the stand-in engine does not read it."""
    file = tmp_path / "agent.pt"
    file.write_bytes(b"weights")
    return file


@pytest.mark.parametrize(
    ("flags", "planner"),
    [
        ([], None),
        (["--planner", "policy"], None),
        (["--planner", "mppi"], MPPIConfig()),
        (
            ["--planner", "mppi", "--planner-set", "horizon=5", "--planner-set", "samples=256"],
            MPPIConfig(horizon=5, samples=256),
        ),
    ],
)
def test_planner_and_its_settings_reach_the_engine(command, engine, checkpoint, flags, planner):
    engine.outcome = {"checkpoint": str(checkpoint)}
    assert command("eval", checkpoint, *flags, "--json").code == 0
    assert engine.calls[0][2]["planner"] == planner


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--planner", "cem"], "--planner"),
        (["--planner-set", "horizon=5"], "add --planner mppi"),
        (["--planner", "mppi", "--planner-set", "horzon=5"], "Did you mean 'horizon'?"),
        (["--planner", "mppi", "--planner-set", "elites=600"], "elites 600 exceeds samples 512"),
    ],
)
def test_planner_that_cannot_be_had_is_refused_before_the_engine_starts(command, engine, checkpoint, flags, message):
    finished = command("eval", checkpoint, *flags)
    assert finished.code == 2 and message in finished.stderr
    assert not engine.calls


def test_people_read_what_planned_and_how_it_went(command, engine, checkpoint):
    counts = {"plans": 100, "sequences": 307200, "nonfinite": 7, "fallbacks": 0}
    planner = {"kind": "mppi", "values": "critic", "settings": {"horizon": 3}, "counts": counts}
    engine.outcome = {"task": "t", "planner": planner, "per_task": {}}
    shown = command("eval", checkpoint, "--planner", "mppi").stdout
    assert "mppi on critic: horizon 3" in shown
    assert "100 plans, 307200 sequences, 7 nonfinite, 0 fallbacks" in shown
