"""Faults of what a checkpoint file holds. They can be planted in memory too."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmbpo.checkpoints.load import load, load_replay, resolve
from flowmbpo.checkpoints.payload import REPLAY_FORMAT, REPLAY_VERSION
from flowmbpo.diagnostics.subject import Subject


@dataclass
class Saved:
    """What a checkpoint holds of a run, open for editing.

    `before` is the agent as the run began, `trained` names its parameters in the order of the optimisers.
    """

    agent: dict[str, Tensor]
    optimisers: dict[str, Any]
    replay: dict[str, Any]
    before: dict[str, Tensor]
    trained: tuple[str, ...]

    @classmethod
    def of(cls, subject: Subject) -> Saved:
        """A copy of everything that the subject holds."""
        assert subject.replay is not None and subject.initial is not None
        return cls(
            {name: tensor.clone() for name, tensor in subject.agent.state_dict().items()},
            copy.deepcopy(dict(subject.optimisers or {})),
            subject.replay.state_dict(),
            subject.initial().state_dict(),
            tuple(name for name, _ in subject.agent.named_parameters()),
        )

    def put_into(self, subject: Subject) -> None:
        """Make the subject hold this."""
        assert subject.replay is not None
        subject.agent.load_state_dict(self.agent)
        subject.optimisers = self.optimisers
        subject.replay.load_state_dict(self.replay)


@dataclass(frozen=True)
class Fault:
    """One way to break a run. `finding` is the name that `health` must give it."""

    finding: str
    variant: str
    saved: Callable[[Saved], None] | None = None
    code: Callable[[Subject], None] | None = None
    fits: Callable[[Subject], bool] = field(default=lambda subject: True)

    def plant(self, subject: Subject) -> None:
        """Break the subject in memory."""
        if self.saved is not None:
            state = Saved.of(subject)
            self.saved(state)
            state.put_into(subject)
        if self.code is not None:
            self.code(subject)


def write_broken_run(run: Path, folder: Path, fault: Fault, subject: Subject) -> Path:
    """Copy the run's checkpoint, broken, into `folder`; the file. Only faults of the saved state have one."""
    assert fault.saved is not None
    loaded = load(resolve(run))
    replay = load_replay(loaded)
    assert replay is not None
    sound = Saved.of(subject)
    state = Saved(loaded.payload["agent"], loaded.payload["optimisers"], replay, sound.before, sound.trained)
    fault.saved(state)
    folder.mkdir(parents=True)
    stored = folder / "replay-epoch000001-planted.pt"
    torch.save({"format": REPLAY_FORMAT, "version": REPLAY_VERSION, "state": state.replay}, stored)
    reference = {"file": stored.name, "sha256": hashlib.sha256(stored.read_bytes()).hexdigest()}
    payload = {**loaded.payload, "agent": state.agent, "optimisers": state.optimisers, "replay": reference}
    torch.save(payload, folder / "latest.pt")
    return folder / "latest.pt"


def heads(state: Saved, part: str) -> list[str]:
    """Names of the weight and bias of the part's output layers (a flow actor has two)."""
    names = [name for name in state.agent if name.startswith(f"{part}.")]
    if part == "critic":
        last = max(int(name.split(".")[-1]) for name in names if ".weights." in name)
        return [f"critic.network.weights.{last}", f"critic.network.biases.{last}"]
    found = [name for name in names if ".start." in name]
    stems = [name for name in names if name.split(".")[-2].isdigit() and ".linear." not in name]
    last_index = max(int(name.split(".")[-2]) for name in stems)
    return found + [name for name in stems if int(name.split(".")[-2]) == last_index]


def scale(part: str, factor: float, *, bias: float | None = None) -> Callable[[Saved], None]:
    """Multiply the part's output layer; `bias` replaces its bias by that value."""

    def edit(state: Saved) -> None:
        for name in heads(state, part):
            is_bias = "bias" in name
            if is_bias and bias is not None:
                state.agent[name].fill_(bias)
            else:
                state.agent[name] *= factor

    return edit


def scale_weights(part: str, factor: float) -> Callable[[Saved], None]:
    """Multiply the part's output layer and keep its bias: it says the same of nearly every state."""

    def edit(state: Saved) -> None:
        for name in heads(state, part):
            if "bias" not in name:
                state.agent[name] *= factor

    return edit


def shift_bias(part: str, by: float, *, first: bool = False) -> Callable[[Saved], None]:
    """Add to the bias of the part's output layer, or to its first entry alone."""

    def edit(state: Saved) -> None:
        name = [name for name in heads(state, part) if "bias" in name][-1]
        state.agent[name][: 1 if first else None] += by

    return edit


def quieten(share: float) -> Callable[[Saved], None]:
    """Multiply the standard deviation of the policy's noise."""

    def edit(state: Saved) -> None:
        for name in ("actor.logstd", "actor.log_noise_std"):
            if name in state.agent:
                state.agent[name] += math.log(share)

    return edit


def one_member(factor: float, *, bias: float | None = None) -> Callable[[Saved], None]:
    """Multiply the output layer of the critic's second member."""

    def edit(state: Saved) -> None:
        weight, offset = heads(state, "critic")
        state.agent[weight][1] *= factor
        state.agent[offset][1] = state.agent[offset][1] * factor if bias is None else bias

    return edit


def poison(prefix: str, value: float, *, everywhere: bool = False) -> Callable[[Saved], None]:
    """Put `value` into one entry of the first floating-point tensor under `prefix`, or into all entries of all."""

    def edit(state: Saved) -> None:
        names = [n for n, t in state.agent.items() if n.startswith(prefix) and t.is_floating_point() and t.numel()]
        for name in names if everywhere else names[:1]:
            if everywhere:
                state.agent[name].fill_(value)
            else:
                state.agent[name].view(-1)[-1] = value

    return edit


def reset(prefix: str) -> Callable[[Saved], None]:
    """Give the part the weights that the run began with."""

    def edit(state: Saved) -> None:
        for name in state.agent:
            if name.startswith(prefix):
                state.agent[name] = state.before[name].clone()

    return edit


def forget(optimiser: str, keep: Callable[[int], bool], *, how: str) -> Callable[[Saved], None]:
    """Take the optimiser's memory of the parameters that are not kept: `drop` it, or `zero` its moments."""

    def edit(state: Saved) -> None:
        moments = state.optimisers[optimiser]["state"]
        for index in [index for index in moments if not keep(index)]:
            if how == "drop":
                del moments[index]
            else:
                moments[index]["exp_avg"].zero_()
                moments[index]["exp_avg_sq"].zero_()

    return edit


def weaken_memory(optimiser: str, factor: float) -> Callable[[Saved], None]:
    """As if every gradient had been multiplied by `factor`."""

    def edit(state: Saved) -> None:
        for moments in state.optimisers[optimiser]["state"].values():
            moments["exp_avg"] *= factor
            moments["exp_avg_sq"] *= factor**2

    return edit


def scale_rewards(factor: float) -> Callable[[Saved], None]:
    """The running moments of rewards as if all rewards had been multiplied."""

    def edit(state: Saved) -> None:
        state.agent["reward_normalizer.moments.total"] *= factor
        state.agent["reward_normalizer.moments.total_square"] *= factor**2

    return edit


def scale_replayed(factor: float) -> Callable[[Saved], None]:
    """The stored rewards multiplied."""

    def edit(state: Saved) -> None:
        state.replay["reward"] *= factor

    return edit


def shift_replay(column: str, by: int, *, lanes: slice = slice(None)) -> Callable[[Saved], None]:
    """Move a column of the replay buffer by rows in time."""

    def edit(state: Saved) -> None:
        state.replay[column][:, lanes] = torch.roll(state.replay[column][:, lanes], by, 0)

    return edit


def both_late(state: Saved) -> None:
    """Actions and rewards belong to the transition before."""
    shift_replay("action", 1)(state)
    shift_replay("reward", 1)(state)


def swap_replayed(state: Saved) -> None:
    """The first two action columns of the replay buffer swapped."""
    state.replay["action"][..., [0, 1]] = state.replay["action"][..., [1, 0]]


def forget_encoder(how: str) -> Callable[[Saved], None]:
    """The model's optimiser has no memory of the encoder, which stands behind the task table in its parameters."""

    def edit(state: Saved) -> None:
        names = [name for name in state.agent if name.startswith("world_model.") and name in state.trained]
        encoder = {index for index, name in enumerate(names) if name.startswith("world_model.encoder.")}
        forget("model", lambda index: index not in encoder, how=how)(state)

    return edit


def edit_columns(prefixes: tuple[str, ...], change: Callable[[Tensor], Tensor]) -> Callable[[Saved], None]:
    """Change the action columns of the first layers under `prefixes`; inputs are ordered [state, task, action, ...]."""

    def edit(state: Saved) -> None:
        width = state.replay["action"].shape[-1]
        stop = state.agent["world_model.reward_head.network.0.linear.weight"].shape[1]
        for prefix in prefixes:
            name = next(n for n in state.agent if n.startswith(prefix) and n.endswith("0.linear.weight"))
            weight = state.agent[name]
            weight[:, stop - width : stop] = change(weight[:, stop - width : stop].clone())

    return edit
