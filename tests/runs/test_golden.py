"""Losses of seeded three-epoch CPU runs, so that a refactor that changes them is noticed.

A deliberate change of the mathematics or of initial weights moves these numbers: replace them by what
the failing test prints, and say why in the commit.
"""

import pytest

from flowmbpo.tracking.sink import read_rows

KEYS = ("loss/dynamics", "loss/reward", "loss/actor", "loss/critic", "grad_norm/model", "train/return_mean")
GOLDEN = {
    "config": [
        [0.0283088, 1.07482, 3.67997, 1.57667, 0.905519, 21.9981],
        [0.0258949, 0.197974, 4.35122, 1.18747, 0.682978, 21.9981],
        [0.0212889, 0.972663, 3.17899, 0.893992, 0.852118, 21.9981],
    ],
    "flow_config": [
        [0.0211894, 1.06862, 4.83213, 5.05375, 0.966237, 21.9981],
        [0.0188977, 0.18004, 3.85872, 1.71581, 0.559154, 21.9981],
        [0.0171012, 1.79129, 3.0748, 3.89981, 0.918732, 21.9981],
    ],
}


@pytest.mark.parametrize("variant", GOLDEN)
def test_losses_are_the_recorded_ones(request, train, tmp_path, variant):
    config = request.getfixturevalue(variant)(
        **{"task.name": "toy-pendulum-swingup", "training.epochs": 3, "evaluation.every": 0}
    )
    train(config, out=tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss/actor" in row]
    found = [[float(f"{row[key]:.6g}") for key in KEYS] for row in rows]
    assert len(found) == len(GOLDEN[variant]), found
    for row, golden in zip(found, GOLDEN[variant], strict=True):
        assert row == pytest.approx(golden, rel=1e-3), found
