"""How fast trained agents walk: forward speed, return and episode length beside a policy that does nothing.

    python benchmarks/walking.py RUN [RUN ...] [--episodes 16] [--out walking.csv]

RUN is a run directory of a `mini-ant-*` preset, or any checkpoint on `mujoco-ant`. Every run's latest weights
act deterministically in the same episodes (`--seed`); the forward speed is the mean of the torso's speed along
+x (observation 5) over all steps of whole episodes, the one that ends them included.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flowmbpo.checkpoints.load import load, resolve
from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.make import make_env
from flowmbpo.envs.resolve import resolve as resolve_task
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.runs.evaluate import load_agent

FORWARD_SPEED = 5  # its place in the observation
FIELDS = (
    "run",
    "agent_steps",
    "train_cpu_s",
    "speed",
    "speed_worst",
    "return_mean",
    "return_std",
    "length_mean",
    "ratio",
)


def measure(env: VectorEnv, policy: Callable[[Tensor], Tensor], seed: int) -> dict[str, float]:
    """One whole episode in every copy. Raises EnvironmentFailure where the simulator breaks one."""
    obs = env.reset(seed)
    running = torch.ones(env.num_envs, dtype=torch.bool)
    speed, earned, length = (torch.zeros(env.num_envs, dtype=torch.float64) for _ in range(3))
    while bool(running.any()):
        step = env.step(policy(obs))
        for fault in step.faults:
            if running[fault.index] and not fault.at_start:  # a copy that is done is stepped on, uncounted
                raise EnvironmentFailure(f"{fault}; no figures are made of episodes that broke: use another --seed")
        speed += step.final_obs[:, FORWARD_SPEED].double() * running
        earned += step.reward.double() * running
        length += running
        running &= ~step.done
        obs = step.obs
    mean = speed / length
    return {
        "speed": float(mean.mean()),
        "speed_worst": float(mean.min()),
        "return_mean": float(earned.mean()),
        "return_std": float(earned.std(correction=0)),
        "length_mean": float(length.mean()),
    }


def agent_policy(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, float]]:
    """The deterministic policy of a run's latest weights, and what training them took."""
    loaded = load(resolve(path), torch.device("cpu"))
    config = experiment_from_dict(loaded.payload["config"], str(path))
    agent = load_agent(loaded, config, resolve_task(config.task).spec)
    cost = {"agent_steps": int(loaded.payload["agent_steps"]), "train_cpu_s": float(loaded.payload["cpu_s"])}

    @torch.no_grad()
    def act(obs: Tensor) -> Tensor:
        return agent.act(obs, torch.zeros(len(obs), dtype=torch.int64), None)

    return act, cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=2**41)  # no training and no periodic evaluation uses it
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    env = make_env(TaskConfig(name="mujoco-ant", num_envs=args.episodes))
    still = measure(env, lambda obs: torch.zeros(len(obs), env.spec.action_dim), args.seed)
    rows: list[dict[str, object]] = [{"run": "zero action", **still, "ratio": 1.0}]
    for path in args.runs:
        policy, cost = agent_policy(path)
        figures = measure(env, policy, args.seed)
        rows.append({"run": path.name, **cost, **figures, "ratio": figures["return_mean"] / still["return_mean"]})
    env.close()
    rows = [{key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    for row in rows:
        print("  ".join(f"{field} {row.get(field, '-')}" for field in FIELDS))
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
