"""PWM's own checkpoints (Georgiev et al. 2024): world model, actor, critic and running statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowmbpo.checkpoints.importers.foreign import ForeignModel, Layer, Network, RunningStatistics, check_model
from flowmbpo.checkpoints.importers.state_dict import check_chain, finite, plain_tensors, take_network
from flowmbpo.errors import CheckpointError

PWM = "pwm"
CLIP = 5.0  # of observations and rewards, which PWM clips to +-CLIP
EPSILON = 1e-5  # PWM divides by sqrt(var + EPSILON)
PICKLED_NAME = "pwm.utils.running_mean_std.RunningMeanStd"
_FIELDS = {"shape", "mean", "var", "count"}
_KEYS = {"actor", "critic", "world_model"}
_OPTIMISERS = ("actor_opt", "critic_opt", "world_model_opt")
_CLIP_NOTE = (
    f"Its observations were normalised; that is folded into the encoder's first layer, but not the clip to +-{CLIP:g}."
)
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
    model = ForeignModel(
        format=PWM,
        encoder=take_network(tensors, "_encoder.", normed_output=True),
        dynamics=take_network(tensors, "_dynamics.", normed_output=True),
        reward=take_network(tensors, "_reward.", normed_output=False),
        embeddings=None if embeddings is None else finite("_task_emb.weight", embeddings),
        actor=actor,
        logstd=logstd,
        critic=_critic(plain_tensors(content["critic"], "critic")),
        dropped=(*dropped, *(key for key in _OPTIMISERS if content.get(key) is not None)),
    )
    if tensors:
        raise CheckpointError(
            f"world_model: {', '.join(sorted(tensors)[:4])}: not known in PWM's files: another architecture"
        )
    check_model(model)
    obs = _statistics(content, "obs_rms", model.obs_dim)
    notes = ((_MASK_NOTE, embeddings is not None), (_CLIP_NOTE, obs is not None and obs.seen))
    return replace(
        model,
        obs_statistics=obs,
        reward_statistics=_statistics(content, "rew_rms", 1),
        return_statistics=_statistics(content, "ret_rms", 1),
        notes=tuple(note for note, applies in notes if applies),
    )


def _actor(tensors: dict[str, Tensor]) -> tuple[Network | None, Tensor | None, tuple[str, ...]]:
    """Layers at 0, 3, 6, ... with their LayerNorm two places on, behind the activation; and the log-std."""
    if "logstd" not in tensors or "mu_net.0.weight" not in tensors:
        return None, None, ("actor (not PWM's Gaussian)",)
    layers = []
    place = 0
    while f"mu_net.{place}.weight" in tensors:
        names = [f"mu_net.{place}.weight", f"mu_net.{place}.bias"]
        if f"mu_net.{place + 2}.weight" in tensors:
            names += [f"mu_net.{place + 2}.weight", f"mu_net.{place + 2}.bias"]
        missing = [name for name in names if name not in tensors]
        if missing:
            raise CheckpointError(f"actor: {missing[0]} is missing: another architecture")
        weight, bias, *norm = (finite(f"actor {name}", tensors.pop(name)) for name in names)
        layers.append(Layer(weight, bias, tuple(norm)))
        place += 3
    logstd = finite("actor logstd", tensors.pop("logstd"))
    if tensors:
        raise CheckpointError(f"actor: {', '.join(sorted(tensors)[:4])}: not known in PWM's files")
    network = tuple(layers)
    _check_norms(network, "actor mu_net layer ", ensemble=False)
    if tuple(logstd.shape) != (network[-1].outputs,):
        raise CheckpointError(f"actor: logstd is {tuple(logstd.shape)}, the policy has {network[-1].outputs} actions")
    return network, logstd, ()


def _critic(tensors: dict[str, Tensor]) -> Network:
    """Stacked `params.{n}`, in the order weight, bias, LayerNorm weight, bias per hidden layer."""
    names = [f"params.{number}" for number in range(len(tensors))]
    if not names or set(names) != set(tensors) or len(names) % 4 != 2:
        raise CheckpointError(f"critic: holds {', '.join(sorted(tensors)[:4])}, not PWM's params.0, params.1, ...")
    values = [finite(f"critic {name}", tensors[name]) for name in names]
    starts = range(0, len(values), 4)
    network = tuple(Layer(values[i], values[i + 1], tuple(values[i + 2 : i + 4])) for i in starts)
    _check_norms(network, "critic layer ", ensemble=True)
    return network


def _check_norms(network: Network, where: str, *, ensemble: bool) -> None:
    check_chain(network, where, ensemble=ensemble)
    if any(bool(layer.norm) == (layer is network[-1]) for layer in network):
        raise CheckpointError(f"{where}*: a LayerNorm is expected behind every hidden layer and none at the end")


def _statistics(content: Mapping[str, Any], key: str, width: int) -> RunningStatistics | None:
    """Running statistics that can be computed with, of `width` numbers. Raises CheckpointError."""
    value = content.get(key)
    if value is None:
        return None
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
    for name, tensor in (("mean", mean), ("var", var)):
        if tensor.numel() != width:
            raise CheckpointError(f"{key}.{name}: has {tensor.numel()} numbers, {width} are needed: {advice}")
        values = finite(f"{key}.{name}", tensor).flatten()
        if name == "var" and bool((values < 0.0).any()):
            raise CheckpointError(f"{key}.var: holds {float(values.min()):g}, where 0 or more is needed: {advice}")
    if not 0.0 <= samples < math.inf:
        raise CheckpointError(f"{key}.count: is {samples:g}, where a finite 0 or more is needed: {advice}")
    scale = torch.sqrt(var.double().flatten() + EPSILON)
    return RunningStatistics(mean.double().flatten(), scale, samples)
