"""The learning rate of an epoch."""

import pytest

from flowmbpo.training.optimiser import learning_rate


def test_linear_schedule_goes_from_initial_to_final():
    rates = [learning_rate(1.0, 0.2, epoch, 4, "linear") for epoch in range(5)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2], abs=1e-15)
    assert learning_rate(5e-4, 1e-5, 0, 15_000, "linear") == 5e-4


def test_linear_schedule_stays_at_final_past_its_end():
    assert learning_rate(1.0, 0.2, 9, 4, "linear") == pytest.approx(0.2, abs=1e-15)


def test_schedule_depends_on_the_epoch_alone_so_a_resumed_run_continues_it():
    whole = [learning_rate(3e-4, 1e-5, epoch, 10, "linear") for epoch in range(10)]
    resumed = [learning_rate(3e-4, 1e-5, epoch, 10, "linear") for epoch in range(6, 10)]
    assert whole[6:] == resumed and len(set(whole)) == 10


def test_constant_schedule_ignores_the_epoch():
    assert {learning_rate(3e-4, 1e-5, epoch, 10, "constant") for epoch in range(12)} == {3e-4}
