"""Whether the encoder learns (gradient, the optimiser's memory, how far its weights have come), and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from flowmbpo.diagnostics.health.experience import fresh_windows, predict_held_out, stored_windows, within_tasks
from flowmbpo.diagnostics.health.probes import Figures, ratio
from flowmbpo.diagnostics.health.probes.weights import saved_moments
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.training.model_loss import model_loss

WINDOWS = 64
LONGEST = 4
PREFIX = "encoder."
PROBED = 1024, 4096  # rows of the regression that reads the observation back: 8 per latent dimension within these


def measure_encoder(subject: Subject) -> Figures:
    """Gradient, optimiser state and movement of the encoder; of a checkpoint of epoch 0 the gradient alone."""
    if not list(subject.agent.world_model.encoder.parameters()):
        return {"judged": "no: the observation is the state"}
    if not subject.trains_model:
        return {"judged": "no: this run keeps its world model as it is"}
    figures = encoder_gradient(subject)
    if subject.origin.epoch > 0:
        figures |= optimiser_memory(subject) | movement(subject) | observation_kept(subject)
    if not subject.config.model.encoder_learns_dynamics:  # then the sizes of the two gradients have nothing in common
        figures = {name: figure for name, figure in figures.items() if not name.endswith("gradient_over_dynamics")}
    return figures


def encoder_gradient(subject: Subject) -> Figures:
    """Of the training loss on replayed windows, in evaluation mode (nothing of it changes the agent).

    `unreached` names encoder tensors without any gradient. `gradient_by_chain_rule` is the encoder's gradient over
    what its outputs' gradient times its Jacobian gives: 1, unless something rescales it on the way.
    """
    model, training, generator = subject.agent.world_model, subject.config.training, subject.generator("encoder")
    batch = subject.windows.sample(WINDOWS, min(training.horizon, LONGEST), generator)
    calls: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            calls.append((inputs[0], output))

    with model.encoder.register_forward_hook(keep):
        loss = model_loss(model, batch, subject.agent.reward_normalizer(batch.reward), training, generator).total
    named = {name: p for name, p in model.named_parameters() if p.numel()}
    learnt = [name for name, p in named.items() if p.requires_grad]
    found: tuple[Tensor, ...] = ()
    if loss.requires_grad:
        wanted = [*(named[name] for name in learnt), *(output for _, output in calls)]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    gradients, upstream = dict(zip(learnt, found, strict=False)), found[len(learnt) :]
    reached = {name for name, gradient in gradients.items() if bool(gradient.any())}
    norm, dynamics = _norm(gradients, PREFIX), _norm(gradients, "dynamics.")
    expected = _expected_norm(model.encoder, calls, upstream)
    return {
        "unreached": [name for name in named if name.startswith(PREFIX) and name not in reached],
        "gradient_over_dynamics": ratio(norm, dynamics) if dynamics != 0.0 else math.inf,
        "gradient_by_chain_rule": ratio(norm, expected),
    }


@torch.no_grad()  # the encoder is judged as it is
def observation_kept(subject: Subject) -> Figures:
    """The share of the observation's variance that a ridge regression on the latent (and its squares) reads back.

    R^2 on pieces of episodes that the regression was not fitted on, within tasks, the mean over the coordinates that
    vary, each in its own scale; `least_kept` is the worst. None where nothing varies or rows are too few.
    """
    limit = min(max(PROBED[0], 8 * subject.config.model.latent_dim), PROBED[1])
    generator, replay = subject.generator("observation"), subject.replay
    if replay is not None and subject.own_windows:
        rows = stored_windows(replay, range(replay.num_envs), 1, limit, generator)
    else:
        rows = fresh_windows(subject.episodes, width=1, limit=limit, generator=generator)
    target = within_tasks(rows.obs[0].double(), rows.task)
    varies = target.std(0) > 1e-6 * (1.0 + rows.obs[0].abs().mean(0))
    if not rows.comparable or not bool(varies.any()):
        return {"observation_r2": None}
    s, _ = subject.encode(rows.obs[0], rows.task)
    z, target = within_tasks(subject.agent.world_model.latent(s), rows.task), target[:, varies]
    left = predict_held_out((z,), target, rows.block, features=0) - target
    r2 = 1.0 - left.square().mean(0) / target.square().mean(0)
    return {
        "observation_r2": float(r2.clamp(min=0.0).mean()),
        "coordinates": int(varies.sum()),
        "least_kept": f"{float(r2.min()):.2g} of coordinate {int(varies.nonzero()[int(r2.argmin())])}",
    }


def _expected_norm(encoder: nn.Module, calls: list[tuple[Tensor, Tensor]], upstream: Iterable[Tensor]) -> float:
    """Norm of the sum over calls of J^T g, on copies of the weights: their hooks see nothing of it."""
    copies = {name: p.detach().clone().requires_grad_() for name, p in encoder.named_parameters()}
    total = torch.zeros(())
    for (inputs, _), g in zip(calls, upstream, strict=False):
        total = total + (torch.func.functional_call(encoder, copies, (inputs.detach(),)) * g).sum()
    if not total.requires_grad:
        return 0.0
    found = torch.autograd.grad(total, [*copies.values()], allow_unused=True, materialize_grads=True)
    return _norm(dict(zip(copies, found, strict=True)), "")


def optimiser_memory(subject: Subject) -> Figures:
    """What Adam's saved state says of the encoder.

    Whether it lacks moments; its fewest steps over the most of the rest; the typical gradient (root of the second
    moments) over the dynamics'. Nothing without a saved optimiser of the model, or where its tensors cannot be told.
    """
    saved = (subject.optimisers or {}).get("model")
    if saved is None:
        return {}
    names = list(dict(subject.agent.world_model.named_parameters()))
    own = [name for name in names if name.startswith(PREFIX)]
    known = sum(len(group["params"]) for group in saved["param_groups"])
    if known != len(names):
        # A frozen tensor is in no optimiser; where just the encoder's are missing, the rest keep their order.
        return {"optimiser_lacks_it": True} if known == len(names) - len(own) else {}
    states = saved_moments(saved, names)
    fewest = min((float(states[name]["step"]) if name in states else 0.0 for name in own), default=0.0)
    most = max((float(state["step"]) for name, state in states.items() if name not in own), default=0.0)
    squares = {name: state["exp_avg_sq"].sqrt() for name, state in states.items()}
    return {
        "optimiser_lacks_it": any(name not in states for name in own),
        "optimiser_steps_over_others": ratio(fewest, most),
        "optimiser_gradient_over_dynamics": ratio(_norm(squares, PREFIX), _norm(squares, "dynamics.")),
    }


def movement(subject: Subject) -> Figures:
    """How far the weights are from where they began, and tensors still as constructed.

    RMS movement: the least moved encoder tensor over the dynamics' median tensor, None where the beginning is not
    known. As constructed are LayerNorm weights of exactly 1 and biases of exactly 0.
    """
    model = subject.agent.world_model
    untouched = [
        f"{PREFIX}{path}.{name}"
        for path, part in model.encoder.named_modules()
        for name, weight in part.named_parameters(recurse=False)
        if (name == "bias" and not weight.any()) or (isinstance(part, nn.LayerNorm) and bool((weight == 1.0).all()))
    ]
    figures: Figures = {"tensors_as_constructed": untouched, "least_movement_over_dynamics": None}
    start = {} if subject.initial is None else dict(subject.initial().world_model.named_parameters())
    moved = {
        name: float((p - start[name].to(p)).detach().double().square().mean().sqrt())
        for name, p in model.named_parameters()
        if p.numel() and name in start and start[name].shape == p.shape
    }
    dynamics = sorted(value for name, value in moved.items() if name.startswith("dynamics."))
    own = {value: name for name, value in reversed(moved.items()) if name.startswith(PREFIX)}
    # Where the dynamics have not moved either, nothing was trained: that is not the encoder's fault.
    if dynamics and own and (median := dynamics[len(dynamics) // 2]) > 0.0:
        figures |= {"least_movement_over_dynamics": min(own) / median, "least_moved": own[min(own)]}
    return figures


def _norm(tensors: Mapping[str, Tensor], prefix: str) -> float:
    return math.sqrt(sum(float(x.double().square().sum()) for name, x in tensors.items() if name.startswith(prefix)))
