"""Episodes that the task ends long before its time limit: an agent that falls, and was called trained."""

from __future__ import annotations

from typing import Any

import torch

from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject

EARLY = 0.2  # of the time limit
LARGEST_SHARE = 0.5
GRACE = 0.2  # of the configured epochs: a policy that still learns to stand may fall


def check_endings(subject: Subject, effort: Effort) -> Check:
    """How long fresh episodes of the sampled policy last, and how many the task ends within a fifth of its limit."""
    del effort
    episodes = subject.episodes
    limits = torch.tensor([subject.agent.spec.tasks[int(task)].episode_length for task in episodes.task])
    length = episodes.length.cpu().double()
    early = episodes.terminated.cpu() & (length < EARLY * limits)
    share = float(early.double().mean())
    broken = int(episodes.broken.sum())
    figures: dict[str, Any] = {
        "episodes": len(length),
        "length_mean": float(length.mean()),
        "limit": float(limits.double().mean()),
        "return_mean": float(episodes.returns.mean()),
        "return_std": float(episodes.returns.std()) if len(length) > 1 else 0.0,
        "terminated_share": float(episodes.terminated.double().mean()),
        "ended_early_share": share,
        "broken_episodes": broken,
    }
    findings = []
    if share > LARGEST_SHARE:
        young = subject.origin.epoch < GRACE * subject.config.training.epochs
        findings.append(
            Finding(
                "episodes-end-early",
                "note" if young else "broken",
                f"{int(early.sum())} of {len(length)} episodes were ended by the task within a fifth of the time limit "
                f"(after {float(length[early].mean()):.0f} of {float(limits.double().mean()):.0f} steps on average): "
                "the agent falls or fails at once"
                + (", and the run is young." if young else "; whatever the losses say, it has not learnt the task."),
                {"ended_early_share": share, "length_mean": float(length.mean())},
            )
        )
    if broken:
        findings.append(
            Finding(
                "broken-episodes",
                "note",
                f"The simulator broke {broken} of {len(length)} episodes; they are cut before the broken step.",
                {"broken_episodes": float(broken)},
            )
        )
    return Check("endings", figures, tuple(findings))
