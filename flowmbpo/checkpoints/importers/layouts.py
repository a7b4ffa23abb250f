"""Published files, read without running anything from them: TD-MPC2's three layouts, Newt's and PWM's as one model.

World models and planners of Hansen et al. 2024 (TD-MPC2, Newt); PWM's own files (Georgiev et al. 2024) have an actor, a
critic and running statistics too. A layout is told by its names alone, and its tensors are brought to one set of names:
those of the files that PWM uses, with Q layers as `_Qs.{layer}.{name}`, stacked.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmbpo.checkpoints.importers.foreign import (
    LAYER_TENSORS,
    LOG_STD_BOUNDS,
    ForeignModel,
    Network,
    RunningStatistics,
    finite,
    plain_tensors,
    take,
    take_network,
)
from flowmbpo.checkpoints.payload import FORMAT
from flowmbpo.data.foreign import ForeignFileError, UnsafeFileError, check_archive, load_inert
from flowmbpo.errors import CheckpointError

TDMPC2 = "tdmpc2"
CURRENT = "tdmpc2-current"
OLDEST = "tdmpc2-oldest"
NEWT = "newt"
PWM = "pwm"

PARTS = {
    "encoder": "_encoder.state.",
    "dynamics": "_dynamics.",
    "reward": "_reward.",
    "termination": "_termination.",
    "policy_prior": "_pi.",
    "q_functions": "_Qs.",
}
"""Networks by the prefixes of their common names; those that are not required are Newt's, or a planner's."""
REQUIRED = {"encoder": "_encoder.", "dynamics": "_dynamics.", "reward": "_reward."}  # with PWM's prefixes
NORMED = ("encoder", "dynamics")  # behind their last layer, too
COPIES = ("_target_Qs", "_detach_Qs", "_Qs.target.")
"""Prefixes of what repeats the Q functions: slow averages, and copies without gradient."""
PWM_PARTS = ("world_model", "actor", "critic")
PWM_STATISTICS = "pwm.utils.running_mean_std.RunningMeanStd"
EPSILON = 1e-5  # PWM divides by sqrt(var + EPSILON)

_MOST_LAYERS = 32  # of a network whose tensors are renamed
_NEWT_Q = re.compile(r"_Qs\.online\._Qs\.(\d{1,3})\.(.+)")
_BOUNDS = ("log_std_min", "log_std_dif")
_OLDEST_NOTE = (
    "The oldest files have a layer without weights ahead of the encoder that no published code names. It is taken "
    "to pass observations on unchanged; a symlog there has been reported. Check returns before relying on this import."
)
_CLIP_NOTE = "Its observations were normalised; that is folded into the encoder's first layer, but not the clip to +-5."
_MASK_NOTE = "PWM never masked actions: where a task has fewer than the widest, its policy's spare ones are now 0."
_UNCHECKED_NOTE = (
    "The file is of torch's old kind, which stores no checksums: damage to its numbers would not be noticed. Compare "
    "its SHA-256 with one from where it was published."
)


def _written_out(prefix: str, linear: int, norm: int, common: str) -> dict[str, str]:
    """Common names of layers that take three places each: the linear one's, the LayerNorm's and the activation's."""
    return {
        f"{prefix}{3 * layer + place}.{kind}": f"{common}{layer}.{ln}{kind}"
        for layer in range(_MOST_LAYERS)
        for place, ln in ((linear, ""), (norm, "ln."))
        for kind in ("weight", "bias")
    }


def _numbered_through(prefix: str, common: str) -> dict[str, str]:
    """Common names of tensors that are numbered through, layer by layer."""
    places = [f"{common}{layer}.{name}" for layer in range(_MOST_LAYERS) for name in LAYER_TENSORS]
    return {f"{prefix}{number}": place for number, place in enumerate(places)}


_ACTOR = _written_out("mu_net.", 0, 2, "")  # its LayerNorms stand behind the activation
_CRITIC = _numbered_through("params.", "")
_Q = _numbered_through("_Qs.params.", "_Qs.")
# The oldest encoder begins with a layer that has no weights; the dynamics' last LayerNorm stands apart.
_OLDEST = {
    **_written_out("_encoder.state.", 1, 2, "_encoder.state."),
    **_written_out("_dynamics.0.", 0, 1, "_dynamics."),
    **{f"_dynamics.1.{kind}": f"_dynamics.2.ln.{kind}" for kind in ("weight", "bias")},
    **_written_out("_reward.", 0, 1, "_reward."),
    **_written_out("_pi.", 0, 1, "_pi."),
}


class PickledStatistics:
    """Stands in for PWM's running statistics while a file is read: their state, and nothing that they could do."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def read_foreign(path: Path) -> ForeignModel | None:
    """The model of a published file, on the CPU and mapped from the disk where possible; None for a file of ours.

    Only tensors, plain values and PWM's running statistics (as inert data) are accepted. Raises CheckpointError on a
    damaged or hostile file, or one that is not known or does not fit; nothing in it is ever executed.
    """
    zipped = zipfile.is_zipfile(path)
    try:
        if zipped:
            check_archive(path)
        content = load_inert(path, {PWM_STATISTICS: PickledStatistics})
    except UnsafeFileError as error:
        raise CheckpointError(
            f"{path}: holds Python objects that a checkpoint has no need of, or is no checkpoint at all "
            f"({error}). Nothing of it was run. Import a file with tensors and plain values only."
        ) from error
    except ForeignFileError as error:
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint ({error}): truncated, damaged, or another kind of file. "
            "Fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, where checkpoints hold a dictionary. "
            "Name a file of TD-MPC2, PWM, Newt or flowmbpo."
        )
    if content.get("format") == FORMAT:
        return None
    state = content.get("model", content)
    names = {str(name).removeprefix("module.") for name in (state if isinstance(state, Mapping) else content)}
    layout = _layout(names) if isinstance(state, Mapping) else None
    try:
        if content.keys() >= set(PWM_PARTS):
            model = _read_pwm(content)
        elif layout is not None:
            model = read_tdmpc2(state, layout)
        elif any(name.startswith("_encoder.rgb") for name in names):
            raise CheckpointError("is a model of images; those of states can be imported")
        else:
            shown = ", ".join(sorted(names)[:4]) or "nothing"
            raise CheckpointError(
                f"is no checkpoint that is known here (it holds {shown}). Known are: TD-MPC2 (three layouts), PWM, "
                "Newt, or a folder that `flowmbpo checkpoint export` wrote"
            )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}. Nothing was imported.") from error
    model.notes += () if zipped else (_UNCHECKED_NOTE,)
    return model


def _layout(names: Set[str]) -> str | None:
    if any(name.startswith("_Qs.online.") for name in names):
        return NEWT
    if "_encoder.state.0.weight" not in names:
        return OLDEST if "_encoder.state.1.weight" in names else None
    return CURRENT if "_Qs.params.0.weight" in names or "log_std_min" in names else TDMPC2


def read_tdmpc2(state: Mapping[str, object], layout: str) -> ForeignModel:
    """The model of a state dict in `layout`. Raises CheckpointError naming the tensor that does not fit."""
    tensors = plain_tensors(state, "model")
    copied = [name for name in tensors if name.startswith(COPIES)]
    copies = {"_Qs.target" if name.startswith("_Qs.") else name.partition(".")[0] for name in copied}
    for name in copied:
        del tensors[name]
    if layout == NEWT:
        _stack_members(tensors)
    elif layout == OLDEST:
        for name in tensors:
            if name.startswith(("_encoder.", "_dynamics.", "_reward.", "_pi.")) and name not in _OLDEST:
                raise CheckpointError(f"{name}: is no layer of the oldest TD-MPC2 files: another architecture")
        tensors = {_OLDEST.get(name, name): tensor for name, tensor in tensors.items()}
    if layout != NEWT:
        tensors = {_Q.get(n, n.replace("_Qs.params.", "_Qs.")): tensor for n, tensor in tensors.items()}
    return _take_model(
        tensors,
        PARTS,
        action_masks=_take_masks(tensors),
        log_std_bounds=_take_log_std_bounds(tensors),
        format=layout,
        dropped=tuple(sorted(copies)),
        notes=(_OLDEST_NOTE,) if layout == OLDEST else (),
    )


def _take_model(
    tensors: dict[str, Tensor], parts: Mapping[str, str], others: Mapping[str, Network] | None = None, **options: Any
) -> ForeignModel:
    """The model of all the `tensors`, by the prefixes of its `parts`; `others` are networks that lie elsewhere."""
    embeddings = tensors.pop("_task_emb.weight", None)
    networks = {
        name: take_network(tensors, prefix, normed_output=name in NORMED, ensemble=name == "q_functions")
        for name, prefix in parts.items()
        if name in REQUIRED or any(tensor.startswith(prefix) for tensor in tensors)
    }
    table = None if embeddings is None else finite("_task_emb.weight", embeddings)
    _none_left(tensors)
    return ForeignModel(networks=networks | dict(others or {}), embeddings=table, **options)


def _none_left(tensors: Mapping[str, Tensor]) -> None:
    if tensors:
        raise CheckpointError(f"{', '.join(sorted(tensors)[:4])}: not known in this layout: another architecture")


def _stack_members(tensors: dict[str, Tensor]) -> None:
    """Make Newt's Q networks, one per member, one network with a leading ensemble axis."""
    members: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name in list(tensors):
        match = _NEWT_Q.fullmatch(name)
        if match:
            members[match[2]][int(match[1])] = tensors.pop(name)
    for name, held in members.items():
        if sorted(held) != list(range(len(held))) or len({t.shape for t in held.values()}) != 1:
            raise CheckpointError(f"_Qs.online._Qs.*.{name}: members {sorted(held)} do not make one ensemble")
        tensors[f"_Qs.{name}"] = torch.stack([held[member] for member in range(len(held))])


def _take_masks(tensors: dict[str, Tensor]) -> Tensor | None:
    """Which of the action columns are each task's own: 0 or 1."""
    masks = tensors.pop("_action_masks", None)
    if masks is not None:
        if masks.layout != torch.strided:
            raise CheckpointError(f"_action_masks: is a {masks.layout} tensor, where a dense one is needed")
        wrong = masks[(masks != 0) & (masks != 1)]
        if wrong.numel():
            raise CheckpointError(f"_action_masks: holds {wrong[0].item()}, where 0 and 1 are allowed: a damaged file")
    return masks


def _take_log_std_bounds(tensors: dict[str, Tensor]) -> tuple[float, float]:
    """(lowest, highest) log-std of the policy prior: stored as the lowest and the range, or known."""
    if not any(name in tensors for name in _BOUNDS):
        return LOG_STD_BOUNDS
    low, span = (take(tensors, name) for name in _BOUNDS)
    if low.numel() != 1 or span.numel() != 1 or low.is_complex() or span.is_complex():
        raise CheckpointError(f"log_std_min, log_std_dif: are {tuple(low.shape)} and {tuple(span.shape)}, not numbers")
    lowest, width = float(low), float(span)
    if not (math.isfinite(lowest) and math.isfinite(lowest + width) and width > 0.0):
        raise CheckpointError(
            f"log_std_min, log_std_dif: are {lowest:g} and {width:g}, where a finite bound and a range above 0 are "
            "needed: a damaged file"
        )
    return lowest, lowest + width


def _read_pwm(content: Mapping[str, Any]) -> ForeignModel:
    """The model, actor and critic of PWM's file. Raises CheckpointError naming the tensor that does not fit."""
    world_model, actor, critic = (plain_tensors(content[key], key) for key in PWM_PARTS)
    dropped = [key for key in ("actor_opt", "critic_opt", "world_model_opt") if content.get(key) is not None]
    others, logstd = {}, None
    if "logstd" in actor and "mu_net.0.weight" in actor:
        logstd = finite("actor logstd", actor.pop("logstd"))
        others["actor"] = _take_part(actor, "actor layer ", _ACTOR)
        actions = others["actor"][-1].outputs
        if tuple(logstd.shape) != (actions,):
            raise CheckpointError(f"actor: logstd is {tuple(logstd.shape)}, the policy has {actions} actions")
    else:
        dropped.insert(0, "actor (not PWM's Gaussian)")
    others["critic"] = _take_part(critic, "critic layer ", _CRITIC, ensemble=True)
    model = _take_model(world_model, REQUIRED, others, format=PWM, logstd=logstd, dropped=tuple(dropped))
    for key, width in (("obs_rms", model.obs_dim), ("rew_rms", 1), ("ret_rms", 1)):
        if content.get(key) is not None:
            model.statistics[key] = _statistics(content[key], key, width)
    notes = ((_MASK_NOTE, model.embeddings is not None), (_CLIP_NOTE, model.seen("obs_rms") is not None))
    model.notes = tuple(note for note, applies in notes if applies)
    return model


def _take_part(tensors: dict[str, Tensor], prefix: str, names: Mapping[str, str], *, ensemble: bool = False) -> Network:
    """The one network of a part, whose tensors have other names than the world model's."""
    renamed = {f"{prefix}{names.get(name, name)}": tensor for name, tensor in tensors.items()}
    network = take_network(renamed, prefix, normed_output=False, ensemble=ensemble)
    _none_left(renamed)
    return network


def _statistics(value: object, key: str, width: int) -> RunningStatistics:
    """Running statistics that can be computed with, of `width` numbers. Raises CheckpointError."""
    if not isinstance(value, PickledStatistics):
        raise CheckpointError(f"{key}: is a {type(value).__name__}, not PWM's running statistics")
    fields, advice = value.state, "a damaged file, fetch it again"
    if not isinstance(fields, dict) or set(fields) != {"shape", "mean", "var", "count"}:
        held = ", ".join(map(str, fields)) if isinstance(fields, dict) else "nothing"
        raise CheckpointError(f"{key}: holds {held}, where count, mean, shape and var are needed: fetch the file again")
    for name in ("mean", "var"):
        size = finite(f"{key}.{name}", fields[name]).numel()
        if size != width:
            raise CheckpointError(f"{key}.{name}: has {size} numbers, {width} are needed: {advice}")
    mean, var = (fields[name].double().flatten() for name in ("mean", "var"))
    try:
        count = float(fields["count"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{key}.count: is no number ({error}): {advice}") from error
    for name, least in (("var", float(var.min())), ("count", count)):
        if not 0.0 <= least < math.inf:
            raise CheckpointError(f"{key}.{name}: holds {least:g}, where a finite 0 or more is needed: {advice}")
    return RunningStatistics(mean, torch.sqrt(var + EPSILON), count)
