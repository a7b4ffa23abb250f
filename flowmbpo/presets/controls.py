"""The controls that stand beside every flow preset, each a small change of its dynamics.

A gain may be credited to flow matching only where the flow beats these (docs/controls.md says what each
isolates). They are derived from the flow preset, so that no file can fall behind it: phase, task, training,
geometry and parameter count are the flow's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowmbpo.config.dynamics import FlowDynamicsConfig

Options = dict[str, Any]
Control = tuple[Options, str]  # the keys of `model.dynamics` that differ from the flow's, and what it then is

JACOBIAN_PENALTY = 1e-3
"""As phase1p5-jacobian-penalty has it: a step near the identity has ||J P||_F^2 / D of order 1, and a squared latent
error is of order 1e-3, so the penalty weighs about as much as the error that it competes with."""

GAUSSIAN_NLL_WEIGHT = 0.005
"""A likelihood of the standardised displacement is of order 1 where a squared latent error is of order 1e-3."""


def residual(flow: FlowDynamicsConfig) -> Control:
    """s' = s + P f: the flow's geometry without flow matching."""
    return _residual(flow), "A residual network of its size and geometry, no flow matching."


def gaussian(flow: FlowDynamicsConfig) -> Control:
    """A Gaussian density of the next state, one-step teacher-forced whatever the flow's source.

    From its own rollout the source would carry the model's samples and the target the real noise: the
    spread that fits their difference over several steps is no step's, and no density is learnt. Its
    likelihood is on the displacement scaled by its running std, as a generative flow's loss is: there it
    takes over `fm_weight`.
    """
    weight = flow.fm_weight if flow.mode == "generative" else GAUSSIAN_NLL_WEIGHT
    options: Options = {"kind": "gaussian", "source": "teacher", "nll_weight": weight}
    if flow.loss_space != "latent":
        options["loss_space"] = "latent"
    return options, "A Gaussian over displacements, its std a function of the state."


def neural_ode(flow: FlowDynamicsConfig) -> Control:
    """The same network, substeps and integrator, trained on the endpoint only."""
    says = f"A network evaluated {flow.nfe} times as the flow's is, trained on the endpoint only."
    return {"kind": "neural_ode", "source": flow.source}, says


def teacher(flow: FlowDynamicsConfig) -> Control:
    """The flow itself, every step from the encoding of a real observation."""
    same = flow.source == "teacher"
    says = "model: the preset is teacher-forced already." if same else "flow trained by one-step teacher forcing."
    return {"source": "teacher"}, f"The same {says}"


def wide_mlp(flow: FlowDynamicsConfig) -> Control:
    """One evaluation of a network as expensive as the flow's macro step."""
    options, name = _plain(flow)
    return options | {"widen_nfe": flow.nfe}, f"A {name} widened to the FLOPs of {flow.nfe} velocity evaluations."


def jacobian_penalty(flow: FlowDynamicsConfig) -> Control:
    """A plain network with the flow's own Jacobian penalty, or `JACOBIAN_PENALTY`."""
    options, name = _plain(flow)
    penalty = flow.jacobian_penalty or JACOBIAN_PENALTY
    return options | {"jacobian_penalty": penalty}, f"A {name} with a penalty of {penalty:g} on its Jacobian."


def _plain(flow: FlowDynamicsConfig) -> Control:
    """The MLP dynamics; where the state is no simplex, on which alone the MLP lives, the residual network."""
    if flow.geometry == "euclidean":
        return _residual(flow), "residual network"
    options: Options = {"kind": "mlp", "source": flow.source}
    if flow.retraction != "none":
        options["retraction"] = "none"
    if flow.spectral_norm:
        options["spectral_norm"] = False
    return options, "plain MLP"


def _residual(flow: FlowDynamicsConfig) -> Options:
    return {"kind": "residual", "source": flow.source}


CONTROLS: dict[str, Callable[[FlowDynamicsConfig], Control]] = {
    "residual": residual,
    "gaussian": gaussian,
    "neuralode": neural_ode,
    "teacher": teacher,
    "widemlp": wide_mlp,
    "jacpen": jacobian_penalty,
}


def control_overlay(control: str, base: str, flow: FlowDynamicsConfig) -> Options:
    """What a preset file would state that extends `base`, whose dynamics are `flow`."""
    options, says = CONTROLS[control](flow)
    return {"description": f"Control of {base}. {says}", "model": {"dynamics": options}}
