"""Synthetic files in the published layouts, and what they mean by plain tensor code.

Nothing here uses the package: tensors are drawn under the names that a layout has, and evaluated from
those names.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# enc_dim, mlp_dim, latent, encoder layers, Q functions
SIZES = {
    "1M": (256, 384, 128, 2, 2),
    "5M": (256, 512, 512, 2, 5),
    "19M": (1024, 1024, 768, 3, 5),
    "48M": (1792, 1792, 768, 4, 5),
    "317M": (4096, 4096, 1376, 5, 8),
}
NEWT_SIZES = {
    "S": (128, 256, 384, 2, 3),
    "B": (256, 512, 512, 2, 5),
    "L": (1024, 1024, 512, 3, 5),
    "XL": (2048, 2048, 704, 4, 7),
}
SETS = {"mt30": (30, 24, 6), "mt80": (80, 39, 6)}
BINS = 101
GROUP = 8
# Action widths of the 30 DMControl tasks, then of Meta-World's 50.
MT30_ACTIONS = (6, 6, 6, 6, 2, 2, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 5, 4, 4, 6, 6, 6, 6, 6, 6, 4, 3, 3, 2, 1)
ACTIONS = {"mt30": MT30_ACTIONS, "mt80": MT30_ACTIONS + (4,) * 50}


@dataclass(frozen=True)
class Widths:
    """All that the shapes of a file depend on. `tasks` 0: a single-task file."""

    enc: int
    mlp: int
    latent: int
    encoder_layers: int
    q: int
    tasks: int
    task_dim: int
    obs: int
    action: int


def widths(size: str, task_set: str) -> Widths:
    """TD-MPC2's for a size and a set."""
    tasks, obs, action = SETS[task_set]
    enc, mlp, latent, layers, q = SIZES[size]
    if size == "19M" and task_set == "mt30":
        latent = 512
    task_dim = 64 if task_set == "mt30" and size in ("5M", "19M", "48M") else 96
    return Widths(enc, mlp, latent, layers, q, tasks, task_dim, obs, action)


def tiny(task_set: str) -> Widths:
    """Of no published size, and quick: for files that are refused."""
    tasks, obs, action = SETS[task_set]
    return Widths(16, 20, 16, 2, 2, tasks, 4, obs, action)


def single(size: str, obs: int, action: int) -> Widths:
    """Of a single-task file."""
    enc, mlp, latent, layers, q = SIZES[size]
    return Widths(enc, mlp, latent, layers, q, 0, 0, obs, action)


def newt(size: str) -> Widths:
    """Of Newt's 200 tasks."""
    enc, mlp, latent, layers, q = NEWT_SIZES[size]
    return Widths(enc, mlp, latent, layers, q, 200, 512, 128, 16)


def shapes(w: Widths) -> dict[str, list[int]]:
    """Widths along every network."""
    z, e, a = w.latent, w.task_dim, w.action
    return {
        "encoder": [w.obs + e, *[w.enc] * max(w.encoder_layers - 1, 1), z],
        "dynamics": [z + e + a, w.mlp, w.mlp, z],
        "reward": [z + e + a, w.mlp, w.mlp, BINS],
        "termination": [z + e, w.mlp, w.mlp, 1],
        "pi": [z + e, w.mlp, w.mlp, 2 * a],
        "q": [z + e + a, w.mlp, w.mlp, BINS],
    }


LN = ("weight", "bias", "ln.weight", "ln.bias")


def layer_names(layout: str, network: str, layers: int, member: int = 0) -> list[tuple[str, ...]]:
    """(weight, bias[, LayerNorm weight, bias]) names of every layer of a network in a file of `layout`."""
    normed = [True] * (layers - 1) + [network in ("encoder", "dynamics")]
    kinds = [LN if has else LN[:2] for has in normed]
    if network == "q":
        if layout in ("tdmpc2", "tdmpc2-oldest"):
            return [tuple(f"_Qs.params.{4 * i + k}" for k in range(len(kind))) for i, kind in enumerate(kinds)]
        prefix = f"_Qs.online._Qs.{member}" if layout == "newt" else "_Qs.params"
        return [tuple(f"{prefix}.{i}.{name}" for name in kind) for i, kind in enumerate(kinds)]
    if layout == "tdmpc2-oldest":
        places = {
            "encoder": (
                "_encoder.state",
                [str(3 * i + 1) for i in range(layers)],
                [str(3 * i + 2) for i in range(layers)],
            ),
            "dynamics": ("_dynamics", ["0.0", "0.3", "0.6"], ["0.1", "0.4", "1"]),
            "reward": ("_reward", ["0", "3", "6"], ["1", "4"]),
            "pi": ("_pi", ["0", "3", "6"], ["1", "4"]),
        }
        prefix, linear, norm = places[network]
        names = []
        for i, place in enumerate(linear):
            both = [f"{prefix}.{place}.weight", f"{prefix}.{place}.bias"]
            if i < len(norm):
                both += [f"{prefix}.{norm[i]}.weight", f"{prefix}.{norm[i]}.bias"]
            names.append(tuple(both))
        return names
    prefix = "_encoder.state" if network == "encoder" and layout != "pwm" else f"_{network}"
    return [tuple(f"{prefix}.{i}.{name}" for name in kind) for i, kind in enumerate(kinds)]


def draw_network(state: dict, names: list, dims: list[int], g: torch.Generator, lead: tuple = ()) -> None:
    """Random tensors of a network: outputs of order 1, LayerNorms away from the identity."""
    for layer, (fan_in, fan_out) in zip(names, pairwise(dims), strict=True):
        state[layer[0]] = torch.randn(*lead, fan_out, fan_in, generator=g) / fan_in**0.5
        state[layer[1]] = 0.1 * torch.randn(*lead, fan_out, generator=g)
        if len(layer) == 4:
            state[layer[2]] = 1.0 + 0.1 * torch.randn(*lead, fan_out, generator=g)
            state[layer[3]] = 0.1 * torch.randn(*lead, fan_out, generator=g)


def model_state(layout: str, w: Widths, seed: int, *, episodic: bool = False) -> dict[str, Tensor]:
    """World model, prior and Q functions of a TD-MPC2 or Newt file."""
    g = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = OrderedDict()
    dims = shapes(w)
    if w.tasks:
        scale = 16.0 if layout == "newt" else 1.5  # Newt's text embeddings have norms around 16 and no cap
        state["_task_emb.weight"] = scale * torch.randn(w.tasks, w.task_dim, generator=g) / w.task_dim**0.5
        state["_task_emb.weight"][::3] *= 0.4
    for network in ("encoder", "dynamics", "reward", "pi", *(["termination"] if episodic else [])):
        draw_network(state, layer_names(layout, network, len(dims[network]) - 1), dims[network], g)
    if layout == "newt":
        for member in range(w.q):
            draw_network(state, layer_names(layout, "q", 3, member), dims["q"], g)
    else:
        draw_network(state, layer_names(layout, "q", 3), dims["q"], g, (w.q,))
    return state


def action_masks(counts: tuple[int, ...], width: int) -> Tensor:
    """Ones over each task's own actions."""
    return torch.stack([(torch.arange(width) < n).float() for n in counts])


def newt_actions() -> tuple[int, ...]:
    """Action widths of Newt's 200 tasks; those of simulators that do not matter here are 3."""
    suite = (*MT30_ACTIONS[:19], 12, 12)
    own = (*MT30_ACTIONS[19:], 2, 5, 5, 5, 7)
    return suite + own + (4,) * 49 + (3,) * (200 - 21 - 16 - 49)


def tdmpc2_file(w: Widths, seed: int = 0, *, targets: bool = True) -> dict:
    """The layout that PWM uses."""
    state = model_state("tdmpc2", w, seed)
    if targets:
        state |= {n.replace("_Qs.", "_target_Qs."): t + 1.0 for n, t in state.items() if n.startswith("_Qs.")}
    return {"model": state}


def current_file(w: Widths, task_set: str | None, seed: int = 0, *, episodic: bool = False, metas: bool = True) -> dict:
    """TD-MPC2's current layout: copies, bookkeeping, masks and bounds beside the weights."""
    state = model_state("tdmpc2-current", w, seed, episodic=episodic)
    q = {n: t for n, t in state.items() if n.startswith("_Qs.")}
    for copy in ("_detach_Qs_params", "_target_Qs_params"):
        state |= {n.replace("_Qs.params", copy): t + 1.0 for n, t in q.items()}
    if metas:
        for module in ("_Qs", "_detach_Qs", "_target_Qs"):
            state |= {n.replace("_Qs.params", f"{module}.module"): t.to("meta") for n, t in q.items()}
    else:
        for prefix in ("_Qs.params", "_detach_Qs_params", "_target_Qs_params"):
            state |= {f"{prefix}.__batch_size": torch.Size([w.q]), f"{prefix}.__device": torch.device("cpu")}
    if task_set is not None:
        state["_action_masks"] = action_masks(ACTIONS[task_set], w.action)
    state |= {"log_std_min": torch.tensor(-10), "log_std_dif": torch.tensor(12)}
    return {"model": state}


def oldest_file(w: Widths, seed: int = 0) -> dict:
    """The oldest layout, single-task."""
    state = model_state("tdmpc2-oldest", w, seed)
    state |= {n.replace("_Qs.", "_target_Qs."): t + 1.0 for n, t in state.items() if n.startswith("_Qs.")}
    return {"model": state, "metadata": {"date": "2023-06-03", "seed": 1}}


def newt_file(w: Widths, seed: int = 0, *, prefix: str = "") -> dict:
    """Newt's, whole or as its distributed training saves it (`prefix` 'module.')."""
    state = model_state("newt", w, seed)
    state |= {n.replace("online", "target"): t + 1.0 for n, t in state.items() if ".online." in n}
    state["_action_masks"] = action_masks(newt_actions(), w.action)
    state |= {"log_std_min": torch.tensor(-10.0), "log_std_dif": torch.tensor(12.0)}
    state = {prefix + n: t for n, t in state.items()}
    return {"model": state, "optim": {"state": {}}, "pi_optim": {"state": {}}, "scale": {"value": torch.ones(1)}}


# What the tensors mean -------------------------------------------------------------------------


def run(state: dict, names: list, x: Tensor, *, simplex: bool = False, member: int | None = None) -> Tensor:
    """Linear, LayerNorm, Mish per layer; a plain last layer, or one that ends in SimNorm."""
    for i, layer in enumerate(names):
        tensors = [state[n] if member is None else state[n][member] for n in layer]
        x = F.linear(x, tensors[0].double(), tensors[1].double())
        if len(tensors) == 4:
            x = F.layer_norm(x, x.shape[-1:], tensors[2].double(), tensors[3].double())
        if i < len(names) - 1:
            x = F.mish(x)
    return x.unflatten(-1, (-1, GROUP)).softmax(-1).flatten(-2) if simplex else x


def embed(state: dict, task: Tensor, *, capped: bool) -> Tensor:
    """Rows of the table, as torch's own embedding looks them up."""
    table = nn.Embedding(*state["_task_emb.weight"].shape, max_norm=1.0 if capped else None)
    table.weight.data = state["_task_emb.weight"].double().clone()
    return table(task).detach()


def decode(logits: Tensor) -> Tensor:
    """Two-hot logits to a number: symexp of the expectation over 101 bins in [-10, 10]."""
    x = (logits.softmax(-1) * torch.linspace(-10, 10, BINS, dtype=torch.float64)).sum(-1)
    return x.sign() * (x.abs().exp() - 1.0)


@dataclass(frozen=True)
class Expected:
    """What a file's networks give."""

    z: Tensor
    z_next: Tensor
    reward: Tensor
    q: Tensor  # [N, B]
    pi: Tensor  # [B, 2A]


def evaluate(state: dict, layout: str, w: Widths, obs: Tensor, task: Tensor, action: Tensor) -> Expected:
    """encode, next, reward, Q and pi in double precision."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    layers = {network: len(dims) - 1 for network, dims in shapes(w).items()}
    e = embed(state, task, capped=layout != "newt") if w.tasks else obs.new_zeros(len(obs), 0, dtype=torch.float64)
    z = run(state, layer_names(layout, "encoder", layers["encoder"]), torch.cat([obs.double(), e], -1), simplex=True)
    x = torch.cat([z, e, action.double()], -1)
    q = [
        run(state, layer_names(layout, "q", 3, m if layout == "newt" else 0), x, member=None if layout == "newt" else m)
        for m in range(w.q)
    ]
    return Expected(
        z=z,
        z_next=run(state, layer_names(layout, "dynamics", 3), x, simplex=True),
        reward=decode(run(state, layer_names(layout, "reward", 3), x)),
        q=decode(torch.stack(q)),
        pi=run(state, layer_names(layout, "pi", 3), torch.cat([z, e], -1)),
    )
