"""What an update costs: network evaluations, floating-point operations, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.json_documents import Document
from flowmbpo.models.agent import Agent, build_agent
from flowmbpo.spec import EnvSpec
from flowmbpo.training.imagination import trusted_steps
from flowmbpo.training.model_loss import model_loss
from flowmbpo.training.updates import (
    CriticTargets,
    actor_loss,
    actor_objective,
    critic_targets,
    frozen,
    replayed_targets,
)


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, `flops` adds up the FLOPs of matrix products by torch's own formulas.

    torch's FlopCounterMode also attributes them to modules, by hooks that fail under `torch.autograd.grad`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here: torch need not import its compiler (2 s) and pass through it at every step."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        out = func(*args, **options)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **options, out_val=out))
        return out


PROBE_ROWS = (2, 4)  # every cost is a constant plus a slope times the rows, so two numbers of rows tell any other's
FLOAT_BYTES = 4
ADAM_COPIES = 4  # weight, gradient, two moments


class UpdateCost(NamedTuple):
    """Matrix-product FLOPs of one update, and the bytes autograd keeps for its backward pass."""

    flops: int
    activation_bytes: int


@dataclass(frozen=True)
class ComputeCost(Document):
    """Costs of one experiment's updates of "model", "actor" and "critic" (one minibatch of it).

    `nfe` is the dynamics' network evaluations per macro step; `actor_nfe` the actor's per action. `compute_index`
    counts network calls of one actor update, forward and backward: the world model's (dynamics, reward and termination
    heads) plus the actor's. FLOPs are those of matrix products (2 per multiply-add), as torch's FLOP counter sees them.
    """

    nfe: int
    actor_nfe: int
    compute_index: float
    updates: dict[str, UpdateCost]
    act_flops: int
    updates_per_epoch: dict[str, float]
    memory_bytes: dict[str, int]

    @property
    def flops_per_epoch(self) -> int:
        """All updates of one epoch and the actions taken in its environments."""
        flops = sum(self.updates[name].flops * count for name, count in self.updates_per_epoch.items())
        return round(flops) + self.act_flops

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        flops = {f"{name}_update": update.flops for name, update in self.updates.items()}
        return {
            "nfe": self.nfe,
            "actor_nfe": self.actor_nfe,
            "compute_index": self.compute_index,
            "flops": flops | {"epoch": self.flops_per_epoch},
            "updates_per_epoch": self.updates_per_epoch,
            "memory_mb": {name: round(size / 1e6, 3) for name, size in self.memory_bytes.items()},
        }


def estimate_cost(config: ExperimentConfig, spec: EnvSpec) -> ComputeCost:
    """Probe a throw-away agent with few rows and extrapolate. Leaves torch's global generator untouched.

    A critic update here is one minibatch step. What the config does not train has no updates, and an epoch without
    an environment acts nowhere. An adaptive actor horizon counts as the longest that it may be.
    """
    with torch.random.fork_rng(devices=[]):
        agent = build_agent(config, spec)
    training = config.training
    probes = [_probes(agent, training, rows) for rows in PROBE_ROWS]

    def cost(name: str, rows: float) -> UpdateCost:
        """Of `rows` rows: on the line through those of `PROBE_ROWS`."""
        measured = zip(*(_measure(each[name], agent) for each in probes), strict=True)
        share = (rows - PROBE_ROWS[0]) / (PROBE_ROWS[1] - PROBE_ROWS[0])
        return UpdateCost(*(round(low + share * (high - low)) for low, high in measured))

    starts = training.actor_batch_size or config.task.num_envs
    imagined = starts * training.noise_replicas * training.longest_actor_horizon
    replayed = training.wm_batch_size * training.horizon if training.critic_replay > 0.0 else 0
    minibatches = math.ceil(imagined / math.ceil(imagined / training.critic_batches))  # as `chunk` makes them
    updates = {
        "model": cost("model", training.wm_batch_size),
        "actor": cost("actor", starts),  # the probe replicates its starts itself
        "critic": cost("critic", (imagined + replayed) / minibatches),
    }
    if training.adaptive_horizon is not None:
        flops, size = updates["actor"]
        updates["actor"] = UpdateCost(flops + cost("trust", training.wm_batch_size).flops, size)
    if training.critic_replay > 0.0:
        flops, size = updates["actor"]
        updates["actor"] = UpdateCost(flops + cost("replay", training.wm_batch_size).flops, size)
    model, collects = agent.world_model, training.mode == "online"
    model_calls = model.dynamics.nfe + 1 + (model.termination_head is not None)
    rounds = training.rounds_per_epoch(config.task.num_envs)
    model_rounds = rounds if training.learn != "policy" else 0
    policy_rounds = rounds if training.learn != "model" else 0
    transition = FLOAT_BYTES * (spec.obs_dim + spec.action_dim + 2) + 2  # reward and index, and two flags
    return ComputeCost(
        nfe=model.dynamics.nfe,
        actor_nfe=agent.actor.nfe,
        compute_index=2.0 * training.longest_actor_horizon * (model_calls + agent.actor.nfe),
        updates=updates,
        act_flops=training.horizon * cost("act", config.task.num_envs).flops if collects else 0,
        updates_per_epoch={
            "model": model_rounds * training.wm_iterations,
            "actor": policy_rounds,
            "critic": policy_rounds * training.critic_iterations * minibatches,
        },
        memory_bytes={
            "weights_and_optimisers": sum(parameter_counts(agent).values()) * FLOAT_BYTES * ADAM_COPIES,
            "replay_when_full": training.wm_buffer_size * transition if collects else 0,
            "largest_update": max(update.activation_bytes for update in updates.values()),
        },
    )


def model_pass(agent: Agent, windows: Batch, config: TrainingConfig, generator: torch.Generator) -> None:
    """A model update as training makes it, up to the optimiser's step."""
    reward = agent.reward_normalizer(windows.reward)
    loss = model_loss(agent.world_model, windows, reward, config, generator).total
    _differentiate(loss, agent.world_model)


def actor_pass(
    agent: Agent, obs: Float[Tensor, "B O"], task: Int[Tensor, " B"], config: TrainingConfig, generator: torch.Generator
) -> CriticTargets:
    """An actor update up to the optimiser's step, from the encoding of its start states to the critic's targets."""
    with torch.no_grad():  # as training draws start states
        context = agent.world_model.context(task)
        start = agent.world_model.encode(obs, context)
    with frozen(agent.world_model, agent.critic):
        objective = actor_objective(agent, start, context, config, generator)
        _differentiate(actor_loss(agent, objective, start, context, config, generator), agent.actor)
    return critic_targets(agent, objective, config)


def critic_pass(agent: Agent, *minibatches: CriticTargets) -> None:
    """A critic update, imagined and replayed states apart, up to the optimiser's step."""
    _differentiate(torch.stack([rows.loss(agent.critic) for rows in minibatches]).sum(), agent.critic)


def _differentiate(loss: Tensor, module: nn.Module) -> None:
    torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], allow_unused=True)


def _probes(agent: Agent, config: TrainingConfig, rows: int) -> dict[str, Callable[[], object]]:
    """Everything that has a cost, on random windows of so many rows."""
    spec, generator = agent.spec, torch.Generator().manual_seed(0)
    task = torch.zeros(rows, dtype=torch.long)

    def batch(horizon: int) -> Batch:
        return Batch(
            obs=torch.randn(horizon + 1, rows, spec.obs_dim, generator=generator),
            action=torch.rand(horizon, rows, spec.action_dim, generator=generator) * 2.0 - 1.0,
            reward=torch.randn(horizon, rows, generator=generator),
            terminated=torch.zeros(horizon, rows, dtype=torch.bool),
            valid=torch.ones(horizon, rows, dtype=torch.bool),
            task=task,
        )

    windows, longest = batch(config.horizon), batch(config.longest_actor_horizon)
    with torch.no_grad():
        context = agent.world_model.context(task)
        z = agent.world_model.latent(agent.world_model.encode(windows.obs[0], context))
    return {
        "model": lambda: model_pass(agent, windows, config, generator),
        "actor": lambda: actor_pass(agent, windows.obs[0], task, config, generator),
        "critic": lambda: critic_pass(agent, CriticTargets(z, context, z.new_zeros(rows))),
        "replay": lambda: replayed_targets(agent, windows, config),
        "act": lambda: agent.act(windows.obs[0], task, generator),
        "trust": lambda: trusted_steps(agent.world_model, longest, 1.0, generator),
    }


def _measure(probe: Callable[[], object], agent: Agent) -> UpdateCost:
    own = {parameter.data_ptr() for parameter in agent.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = 0 if tensor.data_ptr() in own else tensor.numel() * tensor.element_size()
        return tensor

    with FlopCount() as count, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        probe()
    return UpdateCost(count.flops, sum(kept.values()))


def parameter_counts(agent: Agent) -> dict[str, int]:
    """Trainable parameters of every part of the agent; an absent part counts 0."""
    model = agent.world_model
    parts: dict[str, nn.Module | None] = {
        "encoder": model.encoder,
        "dynamics": model.dynamics,
        "reward": model.reward_head,
        "termination": model.termination_head,
        "decoder": model.decoder,
        "task_embedding": model.tasks,
        "actor": agent.actor,
        "critic": agent.critic,
    }
    return {name: 0 if part is None else count_parameters(part) for name, part in parts.items()}


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def solved_widths(agent: Agent) -> dict[str, Any]:
    """Hidden widths of the parts whose widths parity may solve."""
    dynamics, actor = agent.world_model.dynamics.hidden_units, agent.actor.hidden_units
    return {"dynamics": list(dynamics), "actor": list(actor)}
