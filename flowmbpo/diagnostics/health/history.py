"""What a checkpoint remembers of a part's training: Adam's moments, and how far its weights have come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmbpo.diagnostics.subject import Subject
from flowmbpo.models.agent import Agent, build_meta_agent


@dataclass(frozen=True)
class History:
    """Names of trainable tensors that show no training.

    `unlisted` counts tensors that the saved optimiser does not know; `idle` have no moments, no steps, or
    moments (either of the two) of exactly zero; `initial` hold the very values that the run began with. `stopped`
    says that the optimiser's learning rate is 0, which no schedule comes down to (`training.final_lr` is positive).
    `gradients` has, by tensor, the root of Adam's second moments summed over its entries: the typical norm of its
    last gradients (after clipping).
    """

    trainable: int
    unlisted: int
    idle: list[str]
    initial: list[str]
    stopped: bool
    gradients: dict[str, float]

    @property
    def gradient_rms(self) -> float | None:
        """The typical norm of the whole gradient; None where the optimiser remembers none."""
        return math.hypot(*self.gradients.values()) if self.gradients else None


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
        return History(len(names), 0, [], initial, False, {})
    saved = subject.optimisers.get(optimiser, {})
    groups = saved.get("param_groups", [])
    listed = [(index, group) for group in groups for index in group["params"]]
    state = saved.get("state", {})
    found = {
        name: _gradient_norm(state.get(index), group["betas"][1])
        for name, (index, group) in zip(names, listed, strict=False)
    }
    gradients = {name: norm for name, norm in found.items() if norm > 0.0}
    if not trained:
        return History(len(names), 0, [], initial, False, gradients)
    idle = [name for name in found if name not in gradients]
    stopped = any(group["lr"] == 0.0 for group in groups)
    return History(len(names), max(len(names) - len(listed), 0), idle, initial, stopped, gradients)


def _gradient_norm(moments: Mapping[str, Tensor] | None, decay: float) -> float:
    """0 where nothing is remembered, nan where the moments are."""
    if moments is None or float(moments["step"]) <= 0.0 or not bool(moments["exp_avg"].any()):
        return 0.0
    square = float(moments["exp_avg_sq"].double().sum()) / (1.0 - decay ** float(moments["step"]))
    return math.sqrt(square)


def _initial(subject: Subject, part: str, names: list[str]) -> list[str]:
    assert subject.initial is not None
    before: Agent = subject.initial()
    start = dict(getattr(before, part).named_parameters())
    now = dict(getattr(subject.agent, part).named_parameters())
    # A wrapped module has other names; what has no counterpart is not compared.
    return [name for name in names if name in start and torch.equal(start[name].detach().to(now[name]), now[name])]
