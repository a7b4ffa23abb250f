"""What a flow can and cannot learn of a one-dimensional map, in a quick version of the benchmark."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from flowmbpo.envs.toy.maps import fold_map, inelastic_map, smooth_map

# The benchmark's own figures take 4,000 updates; these bounds hold with margin after STEPS of them.
STEPS = 800


@pytest.fixture(scope="module")
def maps():
    path = Path(__file__).parents[2] / "benchmarks" / "maps.py"
    spec = importlib.util.spec_from_file_location("maps_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks its own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def figures(maps, follow):
    return {name: maps.measure(predict, follow) for name, predict in maps.fit_all(follow, 0, STEPS).items()}


@pytest.mark.slow
@pytest.mark.parametrize("follow", [smooth_map, inelastic_map])
def test_maps_without_a_fold_are_fitted_by_every_model(maps, follow):
    found = figures(maps, follow)
    for name in ("mlp", "residual", "flow K=4", "flow K=16", "flow exact"):
        assert found[name].rmse < 0.03
        assert found[name].wrong_sign < 0.01


@pytest.mark.slow
def test_across_a_fold_only_the_flow_points_the_wrong_way(maps):
    found = figures(maps, fold_map)
    assert found["residual"].wrong_sign < 0.01
    assert found["mlp"].wrong_sign < 0.01
    assert found["flow K=16"].wrong_sign > 0.1
    # An exact flow never turns back: it is wrong wherever the map falls, on about half of the square.
    assert found["flow exact"].wrong_sign == pytest.approx(0.5, abs=0.1)
    assert found["flow K=16"].rmse > 10 * found["residual"].rmse


def test_a_perfect_model_has_no_error(maps):
    fit = maps.measure(smooth_map, smooth_map)
    assert (fit.rmse, fit.slope_rmse, fit.wrong_sign) == (0.0, 0.0, 0.0)


def test_wrong_signs_are_counted_where_the_slope_is_steep(maps):
    """x' = |x - .25| against x' = x: slopes of 1, wrong in the 63 of 101 columns with x < .25."""
    fit = maps.measure(lambda x, a: (x - 0.25).abs(), lambda x, a: 1.0 * x)
    assert fit.wrong_sign == pytest.approx(63 / 101)
    assert maps.measure(lambda x, a: -0.3 * x, lambda x, a: 0.3 * x).wrong_sign == 1.0
    assert maps.measure(lambda x, a: -0.1 * x, lambda x, a: 0.1 * x).wrong_sign == 0.0


def test_equal_seeds_give_equal_models_and_touch_no_global_generator(maps):
    state = torch.get_rng_state()
    first, again = (maps.fit_all(inelastic_map, 3, 3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    x, a = torch.linspace(-1, 1, 7).unsqueeze(-1), torch.zeros(7, 1)
    for name in first:
        assert torch.equal(first[name](x, a), again[name](x, a))
