"""What the adapters of dflex and rewarped share: the libraries' import, devices, draws and joint states."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.batch import BatchSimulator
from flowmbpo.envs.dflex.stand_ins import import_stand_ins
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.errors import EnvironmentUnavailableError
from flowmbpo.spec import TaskInfo

_TAIL = 15  # lines of output in an error
T = TypeVar("T")


class JointBatch(BatchSimulator):
    """N environments of a library that keeps the joints' state of all of them in flat tensors, `raw.state`."""

    library: ClassVar[str]
    joints: ClassVar[tuple[str, ...]]
    """The tensors of `raw.state` that a fault's report names."""
    draws: ClassVar[str]
    """What the library does in place of pictures."""
    raw: Any
    """The library's own environment. Its `reset` does nothing: `start` begins episodes."""

    def __init__(self, task: TaskInfo, num_envs: int) -> None:
        self.task, self.num_envs = task, num_envs
        self._before: dict[str, Tensor] = {}

    def observe(self) -> Float[Tensor, "N O"]:
        obs: Tensor = self.raw.obs_buf.detach().to("cpu", copy=True)
        return obs

    def describe(self, index: int) -> str:
        """The state that the last step started from, or that of now where none has been taken since a start."""
        parts = []
        for name, rows in (self._before or self._joints()).items():
            row = rows.view(self.num_envs, -1)[index].cpu().numpy()
            parts.append(f"{name} {np.array2string(row, precision=4, threshold=60, max_line_width=10_000)}")
        return f"before the step: {', '.join(parts)}"

    def render(self, index: int) -> np.ndarray:
        raise EnvironmentUnavailableError(
            f"{self.task.name}: {self.library} draws no pictures ({self.draws}). "
            "mujoco-ant, mujoco-hopper and the DMControl tasks can be rendered."
        )

    def _joints(self) -> dict[str, Tensor]:
        """Copies of all joints' numbers, on the device: the libraries step in place."""
        return {name: getattr(self.raw.state, name).detach().clone() for name in self.joints}


def leave_running(env_ids: Tensor | None = None) -> None:
    """In place of a library's own restart of ended episodes."""


def present_device(task: str, device: str, library: str, finders: str, found: bool) -> torch.device:
    """`device` with its index; raises EnvironmentUnavailableError where `library` cannot run on it.

    `found`: whether `finders`, which look for CUDA devices, find one.
    """
    place = torch.device(device)
    if place.type not in ("cpu", "cuda"):
        raise EnvironmentUnavailableError(f"{task}: {library} does not run on '{device}'. Allowed: cpu, cuda.")
    if place.type == "cuda" and not found:
        raise EnvironmentUnavailableError(
            f"{task}: the device '{device}' was asked for and {finders} finds no CUDA device; take 'cpu'."
        )
    if place.type == "cuda" and place.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return place


@contextlib.contextmanager
def seeded(device: torch.device, seed: np.random.SeedSequence) -> Iterator[None]:
    """torch's global generator of `device`, from which the libraries draw, seeded for the while and then as before."""
    generator = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    saved = generator.get_state()
    generator.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    try:
        yield
    finally:
        generator.set_state(saved)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' prints and the warnings of what they call."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        yield


def import_library(library: str, load: Callable[[], T], needs: str) -> T:
    """`load()`, which imports an installed simulator, with stand-ins for what it lacks and without its output.

    Raises EnvironmentUnavailableError, saying what it `needs` and the end of its output, where it cannot be imported.
    """
    before = set(sys.modules)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            with import_stand_ins(), _all_output_into(output.fileno()):
                return load()
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            # Half of it imported: a second try must start afresh.
            for loaded in set(sys.modules) - before:
                if loaded.partition(".")[0] in SIMULATORS[library].modules:
                    del sys.modules[loaded]
            failure = EnvironmentUnavailableError(
                f"{library} is installed and cannot be imported: {type(error).__name__}: {error}. {needs}. "
                f"Installed by: {SIMULATORS[library].install}"
            )
            output.seek(0)
            lines = output.read().strip().splitlines()
            if lines:
                failure.add_note("the end of its output:\n" + "\n".join(lines[-_TAIL:]))
            raise failure from error


@contextlib.contextmanager
def _all_output_into(descriptor: int) -> Iterator[None]:
    """What this process writes to its standard output and error, from C or a compiler too, goes to `descriptor`."""
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
