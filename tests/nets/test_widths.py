"""Widths solved for a parameter count."""

from functools import partial

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flowmbpo.nets.widths import mlp_parameters, solve_widths


@given(
    units=st.lists(st.integers(64, 2048), min_size=2, max_size=4),
    in_dim=st.integers(16, 1024),
    out_dim=st.integers(1, 1024),
    extra=st.integers(1, 200),
)
def test_a_network_with_other_inputs_meets_the_count(units, in_dim, out_dim, extra):
    target = mlp_parameters(in_dim, units, out_dim) + 2 * out_dim
    solve = partial(mlp_parameters, in_dim + extra, out_dim=out_dim)
    assume(solve([1] * len(units)) < target)  # else the inputs alone exceed the budget
    solved = solve_widths(units, target, solve)
    assert len(solved) == len(units)
    grain = 0.005 if min(units) >= 128 else 0.02  # a unit of a narrow layer is more than half a percent
    assert abs(solve(solved) - target) <= grain * target


def test_the_reference_itself_is_found_again():
    count = partial(mlp_parameters, 518, out_dim=512)
    assert solve_widths((512, 512), count((512, 512)), count) == (512, 512)


def test_widths_keep_the_proportions_of_the_reference():
    count = partial(mlp_parameters, 100, out_dim=10)
    wide, narrow = solve_widths((400, 100), 4 * count((400, 100)), count)
    assert wide / narrow == pytest.approx(4.0, rel=0.02)


def test_single_units_are_moved_where_rounding_a_common_factor_misses():
    # Scaling (2, 3) together gives sums 5 (factor 1), 6 (2, 4), 8 (3, 5), never 7: moving one width does.
    assert sum(solve_widths((2, 3), 7, sum)) == 7


def test_a_target_out_of_reach_gives_the_narrowest_network():
    assert solve_widths((64, 64), 3, lambda widths: 100 + sum(widths)) == (1, 1)
