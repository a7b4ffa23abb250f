"""The controls that stand beside every flow preset, each a small change of its dynamics.

A gain may be credited to flow matching only where the flow beats these (docs/controls.md says what each
isolates). They are derived from the flow preset, so that no file can fall behind it: phase, task, training,
geometry and parameter count are the flow's.
"""

from __future__ import annotations

from typing import Any

from flowmbpo.config.dynamics import FlowDynamicsConfig

Options = dict[str, Any]

CONTROLS = ("residual", "gaussian", "neuralode", "teacher", "widemlp", "jacpen")

JACOBIAN_PENALTY = 1e-3
"""As phase1p5-jacobian-penalty has it: a step near the identity has ||J P||_F^2 / D of order 1, and a squared latent
error is of order 1e-3, so the penalty weighs about as much as the error that it competes with."""

GAUSSIAN_NLL_WEIGHT = 0.005
"""A likelihood of the standardised displacement is of order 1 where a squared latent error is of order 1e-3."""


def control_overlay(control: str, base: str, flow: FlowDynamicsConfig) -> Options:
    """What a preset file would state that extends `base`, whose dynamics are `flow`."""
    options, says = _dynamics(control, flow)
    return {"description": f"Control of {base}. {says}", "model": {"dynamics": options}}


def _dynamics(control: str, flow: FlowDynamicsConfig) -> tuple[Options, str]:
    """The keys of `model.dynamics` in which the control differs from the flow, and what it is."""
    residual: Options = {"kind": "residual", "source": flow.source}  # s' = s + P f, in the flow's geometry
    match control:
        case "residual":
            return residual, "A residual network of its size and geometry, no flow matching."
        case "gaussian":
            # Teacher-forced whatever the flow's source: from its own rollout the source would carry the model's samples
            # and the target the real noise, and the spread that fits their difference over several steps is no step's.
            # The likelihood is on the displacement over its running std, as a generative flow's loss, whose weight it
            # takes over, and that of a flow whose errors are scaled by the spread of the change.
            scaled = flow.mode == "generative" or flow.error_scale == "change"
            options: Options = {"kind": "gaussian", "source": "teacher"}
            options["nll_weight"] = flow.fm_weight if scaled else GAUSSIAN_NLL_WEIGHT
            options |= {} if flow.loss_space == "latent" else {"loss_space": "latent"}
            options |= {} if flow.error_scale == "none" else {"error_scale": "none"}
            return options, "A Gaussian over displacements, its std a function of the state."
        case "neuralode":
            says = f"A network evaluated {flow.nfe} times as the flow's is, trained on the endpoint only."
            return {"kind": "neural_ode", "source": flow.source}, says
        case "teacher":
            same = flow.source == "teacher"
            says = (
                "model: the preset is teacher-forced already." if same else "flow trained by one-step teacher forcing."
            )
            return {"source": "teacher"}, f"The same {says}"
    plain, name = residual, "residual network"
    if flow.geometry != "euclidean":  # where the observation is the state, the residual network is the plain one
        plain, name = {"kind": "mlp", "source": flow.source}, "plain MLP"
        plain |= {"retraction": "none"} if flow.retraction != "none" else {}
        plain |= {"spectral_norm": False} if flow.spectral_norm else {}
    if control == "widemlp":  # one evaluation of a network as expensive as the flow's macro step
        says = f"A {name} widened to the FLOPs of {flow.nfe} velocity evaluations."
        return plain | {"widen_nfe": flow.nfe}, says
    penalty = flow.jacobian_penalty or JACOBIAN_PENALTY
    return plain | {"jacobian_penalty": penalty}, f"A {name} with a penalty of {penalty:g} on its Jacobian."
