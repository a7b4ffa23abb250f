"""Whether the rewards of one part of a replay buffer stand as those of another do.

A regression of reward[t] on (obs[t], action[t], obs[t+1]) is fitted in one part and asked in another, for
every shift k, how well it explains reward[t+k] there. Where some lanes, or some time, had their rewards
stored a row off, the parts contradict each other, and in opposite directions.

Letters: B rows, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.health.comparison import Paired, compare_errors
from flowmbpo.diagnostics.health.experience import Stretches
from flowmbpo.diagnostics.health.regression import Regression, fit_regression

FEATURES = 256
SHIFTS = (-2, -1, 1, 2)
# Calibrated on 28 trained runs: sound lanes have shifts worse by 0.07 and more, and mostly by 1 to 8; sound quarters
# of the time better by 0.02 (z 0.6) at most. Rewards one row late in half of the lanes: better by 0.2 to 4.9 (z 1.4
# to 17), by 0.45 (z 3) in all but two runs. Both directions must be better.
BETTER, Z = 0.25, 3.5


@dataclass(frozen=True)
class Disagreement:
    """Rewards of the part `late` stand `steps` rows later than those of `early`; `paired` is the weaker evidence."""

    late: str
    early: str
    steps: int
    paired: Paired


@torch.no_grad()  # errors are measured, nothing is learnt
def find_disagreement(parts: Mapping[str, Stretches]) -> Disagreement | None:
    """The clearest one between two of the parts, None where all agree or none is sure.

    Every part is of stretches of the same odd number of transitions, the middle one of which is judged.
    """
    models = {name: _fit(rows) for name, rows in parts.items()}
    found: list[tuple[float, Disagreement]] = []
    for one, other in combinations(parts, 2):
        here, there = _shifts(models[one], parts[other]), _shifts(models[other], parts[one])
        for steps in SHIFTS:
            weaker = max(here[steps], there[-steps], key=lambda paired: paired.z)
            if here[steps].better(BETTER, Z) and there[-steps].better(BETTER, Z):
                late, early = (other, one) if steps > 0 else (one, other)
                gain = here[steps].effect + there[-steps].effect
                found.append((gain, Disagreement(late, early, abs(steps), weaker)))
    return min(found, key=lambda each: each[0])[1] if found else None


def _fit(rows: Stretches) -> Regression:
    middle = len(rows.action) // 2
    return fit_regression(_inputs(rows), rows.reward[middle].unsqueeze(-1), seed=0, features=FEATURES)


def _shifts(model: Regression, rows: Stretches) -> dict[int, Paired]:
    """Errors with the rewards of every shift against those with the rewards as stored."""
    middle = len(rows.action) // 2
    predicted = model(_inputs(rows)).squeeze(-1)

    def error(shift: int) -> Tensor:
        return (predicted - rows.reward[middle + shift]).square()

    return {shift: compare_errors(error(0), error(shift), rows.block) for shift in SHIFTS}


def _inputs(rows: Stretches) -> Float[Tensor, "B I"]:
    middle = len(rows.action) // 2
    return torch.cat([rows.obs[middle], rows.action[middle], rows.obs[middle + 1]], dim=-1)
