"""The checks of the contract: some look at one shared rollout, some run the environment again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.envs.assignment import action_mask
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.inspection.recording import Recording, difference, random_actions, record
from flowmbpo.envs.inspection.reference import CheckedEnv, ContractBroken, NotApplicable, require


def check_shapes(subject: CheckedEnv) -> str:
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


def check_finite(subject: CheckedEnv) -> str:
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


def check_ends(subject: CheckedEnv) -> str:
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


def check_time_limit(subject: CheckedEnv) -> str:
    """An episode is truncated exactly at its task's length, unless it terminates there."""
    reference = subject.reference
    recording = reference.recording
    for index, task_id in enumerate(reference.task_ids.tolist()):
        task = subject.spec.tasks[task_id]
        ended = recording.of(index)
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


def check_final_observations(subject: CheckedEnv) -> str:
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


def check_padding(subject: CheckedEnv) -> str:
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


_SHORT = 100  # steps of the checks that one step would nearly do for


def check_repeatable(subject: CheckedEnv) -> str:
    """The same seed and actions give the same bits, in a fresh instance that worker processes or threads step."""
    reference = subject.reference
    with subject.opened(workers=subject.workers) as env:
        again = record(env, env.reset(subject.seed), reference.actions[: subject.steps])
    _require_same(reference.recording.part(0, subject.steps), again)
    return f"bit-equal over {subject.steps} steps, {_where(subject.workers)}"


def check_seeds(subject: CheckedEnv) -> str:
    """Another seed gives other episodes, and so do the copies of one task."""
    reference = subject.reference
    steps = min(subject.steps, _SHORT)
    actions = reference.actions[:steps, :1].expand(-1, subject.copies, -1)  # the same for all: only the seeds differ
    with subject.reused() as env:
        own = record(env, env.reset(subject.seed), actions)
        other = record(env, env.reset(subject.seed + 1), actions)
    for index in range(subject.copies):
        alike = difference(own.of(index), other.of(index)) is None
        require(not alike, f"seeds {subject.seed} and {subject.seed + 1} give copy {index} the same {steps} steps")
    ids = reference.task_ids.tolist()
    for index in range(1, subject.copies):
        twin = ids.index(ids[index])
        alike = twin != index and difference(own.of(twin), own.of(index)) is None
        require(not alike, f"copies {twin} and {index} are given the same {steps} steps")
    return f"seed {subject.seed + 1} and other copies differ"


def check_resume(subject: CheckedEnv) -> str:
    """A state that went through bytes goes on bit-equally in a fresh instance."""
    reference = subject.reference
    start = reference.saved_at
    with subject.opened() as env:
        first = env.load_state_dict(reference.state)
        again = record(env, first, reference.actions[start : subject.steps])
    _require_same(reference.recording.part(start, subject.steps), again)
    return f"saved after {start} steps, bit-equal over the next {subject.steps - start}"


def check_independent(subject: CheckedEnv) -> str:
    """What copy 0 sees does not depend on the other copies: there are none, or, in a set, they act otherwise."""
    reference = subject.reference
    expected = reference.recording.part(0, subject.steps).of(0)
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
    _require_same(expected, other.of(0))
    return f"copy 0 is the same whatever the other {subject.copies - 1} do"


def check_refusals(subject: CheckedEnv) -> str:
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


def check_clipping(subject: CheckedEnv) -> str:
    """Actions beyond [-1, 1] do what their clipped values do."""
    steps = min(subject.steps, _SHORT)
    wide = 3 * subject.reference.actions[:steps]
    with subject.reused() as env:
        clipped = record(env, env.reset(subject.seed), wide.clamp(-1, 1))
        again = record(env, env.reset(subject.seed), wide)
    _require_same(clipped, again)
    return f"{int((wide.abs() > 1).sum())} actions beyond the bounds"


def check_masked(subject: CheckedEnv) -> str:
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


Check = Callable[[CheckedEnv], str]
"""Says what was seen; raises ContractBroken or NotApplicable."""

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "shapes": check_shapes,
        "finite": check_finite,
        "ends": check_ends,
        "time limit": check_time_limit,
        "final observations": check_final_observations,
        "padding": check_padding,
        "repeatable": check_repeatable,
        "seeds": check_seeds,
        "resume": check_resume,
        "independent": check_independent,
        "refusals": check_refusals,
        "clipping": check_clipping,
        "masked actions": check_masked,
    }
)
"""All but the first, which makes the environment and steps it, in their order."""
