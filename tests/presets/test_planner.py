"""The planner's options and what `--planner-set` makes of them."""

import pytest

from flowmbpo.config.planner import MPPIConfig
from flowmbpo.errors import ConfigError
from flowmbpo.presets.load import mppi_config


def test_defaults_are_tdmpc2s():
    config = MPPIConfig()
    assert (config.horizon, config.samples, config.elites, config.policy_samples) == (3, 512, 64, 24)
    assert (config.min_std, config.max_std, config.temperature) == (0.05, 2.0, 0.5)
    assert [config.iterations_for(width) for width in (1, 19, 20, 61)] == [6, 6, 8, 8]
    assert MPPIConfig(iterations=3).iterations_for(20) == 3


def test_settings_change_what_they_name_and_later_ones_win():
    assert mppi_config([]) == MPPIConfig()
    changed = mppi_config(["horizon=5", " temperature = 2 ", "explore=true", "horizon=7", "iterations=null"])
    assert changed == MPPIConfig(horizon=7, temperature=2.0, explore=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("horizon", r"--planner-set horizon: write key=value"),
        ("horizon=", r"--planner-set horizon=: no value; write key=value"),
        ("horzon=3", r"unknown key 'horzon'\. Did you mean 'horizon'\?"),
        ("x=3", r"unknown key 'x'\. Allowed: horizon, "),
        ("horizon=0", r"--planner-set horizon=0: horizon: 0 is not allowed\. Use an integer >= 1"),
        ("horizon=three", r"horizon: 'three' is not allowed"),
        ("temperature=-1", r"temperature: -1 is not allowed\. Use a number > 0"),
        ("samples=32", r"elites 64 exceeds samples 32"),
        ("policy_samples=600", r"policy_samples 600 exceeds samples 512"),
        ("min_std=3", r"min_std 3\.0 exceeds max_std 2\.0"),
        ("horizon=[", r"not valid YAML"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_with_what_can(setting, message):
    with pytest.raises(ConfigError, match=message):
        mppi_config([setting])
