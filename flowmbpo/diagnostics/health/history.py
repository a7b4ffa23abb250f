"""What a checkpoint remembers of a part's training: Adam's moments, and how far its weights have come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from flowmbpo.diagnostics.parameters import build_meta_agent
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.models.agent import Agent


@dataclass(frozen=True)
class History:
    """Names of trainable tensors that show no training.

    `unlisted` counts tensors that the saved optimiser does not know; `idle` have no moments, no steps, or
    moments of exactly zero; `initial` hold the very values that the run began with. `gradient_rms` is the root
    of Adam's second moments summed over all entries: the typical norm of the last gradients (after clipping),
    None without a saved optimiser.
    """

    trainable: int
    unlisted: int
    idle: list[str]
    initial: list[str]
    gradient_rms: float | None


def declared_fixed(subject: Subject, part: str) -> set[str]:
    """Parameters of the agent's part, by name, that its config keeps from training. A wrapper's prefix is no matter."""
    reference: nn.Module = getattr(build_meta_agent(subject.config, subject.agent.spec), part)
    fixed = [name for name, parameter in reference.named_parameters() if not parameter.requires_grad]
    module: nn.Module = getattr(subject.agent, part)
    return {
        name for name, _ in module.named_parameters() if any(name == own or name.endswith(f".{own}") for own in fixed)
    }


def read_history(subject: Subject, part: str, optimiser: str) -> History:
    """The training history of `agent.part` as the checkpoint has it; nothing is missed in one of epoch 0."""
    module: nn.Module = getattr(subject.agent, part)
    fixed = declared_fixed(subject, part)
    names = [name for name, _ in module.named_parameters() if name not in fixed]
    trained = subject.origin.epoch > 0
    initial = _initial(subject, part, names) if trained and subject.initial is not None else []
    if subject.optimisers is None:
        return History(len(names), 0, [], initial, None)
    saved = subject.optimisers.get(optimiser, {})
    groups = saved.get("param_groups", [])
    listed = [(index, group) for group in groups for index in group["params"]]
    state = saved.get("state", {})
    idle, total = [], 0.0
    for name, (index, group) in zip(names, listed, strict=False):
        moments = state.get(index)
        steps = float(moments["step"]) if moments is not None else 0.0
        square = float(moments["exp_avg_sq"].double().sum()) if moments is not None else 0.0
        if steps <= 0.0 or square == 0.0:
            idle.append(name)
            continue
        total += square / (1.0 - group["betas"][1] ** steps)
    unlisted = max(len(names) - len(listed), 0)
    return History(len(names), unlisted if trained else 0, idle if trained else [], initial, total**0.5)


def _initial(subject: Subject, part: str, names: list[str]) -> list[str]:
    assert subject.initial is not None
    before: Agent = subject.initial()
    start = dict(getattr(before, part).named_parameters())
    now = dict(getattr(subject.agent, part).named_parameters())
    # A wrapped module has other names; what has no counterpart is not compared.
    return [name for name in names if name in start and torch.equal(start[name].detach().to(now[name]), now[name])]
