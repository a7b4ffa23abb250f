"""One update of this project against PWM's own `update()`: the same results, and what each costs.

    python benchmarks/compare_pwm.py --pwm CHECKOUT [--size 5m|48m] [--repeats 7] [--json FILE]

Both get the same initial weights, batch, policy noise and critic minibatches. First every result of
a whole update is compared; then updates are timed in turn (A B A B ...) on one thread, in CPU seconds
of this process, and the median of the ratios counts. PWM's code is imported from the checkout; where
its mathematics differ from this project's on purpose, PWM is corrected in memory, and the output
lists each correction.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import torch  # noqa: E402
from pwm_reference import (  # noqa: E402
    BINS,
    CORRECTIONS,
    SIZES,
    Size,
    copy_weights,
    load_module,
    make_reference,
    shuffled_minibatches,
)
from torch import Tensor  # noqa: E402

from flowmbpo.config.actors import GaussianActorConfig  # noqa: E402
from flowmbpo.config.dynamics import MLPDynamicsConfig  # noqa: E402
from flowmbpo.config.model import (  # noqa: E402
    CriticConfig,
    EncoderConfig,
    ModelConfig,
    ScalarRewardConfig,
    TwoHotRewardConfig,
)
from flowmbpo.config.training import TrainingConfig  # noqa: E402
from flowmbpo.data.batch import Batch  # noqa: E402
from flowmbpo.models.actors.gaussian import GaussianActor  # noqa: E402
from flowmbpo.models.agent import Agent  # noqa: E402
from flowmbpo.models.heads import CriticEnsemble  # noqa: E402
from flowmbpo.models.task_context import TaskContext  # noqa: E402
from flowmbpo.spec import EnvSpec, TaskInfo  # noqa: E402
from flowmbpo.training.optimiser import GuardedOptimiser  # noqa: E402
from flowmbpo.training.updates import critic_targets, update_actor, update_critic, update_model  # noqa: E402

HORIZON = 16
BATCH = 256
SEED = 0
TOLERANCE = 1e-4
CONFIG = TrainingConfig(
    horizon=HORIZON, actor_batch_size=BATCH, wm_batch_size=BATCH, wm_iterations=1, actor_input_gradient="detached",
    reward_normalization="none",
)  # fmt: skip


def _without_task(context: TaskContext) -> TaskContext:
    """PWM trains one policy and critic per task: they do not see the embedding."""
    return replace(context, embedding=context.embedding[:, :0])


class TaskBlindActor(GaussianActor):
    """The Gaussian policy on z alone."""

    def preactivation(self, z: Tensor, context: TaskContext, generator: torch.Generator | None) -> Tensor:
        return super().preactivation(z, _without_task(context), generator)


class TaskBlindCritic(CriticEnsemble):
    """The critic on z alone."""

    def forward(self, z: Tensor, context: TaskContext) -> Tensor:
        return super().forward(z, _without_task(context))


@dataclass
class Outcome:
    """What one update computed, by name."""

    scalars: dict[str, Tensor]
    targets: Tensor


class Ours:
    """This project's agent with PWM's options and its three optimisers."""

    def __init__(self, size: Size) -> None:
        reward = (
            TwoHotRewardConfig(units=size.units, low=BINS[0], high=BINS[1], bins=BINS[2], decode="symlog")
            if size.tasks > 1
            else ScalarRewardConfig(units=size.units)
        )
        model = ModelConfig(
            latent_dim=size.latent_dim,
            task_dim=size.task_dim,
            encoder=EncoderConfig(units=size.encoder_units),
            dynamics=MLPDynamicsConfig(units=size.units),
            reward=reward,
        )
        info = TaskInfo("task", "none", size.obs_dim, size.action_dim, 1000, 1, 0.99)
        self.agent = Agent(
            model, GaussianActorConfig(), CriticConfig(), EnvSpec((info,) * size.tasks), CONFIG.reward_normalization
        )
        if size.task_dim:
            self.agent.actor = TaskBlindActor(GaussianActorConfig(), size.latent_dim, 0, size.action_dim)
            self.agent.critic = TaskBlindCritic(CriticConfig(), size.latent_dim, 0)
        rates = (("world_model", CONFIG.model_lr, CONFIG.model_betas, CONFIG.clip.model),
                 ("actor", CONFIG.actor_lr, CONFIG.betas, CONFIG.clip.actor),
                 ("critic", CONFIG.critic_lr, CONFIG.betas, CONFIG.clip.critic))  # fmt: skip
        self.optimisers = {
            name: GuardedOptimiser(self.agent.get_submodule(name), lr=lr, betas=betas, weight_decay=0.0, clip=clip)
            for name, lr, betas, clip in rates
        }
        self.noise, self.order, self.model_noise = (torch.Generator().manual_seed(SEED) for _ in range(3))

    def update(self, batch: Batch, *, with_model: bool, keep_targets: bool = False) -> Outcome:
        """One update as the training loop makes it; `keep_targets` recomputes the critic's targets to show them."""
        agent = self.agent
        scalars: dict[str, Tensor] = {}
        if with_model:
            result, losses = update_model(agent, batch, self.optimisers["world_model"], CONFIG, self.model_noise)
            scalars |= {"model loss": result.loss, "model gradient norm": result.grad_norm}
            scalars |= {"dynamics loss": losses.dynamics.detach()}
        with torch.no_grad():
            context = agent.world_model.context(batch.task)
            start = agent.world_model.encode(batch.obs[0], context)
        result, objective = update_actor(agent, start, context, self.optimisers["actor"], CONFIG, self.noise)
        targets = critic_targets(agent, objective, CONFIG)[-1] if keep_targets else torch.empty(0)
        results = update_critic(agent, objective, self.optimisers["critic"], CONFIG, self.order)
        scalars |= {
            "actor loss": result.loss,
            "actor gradient norm": result.grad_norm,
            "critic loss": torch.stack([r.loss for r in results]).mean(),
            "critic gradient norm": results[-1].grad_norm,
        }
        return Outcome(scalars, targets)


def make_batch(size: Size) -> Batch:
    """Smooth random observations, bounded actions, rewards of order 1."""
    generator = torch.Generator().manual_seed(SEED + 1)
    obs = torch.randn(HORIZON + 1, BATCH, size.obs_dim, generator=generator)
    return Batch(
        obs=obs,
        action=torch.rand(HORIZON, BATCH, size.action_dim, generator=generator) * 2.0 - 1.0,
        reward=obs[1:].mean(-1) + 1.0,
        terminated=torch.zeros(HORIZON, BATCH, dtype=torch.bool),
        valid=torch.ones(HORIZON, BATCH, dtype=torch.bool),
        task=torch.randint(0, size.tasks, (BATCH,), generator=generator),
    )


class Theirs:
    """PWM's agent behind the same call."""

    NAMES = {  # noqa: RUF012 - constant
        "actor_loss": "actor loss", "value_loss": "critic loss", "actor_grad_norm": "actor gradient norm",
        "critic_grad_norm": "critic gradient norm", "wm_loss": "model loss", "dynamics_loss": "dynamics loss",
        "wm_grad_norm": "model gradient norm",
    }  # fmt: skip

    def __init__(self, module: types.ModuleType, size: Size) -> None:
        self.agent = make_reference(module, size, HORIZON, SEED)
        self.several = size.tasks > 1

    def update(self, batch: Batch, *, with_model: bool) -> Outcome:
        """PWM's `update()`."""
        task = batch.task if self.several else None
        metrics = self.agent.update(batch.obs, batch.action, batch.reward.unsqueeze(-1), task, finetune_wm=with_model)
        scalars = {self.NAMES[key]: torch.as_tensor(value) for key, value in metrics.items() if key in self.NAMES}
        return Outcome(scalars, self.agent.target_values.flatten())


def check(module: types.ModuleType, size: Size, *, with_model: bool) -> dict[str, float]:
    """Largest relative difference of every quantity of one whole update from the same start."""
    theirs, ours, batch = Theirs(module, size), Ours(size), make_batch(size)
    copy_weights(theirs.agent, ours.agent)
    torch.manual_seed(SEED)  # PWM draws from the global generator what ours draws from its own
    with shuffled_minibatches(module, SEED):
        expected = theirs.update(batch, with_model=with_model)
    found = ours.update(batch, with_model=with_model, keep_targets=True)
    errors = {name: relative(value, expected.scalars[name]) for name, value in found.scalars.items()}
    errors["TD(lambda) targets"] = relative(found.targets, expected.targets)
    after = Ours(size).agent
    for word, read in (("gradient", lambda p: p.grad), ("parameters", lambda p: p)):
        parts = ["actor", "critic"] if word == "gradient" else ["actor", "critic", "world_model"]
        if word == "gradient":  # the model's own were overwritten by PWM's actor phase
            copy_weights(theirs.agent, after, lambda p: p.grad if p.grad is not None else torch.zeros_like(p))
        else:
            copy_weights(theirs.agent, after)
        for part in parts:
            mine = flat(read(p) for p in ours.agent.get_submodule(part).parameters())
            errors[f"{part.replace('_', ' ')} {word}"] = relative(mine, flat(after.get_submodule(part).parameters()))
    return errors


def flat(tensors: Any) -> Tensor:
    """One vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((found.detach() - expected.detach()).norm() / expected.detach().norm())


@dataclass(frozen=True)
class Timing:
    """CPU seconds per update, and reference over ours: median, smallest, largest."""

    reference: float
    ours: float
    ratio: float
    low: float
    high: float


def measure(module: types.ModuleType, size: Size, repeats: int, *, with_model: bool) -> Timing:
    """Alternate both after one untimed update each."""
    theirs, ours, batch = Theirs(module, size), Ours(size), make_batch(size)
    copy_weights(theirs.agent, ours.agent)
    pairs = []
    for repeat in range(repeats + 1):
        pair = (
            cpu_seconds(lambda: theirs.update(batch, with_model=with_model)),
            cpu_seconds(lambda: ours.update(batch, with_model=with_model)),
        )
        if repeat > 0:
            pairs.append(pair)
    ratios = [a / b for a, b in pairs]
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return Timing(medians[0], medians[1], statistics.median(ratios), min(ratios), max(ratios))


def cpu_seconds(call: Callable[[], Any]) -> float:
    """CPU time of this process during `call`."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> int:
    """Check, time, print; exit 1 where the results do not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pwm", type=Path, required=True, help="a checkout of https://github.com/imgeorgiev/PWM")
    parser.add_argument("--size", choices=sorted(SIZES), default="5m")
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs of updates; 0 checks only")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    module, size = load_module(options.pwm), SIZES[options.size]
    document: dict[str, Any] = {"size": options.size, "torch": torch.__version__, "corrections": CORRECTIONS}
    print("Corrected on the reference's side, in memory:", *CORRECTIONS, sep="\n  - ")
    agree = True
    for with_model in (False, True):
        name = "with model update" if with_model else "without model update"
        errors = check(module, size, with_model=with_model)
        agree = agree and max(errors.values()) <= TOLERANCE
        print(f"\n{options.size}, {name}: relative difference of one whole update (allowed {TOLERANCE:g})")
        for quantity, error in errors.items():
            print(f"  {quantity:<24}{error:9.1e}{'' if error <= TOLERANCE else '  DIFFERS'}")
        document[name] = {"errors": errors}
        if options.repeats > 0:
            timing = measure(module, size, options.repeats, with_model=with_model)
            print(
                f"  PWM {timing.reference:.3f} s, ours {timing.ours:.3f} s of CPU: {timing.ratio:.2f} x faster "
                f"({timing.low:.2f} to {timing.high:.2f} over {options.repeats} pairs)",
                flush=True,
            )
            document[name] |= vars(timing)
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
