"""Checks that run the environment again: seeds, saved states, independence, refused and bounded actions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.assignment import action_mask
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.inspection.recording import Recording, difference, random_actions, record
from flowmbpo.envs.inspection.result import ContractBroken, NotApplicable, require
from flowmbpo.envs.inspection.subject import Subject

_SHORT = 100  # steps of the checks that one step would nearly do for


def check_repeatable(subject: Subject) -> str:
    """The same seed and actions give the same bits, in a fresh instance that worker processes or threads step."""
    reference = subject.reference
    with subject.opened(workers=subject.workers) as env:
        again = record(env, env.reset(subject.seed), reference.actions[: subject.steps])
    _require_same(reference.recording.part(0, subject.steps), again)
    return f"bit-equal over {subject.steps} steps, {_where(subject.workers)}"


def check_seeds(subject: Subject) -> str:
    """Another seed gives other episodes, and so do the copies of one task."""
    reference = subject.reference
    steps = min(subject.steps, _SHORT)
    actions = reference.actions[:steps, :1].expand(-1, subject.copies, -1)  # the same for all: only the seeds differ
    with subject.reused() as env:
        own = record(env, env.reset(subject.seed), actions)
        other = record(env, env.reset(subject.seed + 1), actions)
    for index in range(subject.copies):
        alike = difference(own.copy(index), other.copy(index)) is None
        require(not alike, f"seeds {subject.seed} and {subject.seed + 1} give copy {index} the same {steps} steps")
    ids = reference.task_ids.tolist()
    for index in range(1, subject.copies):
        twin = ids.index(ids[index])
        alike = twin != index and difference(own.copy(twin), own.copy(index)) is None
        require(not alike, f"copies {twin} and {index} are given the same {steps} steps")
    return f"seed {subject.seed + 1} and other copies differ"


def check_resume(subject: Subject) -> str:
    """A state that went through bytes goes on bit-equally in a fresh instance."""
    reference = subject.reference
    start = reference.saved_at
    with subject.opened() as env:
        first = env.load_state_dict(reference.state)
        again = record(env, first, reference.actions[start : subject.steps])
    _require_same(reference.recording.part(start, subject.steps), again)
    return f"saved after {start} steps, bit-equal over the next {subject.steps - start}"


def check_independent(subject: Subject) -> str:
    """What copy 0 sees does not depend on the other copies: there are none, or, in a set, they act otherwise."""
    reference = subject.reference
    expected = reference.recording.part(0, subject.steps).copy(0)
    actions = reference.actions[: subject.steps]
    if len(subject.spec.tasks) == 1:
        with subject.opened(copies=1) as env:
            alone = record(env, env.reset(subject.seed), actions[:, :1])
        _require_same(expected, alone)
        return f"copy 0 of {subject.copies} equals a lone copy"
    with subject.opened() as env:
        changed = random_actions(env, subject.steps, subject.seed + 1)
        changed[:, 0] = actions[:, 0]
        other = record(env, env.reset(subject.seed), changed)
    _require_same(expected, other.copy(0))
    return f"copy 0 is the same whatever the other {subject.copies - 1} do"


def check_refusals(subject: Subject) -> str:
    """Actions of a wrong shape or with a value that is not finite raise ValueError and change nothing."""
    reference = subject.reference
    good = reference.actions[0]
    bad = {f"shape {tuple(wrong.shape)}": wrong for wrong in (good[:-1], torch.cat((good, good), dim=1), good[0])}
    for value in (torch.nan, torch.inf):
        bad[str(value)] = good.clone()
        bad[str(value)][-1, 0] = value
    with subject.reused() as env:
        first = env.reset(subject.seed)
        for name, action in bad.items():
            _require_refused(env, name, action)
        after = record(env, first, [good])
    _require_same(reference.recording.part(0, 1), after)
    return f"refused {', '.join(bad)}"


def check_clipping(subject: Subject) -> str:
    """Actions beyond [-1, 1] do what their clipped values do."""
    steps = min(subject.steps, _SHORT)
    wide = 3 * subject.reference.actions[:steps]
    with subject.reused() as env:
        clipped = record(env, env.reset(subject.seed), wide.clamp(-1, 1))
        again = record(env, env.reset(subject.seed), wide)
    _require_same(clipped, again)
    return f"{int((wide.abs() > 1).sum())} actions beyond the bounds"


def check_masked(subject: Subject) -> str:
    """Actions that a task of a set does not have influence nothing."""
    spec, reference = subject.spec, subject.reference
    tasks = [spec.tasks[task_id] for task_id in reference.task_ids.tolist()]
    used = torch.from_numpy(action_mask(tasks, spec.action_dim)).bool()
    if used.all():
        raise NotApplicable("all tasks use all actions")
    steps = min(subject.steps, _SHORT)
    actions = reference.actions[:steps]
    with subject.reused() as env:
        changed: Float[Tensor, "T N A"] = torch.where(used, actions, random_actions(env, steps, subject.seed + 2))
        other = record(env, env.reset(subject.seed), changed)
    _require_same(reference.recording.part(0, steps), other)
    return f"{int((~used).sum())} masked of {used.numel()} actions"


def _require_same(expected: Recording, found: Recording) -> None:
    gap = difference(expected, found)
    if gap is not None:
        raise ContractBroken(gap)


def _require_refused(env: VectorEnv, name: str, action: Tensor) -> None:
    try:
        env.step(action)
    except ValueError:
        return
    raise ContractBroken(f"an action with {name} was accepted")


def _where(workers: int) -> str:
    return f"in {workers} workers" if workers else "in this process"
