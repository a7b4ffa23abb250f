"""A published model's weights in one form, whatever file they came from.

Axes are theirs: weights [out, in] (an ensemble's [N, out, in]), latent groups contiguous, inputs
ordered [obs, task] and [z, task, action].
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowmbpo.errors import CheckpointError

GROUP = 8  # SimNorm's, in every published model; a file does not store it
BIN_RANGE = (-10.0, 10.0)  # of the two-hot heads, in every published model; not stored either
LOG_STD_BOUNDS = (-10.0, 2.0)  # TD-MPC2's, where a file does not store them

# (first encoder width, width of the other networks, encoder layers): latent widths differ by task set.
_SIZES = {
    (256, 384, 2): "1M",
    (256, 512, 2): "5M",
    (1024, 1024, 3): "19M",
    (1792, 1792, 4): "48M",
    (4096, 4096, 5): "317M",
    (128, 256, 2): "S",
    (2048, 2048, 4): "XL",
}
_NEWT_SIZES = {"5M": "B", "19M": "L"}


@dataclass(frozen=True)
class Layer:
    """A linear layer, and weight and bias of the LayerNorm that goes with it where there is one."""

    weight: Tensor
    bias: Tensor
    norm: tuple[Tensor, ...] = ()

    @property
    def inputs(self) -> int:
        """Input width."""
        return self.weight.shape[-1]

    @property
    def outputs(self) -> int:
        """Output width."""
        return self.weight.shape[-2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, the weight first."""
        return (self.weight, self.bias, *self.norm)


Network = tuple[Layer, ...]


@dataclass(frozen=True)
class RunningStatistics:
    """What PWM subtracts and divides by, flat, in double precision, from `count` samples (it starts from 1e-4)."""

    offset: Tensor
    scale: Tensor
    count: float

    @property
    def seen(self) -> bool:
        """Whether any data went into it."""
        return self.count >= 1.0


@dataclass(frozen=True)
class ForeignModel:
    """Weights of one file. `embeddings` [tasks, E]; `capped` where lookups scale them down to norm 1.

    Policy prior `pi` and `q` functions are TD-MPC2's; actor (activation before LayerNorm), critic (always there) and
    running statistics are PWM's own.
    """

    format: str
    encoder: Network
    dynamics: Network
    reward: Network
    embeddings: Tensor | None = None
    capped: bool = True
    termination: Network | None = None
    pi: Network | None = None
    q: Network | None = None
    action_masks: Tensor | None = None
    log_std_bounds: tuple[float, float] = LOG_STD_BOUNDS
    actor: Network | None = None
    logstd: Tensor | None = None
    critic: Network | None = None
    obs_statistics: RunningStatistics | None = None
    reward_statistics: RunningStatistics | None = None
    return_statistics: RunningStatistics | None = None
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def latent_dim(self) -> int:
        """Width of z."""
        return self.encoder[-1].outputs

    @property
    def task_dim(self) -> int:
        """Width of the task embedding, 0 without one."""
        return 0 if self.embeddings is None else self.embeddings.shape[1]

    @property
    def tasks(self) -> int:
        """Tasks that it knows."""
        return 1 if self.embeddings is None else self.embeddings.shape[0]

    @property
    def obs_dim(self) -> int:
        """Width of the observation."""
        return self.encoder[0].inputs - self.task_dim

    @property
    def action_dim(self) -> int:
        """Width of the action."""
        return self.dynamics[0].inputs - self.latent_dim - self.task_dim

    @property
    def bins(self) -> int:
        """Outputs of the reward head."""
        return self.reward[-1].outputs

    @property
    def parts(self) -> dict[str, Network | Tensor]:
        """Networks and tables that it holds, by name."""
        parts = {
            "encoder": self.encoder,
            "dynamics": self.dynamics,
            "reward": self.reward,
            "task_embedding": self.embeddings,
            "termination": self.termination,
            "policy_prior": self.pi,
            "q_functions": self.q,
            "actor": self.actor,
            "critic": self.critic,
        }
        return {name: part for name, part in parts.items() if part is not None}


def hidden_units(network: Network) -> list[int]:
    """Widths of all layers but the last."""
    return [layer.outputs for layer in network[:-1]]


def size_class(model: ForeignModel) -> str | None:
    """TD-MPC2's size (`48M`), Newt's (`B`), or None for a model of other widths."""
    widths = (hidden_units(model.encoder)[0], hidden_units(model.dynamics)[0], len(model.encoder))
    name = _SIZES.get(widths)
    return _NEWT_SIZES.get(name, name) if name is not None and model.format == "newt" else name


def part_parameters(model: ForeignModel) -> dict[str, int]:
    """Learnable scalars by part; `total` as TD-MPC2 counts them (no copies of the Q functions)."""
    counts = {
        name: sum(t.numel() for t in ([part] if isinstance(part, Tensor) else [t for lay in part for t in lay.tensors]))
        for name, part in model.parts.items()
    }
    if model.logstd is not None:
        counts["actor"] += model.logstd.numel()
    return counts | {"total": sum(counts.values())}


def check_model(model: ForeignModel) -> None:
    """Make sure that the parts of a model fit each other. Raises CheckpointError."""
    if model.embeddings is not None and (model.embeddings.ndim != 2 or 0 in model.embeddings.shape):
        raise CheckpointError(f"_task_emb.weight: is {tuple(model.embeddings.shape)}, a matrix is needed")
    if min(len(model.encoder), len(model.dynamics), len(model.reward)) < 2:
        raise CheckpointError("encoder, dynamics and reward need a hidden layer each: another architecture")
    z, e, a = model.latent_dim, model.task_dim, model.action_dim
    if model.obs_dim < 1 or a < 1 or z % GROUP:
        raise CheckpointError(
            f"the shapes leave {model.obs_dim} observations, {a} actions and a latent of {z}, which must be a "
            f"multiple of {GROUP}: another architecture"
        )
    widths = [("_dynamics's last layer", model.dynamics[-1].outputs, z)]
    for whose, network, inputs, outputs in (
        ("_reward's", model.reward, z + e + a, model.bins),
        ("_termination's", model.termination, z + e, None),
        ("_pi's", model.pi, z + e, 2 * a),
        ("_Qs'", model.q, z + e + a, model.bins),
        ("the actor's", model.actor, z, a),
        ("the critic's", model.critic, z, 1),
    ):
        if network is not None:
            widths.append((f"{whose} input", network[0].inputs, inputs))
            widths.append((f"{whose} output", network[-1].outputs, network[-1].outputs if outputs is None else outputs))
    for what, width, needed in widths:
        if width != needed:
            raise CheckpointError(
                f"{what} is {width} wide where the other shapes ask for {needed}: another architecture"
            )
    if model.bins == 2 or (model.bins == 1 and model.critic is None):
        raise CheckpointError(
            f"_reward: has {model.bins} outputs, and a file does not say how they are decoded; 101 bins (and PWM's "
            "single output) are known"
        )
