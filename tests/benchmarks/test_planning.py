"""The planning benchmark's paired figures are what they say."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def planning():
    path = Path(__file__).parents[2] / "benchmarks" / "planning.py"
    spec = importlib.util.spec_from_file_location("planning_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def row(planning):
    """Policy 10 and 20, MPPI 11 and 23, of one checkpoint."""
    pairs = [
        (planning.Side(10.0, 1.0), planning.Side(11.0, 40.0, 3, 1)),
        (planning.Side(20.0, 3.0), planning.Side(23.0, 60.0, 4, 0)),
    ]
    return planning.summarise("preset", "a/seed0", "task", 8, pairs)


def test_difference_is_paired_with_students_interval(row):
    """Differences 1 and 3: mean 2, t(0.975, 1) = 12.706, standard error 1."""
    assert (row.policy, row.mppi, row.difference) == (15.0, 17.0, 2.0)
    assert (row.low, row.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)
    assert (row.pairs, row.wins, row.episodes) == (2, 2, 8)
    assert (row.policy_ms, row.mppi_ms, row.nonfinite, row.fallbacks) == (2.0, 50.0, 7, 1)


def test_runs_of_one_preset_are_compared_by_their_means(planning, row):
    worse = planning.summarise("preset", "a/seed1", "task", 8, [(planning.Side(5.0, 1.0), planning.Side(1.0, 1.0))])
    elsewhere = planning.summarise("other", "b", "task", 8, [(planning.Side(5.0, 1.0), planning.Side(1.0, 1.0))])
    (both,) = planning.together([row, elsewhere, worse])
    assert (both.preset, both.run, both.pairs, both.episodes) == ("preset", "all", 2, 16)
    assert (both.policy, both.mppi, both.difference, both.wins) == (10.0, 9.0, -1.0, 1)


def test_table_is_written_as_it_is_shown(planning, row, tmp_path):
    planning.write(tmp_path / "rows.csv", [row])
    (stored,) = csv.DictReader((tmp_path / "rows.csv").open())
    assert stored["preset"] == "preset" and float(stored["difference"]) == 2.0 and stored["wins"] == "2"
    assert "+2.0 [-10.7, +14.7]" in planning.show(row)
