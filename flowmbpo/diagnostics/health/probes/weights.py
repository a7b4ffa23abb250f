"""NaN, infinite and overflowing numbers in a checkpoint, and what its optimisers remember of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowmbpo.diagnostics.health.probes import Figures, in_words
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import Agent, build_meta_agent
from flowmbpo.training.imagination import imagine

STATES = 256
STEPS = 8
LARGEST = math.sqrt(torch.finfo(torch.float32).max)  # 1.8e19: the square of a larger weight is infinite


def measure_weights(subject: Subject) -> Figures:
    """NaN and infinity in weights, outputs, moments and experience. `finite` false: nothing else is measured."""
    weights = nonfinite_weights(subject.agent)
    overflowing = {} if weights else overflowing_weights(subject.agent)
    outputs = {} if weights else nonfinite_outputs(subject)
    columns = [] if subject.replay is None else [(x, getattr(subject.replay, x)) for x in ("obs", "action", "reward")]
    moments = [
        (f"optimiser {part}.{index}.{key}", x)
        for part, saved in (subject.optimisers or {}).items()
        for index, state in saved.get("state", {}).items()
        for key, x in state.items()
        if isinstance(x, Tensor)
    ]
    return {
        "finite": not weights and not overflowing and not outputs,
        "nonfinite_weights": weights,
        "overflowing_weights": overflowing,
        "nonfinite_outputs": outputs,
        "nonfinite_moments": _count(moments),
        "nonfinite_replay": _count(columns),
        "nonfinite_updates": subject.origin.nonfinite,
        "replay_altered": bool(subject.replay_trouble),
        "replay_trouble": subject.replay_trouble,
    }


def _count(named: Iterable[tuple[str, Tensor]], sound: Callable[[Tensor], Tensor] = torch.isfinite) -> dict[str, int]:
    counts = {name: int((~sound(tensor.detach())).sum()) for name, tensor in named}
    return {name: count for name, count in counts.items() if count}


def nonfinite_weights(agent: Agent) -> dict[str, int]:
    """How many entries of each parameter and buffer are NaN or infinite; sound ones are left out."""
    return _count([*agent.named_parameters(), *agent.named_buffers()])


def overflowing_weights(agent: Agent) -> dict[str, int]:
    """How many entries of each parameter are finite, but have no finite square."""
    return _count(agent.named_parameters(), lambda x: x.abs() <= LARGEST)


@torch.no_grad()  # outputs are looked at, nothing is learnt
def nonfinite_outputs(subject: Subject) -> dict[str, int]:
    """In how many of 256 replayed states (or normal draws) 8 steps of imagination give NaN or infinity, by output."""
    agent, generator = subject.agent, subject.generator("outputs")
    obs = torch.empty(0)
    if subject.replay is not None and subject.replay.num_transitions:
        obs, task = subject.replay.sample_starts(STATES, generator)
        sound = torch.isfinite(obs).all(-1)
        obs, task = obs[sound], task[sound]
    if not len(obs):
        obs = torch.randn(STATES, agent.spec.obs_dim, generator=generator, device=generator.device)
        task = torch.arange(STATES, device=generator.device) % len(agent.spec.tasks)
    state, context = subject.encode(obs, task)
    path = imagine(agent.world_model, agent.actor, state, context, horizon=STEPS, generator=generator)
    values = agent.critic(path.z[:-1].flatten(0, 1), context.repeat(STEPS)).unflatten(-1, (STEPS, -1))
    outputs = {"encoder": state.unsqueeze(0), "actor": path.actions, "reward head": path.rewards.unsqueeze(-1)}
    outputs |= {"critic": values.movedim(0, -1), "dynamics": path.z[1:]}  # each [steps, states, width]
    return _count(outputs.items(), lambda x: x.isfinite().all(0).all(-1))


def require_finite(subject: Subject) -> None:
    """Raises CheckpointError naming the weights that are NaN or infinite: nothing can be measured with them."""
    broken = nonfinite_weights(subject.agent)
    if broken:
        raise CheckpointError(
            f"{subject.origin.checkpoint or 'the agent'}: NaN or infinite entries in {in_words(broken)}: no figure "
            "of these weights means anything. "
            "Name an earlier checkpoint (best.pt, epochNNNNNN.pt); `flowmbpo diagnose health` says more."
        )


def declared_fixed(subject: Subject, part: str) -> set[str]:
    """Parameters of the agent's part, by name, that its config keeps from training. A wrapper's prefix is no matter."""
    reference: nn.Module = getattr(build_meta_agent(subject.config, subject.agent.spec), part)
    fixed = tuple(f".{name}" for name, parameter in reference.named_parameters() if not parameter.requires_grad)
    module: nn.Module = getattr(subject.agent, part)
    return {name for name, _ in module.named_parameters() if f".{name}".endswith(fixed)}


def frozen_tensors(subject: Subject, part: str, fixed: set[str]) -> list[str]:
    """Parameters of the agent's part that do not learn, though the config does not keep them from it."""
    module: nn.Module = getattr(subject.agent, part)
    return [name for name, p in module.named_parameters() if not p.requires_grad and name not in fixed]


def saved_moments(saved: Mapping[str, Any], names: Sequence[str]) -> dict[str, Mapping[str, Tensor]]:
    """What Adam's saved state holds of the tensors that it was made with, `names` in their order."""
    order = [index for group in saved.get("param_groups", ()) for index in group["params"]]
    return {name: saved["state"][index] for name, index in zip(names, order, strict=False) if index in saved["state"]}


def read_history(subject: Subject, part: str) -> tuple[Figures, dict[str, float]]:
    """Which trainable tensors of `agent.part` show no training, by themselves and by the saved optimiser of that name.

    `untrained_tensors` have no moments, no steps, or moments of exactly zero, or hold the very values that the run
    began with; `untrained` counts those that the optimiser does not know too. Epoch 0 misses nothing. Beside the
    figures, by tensor, the typical norm of its last gradients (after clipping): the root of Adam's second moments.
    """
    now: dict[str, nn.Parameter] = dict(getattr(subject.agent, part).named_parameters())
    fixed = declared_fixed(subject, part)
    names = [name for name in now if name not in fixed]
    saved = {} if subject.optimisers is None else subject.optimisers.get(part, {})
    groups = saved.get("param_groups", [])
    moments = saved_moments(saved, names)
    norms = {name: _gradient_norm(state, groups[0]["betas"][1]) for name, state in moments.items()}
    gradients = {name: norm for name, norm in norms.items() if norm > 0.0}
    listed = names[: sum(len(group["params"]) for group in groups)]
    trained = subject.origin.epoch > 0
    start = dict(getattr(subject.initial(), part).named_parameters()) if trained and subject.initial else {}
    # A wrapped module has other names; what has no counterpart is not compared.
    initial = {name for name in names if name in start and torch.equal(start[name].detach().to(now[name]), now[name])}
    untrained = sorted((set(listed) - gradients.keys()) | initial) if trained else []
    unlisted = len(names) - len(listed) if trained and subject.optimisers is not None else 0
    figures: Figures = {
        "trainable": len(names),
        "frozen_tensors": frozen_tensors(subject, part, fixed),
        "learning_rate_zero": trained and any(group["lr"] == 0.0 for group in groups),
        "untrained_tensors": untrained,
        "untrained": len(untrained) + unlisted,
    }
    return figures, gradients


def _gradient_norm(moments: Mapping[str, Tensor], decay: float) -> float:
    """0 where nothing is remembered, nan where the moments are."""
    if float(moments["step"]) <= 0.0 or not bool(moments["exp_avg"].any()):
        return 0.0
    return math.sqrt(float(moments["exp_avg_sq"].double().sum()) / (1.0 - decay ** float(moments["step"])))
