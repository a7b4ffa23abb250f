"""What the vector-environment contract costs per step of one copy in this process, over its bare simulator.

    python benchmarks/overhead.py [TASK ...] [--blocks 15] [--json FILE]

bare: the simulator's own `step`, with actions that are already in its form. contract: `make_env`
with one copy and no worker process: shape and finiteness checks, clipping, time limits, the fault
check, fresh tensors for everything that it returns. Both run the same episodes, seed by seed, in
alternating blocks that begin after a reset and stop before the next one. Figures are microseconds of
CPU time per agent step, medians over blocks with their range; the overhead is paired block by block.
For DMControl tasks a third loop is dm_control's own `step` with its observation flattened.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.make import make_env
from flowmbpo.spec import TaskInfo

DEFAULT_TASKS = ("toy-pendulum-swingup", "pendulum-swingup", "cheetah-run", "walker-walk")
LONGEST_BLOCK = 400

Block = Callable[[int, np.ndarray], float]
"""Start the episode of a seed, take the actions [T, A], return CPU seconds of the steps alone."""


def contract_block(task: TaskInfo) -> Block:
    """One copy behind the contract."""
    env = make_env(TaskConfig(name=task.name, num_envs=1), workers=0)

    def run(seed: int, actions: np.ndarray) -> float:
        rows = torch.from_numpy(actions).unsqueeze(1)
        env.reset(seed)
        start = time.process_time()
        for row in rows:
            env.step(row)
        return time.process_time() - start

    return run


def bare_block(task: TaskInfo) -> Block:
    """The simulator that the contract steps, by itself."""
    if task.simulator == "dmcontrol":
        from flowmbpo.envs.dmcontrol.simulator import DMControlSimulator

        return _copy_block(DMControlSimulator(task.name, task.action_repeat), task)
    if task.simulator == "metaworld":
        from flowmbpo.envs.metaworld import MetaWorldSimulator

        return _copy_block(MetaWorldSimulator(task.name, task.action_repeat), task)
    return _batch_block(task)


def suite_block(task: TaskInfo) -> Block:
    """dm_control's own environment."""
    from flowmbpo.envs.dmcontrol.suite import load_suite_task

    environment = load_suite_task(task.name)

    def run(seed: int, actions: np.ndarray) -> float:
        environment.task.random.seed(episode_seed(seed, 0, 0).generate_state(8))
        environment.reset()
        start = time.process_time()
        for action in actions:
            reward = 0.0
            for _ in range(task.action_repeat):
                step = environment.step(action)
                reward += step.reward
            np.concatenate([np.ravel(value) for value in step.observation.values()]).astype(np.float32)
        return time.process_time() - start

    return run


def _copy_block(simulator: object, task: TaskInfo) -> Block:
    from flowmbpo.envs.processes.group import Simulator

    assert isinstance(simulator, Simulator)
    obs = np.empty(task.obs_dim, dtype=np.float32)

    def run(seed: int, actions: np.ndarray) -> float:
        simulator.reset(episode_seed(seed, 0, 0), obs)
        start = time.process_time()
        for action in actions:
            simulator.step(action, obs)
        return time.process_time() - start

    return run


def _batch_block(task: TaskInfo) -> Block:
    from flowmbpo.envs.batch import BatchVectorEnv

    env = make_env(TaskConfig(name=task.name, num_envs=1), workers=0)
    assert isinstance(env, BatchVectorEnv)
    simulator = env.simulator

    def run(seed: int, actions: np.ndarray) -> float:
        rows = torch.from_numpy(actions).unsqueeze(1)
        simulator.start([0], [episode_seed(seed, 0, 0)])
        start = time.process_time()
        for row in rows:
            simulator.step(row)
        return time.process_time() - start

    return run


def measure(task: TaskInfo, blocks: int) -> dict[str, list[float]]:
    """Microseconds per step of every kind of block, block by block."""
    kinds = {"bare": bare_block(task), "contract": contract_block(task)}
    if task.simulator == "dmcontrol":
        kinds["dm_control"] = suite_block(task)
    steps = min(task.episode_length - 1, LONGEST_BLOCK)
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for block in range(blocks + 1):
        actions = rng.uniform(-1, 1, (steps, task.action_dim)).astype(np.float32)
        for kind, run in kinds.items():
            seconds = run(block, actions)
            if block:  # the first warms up
                found[kind].append(1e6 * seconds / steps)
    found["overhead"] = [whole - bare for whole, bare in zip(found["contract"], found["bare"], strict=True)]
    return found


def main() -> None:
    """Measure, print one line per task, and with `--json` write down."""
    options = _options()
    from flowmbpo.envs.tasks import task_info

    torch.set_num_threads(1)
    record = {}
    print("microseconds per agent step of one copy: median (range)")
    for name in options.tasks or DEFAULT_TASKS:
        record[name] = measure(task_info(name), options.blocks)
        print(f"{name}: " + ", ".join(f"{kind} {_words(values)}" for kind, values in record[name].items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def _words(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} .. {max(values):.1f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"default: {' '.join(DEFAULT_TASKS)}")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
