"""Whether the reward head reads the action, where the real rewards depend on it.

Letters: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.health.comparison import Paired, compare_errors
from flowmbpo.diagnostics.health.experience import Stretches
from flowmbpo.diagnostics.health.finding import Finding
from flowmbpo.diagnostics.health.regression import fit_regression

# Calibrated on 24 healthy runs: where leaving out the action costs a regression that much, the head's response to
# other actions is 0.68 to 1.1 of the regression's.
MATTERS, Z = 0.5, 6.0
BEATEN, BEATEN_Z = 0.3, 3.0
FLAT = 0.1


@dataclass(frozen=True)
class ActionShare:
    """What the action is to the real rewards, and to the head.

    `matters` is what leaving out the action costs a regression of the reward on observation and action, on
    held-out rows, `head` the head's error against that regression's. `response` is the RMS change of the head's
    reward where rows are given other rows' actions, over that of the regression's.
    """

    matters: Paired
    head: Paired
    response: float

    @property
    def ignored(self) -> bool:
        """Whether rewards depend on the action beyond doubt, and the head's do not.

        A policy's action betrays the state, and helps a regression where rewards depend on the state alone;
        but such rewards the head knows as well as the regression does.
        """
        matters = self.matters.effect >= MATTERS and self.matters.z >= Z
        beaten = self.head.effect >= BEATEN and self.head.z >= BEATEN_Z
        return matters and beaten and not self.response >= FLAT

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "without_action": self.matters.to_dict(),
            "head_against_regression": self.head.to_dict(),
            "response_over_regression": self.response,
        }


def share_of_action(
    rows: Stretches, predicted: Float[Tensor, " B"], shuffled: Float[Tensor, " B"], other: Tensor
) -> ActionShare:
    """From the head's rewards (real units) for the rows' own actions, and for those of the rows `other`.

    The rows' rewards must vary, and be `comparable`.
    """
    obs, action, real = rows.obs[0], rows.action[0], rows.reward[0].double()
    own, exchanged = torch.cat([obs, action], dim=-1), torch.cat([obs, action[other]], dim=-1)
    found = torch.empty(3, len(rows), dtype=torch.float64, device=real.device)
    half = rows.block % 2 == 0
    for part in (half, ~half):
        with_action = fit_regression(own[~part], real[~part].unsqueeze(-1), seed=0)
        without = fit_regression(obs[~part], real[~part].unsqueeze(-1), seed=0)
        parts = (with_action(own[part]), with_action(exchanged[part]), without(obs[part]))
        found[:, part] = torch.cat(parts, dim=-1).T
    error = (found[0] - real).square()
    expected = float((found[0] - found[1]).square().mean().sqrt())
    response = float((predicted.double() - shuffled.double()).square().mean().sqrt())
    return ActionShare(
        compare_errors(error, (found[2] - real).square(), rows.block),
        compare_errors(error, (predicted.double() - real).square(), rows.block),
        response / expected if expected > 0.0 else 1.0,
    )


def flat_in_action(share: ActionShare) -> Finding:
    """The finding where `share.ignored`."""
    message = (
        f"The predicted reward is flat in the action: other rows' actions change it by {share.response:.2g} of what "
        f"they change a regression, and that regression errs by {share.matters.effect:.2f} more (log error ratio, z "
        f"{share.matters.z:.1f}) without the action. The reward gives the actor no gradient of its own: check the "
        "action's way into the reward head."
    )
    figures = {"response": share.response, "without_action": share.matters.effect, "z": share.matters.z}
    return Finding("flat-reward-head", "broken", message, figures)
