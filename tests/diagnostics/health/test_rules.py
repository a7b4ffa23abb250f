"""The table of findings: complete, in the documentation, and every text can be said."""

from pathlib import Path

import pytest

from flowmbpo.diagnostics.health.engine import (
    LIGHT,
    MODEL_PROBES,
    POLICY_PROBES,
    table_of_findings,
)
from flowmbpo.diagnostics.health.rules import RULES, Rule

DOCUMENT = Path(__file__).parents[3] / "docs" / "diagnostics.md"


def test_the_document_has_the_table_of_the_rules():
    """`python -c "from flowmbpo.diagnostics.health.engine import table_of_findings as t; print(t())"` makes it."""
    assert table_of_findings() in DOCUMENT.read_text(encoding="utf-8")


def test_every_rule_reads_a_probe_and_a_light_one_needs_no_episodes():
    assert {rule.probe for rule in RULES} == {"weights", *MODEL_PROBES, *POLICY_PROBES}
    light = [rule for rule in RULES if rule.light]
    assert {rule.probe for rule in light} == {"weights", *LIGHT}
    assert not [rule for rule in light if "episodes" in rule.needs]


def test_ranges_are_ranges():
    assert all(rule.sound[0] <= rule.sound[1] for rule in RULES)


def test_what_a_sound_run_measures_is_what_the_rules_judge(sound_health):
    """A figure that is renamed in its probe alone would never be found again."""
    missing = {(row.rule.probe, row.rule.figure) for row in sound_health.judged if row.value is None}
    assert missing <= MAY_BE_MISSING


MAY_BE_MISSING = {
    ("dynamics", "updates_per_step"),  # where the model is good enough
    ("reward", "spread_over_real"),  # the light form's
    ("reward", "fresh_episodes.slope_over_reference"),  # where a regression knows too little
    ("reward", "action.response"),  # where rewards hardly depend on the action
    ("alignment", "replay_action_alignment.gap"),  # where shifted profiles are not alike
    ("alignment", "replay_reward_alignment.gap"),
    ("alignment", "preference_replay_reward.effect_denied_by_fresh"),  # where fresh rewards do not deny it
    ("endings", "ended_early_share"),  # one of two rules: young, or not
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.probe}-{rule.figure}")
def test_every_text_can_be_said_of_what_a_sound_run_measures(rule, sound_health):
    figures = sound_health.checks[rule.probe]
    unsaid = {"names", "late", "early", "steps", "direction", "effect", "z", "similarity", "similarity_unshifted"}
    figures = dict.fromkeys(unsaid, 1.0) | figures
    assert "{" not in rule.message(figures)


def test_counts_and_names_are_put_into_words():
    rule = Rule("x", "p", "lost", (0.0, 0.0), "{value} of {total}: {lost}")
    assert rule.message({"lost": ["a", "b", "c", "d", "e"], "total": 9}) == "5 of 9: a, b, c, d"
    assert rule.message({"lost": {"a": 2}, "total": 9}) == "1 of 9: a (2)"
