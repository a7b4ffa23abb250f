"""What a toy system is: a differentiable transition, an observation and a picture; and N of one in a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.envs.batch import BatchSimulator
from flowmbpo.envs.contract import BatchOutcome, DifferentiableEnvs
from flowmbpo.spec import TaskInfo

HEIGHT, WIDTH = 240, 320  # pixels
_BACKGROUND = 245.0

Point = tuple[float, float]
Colour = tuple[int, int, int]


class Canvas:
    """A picture whose origin is its centre, y upwards, `units_high` world units from bottom to top."""

    def __init__(self, units_high: float) -> None:
        self._unit = units_high / HEIGHT  # world units per pixel
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
        self._x = (columns + 0.5 - WIDTH / 2) * self._unit
        self._y = (HEIGHT / 2 - rows - 0.5) * self._unit
        self._pixels = np.full((HEIGHT, WIDTH, 3), _BACKGROUND)

    def line(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """A straight stroke with round ends; `width` in world units."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        length_squared = dx * dx + dy * dy
        along = (self._x - start[0]) * dx + (self._y - start[1]) * dy
        share = np.clip(along / length_squared, 0.0, 1.0) if length_squared > 0 else 0.0
        distance = np.hypot(self._x - start[0] - share * dx, self._y - start[1] - share * dy)
        cover = np.clip((width / 2 - distance) / self._unit + 0.5, 0.0, 1.0)[..., None]
        self._pixels += cover * (np.asarray(colour, dtype=float) - self._pixels)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """A filled circle; `radius` in world units."""
        self.line(centre, centre, 2 * radius, colour)

    def frame(self) -> np.ndarray:
        """The picture, uint8 [240, 320, 3]."""
        return np.asarray(np.rint(self._pixels), dtype=np.uint8)


Noise = Float[Tensor, "B K"]
Transition = tuple[Float[Tensor, "B S"], Float[Tensor, " B"]]
"""The next state and the summed reward."""


class ToySystem(ABC):
    """A batched, time-limited system in pure torch. S is the width of its state, K that of its noise.

    `transition` is a pure function of state, action and noise, so gradients flow through it where
    the caller asks for them. The simulator around it (`ToyBatch`) never does.
    """

    state_dim: ClassVar[int]
    noise_dim: ClassVar[int] = 0
    units_high: ClassVar[float] = 3.0

    def __init__(self, task: TaskInfo) -> None:
        self.task = task

    @abstractmethod
    def start(self, rng: np.random.Generator) -> list[float]:
        """One episode's first state [S]."""

    @abstractmethod
    def transition(self, state: Float[Tensor, "B S"], action: Float[Tensor, "B A"], noise: Noise) -> Transition:
        """One agent step of `task.action_repeat` physics steps: the next state and the summed reward.

        Actions are expected in [-1, 1] and are not clipped here. `noise` holds independent U(0, 1)
        draws, fresh at each agent step; it is [B, 0] for a deterministic system.
        """

    def observe(self, state: Float[Tensor, "B S"]) -> Float[Tensor, "B O"]:
        """What the agent sees of a state, by default all of it; never the state's own memory."""
        return state.clone()

    @abstractmethod
    def draw(self, canvas: Canvas, state: list[float]) -> None:
        """Paint one state [S] on a blank canvas, `units_high` from bottom to top."""


def impulse(u: Float[Tensor, " B"], rate: float, size: float, skew: float) -> Float[Tensor, " B"]:
    """The push that each u ~ U(0, 1) stands for: none, +size or -size.

    One comes with probability `rate`; it is positive with probability (1 + skew)/2, so `skew`,
    in [-1, 1], is the mean sign of a push.
    """
    positive = u < rate * (1.0 + skew) / 2.0
    happens = u < rate
    return size * (2.0 * positive.to(u.dtype) - happens.to(u.dtype))


class Pushed(ToySystem):
    """A system whose state ends in an angular velocity w (rad/s), which a push changes with probability `rate`.

    Its size is `size`; (1 + `skew`)/2 of the pushes are positive. It comes before the agent step's physics.
    """

    noise_dim = 1
    rate: ClassVar[float] = 0.04
    size: ClassVar[float]
    skew: ClassVar[float] = 0.5

    def transition(self, state: Float[Tensor, "B S"], action: Float[Tensor, "B A"], noise: Noise) -> Transition:
        """The push, then the step of the system without pushes."""
        w = state[..., -1] + impulse(noise[..., 0], self.rate, self.size, self.skew)
        return super().transition(torch.cat((state[..., :-1], w.unsqueeze(-1)), dim=-1), action, noise)  # type: ignore[safe-super]


class ToyBatch(BatchSimulator):
    """N environments of `system`.

    Each episode's generator draws its first state and then the noise of all its L agent steps,
    so what happens in it depends on nothing but its seed and its actions.
    """

    def __init__(self, system: ToySystem, num_envs: int) -> None:
        self.system, self.task, self.num_envs = system, system.task, num_envs
        self._before: Tensor | None = None  # the state that the last step started from; none since `start`
        noise = torch.zeros(num_envs, self.task.episode_length, system.noise_dim)
        elapsed = torch.zeros(num_envs, dtype=torch.int64)
        self._now = DifferentiableToy(system, torch.zeros(num_envs, system.state_dim), noise, elapsed)

    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> None:
        now = self._now
        rngs, rows = [np.random.default_rng(seed) for seed in seeds], torch.as_tensor(indices)
        states = torch.tensor([self.system.start(rng) for rng in rngs], dtype=torch.float32)
        now.state = now.state.index_copy(0, rows, states)
        self._before = None
        now.elapsed[rows] = 0
        if self.system.noise_dim:
            noise = [rng.random(now.noise.shape[1:], dtype=np.float32) for rng in rngs]
            now.noise[rows] = torch.from_numpy(np.stack(noise))

    def observe(self) -> Float[Tensor, "N O"]:
        return self._now.observe()

    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        self._before = self._now.state
        return self._now.step(action)

    def state_dict(self) -> dict[str, Any]:
        now = self._now
        return {"state": now.state.clone(), "noise": now.noise.clone(), "elapsed": now.elapsed.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = None
        self._now = DifferentiableToy(self.system, *(state[name].clone() for name in ("state", "noise", "elapsed")))

    def differentiable(self) -> DifferentiableToy:
        return DifferentiableToy(self.system, self._now.state.clone(), self._now.noise, self._now.elapsed)

    def describe(self, index: int) -> str:
        """The state that the last step started from, or that of now where none has been taken since a start."""
        state, stepped = (self._now.state, 0) if self._before is None else (self._before, 1)
        step = int(self._now.elapsed[index]) - stepped
        return f"{self.task.name}: before the step: {step} steps done, state {state[index].tolist()}"

    def render(self, index: int) -> np.ndarray:
        canvas = Canvas(self.system.units_high)
        self.system.draw(canvas, self._now.state[index].tolist())
        return canvas.frame()


class DifferentiableToy(DifferentiableEnvs):
    """`system` from `state` on, under the noise that its episodes have drawn. In float64 where the state is."""

    def __init__(
        self, system: ToySystem, state: Float[Tensor, "N S"], noise: Float[Tensor, "N L K"], elapsed: Int[Tensor, " N"]
    ) -> None:
        self._system = system
        self.state, self.noise, self.elapsed = state, noise, elapsed.clone()
        self._rows = torch.arange(len(state))

    def observe(self) -> Float[Tensor, "N O"]:
        return self._system.observe(self.state)

    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        """Past the time limit there is no noise left: stepping on raises IndexError."""
        # Without noise any step's slice is the same empty tensor: the gather would only cost time.
        noise = self.noise[self._rows, self.elapsed] if self._system.noise_dim else self.noise[:, 0]
        self.state, reward = self._system.transition(self.state, action, noise)
        self.elapsed += 1
        return BatchOutcome(self.observe(), reward, torch.zeros(len(self.state), dtype=torch.bool))
