"""Whether the encoder learns: its gradient, what the optimiser remembers of it, and how far its weights have come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.training.model_loss import model_loss

WINDOWS = 64
LONGEST = 4
PREFIX = "encoder."
# Calibrated on 24 healthy checkpoints (and, of the gradient alone, on early and broken models): the encoder's gradient
# is 0.19 to 6.4 times the dynamics', over the run 0.45 to 4.9 times; its least moved tensor has moved 0.24 times as
# far as the dynamics' median tensor; the chain rule holds to rounding.
SMALL = 0.02
CHAIN = 0.5
BEHIND = 0.5


@dataclass(frozen=True)
class Gradient:
    """Of the model's loss on replayed windows. `unreached` names encoder tensors without any gradient.

    `norm` is the encoder's, `dynamics` that of the dynamics. `chain` is the encoder's gradient over what
    its outputs' gradient times its Jacobian gives: 1, unless something rescales it on the way.
    """

    norm: float
    dynamics: float
    chain: float
    unreached: list[str]


@dataclass(frozen=True)
class Memory:
    """What Adam's saved state says of the encoder.

    `missing` where it holds no moments for it, `steps` its fewest steps over the most of the rest,
    `size` the typical gradient (root of the second moments) over the dynamics'.
    """

    missing: bool
    steps: float
    size: float


@dataclass(frozen=True)
class Movement:
    """How far the weights are from where they began (RMS per tensor), and tensors still as constructed.

    `least` is the least moved encoder tensor over the dynamics' median tensor. `untouched` names
    LayerNorm weights of exactly 1 and biases of exactly 0: no gradient leaves those.
    """

    least: float | None
    least_name: str
    untouched: list[str]


def check_encoder(subject: Subject, effort: Effort) -> Check:
    """Gradient, optimiser state and movement of the encoder. Finding: `frozen-encoder`.

    Needs no environment where there is a replay buffer. An observation that is the state has no encoder
    to freeze. Of a checkpoint of epoch 0 only the gradient is judged.
    """
    del effort  # one batch shows whether a gradient arrives
    model = subject.agent.world_model
    if not list(model.encoder.parameters()):
        return Check("encoder", {"parameters": 0, "judged": "no: the observation is the state"})
    if not subject.trains_model:
        return Check("encoder", {"judged": "no: this run keeps its world model as it is"})
    gradient = measure_gradient(subject)
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.encoder.parameters()),
        "gradient_norm": gradient.norm,
        "gradient_over_dynamics": _ratio(gradient.norm, gradient.dynamics),
        "gradient_by_chain_rule": gradient.chain,
    }
    reasons = _gradient_reasons(gradient)
    if subject.origin.epoch > 0:
        memory, movement = read_memory(subject), measure_movement(subject)
        if memory is not None:
            figures |= {"optimiser_steps_over_others": memory.steps, "optimiser_gradient_over_dynamics": memory.size}
            reasons += _memory_reasons(memory)
        figures |= {"least_movement_over_dynamics": movement.least, "tensors_as_constructed": len(movement.untouched)}
        reasons += _movement_reasons(movement)
    findings = (_frozen(reasons, figures),) if reasons else ()
    return Check("encoder", figures, findings)


def measure_gradient(subject: Subject) -> Gradient:
    """Of the training loss, in evaluation mode (nothing of it changes the agent)."""
    model, training = subject.agent.world_model, subject.config.training
    generator = subject.generator("encoder")
    batch = subject.windows.sample(WINDOWS, min(training.horizon, LONGEST), generator)
    calls: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            calls.append((inputs[0], output))

    hook = model.encoder.register_forward_hook(keep)
    try:
        loss = model_loss(model, batch, subject.agent.reward_normalizer(batch.reward), training, generator).total
    finally:
        hook.remove()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad and p.numel()}
    frozen = [name for name, p in model.named_parameters() if name.startswith(PREFIX) and not p.requires_grad]
    if not loss.requires_grad:
        return Gradient(0.0, 0.0, 0.0, [name for name, _ in model.named_parameters() if name.startswith(PREFIX)])
    outputs = [output for _, output in calls]
    wanted = [*named.values(), *outputs]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    gradients = dict(zip(named, found, strict=False))
    unreached = frozen + [name for name, each in gradients.items() if name.startswith(PREFIX) and _is_zero(each)]
    norm = _norm(gradients, PREFIX)
    expected = _expected_norm(model.encoder, calls, found[len(named) :])
    return Gradient(norm, _norm(gradients, "dynamics."), _ratio(norm, expected), unreached)


def _expected_norm(
    encoder: nn.Module, calls: list[tuple[Tensor, Tensor]], upstream: tuple[Tensor | None, ...]
) -> float:
    """Norm of the sum over calls of J^T g, on copies of the weights: their hooks see nothing of it."""
    copies = {name: p.detach().clone().requires_grad_() for name, p in encoder.named_parameters()}
    total = {name: torch.zeros_like(p) for name, p in copies.items()}
    for (inputs, _), g in zip(calls, upstream, strict=True):
        if g is None:
            continue
        output = torch.func.functional_call(encoder, copies, (inputs.detach(),))
        parts = torch.autograd.grad(output, list(copies.values()), g, allow_unused=True)
        for name, part in zip(copies, parts, strict=True):
            if part is not None:
                total[name] += part
    return _norm(total, "")


def read_memory(subject: Subject) -> Memory | None:
    """None without a saved optimiser of the model, or with one whose tensors are not told from their number."""
    if subject.optimisers is None or "model" not in subject.optimisers:
        return None
    saved = subject.optimisers["model"]
    order = [index for group in saved["param_groups"] for index in group["params"]]
    names = list(dict(subject.agent.world_model.named_parameters()))
    if len(order) != len(names):
        # A frozen tensor is in no optimiser; where just the encoder's are missing, the rest keep their order.
        rest = [name for name in names if not name.startswith(PREFIX)]
        return Memory(missing=True, steps=0.0, size=0.0) if len(order) == len(rest) else None
    states: dict[str, Mapping[str, Tensor]] = {
        name: saved["state"][index] for name, index in zip(names, order, strict=True) if index in saved["state"]
    }
    own = [name for name in names if name.startswith(PREFIX)]
    missing = any(name not in states for name in own)
    steps = {name: float(state["step"]) for name, state in states.items()}
    fewest = min((steps.get(name, 0.0) for name in own), default=0.0)
    most = max((count for name, count in steps.items() if name not in own), default=0.0)
    squares = {name: state["exp_avg_sq"].sqrt() for name, state in states.items()}
    return Memory(missing, _ratio(fewest, most), _ratio(_norm(squares, PREFIX), _norm(squares, "dynamics.")))


def measure_movement(subject: Subject) -> Movement:
    """`least` is None for a subject that does not know its beginning."""
    now = {name: p.detach() for name, p in subject.agent.world_model.named_parameters() if p.numel()}
    untouched = []
    for path, part in subject.agent.world_model.encoder.named_modules():
        weights = {name: p.detach() for name, p in part.named_parameters(recurse=False)}
        constructed = {"bias": 0.0} | ({"weight": 1.0} if isinstance(part, nn.LayerNorm) else {})
        untouched += [
            f"{PREFIX}{path}.{name}"
            for name, value in constructed.items()
            if name in weights and _all(weights[name], value)
        ]
    if subject.initial is None:
        return Movement(None, "", untouched)
    start = {name: p.detach() for name, p in subject.initial().world_model.named_parameters()}
    moved = {
        name: float((p - start[name].to(p)).double().square().mean().sqrt())
        for name, p in now.items()
        if name in start and start[name].shape == p.shape
    }
    dynamics = sorted(value for name, value in moved.items() if name.startswith("dynamics."))
    own = {name: value for name, value in moved.items() if name.startswith(PREFIX)}
    if not dynamics or not own:
        return Movement(None, "", untouched)
    least = min(own, key=lambda name: own[name])
    median = dynamics[len(dynamics) // 2]
    # Where the dynamics have not moved either, nothing was trained: that is not the encoder's fault.
    return Movement(own[least] / median if median > 0.0 else None, least, untouched)


def _gradient_reasons(gradient: Gradient) -> list[str]:
    reasons = []
    if gradient.unreached:
        reasons.append(f"no gradient of the model's loss reaches {_listed(gradient.unreached)}")
    elif not gradient.norm >= SMALL * gradient.dynamics:  # a NaN is no good news
        reasons.append(f"its gradient is {_ratio(gradient.norm, gradient.dynamics):.2g} of the dynamics'")
    elif not gradient.chain >= CHAIN:
        reasons.append(f"its gradient is {gradient.chain:.2g} of what its outputs' gradient makes of it")
    return reasons


def _memory_reasons(memory: Memory) -> list[str]:
    if memory.missing:
        return ["the saved optimiser holds nothing of it"]
    if not memory.steps >= BEHIND:
        return [f"the optimiser has stepped it {memory.steps:.2g} times as often as the rest of the model"]
    return [] if memory.size >= SMALL else [f"its gradients over the run were {memory.size:.2g} of the dynamics'"]


def _movement_reasons(movement: Movement) -> list[str]:
    reasons = []
    if movement.untouched:
        reasons.append(f"still exactly as constructed: {_listed(movement.untouched)}")
    if movement.least is not None and not movement.least >= SMALL:
        reasons.append(f"{movement.least_name} has moved {movement.least:.2g} as far as the dynamics' weights")
    return reasons


def _frozen(reasons: list[str], figures: Mapping[str, Any]) -> Finding:
    message = (
        f"The encoder does not learn: {'; '.join(reasons)}. Check what detaches it, requires_grad, and which "
        "parameters the model's optimiser has."
    )
    numbers = {name: float(value) for name, value in figures.items() if isinstance(value, int | float)}
    return Finding("frozen-encoder", "broken", message, numbers)


def _listed(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")


def _all(x: Tensor, value: float) -> bool:
    return bool((x == value).all())


def _is_zero(x: Tensor | None) -> bool:
    return x is None or not bool(x.any())


def _norm(tensors: Mapping[str, Tensor | None], prefix: str) -> float:
    squares = [
        float(x.double().square().sum()) for name, x in tensors.items() if name.startswith(prefix) and x is not None
    ]
    return math.sqrt(sum(squares))


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0.0 else 0.0
