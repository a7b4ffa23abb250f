"""Each planted fault is found by its name: one or two strengths by default, every one where time allows."""

import io
import json
from contextlib import redirect_stdout

import pytest
from planted.catalogue import all_faults
from planted.saved import write_broken_run
from typer.testing import CliRunner

from flowmbpo.diagnostics.health.engine import light_health, measure_health
from flowmbpo.diagnostics.interface import Effort
from flowmbpo_cli.diagnose import show_brief
from flowmbpo_cli.main import app

FAULTS = {(fault.finding, fault.variant): fault for fault in all_faults()}
WEAK = {
    "flat-reward-head": ("reward", "output weights x 0.05"),
    "reward-scale": ("reward", "head x 10"),
    "simnorm-velocity": ("latents", "a tenth, unprojected"),
    "actor-without-gradient": ("actor", "gradient x 0.5"),
    "nan-weights": ("weights", "one entry of the encoder"),
    "dead-critic": ("critic", "one member x 0.1"),
    "saturated-policy": ("policy", "first dimension's bias 12"),
    "swapped-action-columns": ("action_columns", "first two, dynamics"),
    "off-by-one-replay": ("alignment", "rewards one row late"),
    "frozen-encoder": ("encoder", "gradient x 0.001"),
    "encoder-lost-observation": ("encoder", "one sign of it"),
    "critic-slopes-untrained": ("critic", "upside down"),
    "entropy-collapse": ("policy", "noise x 0.03"),
}
STRONG = {
    "flat-reward-head": ("reward", "output layer zero"),
    "reward-scale": ("reward", "moments x 100"),
    "simnorm-velocity": ("latents", "whole, unprojected"),
    "actor-without-gradient": ("actor", "actions detached"),
    "dead-critic": ("critic", "output layer zero"),
    "saturated-policy": ("policy", "output layer x 100"),
    "frozen-encoder": ("encoder", "as initialised"),
    "encoder-lost-observation": ("encoder", "noise in its place"),
    "entropy-collapse": ("policy", "noise x 0.001"),
}
LIGHT = ("flat-reward-head", "actor-without-gradient", "dead-critic", "saturated-policy", "entropy-collapse")
ALIKE = {("saturated-policy", "output layer x 30")}  # this small policy bears it


@pytest.mark.parametrize(
    ("finding", "check", "variant"), [(name, *how) for group in (WEAK, STRONG) for name, how in group.items()]
)
def test_a_planted_fault_is_found_by_name(finding, check, variant, load_small, named):
    subject = load_small()
    FAULTS[finding, variant].plant(subject)
    assert finding in named(subject, check)


def test_faults_of_different_parts_are_all_found_at_once(load_small):
    subject = load_small()
    planted = ("flat-reward-head", "actor-without-gradient", "dead-critic", "frozen-encoder")
    for finding in planted:
        FAULTS[finding, STRONG[finding][1]].plant(subject)
    health = measure_health(subject, Effort())
    assert set(planted) <= {finding.name for finding in health.findings}
    assert len(lines_of(health.brief())) <= 24


class Terminal(io.StringIO):
    """One of 80 columns, which a dumb one counts as."""

    def isatty(self):
        return True


def lines_of(brief):
    """As a terminal shows it, under the line that names the checkpoint."""
    with redirect_stdout(Terminal()) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "dumb")
        show_brief(brief)
    printed = terminal.getvalue().rstrip().splitlines()
    return [line[at : at + 80] for line in printed for at in range(0, max(len(line), 1), 80)]


def test_a_terminal_shows_a_sound_run_in_a_few_lines(sound_health):
    lines = lines_of(sound_health.brief())
    assert len(lines) <= 24
    assert "health: healthy" in lines[0] and "--verbose" in lines[-1]


@pytest.mark.parametrize("finding", LIGHT)
def test_the_light_form_finds_what_needs_no_episodes(finding, load_small):
    subject = load_small()
    subject.make_env = None
    FAULTS[finding, STRONG[finding][1]].plant(subject)
    assert finding in {found.name for found in light_health(subject)}


@pytest.mark.slow
@pytest.mark.parametrize(("finding", "variant"), sorted(FAULTS.keys() - ALIKE))
def test_every_variant_is_found_in_the_whole_diagnosis(finding, variant, load_small):
    subject = load_small()
    fault = FAULTS[finding, variant]
    if not fault.fits(subject):
        pytest.skip("does not fit this model")
    fault.plant(subject)
    health = measure_health(subject, Effort())
    assert finding in {found.name for found in health.findings if found.severity == "broken"}


def test_a_broken_checkpoint_file_ends_with_exit_code_3(load_small, small_run, tmp_path):
    fault = FAULTS["off-by-one-replay", "actions one row late"]
    file = write_broken_run(small_run, tmp_path / "broken", fault, load_small())
    result = CliRunner().invoke(app, ["diagnose", "health", str(file), "--json"])
    assert result.exit_code == 3, result.output
    document = json.loads(result.stdout)["health"]
    assert "off-by-one-replay" in {found["name"] for found in document["findings"]}
    assert document["healthy"] is False and document["verdict"].startswith("broken")
    poisoned = write_broken_run(small_run, tmp_path / "nan", FAULTS["nan-weights", "whole actor"], load_small())
    shown = CliRunner().invoke(app, ["diagnose", "health", str(poisoned)])
    assert shown.exit_code == 3 and "nothing else could be measured" in shown.stdout
