"""Numbers that are none: weights, saved optimiser moments, replayed experience."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import Agent

SHOWN = 4
STATES = 256
STEPS = 8
LARGEST = math.sqrt(torch.finfo(torch.float32).max)  # 1.8e19: the square of a larger weight is infinite, and with it
# every gradient norm and weight decay


def nonfinite_weights(agent: Agent) -> dict[str, int]:
    """How many entries of each parameter and buffer are NaN or infinite; sound ones are left out."""
    named = [*agent.named_parameters(), *agent.named_buffers()]
    return _count((name, tensor.detach()) for name, tensor in named)


def overflowing_weights(agent: Agent) -> dict[str, int]:
    """How many entries of each parameter are finite, but have no finite square."""
    found = {name: int((parameter.detach().abs() > LARGEST).sum()) for name, parameter in agent.named_parameters()}
    return {name: count for name, count in found.items() if count}


@torch.no_grad()  # outputs are looked at, nothing is learnt
def nonfinite_outputs(subject: Subject) -> dict[str, int]:
    """In how many of 256 states the actor, or 8 steps of imagination, give something that is no number, by output.

    Replayed states; standard normal observations where there are none: no episode is run with such an agent.
    """
    agent, generator = subject.agent, subject.generator("outputs")
    obs, task = _observations(subject, generator)
    state, context = subject.encode(obs, task)
    counts: dict[str, int] = {}

    def look(name: str, output: Tensor) -> None:
        bad = int((~torch.isfinite(output.flatten(1))).any(1).sum())
        if bad:
            counts[name] = max(counts.get(name, 0), bad)

    look("encoder", state)
    for _ in range(STEPS):
        z = agent.world_model.latent(state)
        action = agent.actor(z, context, generator)
        look("actor", action)
        look("reward head", agent.world_model.reward(z, action, context).unsqueeze(-1))
        look("critic", agent.critic(z, context).T)
        state = agent.world_model.next(state, action, context, generator)
        look("dynamics", state)
    return counts


def _observations(subject: Subject, generator: torch.Generator) -> tuple[Float[Tensor, "N O"], Int[Tensor, " N"]]:
    replay = subject.replay
    if replay is not None and replay.num_transitions:
        obs, task = replay.sample_starts(STATES, generator)
        sound = torch.isfinite(obs).all(-1)
        if bool(sound.any()):
            return obs[sound], task[sound]
    spec = subject.agent.spec
    obs = torch.randn(STATES, spec.obs_dim, generator=generator, device=generator.device)
    return obs, torch.arange(STATES, device=generator.device) % len(spec.tasks)


def require_finite(subject: Subject) -> None:
    """Raises CheckpointError naming the weights that are NaN or infinite: nothing can be measured with them."""
    broken = nonfinite_weights(subject.agent)
    if broken:
        raise CheckpointError(
            f"{subject.origin.checkpoint or 'the agent'}: {_list(broken)}: no figure of these weights means anything. "
            "Name an earlier checkpoint (best.pt, epochNNNNNN.pt); `flowmbpo diagnose health` says more."
        )


def check_weights(subject: Subject, effort: Effort) -> Check:
    """Count what is not finite: weights, what they put out, moments, replayed experience.

    `finite` false: the agent's own weights are broken, and no other check can run.
    """
    del effort
    weights = nonfinite_weights(subject.agent)
    overflowing = overflowing_weights(subject.agent)
    outputs = {} if weights else nonfinite_outputs(subject)
    moments = _nonfinite_moments(subject)
    replay = _nonfinite_replay(subject.replay)
    skipped = subject.origin.nonfinite
    findings = []
    if weights or moments:
        findings.append(
            Finding(
                "nan-weights",
                "broken",
                f"{_list(weights | moments)}. The run cannot go on from here: return to an earlier checkpoint, and "
                "lower the learning rates or the clips.",
                {"tensors": float(len(weights) + len(moments)), "entries": float(sum((weights | moments).values()))},
            )
        )
    if not weights and (overflowing or outputs):
        findings.append(_overflow(overflowing, outputs))
    if replay:
        findings.append(
            Finding(
                "nan-replay",
                "broken",
                f"Replay buffer: {_list(replay)}. Every update that draws them is lost; the file was damaged or "
                "written by something else than a run.",
                {"entries": float(sum(replay.values()))},
            )
        )
    if skipped:
        findings.append(
            Finding(
                "nonfinite-updates",
                "note",
                f"{skipped} updates of this run had a non-finite loss or gradient and were left out; their batches "
                "are in the run's nonfinite/ folder.",
                {"updates": float(skipped)},
            )
        )
    figures = {
        "finite": not weights and not overflowing and not outputs,
        "nonfinite_weights": weights,
        "overflowing_weights": overflowing,
        "nonfinite_outputs": outputs,
        "nonfinite_moments": moments,
        "nonfinite_replay": replay,
        "nonfinite_updates": skipped,
    }
    return Check("weights", figures, tuple(findings))


def _overflow(weights: dict[str, int], outputs: dict[str, int]) -> Finding:
    found = []
    if outputs:
        found.append("NaN or infinite outputs in " + ", ".join(f"{name} ({n} states)" for name, n in outputs.items()))
    if weights:
        found.append(f"entries above {LARGEST:.1e}, whose squares overflow, in {_names(weights)}")
    return Finding(
        "nan-weights",
        "broken",
        f"Finite weights, but {'; '.join(found)}. The run cannot go on from here: return to an earlier checkpoint, and "
        "lower the learning rates or the clips.",
        {"states": float(max(outputs.values(), default=0)), "entries": float(sum(weights.values()))},
    )


def saved_tensors(state: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a saved state, by its place in it."""
    if isinstance(state, Tensor):
        yield prefix, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from saved_tensors(value, f"{prefix}.{key}" if prefix else str(key))


def _nonfinite_moments(subject: Subject) -> dict[str, int]:
    states = subject.optimisers or {}
    return _count(
        pair for part, state in states.items() for pair in saved_tensors(state.get("state", {}), f"optimiser {part}")
    )


def _nonfinite_replay(replay: ReplayBuffer | None) -> dict[str, int]:
    if replay is None:
        return {}
    return _count((("obs", replay.obs), ("action", replay.action), ("reward", replay.reward)))


def _count(named: Iterator[tuple[str, Tensor]] | tuple[tuple[str, Tensor], ...]) -> dict[str, int]:
    counts = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in named}
    return {name: count for name, count in counts.items() if count}


def _list(broken: dict[str, int]) -> str:
    return f"NaN or infinite entries in {_names(broken)}"


def _names(broken: dict[str, int]) -> str:
    names = list(broken)
    shown = ", ".join(f"{name} ({broken[name]})" for name in names[:SHOWN])
    rest = len(names) - SHOWN
    return shown + (f" and {rest} more tensors" if rest > 0 else "")
