"""Copies of a rewarped task as a batch simulator: rewarped's physics and rewards, episodes left to the caller."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.batch import BatchOutcome, BatchSimulator
from flowmbpo.envs.dflex.stand_ins import import_stand_ins
from flowmbpo.envs.simulators import SIMULATORS, require_installed
from flowmbpo.errors import EnvironmentUnavailableError
from flowmbpo.spec import TaskInfo

log = logging.getLogger("flowmbpo")

CLASSES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "rewarped-ant": ("rewarped.envs.dflex.ant", "Ant"),
        "rewarped-humanoid": ("rewarped.envs.dflex.humanoid", "Humanoid"),
        "rewarped-cartpole": ("rewarped.envs.dflex.cartpole", "Cartpole"),
    }
)
"""Where each task's class is: module and name."""

KERNELS = (
    "warp.sim.articulation",
    "warp.sim.integrator_euler",
    "rewarped.warp.collide",
    "rewarped.warp.integrator_featherstone",
)
"""The modules whose kernels Warp compiles for these tasks."""
_BINARIES = MappingProxyType({"cpu": ("o",), "cuda": ("ptx", "cubin")})
_TAIL = 15  # lines of output in an error


def load_task(task: str) -> tuple[Any, Any]:
    """The module `warp` and rewarped's class of `task`.

    Raises EnvironmentUnavailableError where rewarped is not installed or cannot be imported.
    """
    require_installed("rewarped", task)
    module, name = CLASSES[task]
    before = set(sys.modules)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            # Warp looks for a CUDA driver in its import and complains, from C, where there is none.
            with import_stand_ins(), _all_output_into(output.fileno()):
                environment = getattr(importlib.import_module(module), name)
                warp = importlib.import_module("warp")
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            # Half of it imported: a second try must start afresh.
            for loaded in set(sys.modules) - before:
                if loaded.partition(".")[0] in SIMULATORS["rewarped"].modules:
                    del sys.modules[loaded]
            output.seek(0)
            raise _import_failure(error, output.read()) from error
    return warp, environment


def announce_compilation(cache: Path, device: str) -> None:
    """Say so where kernels for `device` (cpu, cuda) are not yet in Warp's folder `cache`."""
    if not _is_compiled(cache, device):
        log.warning("compiling rewarped's kernels into %s: 1-3 minutes, once", cache)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the prints and the warnings of rewarped and Warp."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_compiled(cache: Path, device: str) -> bool:
    patterns = [[f"wp_{module}_*/*.{ending}" for ending in _BINARIES[device]] for module in KERNELS]
    return all(any(True for pattern in choices for _ in cache.glob(pattern)) for choices in patterns)


def _import_failure(error: Exception, output: str) -> EnvironmentUnavailableError:
    failure = EnvironmentUnavailableError(
        f"rewarped is installed and cannot be imported: {type(error).__name__}: {error}. It needs just the Warp that "
        "it names (warp-lang 1.3.3) and a folder for compiled kernels that can be written (WARP_CACHE_PATH names "
        f"another). Installed by: {SIMULATORS['rewarped'].install}"
    )
    lines = output.strip().splitlines()
    if lines:
        failure.add_note("the end of its output:\n" + "\n".join(lines[-_TAIL:]))
    return failure


@contextlib.contextmanager
def _all_output_into(descriptor: int) -> Iterator[None]:
    """What this process writes to its standard output and error, from C too, goes to the file `descriptor`."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = (os.dup(1), os.dup(2))
    try:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        with (
            open(descriptor, "w", encoding="utf-8", closefd=False) as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            yield
    finally:
        for target, source in enumerate(saved, start=1):
            os.dup2(source, target)
            os.close(source)


_NO_LIMIT = torch.iinfo(torch.int32).max  # of rewarped's own step count, which starts afresh with each episode
_STATE = ("joint_q", "joint_qd", "body_q", "body_qd")


class RewarpedBatch(BatchSimulator):
    """N copies of a rewarped task, stepped in one batch on `device`, without derivatives.

    Reward and termination are rewarped's own; the reward of a step is that of the state which the
    action led to. Its own restarts and its time limit are switched off, so an episode lasts until
    `start`. All copies stand at the origin (they do not touch each other): spread out, as by
    rewarped's default, each would round differently.
    """

    def __init__(self, task: TaskInfo, num_envs: int, device: str = "cpu") -> None:
        """Compiles kernels where none are cached, and says so.

        Raises EnvironmentUnavailableError where rewarped or the device is missing.
        """
        self.task = task
        self.num_envs = num_envs
        warp, environment = load_task(task.name)
        self._device = _present_device(task, device, warp)
        self._before: dict[str, Tensor] = {}
        self._seeds: list[tuple[int, np.random.SeedSequence]] = []
        announce_compilation(Path(warp.config.kernel_cache_dir), self._device.type)
        with quiet(), torch.no_grad():
            self._raw: Any = environment(
                num_envs=num_envs,
                episode_length=_NO_LIMIT,
                no_grad=True,
                no_env_offset=True,
                device=str(self._device),
            )
            self._randomize = self._raw.randomize_init
            self._raw.randomize_init = self._draw_starts
            self._restart = self._raw.reset
            self._restart()
            # Its `step` restarts ended copies by calling this, from torch's global generator.
            self._raw.reset = _leave_running
            # Kernels are compiled and loaded where they are first launched.
            self._raw.step(torch.zeros(num_envs, task.action_dim, device=self._device))

    @property
    def raw(self) -> Any:
        """rewarped's own environment. Its `reset` does nothing: `start` begins episodes."""
        return self._raw

    @torch.no_grad()
    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> None:
        self._before = {}
        self._seeds = list(zip(indices, seeds, strict=True))
        # Without early termination rewarped restarts all copies or none.
        self._raw.early_termination = True
        try:
            self._restart(torch.tensor(list(indices), device=self._device))
        finally:
            self._raw.early_termination = self.task.can_terminate
            self._seeds = []

    def observe(self) -> Float[Tensor, "N O"]:
        obs: Tensor = self._raw.obs_buf.to("cpu", copy=True)
        return obs

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        self._before = self._joints()
        _, reward, _, info = self._raw.step(action.to(self._device))
        return BatchOutcome(
            obs=self.observe(), reward=reward.to("cpu", copy=True), terminated=info["terminated"].to("cpu")
        )

    def state_dict(self) -> dict[str, Any]:
        """Joint coordinates and velocities, the bodies' poses and twists (contacts start from them), and last actions.

        The mass matrix, which rewarped reuses between substeps, is made anew in the first of each step.
        """
        tensors = {name: getattr(self._raw.state, name) for name in _STATE}
        tensors |= {"actions": self._raw.actions, "progress": self._raw.progress_buf}
        return {name: value.to("cpu", copy=True) for name, value in tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = {}
        for name in _STATE:
            getattr(self._raw.state, name).copy_(state[name])
        self._raw.actions = state["actions"].to(self._device, copy=True)
        self._raw.progress_buf = state["progress"].to(self._device, copy=True)
        self._raw.compute_observations()

    def describe(self, index: int) -> str:
        """The state that the last step started from, or that of now where none has been taken since a start."""
        parts = []
        for name, rows in (self._before or self._joints()).items():
            row = rows.view(self.num_envs, -1)[index].cpu().numpy()
            parts.append(f"{name} {np.array2string(row, precision=4, threshold=60, max_line_width=10_000)}")
        return f"before the step: {', '.join(parts)}"

    def render(self, index: int) -> np.ndarray:
        raise EnvironmentUnavailableError(
            f"{self.task.name}: rewarped draws no pictures (it writes USD scenes or opens a window). "
            "mujoco-ant, mujoco-hopper and the DMControl tasks can be rendered."
        )

    def _joints(self) -> dict[str, Tensor]:
        """Copies of all joints' coordinates and velocities, on the device: rewarped steps in place."""
        return {name: getattr(self._raw.state, name).clone() for name in ("joint_q", "joint_qd")}

    def _draw_starts(self, env_ids: Tensor) -> None:
        """In place of rewarped's `randomize_init`: the same draws, for each copy from its own seed."""
        cuda = self._device.type == "cuda"
        generator = torch.cuda.default_generators[self._device.index] if cuda else torch.default_generator
        saved = generator.get_state()
        try:
            for index, seed in self._seeds:
                generator.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
                self._randomize(torch.tensor([index], device=self._device))
        finally:
            generator.set_state(saved)


def _leave_running(env_ids: Tensor | None = None) -> None:
    """In place of rewarped's own restart of ended copies."""


def _present_device(task: TaskInfo, device: str, warp: Any) -> torch.device:
    place = torch.device(device)
    if place.type == "cpu":
        return place
    if place.type != "cuda":
        raise EnvironmentUnavailableError(f"{task.name}: rewarped does not run on '{device}'. Allowed: cpu, cuda.")
    if not (torch.cuda.is_available() and warp.is_cuda_available()):
        raise EnvironmentUnavailableError(
            f"{task.name}: the device '{device}' was asked for and torch or Warp finds no CUDA device; take 'cpu'."
        )
    return torch.device("cuda", torch.cuda.current_device() if place.index is None else place.index)
