"""A published model's weights in one form, whatever file they came from.

Axes are theirs: weights [out, in] (an ensemble's [N, out, in]), latent groups contiguous, inputs
ordered [obs, task] and [z, task, action].
"""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass
class ForeignModel:
    """Weights of one file: its networks by part, TD-MPC2's (see `tdmpc2.PARTS`) or PWM's; and what their shapes say.

    `embeddings` [tasks, E]; `capped` where lookups scale them down to norm 1. PWM's own are the actor (activation
    before LayerNorm) with its `logstd`, the critic, which is always there, and running `statistics` by its names.
    """

    format: str
    networks: dict[str, Network]
    embeddings: Tensor | None
    capped: bool = True
    action_masks: Tensor | None = None
    log_std_bounds: tuple[float, float] = LOG_STD_BOUNDS
    logstd: Tensor | None = None
    statistics: dict[str, RunningStatistics] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises CheckpointError where the embeddings are no table."""
        table = self.embeddings
        if table is not None and (table.ndim != 2 or 0 in table.shape):
            raise CheckpointError(f"_task_emb.weight: is {tuple(table.shape)}, a matrix is needed")
        self.tasks, self.task_dim = (1, 0) if table is None else table.shape
        self.latent_dim = self.networks["encoder"][-1].outputs
        self.obs_dim = self.networks["encoder"][0].inputs - self.task_dim
        self.action_dim = self.networks["dynamics"][0].inputs - self.latent_dim - self.task_dim
        self.bins = self.networks["reward"][-1].outputs

    @property
    def parts(self) -> dict[str, list[Tensor]]:
        """Learnable tensors of the networks and the table that it holds."""
        parts = {}
        for name, network in self.networks.items():
            parts[name] = [tensor for layer in network for tensor in layer.tensors]
            if name == "reward" and self.embeddings is not None:
                parts["task_embedding"] = [self.embeddings]
        if self.logstd is not None:
            parts["actor"].append(self.logstd)
        return parts


def hidden_units(network: Network) -> list[int]:
    """Widths of all layers but the last."""
    return [layer.outputs for layer in network[:-1]]


def size_class(model: ForeignModel) -> str | None:
    """TD-MPC2's size (`48M`), Newt's (`B`), or None for a model of other widths."""
    encoder, dynamics = model.networks["encoder"], model.networks["dynamics"]
    widths = (hidden_units(encoder)[0], hidden_units(dynamics)[0], len(encoder))
    name = _SIZES.get(widths)
    return _NEWT_SIZES.get(name, name) if name is not None and model.format == "newt" else name


def part_parameters(model: ForeignModel) -> dict[str, int]:
    """Learnable scalars by part; `total` as TD-MPC2 counts them (no copies of the Q functions)."""
    counts = {name: sum(tensor.numel() for tensor in tensors) for name, tensors in model.parts.items()}
    return counts | {"total": sum(counts.values())}


def check_model(model: ForeignModel) -> None:
    """Make sure that the parts of a model fit each other. Raises CheckpointError."""
    networks = model.networks
    if min(len(networks[name]) for name in ("encoder", "dynamics", "reward")) < 2:
        raise CheckpointError("encoder, dynamics and reward need a hidden layer each: another architecture")
    z, e, a = model.latent_dim, model.task_dim, model.action_dim
    if model.obs_dim < 1 or a < 1 or z % GROUP:
        raise CheckpointError(
            f"the shapes leave {model.obs_dim} observations, {a} actions and a latent of {z}, which must be a "
            f"multiple of {GROUP}: another architecture"
        )
    widths = [("_dynamics's last layer", networks["dynamics"][-1].outputs, z)]
    for part, whose, inputs, outputs in (
        ("reward", "_reward's", z + e + a, model.bins),
        ("termination", "_termination's", z + e, None),
        ("policy_prior", "_pi's", z + e, 2 * a),
        ("q_functions", "_Qs'", z + e + a, model.bins),
        ("actor", "the actor's", z, a),
        ("critic", "the critic's", z, 1),
    ):
        if part in networks:
            widths.append((f"{whose} input", networks[part][0].inputs, inputs))
            if outputs is not None:
                widths.append((f"{whose} output", networks[part][-1].outputs, outputs))
    for what, width, needed in widths:
        if width != needed:
            raise CheckpointError(f"{what} is {width} wide where other shapes ask for {needed}: another architecture")
    if model.bins == 2 or (model.bins == 1 and "critic" not in networks):
        raise CheckpointError(
            f"_reward: has {model.bins} outputs, and a file does not say how they are decoded; 101 bins (and PWM's "
            "single output) are known"
        )
