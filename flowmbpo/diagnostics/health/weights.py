"""Numbers that are none: weights, saved optimiser moments, replayed experience."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.errors import CheckpointError
from flowmbpo.models.agent import Agent

SHOWN = 4


def nonfinite_weights(agent: Agent) -> dict[str, int]:
    """How many entries of each parameter and buffer are NaN or infinite; sound ones are left out."""
    named = [*agent.named_parameters(), *agent.named_buffers()]
    return _count((name, tensor.detach()) for name, tensor in named)


def require_finite(subject: Subject) -> None:
    """Raises CheckpointError naming the weights that are NaN or infinite: nothing can be measured with them."""
    broken = nonfinite_weights(subject.agent)
    if broken:
        raise CheckpointError(
            f"{subject.origin.checkpoint or 'the agent'}: {_list(broken)}: no figure of these weights means anything. "
            "Name an earlier checkpoint (best.pt, epochNNNNNN.pt); `flowmbpo diagnose health` says more."
        )


def check_weights(subject: Subject, effort: Effort) -> Check:
    """Count what is not finite. `finite` false: the agent's own weights are broken, and no other check can run."""
    del effort
    weights = nonfinite_weights(subject.agent)
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
        "finite": not weights,
        "nonfinite_weights": weights,
        "nonfinite_moments": moments,
        "nonfinite_replay": replay,
        "nonfinite_updates": skipped,
    }
    return Check("weights", figures, tuple(findings))


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
    names = list(broken)
    shown = ", ".join(f"{name} ({broken[name]})" for name in names[:SHOWN])
    rest = len(names) - SHOWN
    return f"NaN or infinite entries in {shown}" + (f" and {rest} more tensors" if rest > 0 else "")
