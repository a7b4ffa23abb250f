"""Checks that only look at the shared rollout: types, numbers, how episodes end and begin."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from flowmbpo.envs.inspection.result import ContractBroken, NotApplicable, require
from flowmbpo.envs.inspection.subject import Subject


def check_shapes(subject: Subject) -> str:
    """Shapes and types are the spec's; every task of a set has a copy."""
    spec, reference = subject.spec, subject.reference
    recording, copies = reference.recording, subject.copies
    observed = (recording.steps, copies, spec.obs_dim)
    _require_tensor("the first observations", recording.first, observed[1:], torch.float32)
    for name, tensor in (("obs", recording.obs), ("final_obs", recording.final_obs)):
        _require_tensor(name, tensor, observed, torch.float32)
    for name, tensor in (("reward", recording.reward), ("success", recording.success)):
        _require_tensor(name, tensor, observed[:2], torch.float32)
    for name, tensor in (("terminated", recording.terminated), ("truncated", recording.truncated)):
        _require_tensor(name, tensor, observed[:2], torch.bool)
    _require_tensor("task_ids", reference.task_ids, (copies,), torch.int64)
    run = set(reference.task_ids.tolist())
    require(run == set(range(len(spec.tasks))), f"the copies run tasks {sorted(run)} of {len(spec.tasks)}")
    return f"obs {spec.obs_dim}, action {spec.action_dim}, {copies} copies"


def check_finite(subject: Subject) -> str:
    """Observations and rewards are finite everywhere; success is nan, or in [0, 1]."""
    recording = subject.reference.recording
    for name, tensor in (
        ("the first observations", recording.first),
        ("obs", recording.obs),
        ("final_obs", recording.final_obs),
        ("reward", recording.reward),
    ):
        require(bool(tensor.isfinite().all()), f"{name}: {int((~tensor.isfinite()).sum())} values are not finite")
    success = recording.success
    require(bool((success.isnan() | ((success >= 0) & (success <= 1))).all()), "success is outside [0, 1]")
    broken = recording.broken
    require(bool((recording.reward[broken] == 0).all()), "a fault's step has a reward other than 0")
    faults = int(broken.sum())
    low, high = float(recording.reward.min()), float(recording.reward.max())
    return f"reward {low:.4g} to {high:.4g}" + (f", {faults} broken episodes" if faults else "")


def check_ends(subject: Subject) -> str:
    """An episode is terminated or truncated, never both; only tasks that can terminate do; faults are neither."""
    reference = subject.reference
    recording = reference.recording
    terminated, truncated = recording.terminated, recording.truncated
    both = terminated & truncated
    _require_nowhere(both, "is terminated and truncated at once")
    for index, task_id in enumerate(reference.task_ids.tolist()):
        task = subject.spec.tasks[task_id]
        if not task.can_terminate:
            require(not bool(terminated[:, index].any()), f"{task.name} terminates, which its row denies")
    marked = recording.broken & (terminated | truncated)
    _require_nowhere(marked, "broke and is marked as ended")
    return f"{int(terminated.sum())} terminated, {int(truncated.sum())} truncated in {recording.steps} steps"


def check_time_limit(subject: Subject) -> str:
    """An episode is truncated exactly at its task's length, unless it terminates there."""
    reference = subject.reference
    recording = reference.recording
    for index, task_id in enumerate(reference.task_ids.tolist()):
        task = subject.spec.tasks[task_id]
        ended = recording.copy(index)
        elapsed = 0
        for step, (terminated, truncated, broken) in enumerate(
            zip(*(flag[:, 0].tolist() for flag in (ended.terminated, ended.truncated, ended.broken)), strict=True)
        ):
            elapsed += 1
            at_limit = elapsed == task.episode_length and not terminated and not broken
            verb = "is not" if at_limit else "is"
            require(
                truncated == at_limit,
                f"copy {index} ({task.name}) {verb} truncated in step {step + 1}, after {elapsed} of "
                f"{task.episode_length} steps",
            )
            if terminated or truncated or broken:
                elapsed = 0
    if recording.truncated.any():
        return f"{int(recording.truncated.sum())} episodes reached it"
    lengths = [task.episode_length for task in subject.spec.tasks]
    if recording.steps < min(lengths):
        raise NotApplicable(f"{recording.steps} steps are fewer than the limit of {min(lengths)}")
    raise NotApplicable("every episode ended itself before its time limit")


def check_final_observations(subject: Subject) -> str:
    """`final_obs` is `obs` within an episode and the last one of it at its end, where `obs` is the next one's first."""
    recording = subject.reference.recording
    same = (recording.obs == recording.final_obs).all(dim=-1)
    within = ~recording.done & ~same
    _require_nowhere(within, "has a final_obs other than its obs within an episode")
    ended = (recording.terminated | recording.truncated) & same
    _require_nowhere(ended, "ends an episode, but obs is still its last observation")
    broken = recording.broken & ~same
    _require_nowhere(broken, "broke, and final_obs is not the next episode's first")
    count = int((recording.terminated | recording.truncated).sum())
    if not count:
        raise NotApplicable(f"no episode ended within {recording.steps} steps")
    return f"at {count} ends"


def check_padding(subject: Subject) -> str:
    """Observations of tasks narrower than the set are zero beyond their own width."""
    spec, reference = subject.spec, subject.reference
    widths = {task.obs_dim for task in spec.tasks}
    if len(widths) == 1:
        raise NotApplicable("all observations have the same width")
    recording = reference.recording
    for index, task_id in enumerate(reference.task_ids.tolist()):
        task = spec.tasks[task_id]
        beyond = (recording.first[index], recording.obs[:, index], recording.final_obs[:, index])
        clean = all(not bool(values[..., task.obs_dim :].any()) for values in beyond)
        require(clean, f"copy {index} ({task.name}) writes beyond its {task.obs_dim} observations")
    return f"widths {min(widths)} to {max(widths)}"


def _require_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = (tuple(tensor.shape), tensor.dtype)
    require(found == (shape, dtype), f"{name}: {found[0]} of {found[1]}, expected {shape} of {dtype}")


def _require_nowhere(mark: Bool[Tensor, "T N"], broken: str) -> None:
    """No copy `broken` the contract in any step; names the first that did."""
    if mark.any():
        step, index = (int(place) for place in mark.nonzero()[0])
        raise ContractBroken(f"copy {index} in step {step + 1} {broken}")
