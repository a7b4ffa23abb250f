"""PWM's own implementation, imported from a checkout of it, and its weights in this project's layout.

PWM: https://github.com/imgeorgiev/PWM, arXiv 2407.02466. Nothing of it is kept here. Packages that it
imports but that an update never calls (gym, hydra, tensordict, torchrl, ...) are replaced by empty
modules in memory where they are not installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from flowmbpo.models.agent import Agent
from flowmbpo.nets.running import RunningStd
from flowmbpo.nets.two_hot import two_hot_cross_entropy

GROUP = 8
BINS = (-10.0, 10.0, 101)
VARIANCE_FLOOR = 1e-5  # PWM divides returns by sqrt(variance + this)
CORRECTIONS = (
    "the terminal value is discounted gamma^H, not gamma^(H+1)",
    "TD(lambda) runs over the imagined horizon: without an environment PWM marks every step as done",
    "returns are divided by this project's running std (exponential), not by PWM's cumulative one",
    "the task embedding is in the model's optimiser (several tasks)",
    "101 bins are trained by two-hot cross-entropy, not by squared error against the logits (several tasks)",
    "in the check only: critic minibatches are shuffled as here; the timed reference keeps its contiguous ones",
)


@dataclass(frozen=True)
class Size:
    """Dimensions at which both implementations are built."""

    latent_dim: int
    units: tuple[int, ...]
    encoder_units: tuple[int, ...]
    obs_dim: int
    action_dim: int
    tasks: int = 1
    task_dim: int = 0


SIZES = {
    "5m": Size(512, (512, 512), (256,), obs_dim=37, action_dim=8),
    "48m": Size(768, (1792, 1792), (1792, 1792, 1792), obs_dim=24, action_dim=6, tasks=30, task_dim=64),
}


def load_module(checkout: Path) -> types.ModuleType:
    """PWM's `pwm.algorithms.pwm` from `checkout`. Raises SystemExit where it is not there."""
    source = checkout / "src"
    if not (source / "pwm" / "algorithms" / "pwm.py").is_file():
        raise SystemExit(f"--pwm {checkout}: no src/pwm/algorithms/pwm.py there; give a checkout of imgeorgiev/PWM")
    _stub_missing()
    sys.path.insert(0, str(source))
    return importlib.import_module("pwm.algorithms.pwm")


def _stub_missing() -> None:
    """Stand-ins for packages that PWM imports at the top of its files, where they are not installed."""
    stubs: dict[str, dict[str, Any]] = {
        "gym": {"Env": object},
        "wandb": {},
        "omegaconf": {"DictConfig": dict},
        "hydra": {},
        "hydra.utils": {"instantiate": _instantiate},
        "tensordict": {"TensorDict": dict, "set_lazy_legacy": lambda mode: types.SimpleNamespace(set=lambda: None)},
        "tensordict.tensordict": {"TensorDict": dict},
        "torchrl": {},
        "torchrl.data": {},
        "torchrl.data.replay_buffers": {"ReplayBuffer": object, "LazyTensorStorage": object},
        "torchrl.data.replay_buffers.samplers": {"SliceSampler": lambda **options: None},
    }
    missing = {name for name in stubs if "." not in name and importlib.util.find_spec(name) is None}
    for name, attributes in stubs.items():
        if name.partition(".")[0] in missing:
            module = types.ModuleType(name)
            vars(module).update(attributes)
            sys.modules[name] = module


def _instantiate(config: Mapping[str, Any], **arguments: Any) -> Any:
    """An object from a mapping whose `_target_` names its class, nested mappings included."""
    folder, _, name = str(config["_target_"]).rpartition(".")
    options = {key: _resolve(value) for key, value in config.items() if key != "_target_"}
    return vars(importlib.import_module(folder))[name](**options, **arguments)


def _resolve(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return _instantiate(value) if "_target_" in value else {key: _resolve(item) for key, item in value.items()}


class _ReturnScale:
    """This project's running std behind the interface of PWM's, whose variance floor it takes off."""

    def __init__(self) -> None:
        self.running = RunningStd(1, 0.99)

    def update(self, returns: Tensor) -> None:
        self.running.update(returns.detach().unsqueeze(-1))

    @property
    def var(self) -> Tensor:
        return self.running.std.square().squeeze(0) - VARIANCE_FLOOR


def make_reference(module: types.ModuleType, size: Size, horizon: int, seed: int) -> Any:
    """PWM's agent at its published options, with `CORRECTIONS` applied to the instance's class.

    The reward head's last layer, which starts at zero, gets random weights: a zero reward would
    hide what the check is for.
    """

    class CorrectedPWM(module.PWM):  # type: ignore[misc, name-defined]
        def compute_actor_loss(self, obs: Tensor, task: Tensor | None) -> Tensor:
            calls = itertools.count(1)

            def terminal(critic: nn.Module, inputs: Any, values: Tensor) -> Tensor | None:
                return values / self.gamma if next(calls) == self.horizon else None

            handle = self.critic.register_forward_hook(terminal)
            try:
                loss: Tensor = super().compute_actor_loss(obs, task)
            finally:
                handle.remove()
            return loss

        def compute_target_values(self) -> None:
            self.next_values[-1] *= self.gamma  # takes `terminal` back
            self.done_mask[:-1] = 0.0
            super().compute_target_values()

        def compute_wm_loss(self, obs: Tensor, act: Tensor, rew: Tensor, task: Tensor | None) -> Any:
            if not self.wm.num_bins:
                return super().compute_wm_loss(obs, act, rew, task)
            bins = torch.linspace(*BINS[:2], BINS[2])
            logits = self.wm.reward

            def root_cross_entropy(*inputs: Any) -> Tensor:  # PWM subtracts the reward and squares
                losses = two_hot_cross_entropy(logits(*inputs), rew.squeeze(-1), bins)
                return rew + losses.sqrt().unsqueeze(-1)

            with mock.patch.object(self.wm, "reward", root_cross_entropy):
                return super().compute_wm_loss(obs, act, rew, task)

    torch.manual_seed(seed)
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        reference = CorrectedPWM(**_options(size, horizon, folder))
    reference.ret_rms = _ReturnScale()
    if size.tasks > 1:
        reference.wm_optimizer.add_param_group({"params": reference.wm._task_emb.parameters()})
    nn.init.normal_(reference.wm._reward[-1].weight, std=0.02)
    return reference


def _options(size: Size, horizon: int, folder: str) -> dict[str, Any]:
    """PWM's published values (scripts/cfg/alg/pwm.yaml and pwm_48M.yaml of its checkout)."""
    simnorm = {"act": {"_target_": "pwm.models.mlp.SimNorm", "simnorm_dim": GROUP}}
    normed = {"last_layer": "normedlinear", "last_layer_kwargs": simnorm}
    several: dict[str, Any] = {}
    if size.tasks > 1:
        several = {
            "num_bins": BINS[2], "vmin": BINS[0], "vmax": BINS[1], "multitask": True, "task_dim": size.task_dim,
            "tasks": [str(task) for task in range(size.tasks)], "action_dims": [size.action_dim] * size.tasks,
        }  # fmt: skip
    return {
        "env": None, "logdir": folder, "device": "cpu", "horizon": horizon, "max_epochs": 15_000,
        "latent_dim": size.latent_dim, "obs_dim": size.obs_dim, "act_dim": size.action_dim,
        "actor_config": {
            "_target_": "pwm.models.actor.ActorStochasticMLP", "units": [400, 200, 100],
            "activation_class": "nn.Mish", "init_gain": 1.0, "init_logstd": -1.0, "min_logstd": -1.427,
        },
        "critic_config": {
            "_target_": "pwm.models.critic.CriticMLP", "units": [400, 200], "activation_class": "nn.Mish",
        },
        "world_model_config": {
            "_target_": "pwm.models.world_model.WorldModel", "units": list(size.units),
            "encoder_units": list(size.encoder_units), "encoder": normed, "dynamics": normed,
            "reward": {"last_layer": "linear", "last_layer_kwargs": {}}, **several,
        },
        "actor_lr": 5e-4, "critic_lr": 5e-4, "model_lr": 3e-4, "betas": (0.7, 0.95), "gamma": 0.99, "lam": 0.95,
        "actor_grad_norm": 1.0, "critic_grad_norm": 100.0, "wm_grad_norm": 20.0, "critic_iterations": 8,
        "critic_batches": 4, "num_critics": 3, "rew_rms": False, "ret_rms": True, "detach": True,
    }  # fmt: skip


@contextlib.contextmanager
def shuffled_minibatches(module: types.ModuleType, seed: int) -> Iterator[None]:
    """Inside, PWM's critic reads the minibatches that `update_critic` draws from a generator of `seed`."""
    generator = torch.Generator().manual_seed(seed)

    class ShuffledDataset(module.CriticDataset):  # type: ignore[misc, name-defined]
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            if index == 0:
                self.order = torch.randperm(len(self.target_values), generator=generator).chunk(len(self))
            rows = self.order[index]
            return {"obs": self.obs[rows], "target_values": self.target_values[rows]}

    with mock.patch.object(module, "CriticDataset", ShuffledDataset):
        yield


Read = Callable[[Tensor], Tensor]


@torch.no_grad()
def copy_weights(reference: Any, agent: Agent, read: Read = lambda parameter: parameter) -> None:
    """Write `read(parameter)` of every parameter of PWM into the corresponding one of `agent`.

    PWM's SimNorm groups are 8 neighbours, ours are interleaved: latent coordinates are permuted.
    """
    model, size = agent.world_model, agent.world_model.config.latent_dim
    order = torch.arange(size).view(-1, GROUP).t().flatten()
    _copy_normed(model.encoder, reference.wm._encoder, read, outputs=order)
    _copy_normed(model.get_submodule("dynamics.network"), reference.wm._dynamics, read, inputs=order, outputs=order)
    _copy_normed(model.reward_head.network, reference.wm._reward, read, inputs=order)
    if reference.wm.multitask:
        model.tasks.embeddings.copy_(read(reference.wm._task_emb.weight))
    pairs = zip(agent.actor.get_submodule("mean").children(), reference.actor.mu_net.children(), strict=False)
    for index, (ours, theirs) in enumerate(pairs):
        for mine, parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
            value = read(parameter)
            mine.copy_(_permute(value, order) if index == 0 and value.dim() == 2 else value)
    agent.actor.get_parameter("logstd").copy_(read(reference.actor.logstd))
    network, params = agent.critic.network, [read(parameter) for parameter in reference.critic.params]
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        value = params[4 * layer].transpose(1, 2)
        weight.copy_(value[:, order] if layer == 0 else value)
        bias.copy_(params[4 * layer + 1].unsqueeze(1))
    for layer, (scale, shift) in enumerate(zip(network.norm_weights, network.norm_biases, strict=True)):
        scale.copy_(params[4 * layer + 2].unsqueeze(1))
        shift.copy_(params[4 * layer + 3].unsqueeze(1))


def _permute(weight: Tensor, order: Tensor) -> Tensor:
    """Input columns of the latent in our order; those behind it stay."""
    return torch.cat([weight[:, : len(order)][:, order], weight[:, len(order) :]], dim=1)


def _copy_normed(
    ours: nn.Module, theirs: nn.Module, read: Read, *, inputs: Tensor | None = None, outputs: Tensor | None = None
) -> None:
    layers = list(zip(ours.children(), theirs.children(), strict=True))
    for index, (mine, layer) in enumerate(layers):
        own = list(layer.parameters(recurse=False)) + [p for child in layer.children() for p in child.parameters()]
        for target, parameter in zip(mine.parameters(), own, strict=True):
            value = read(parameter)
            if index == 0 and inputs is not None and value.dim() == 2:
                value = _permute(value, inputs)
            if index == len(layers) - 1 and outputs is not None:
                value = value[outputs]
            target.copy_(value)
