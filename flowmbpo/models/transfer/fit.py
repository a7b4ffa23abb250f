"""Which parts of another agent can be taken over, and why the others cannot."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flowmbpo.models.transfer.layout import EMBEDDING, PREFIXES, Part

READ_THE_LATENT = ("dynamics", "reward", "termination", "actor", "critic", "target_critic", "return_scale")
DEPENDS_ON = {"target_critic": ("critic",), "return_scale": ("critic", "reward")}
"""Parts that mean nothing without others: the returns whose spread is tracked are those of reward and critic."""
UNTRAINED = "never trained in the source"

State = Mapping[str, Tensor]


def tensor_names(state: State, part: str) -> list[str]:
    """Names of the part's tensors."""
    return [name for name in state if name.startswith(PREFIXES[part])]


def misfits(
    old: Mapping[str, Part], new: Mapping[str, Part], state: State, fresh: State, untrained: tuple[str, ...]
) -> dict[str, str]:
    """The parts of the target (tensors `fresh`) that cannot be taken from the source (`state`), each with its reason.

    The embedding table is judged here only for having been trained: its rows follow the tasks.
    """
    found: dict[str, str] = {}
    if EMBEDDING in untrained:
        found[EMBEDDING] = UNTRAINED
    for name, part in new.items():
        if name != "encoder" and not tensor_names(fresh, name):
            continue  # the target has no such part
        if name in untrained:
            reason: str | None = UNTRAINED
        elif name in READ_THE_LATENT and "encoder" in found:
            reason = f"the latent that it reads is another: {found['encoder']}"
        else:
            reason = _own_reason(old[name], part, state, fresh)
        if reason is None:
            reason = next((f"goes with the {other}" for other in DEPENDS_ON.get(name, ()) if other in found), None)
        if reason is not None:
            found[name] = reason
    return found


def _own_reason(old: Part, new: Part, state: State, fresh: State) -> str | None:
    theirs, ours = tensor_names(state, new.name), tensor_names(fresh, new.name)
    if ours and not theirs and old.meaning == new.meaning:
        return "the source has none"
    # Keys that only one side has belong to its kind, which then differs too.
    changed = [
        f"{key.rpartition('.')[2]} {_said(old.meaning[key])} -> {_said(value)}"
        for key, value in new.meaning.items()
        if key in old.meaning and old.meaning[key] != value
    ]
    if changed:
        return ", ".join(changed)
    return _other_widths(old, new, state, fresh)


def _said(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _other_widths(old: Part, new: Part, state: State, fresh: State) -> str | None:
    theirs, ours = tensor_names(state, new.name), tensor_names(fresh, new.name)
    if theirs != ours and set(theirs) != set(ours):
        return f"layers differ: {len(theirs)} tensors -> {len(ours)}"
    for name in ours:
        before = _fixed(state[name], {axis.dim for axis in old.axes.get(name, ())})
        after = _fixed(fresh[name], {axis.dim for axis in new.axes.get(name, ())})
        if before != after:
            return f"hidden widths differ: {name.removeprefix(new.prefix)} {before} -> {after}"
    return None


def _fixed(tensor: Tensor, variable: set[int]) -> list[int | str]:
    """The shape, with what follows the task left open."""
    return ["*" if dim in variable else size for dim, size in enumerate(tensor.shape)]
