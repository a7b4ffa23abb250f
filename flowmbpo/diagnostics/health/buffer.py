"""Whether the replay buffer's file is the one that the checkpoint was saved with."""

from __future__ import annotations

from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject


def check_buffer(subject: Subject, effort: Effort) -> Check:
    """`replay-damaged`: the file was altered. What lies in it is judged by the checks of rewards and alignment."""
    del effort  # the file was read when the checkpoint was
    findings = []
    if subject.replay_trouble:
        message = f"{subject.replay_trouble} What was learnt from it cannot be checked against it."
        findings.append(Finding("replay-damaged", "broken", message, {}))
    figures = {"present": subject.replay is not None, "as_saved": not subject.replay_trouble}
    return Check("replay file", figures, tuple(findings))
