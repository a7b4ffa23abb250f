"""PWM's own checkpoints (Georgiev et al. 2024): world model, actor, critic and running statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowmbpo.checkpoints.importers.foreign import ForeignModel, Network, RunningStatistics, check_model
from flowmbpo.checkpoints.importers.state_dict import MOST_LAYERS, finite, numbered_through, plain_tensors, take_network
from flowmbpo.errors import CheckpointError

PWM = "pwm"
EPSILON = 1e-5  # PWM divides by sqrt(var + EPSILON)
PICKLED_NAME = "pwm.utils.running_mean_std.RunningMeanStd"
_FIELDS = {"shape", "mean", "var", "count"}
_KEYS = {"actor", "critic", "world_model"}
# The actor's layers stand at 0, 3, 6, ..., their LayerNorms two places on, behind the activation; the critic's tensors
# are numbered through.
_ACTOR = {
    f"mu_net.{3 * layer + place}.{kind}": f"{layer}.{norm}{kind}"
    for layer in range(MOST_LAYERS)
    for place, norm in ((0, ""), (2, "ln."))
    for kind in ("weight", "bias")
}
_CRITIC = numbered_through("params.", "")
_OPTIMISERS = ("actor_opt", "critic_opt", "world_model_opt")
_CLIP_NOTE = "Its observations were normalised; that is folded into the encoder's first layer, but not the clip to +-5."
_MASK_NOTE = "PWM never masked actions: where a task has fewer than the widest, its policy's spare ones are now 0."


class PickledStatistics:
    """Stands in for PWM's running statistics while a file is read: their state, and nothing that they could do."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def is_pwm(content: Mapping[str, object]) -> bool:
    """Whether the file has the parts that PWM saves."""
    return content.keys() >= _KEYS


def read_pwm(content: Mapping[str, Any]) -> ForeignModel:
    """The model, actor and critic of a file. Raises CheckpointError naming the tensor that does not fit."""
    for key in _KEYS:
        if not isinstance(content[key], Mapping):
            raise CheckpointError(f"{key}: is a {type(content[key]).__name__}, not a state dict")
    tensors = plain_tensors(content["world_model"], "world_model")
    embeddings = tensors.pop("_task_emb.weight", None)
    actor, logstd, dropped = _actor(plain_tensors(content["actor"], "actor"))
    networks = {
        "encoder": take_network(tensors, "_encoder.", normed_output=True),
        "dynamics": take_network(tensors, "_dynamics.", normed_output=True),
        "reward": take_network(tensors, "_reward.", normed_output=False),
        **actor,
        "critic": _take_part(plain_tensors(content["critic"], "critic"), "critic layer ", _CRITIC, ensemble=True),
    }
    model = ForeignModel(
        format=PWM,
        networks=networks,
        embeddings=None if embeddings is None else finite("_task_emb.weight", embeddings),
        logstd=logstd,
        dropped=(*dropped, *(key for key in _OPTIMISERS if content.get(key) is not None)),
    )
    if tensors:
        raise CheckpointError(f"world_model: {', '.join(sorted(tensors)[:4])}: not known in PWM's files")
    check_model(model)
    widths = {"obs_rms": model.obs_dim, "rew_rms": 1, "ret_rms": 1}
    for key, width in widths.items():
        if content.get(key) is not None:
            model.statistics[key] = _statistics(content[key], key, width)
    clipped = "obs_rms" in model.statistics and model.statistics["obs_rms"].seen
    notes = ((_MASK_NOTE, embeddings is not None), (_CLIP_NOTE, clipped))
    model.notes = tuple(note for note, applies in notes if applies)
    return model


def _actor(tensors: dict[str, Tensor]) -> tuple[dict[str, Network], Tensor | None, tuple[str, ...]]:
    """The actor's network, its log-std, and what is dropped."""
    if "logstd" not in tensors or "mu_net.0.weight" not in tensors:
        return {}, None, ("actor (not PWM's Gaussian)",)
    logstd = finite("actor logstd", tensors.pop("logstd"))
    network = _take_part(tensors, "actor layer ", _ACTOR)
    if tuple(logstd.shape) != (network[-1].outputs,):
        raise CheckpointError(f"actor: logstd is {tuple(logstd.shape)}, the policy has {network[-1].outputs} actions")
    return {"actor": network}, logstd, ()


def _take_part(tensors: dict[str, Tensor], prefix: str, names: Mapping[str, str], *, ensemble: bool = False) -> Network:
    """The one network of a part, whose tensors have other names than the world model's."""
    renamed = {f"{prefix}{names.get(name, name)}": tensor for name, tensor in tensors.items()}
    network = take_network(renamed, prefix, normed_output=False, ensemble=ensemble)
    if renamed:
        raise CheckpointError(f"{', '.join(sorted(renamed)[:4])}: not known in PWM's files: another architecture")
    return network


def _statistics(value: object, key: str, width: int) -> RunningStatistics:
    """Running statistics that can be computed with, of `width` numbers. Raises CheckpointError."""
    if not isinstance(value, PickledStatistics):
        raise CheckpointError(f"{key}: is a {type(value).__name__}, not PWM's running statistics")
    if value.state is None:
        raise CheckpointError(f"{key}: has no count, mean, var: a damaged file; fetch it again")
    if not isinstance(value.state, dict) or set(value.state) != _FIELDS:
        raise CheckpointError(f"{key}: is a {PICKLED_NAME} with other fields than {', '.join(sorted(_FIELDS))}")
    mean, var, count = value.state["mean"], value.state["var"], value.state["count"]
    try:
        samples = float(count)
    except (TypeError, ValueError, RuntimeError):
        samples = None
    if not (isinstance(mean, Tensor) and isinstance(var, Tensor)) or samples is None:
        raise CheckpointError(f"{key}: is a {PICKLED_NAME} whose fields are no numbers")
    if mean.shape != var.shape:
        raise CheckpointError(f"{key}: is a {PICKLED_NAME} of mean {tuple(mean.shape)} and var {tuple(var.shape)}")
    advice = "a damaged file: fetch it again, or import another"
    if mean.numel() != width:
        raise CheckpointError(f"{key}.mean: has {mean.numel()} numbers, {width} are needed: {advice}")
    finite(f"{key}.mean", mean)
    least = float(finite(f"{key}.var", var).min())
    if least < 0.0:
        raise CheckpointError(f"{key}.var: holds {least:g}, where 0 or more is needed: {advice}")
    if not 0.0 <= samples < math.inf:
        raise CheckpointError(f"{key}.count: is {samples:g}, where a finite 0 or more is needed: {advice}")
    scale = torch.sqrt(var.double().flatten() + EPSILON)
    return RunningStatistics(mean.double().flatten(), scale, samples)
