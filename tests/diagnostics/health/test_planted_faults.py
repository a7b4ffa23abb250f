"""Each of ten planted faults is found by its name, at several strengths."""

import json

import pytest
from planted.catalogue import all_faults
from planted.saved import write_broken_run
from typer.testing import CliRunner

from flowmbpo.config.sections import DiagnosticsConfig
from flowmbpo.diagnostics.health.light import light_health
from flowmbpo.diagnostics.health.verdict import measure_health
from flowmbpo.diagnostics.interface import Effort
from flowmbpo_cli.main import app

STRONG_AND_WEAK = {
    "flat-reward-head": ("output layer zero", "output weights x 0.05"),
    "reward-scale": ("moments x 100", "head x 10"),
    "simnorm-velocity": ("whole, unprojected", "a tenth, unprojected"),
    "actor-without-gradient": ("actions detached", "gradient x 0.5"),
    "nan-weights": ("everything", "one entry of the encoder"),
    "dead-critic": ("output layer zero", "one member x 0.1"),
    "saturated-policy": ("output layer x 100", "first dimension's bias 12"),
    "swapped-action-columns": ("first two, everywhere", "first two, dynamics"),
    "off-by-one-replay": ("actions and rewards one row late", "rewards one row late"),
    "frozen-encoder": ("as initialised", "gradient x 0.001"),
}
FAULTS = {(fault.finding, fault.variant): fault for fault in all_faults()}
JUDGED = [(finding, variant) for finding, variants in STRONG_AND_WEAK.items() for variant in variants]


def broken_names(subject):
    return {finding.name for finding in measure_health(subject, Effort()).findings if finding.severity == "broken"}


@pytest.mark.parametrize(("finding", "variant"), JUDGED)
def test_a_planted_fault_is_found_by_name(finding, variant, load_small):
    subject = load_small()
    FAULTS[finding, variant].plant(subject)
    assert finding in broken_names(subject)


@pytest.mark.parametrize(
    "finding", ["flat-reward-head", "actor-without-gradient", "nan-weights", "dead-critic", "saturated-policy"]
)
def test_the_light_form_finds_what_needs_no_episodes(finding, load_small):
    subject = load_small()
    subject.make_env = None
    FAULTS[finding, STRONG_AND_WEAK[finding][0]].plant(subject)
    assert finding in {found.name for found in light_health(subject, Effort.light(DiagnosticsConfig()))}


@pytest.mark.slow
@pytest.mark.parametrize(("finding", "variant"), [key for key in FAULTS if key not in JUDGED])
def test_other_variants_are_found_too(finding, variant, load_small):
    subject = load_small()
    fault = FAULTS[finding, variant]
    if not fault.fits(subject):
        pytest.skip("does not fit this model")
    fault.plant(subject)
    assert finding in broken_names(subject)


@pytest.mark.parametrize(
    ("finding", "variant"),
    [
        ("dead-critic", "output layer x 0.01"),
        ("nan-weights", "whole actor"),
        ("off-by-one-replay", "actions one row late"),
    ],
)
def test_a_broken_checkpoint_file_ends_with_exit_code_3(finding, variant, load_small, small_run, tmp_path):
    file = write_broken_run(small_run, tmp_path / "broken", FAULTS[finding, variant], load_small())
    result = CliRunner().invoke(app, ["diagnose", "health", str(file), "--json"])
    assert result.exit_code == 3, result.output
    document = json.loads(result.stdout)["health"]
    assert finding in {found["name"] for found in document["findings"]}
    assert document["healthy"] is False and document["verdict"].startswith("broken")
