"""The controls that stand beside every flow preset, each a small change of its dynamics. Imports no torch.

A gain may be credited to flow matching only where the flow beats these (docs/controls.md says what each
isolates). They are derived from the flow preset, so that no file can fall behind it: phase, task, training,
geometry and parameter count are the flow's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowmbpo.config.dynamics import FlowDynamicsConfig

Options = dict[str, Any]

JACOBIAN_PENALTY = 1e-3
"""As phase1p5-jacobian-penalty has it: a step near the identity has ||J P||_F^2 / D of order 1, and a squared latent
error is of order 1e-3, so the penalty weighs about as much as the error that it competes with."""

GAUSSIAN_NLL_WEIGHT = 0.005
"""A likelihood of the standardised displacement is of order 1 where a squared latent error is of order 1e-3."""


def residual(flow: FlowDynamicsConfig) -> Options:
    """s' = s + P f: the flow's geometry without flow matching."""
    return {"kind": "residual", "source": flow.source}


def gaussian(flow: FlowDynamicsConfig) -> Options:
    """A Gaussian density of the next state, one-step teacher-forced whatever the flow's source.

    From its own rollout the source would carry the model's samples and the target the real noise: the
    spread that fits their difference over several steps is no step's, and no density is learnt. Its
    likelihood is on the displacement scaled by its running std, as a generative flow's loss is: there it
    takes over `fm_weight`.
    """
    weight = flow.fm_weight if flow.mode == "generative" else GAUSSIAN_NLL_WEIGHT
    changes: Options = {"kind": "gaussian", "source": "teacher", "nll_weight": weight}
    return changes if flow.loss_space == "latent" else changes | {"loss_space": "latent"}


def neural_ode(flow: FlowDynamicsConfig) -> Options:
    """The same network, substeps and integrator, trained on the endpoint only."""
    return {"kind": "neural_ode", "source": flow.source}


def teacher(flow: FlowDynamicsConfig) -> Options:
    """The flow itself, every step from the encoding of a real observation."""
    return {"source": "teacher"}


def wide_mlp(flow: FlowDynamicsConfig) -> Options:
    """One evaluation of a network as expensive as the flow's macro step."""
    return _plain(flow) | {"widen_nfe": flow.nfe}


def jacobian_penalty(flow: FlowDynamicsConfig) -> Options:
    """A plain network with the flow's own Jacobian penalty, or `JACOBIAN_PENALTY`."""
    return _plain(flow) | {"jacobian_penalty": flow.jacobian_penalty or JACOBIAN_PENALTY}


def _plain(flow: FlowDynamicsConfig) -> Options:
    """The MLP dynamics; where the state is no simplex, on which alone the MLP lives, the residual network."""
    if flow.geometry == "euclidean":
        return {"kind": "residual", "source": flow.source}
    changes: Options = {"kind": "mlp", "source": flow.source}
    if flow.retraction != "none":
        changes["retraction"] = "none"
    if flow.spectral_norm:
        changes["spectral_norm"] = False
    return changes


@dataclass(frozen=True)
class Control:
    """`options` gives the keys of `model.dynamics` that differ from the flow's; `says` what it then is."""

    options: Callable[[FlowDynamicsConfig], Options]
    says: Callable[[FlowDynamicsConfig], str]

    def delta(self, base: str, flow: FlowDynamicsConfig) -> Options:
        """What a preset file that extends `base` would state."""
        description = f"Control of {base}. {self.says(flow)}"
        return {"description": description, "model": {"dynamics": self.options(flow)}}


def _plain_name(flow: FlowDynamicsConfig) -> str:
    return "residual network" if flow.geometry == "euclidean" else "plain MLP"


def _says_teacher(flow: FlowDynamicsConfig) -> str:
    if flow.source == "teacher":
        return "The same model: the preset is teacher-forced already."
    return "The same flow trained by one-step teacher forcing."


CONTROLS: dict[str, Control] = {
    "residual": Control(residual, lambda flow: "A residual network of its size and geometry, no flow matching."),
    "gaussian": Control(gaussian, lambda flow: "A Gaussian over displacements, its std a function of the state."),
    "neuralode": Control(
        neural_ode, lambda flow: f"A network evaluated {flow.nfe} times as the flow's is, trained on the endpoint only."
    ),
    "teacher": Control(teacher, _says_teacher),
    "widemlp": Control(
        wide_mlp, lambda flow: f"A {_plain_name(flow)} widened to the FLOPs of {flow.nfe} velocity evaluations."
    ),
    "jacpen": Control(
        jacobian_penalty,
        lambda flow: (
            f"A {_plain_name(flow)} with a penalty of {flow.jacobian_penalty or JACOBIAN_PENALTY:g} on its Jacobian."
        ),
    ),
}
