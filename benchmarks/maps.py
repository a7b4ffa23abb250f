"""Fit one-step dynamics to the one-dimensional maps and look at their gradients.

    python benchmarks/maps.py --seeds 0 1 2 3 4 [--plot maps.png]

Every model learns x' = f(x, a) by one-step teacher forcing from x ~ U(-1, 1), a ~ U(-1, 1), state =
observation, equal parameters, batches, steps and learning rates. A flow is fitted once per seed by flow
matching from the state and then integrated in K Euler steps, or in 64 of RK4 (`exact`). RMSE and
gradients are on a grid of the same square. The wrong-sign share counts the grid points whose true slope
d x'/d x exceeds 0.2 in size where the model's slope has the other sign. Markdown on stdout: means over
seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.config.dynamics import DynamicsDims, FlowDynamicsConfig, ResidualDynamicsConfig
from flowmbpo.envs.toy.maps import fold_map, inelastic_map, smooth_map
from flowmbpo.models.build import build_dynamics
from flowmbpo.models.dynamics.base import Dynamics, Transition, reference_parameters
from flowmbpo.nets.mlp import normed_mlp
from flowmbpo.nets.widths import mlp_parameters, solve_widths

Map = Callable[[Tensor, Tensor], Tensor]

MAPS: Mapping[str, Map] = {"smooth": smooth_map, "inelastic": inelastic_map, "fold": fold_map}
SOLVERS = {"flow K=1": ("euler", 1), "flow K=4": ("euler", 4), "flow K=16": ("euler", 16), "flow exact": ("rk4", 64)}
MODELS = ("mlp", "residual", *SOLVERS)
REACH = 1.0  # states are drawn from [-REACH, REACH], as episodes of these systems start
STEEP = 0.2  # a true slope below this has no sign to speak of
UNITS = (64, 64)
DIMS = DynamicsDims(latent_dim=1, simnorm_dim=8, task_dim=0, action_dim=1)


@dataclass(frozen=True)
class Fit:
    """How far a model is from its map: RMSE of x', RMSE of d x'/d x, share of slopes of the wrong sign."""

    rmse: float
    slope_rmse: float
    wrong_sign: float


def main() -> None:
    """Fit every model to every map and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=4000, help="updates of each model [%(default)s]")
    parser.add_argument("--plot", type=Path, help="write a picture of the last seed's fits here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| map | model | RMSE of x' | RMSE of dx'/dx | wrong sign |\n|---|---|---|---|---|")
    drawn: dict[str, dict[str, Predict]] = {}
    for name, follow in MAPS.items():
        fits: dict[str, list[Fit]] = {model: [] for model in MODELS}
        for seed in arguments.seeds:
            drawn[name] = fit_all(follow, seed, arguments.steps)
            for model, predict in drawn[name].items():
                fits[model].append(measure(predict, follow))
            print(f"{name}, seed {seed} done", file=sys.stderr)
        for model, found in fits.items():
            print(f"| {name} | {model} | {row(found)} |")
    if arguments.plot is not None:
        draw(drawn, arguments.plot)


Predict = Callable[[Float[Tensor, "B 1"], Float[Tensor, "B 1"]], Float[Tensor, "B 1"]]


def fit_all(follow: Map, seed: int, steps: int) -> dict[str, Predict]:
    """Every model of `MODELS`, fitted to one map."""
    models: dict[str, Predict] = {
        "mlp": fit_mlp(follow, seed, steps),
        "residual": _stepper(fit_dynamics(_residual(seed), follow, seed, steps)),
    }
    velocity = fit_dynamics(_flow(seed, "euler", 1), follow, seed, steps).state_dict()
    for name, (integrator, substeps) in SOLVERS.items():
        solved = _flow(seed, integrator, substeps)
        solved.load_state_dict(velocity)
        models[name] = _stepper(solved)
    return models


def fit_dynamics(dynamics: Dynamics, follow: Map, seed: int, steps: int) -> Dynamics:
    """Train by the dynamics' own loss on fresh transitions."""
    noise = torch.Generator().manual_seed(seed + 1)

    def loss(x: Tensor, a: Tensor, target: Tensor) -> Tensor:
        transition = Transition(x, a, x.new_zeros(len(x), 0), target)
        return dynamics.loss(transition, noise, need_next=False)[0].mean()

    _train(dynamics, loss, follow, seed, steps)
    return dynamics


def fit_mlp(follow: Map, seed: int, steps: int) -> Predict:
    """The plain network x' = f([x, a]), without a residual: what SimNorm makes of one coordinate is a constant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = solve_widths(UNITS, reference_parameters(DIMS, UNITS), lambda w: mlp_parameters(2, w, 1))
        network = normed_mlp(2, widths, 1, normed_output=False)
    predict: Predict = lambda x, a: network(torch.cat([x, a], dim=-1))  # noqa: E731
    _train(network, lambda x, a, target: (predict(x, a) - target).square().mean(), follow, seed, steps)
    return predict


def _train(
    module: nn.Module, loss: Callable[[Tensor, Tensor, Tensor], Tensor], follow: Map, seed: int, steps: int
) -> None:
    """Adam from 3e-3, decayed by a cosine, on batches of 256."""
    data = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x = REACH * (2.0 * torch.rand(256, 1, generator=data) - 1.0)
        a = 2.0 * torch.rand(256, 1, generator=data) - 1.0
        optimiser.zero_grad()
        loss(x, a, follow(x, a)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()


def measure(predict: Predict, follow: Map) -> Fit:
    """Compare a model with its map on a 101 x 21 grid."""
    axes = torch.linspace(-REACH, REACH, 101), torch.linspace(-1.0, 1.0, 21)
    x, a = (t.reshape(-1, 1) for t in torch.meshgrid(*axes, indexing="ij"))
    (value, slope), (truth, true_slope) = (_with_slope(f, x, a) for f in (predict, follow))
    steep = true_slope.abs() > STEEP
    wrong = (slope.sign() != true_slope.sign()) & steep
    return Fit(
        rmse=float((value - truth).square().mean().sqrt()),
        slope_rmse=float((slope - true_slope).square().mean().sqrt()),
        wrong_sign=float(wrong.sum() / steep.sum().clamp(min=1)),
    )


def _with_slope(f: Predict, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = f(x, a)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), slope


def _residual(seed: int) -> Dynamics:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_dynamics(ResidualDynamicsConfig(units=UNITS, geometry="euclidean", source="teacher"), DIMS)


def _flow(seed: int, integrator: str, substeps: int) -> Dynamics:
    options = {"units": UNITS, "geometry": "euclidean", "source": "teacher"}
    config = FlowDynamicsConfig.model_validate({**options, "integrator": integrator, "substeps": substeps})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_dynamics(config, DIMS)


def _stepper(dynamics: Dynamics) -> Predict:
    return lambda x, a: dynamics(x, a, x.new_zeros(len(x), 0))


def row(fits: list[Fit]) -> str:
    """Means over seeds as table cells."""
    rmse, slope, wrong = (
        sum(values) / len(fits) for values in zip(*((f.rmse, f.slope_rmse, f.wrong_sign) for f in fits), strict=True)
    )
    return f"{rmse:.4f} | {slope:.3f} | {100 * wrong:.1f}%"


def draw(models: dict[str, dict[str, Predict]], path: Path) -> None:
    """x' over x without action, and its slope, of every map and model."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(models), figsize=(4 * len(models), 6), sharex=True, layout="constrained")
    x, a = torch.linspace(-REACH, REACH, 201).unsqueeze(-1), torch.zeros(201, 1)
    for column, (name, fitted) in enumerate(models.items()):
        curves: dict[str, Predict] = {"map": MAPS[name], **fitted}
        for label, f in curves.items():
            style = {"color": "black", "linewidth": 3, "alpha": 0.4} if label == "map" else {"linewidth": 1}
            for line, axis in zip(_with_slope(f, x, a), axes[:, column], strict=True):
                axis.plot(x.flatten(), line.flatten(), label=label, **style)
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("x")
    axes[0, 0].set_ylabel("x' at a = 0")
    axes[1, 0].set_ylabel("dx'/dx")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
