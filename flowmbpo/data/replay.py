"""The replay buffer: one ring of rows per environment, sampled uniformly over transitions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.envs.contract import EnvStep
from flowmbpo.errors import CheckpointError, ConfigError, DataError, EnvironmentFailure

INITIAL_ROWS = 64
ROW_FIELDS = ("obs", "action", "reward", "terminated", "closed", "starts")
ENV_FIELDS = ("head", "count", "first_start", "num_starts")


class ReplayBuffer:
    """Stores what N environments did, and samples windows that never leave their episode.

    Every environment has a ring of rows. A row holds an observation and the transition that left it; an
    episode of L transitions takes L + 1 rows, the last of which holds only its final observation::

        row      0      1      2      3      4      5     (one ring)
        obs      o0     o1     o2*    p0     p1     p2
        leaves   a0 r0  a1 r1  -      b0 s0  b1 s1  -     o2* is final, p2 is the one to act on
        closed   no     no     yes    no     no     yes

    Rows without a transition are `closed`; the newest row of a ring always is, so that a scan for
    the first closed row finds the end of an episode, of the data and of the ring alike. When a ring
    is full its oldest rows are overwritten. `starts` is a second ring per environment that lists its rows
    with a transition, oldest first: it makes uniform sampling exact with one draw per window.

    Letters: R rows, N environments, B batch, T horizon, O observation, A action.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_dim: int,
        action_dim: int,
        task_ids: Int[Tensor, " N"],
        device: torch.device | str = "cpu",
    ) -> None:
        """At most `capacity` transitions; memory grows with what is stored, by doubling.

        An episode's final observation takes the place of one transition. Raises ConfigError where
        `capacity` leaves fewer than 2 transitions for each of the `num_envs` environments.
        """
        if capacity < 2 * num_envs:
            raise ConfigError(
                f"training.wm_buffer_size {capacity} is too small for task.num_envs {num_envs}: "
                f"use at least {2 * num_envs} transitions (2 per environment)"
            )
        self.capacity = capacity
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.rows = capacity // num_envs + 1  # the newest row of a ring has no transition yet
        self.task_ids = task_ids.to(self.device, torch.long, copy=True)
        allocated = min(self.rows, INITIAL_ROWS)
        self.obs = self._zeros(allocated, obs_dim)
        self.action = self._zeros(allocated, action_dim)
        self.reward = self._zeros(allocated)
        self.terminated = self._zeros(allocated, dtype=torch.bool)
        self.closed = self._zeros(allocated, dtype=torch.bool)
        self.starts = self._zeros(allocated, dtype=torch.int32)  # row numbers: half of int64's memory
        self._envs = torch.arange(num_envs, device=self.device)
        self.head = torch.full_like(self._envs, -1)  # newest row; -1 before the first
        self.count = torch.zeros_like(self._envs)  # filled rows
        self.first_start = torch.zeros_like(self._envs)  # oldest entry of `starts`
        self.num_starts = torch.zeros_like(self._envs)
        self._filled = 0  # rows that any ring ever used: never fewer, though a broken episode frees some again
        self._total = 0

    @property
    def num_transitions(self) -> int:
        """Stored transitions: the number of possible window starts."""
        return self._total

    def start(self, obs: Float[Tensor, "N O"]) -> None:
        """Begin an episode in every environment, from `obs`.

        Episodes still running are cut where they are: their newest observation becomes final.
        Raises EnvironmentFailure on a non-finite observation.
        """
        obs = obs.to(self.device, torch.float32)
        assert obs.shape == self.obs.shape[1:], (obs.shape, self.obs.shape)
        self._refuse_nonfinite(torch.isfinite(obs).all(-1))
        self._make_room(torch.ones_like(self.count))
        self._write_newest((self.head + 1) % self.rows, obs)
        self._total = int(self.num_starts.sum())

    def add(self, action: Float[Tensor, "N A"], step: EnvStep) -> None:
        """Append what `action`, taken on the newest observations, did in every environment.

        The episode of an environment whose simulator broke (`step.faults`) is thrown away whole, as far as it
        is still stored; what follows is the next episode.
        Raises EnvironmentFailure where the simulator returned a non-finite observation or reward.
        """
        assert self._filled > 0, "start(obs) comes before add: there is no observation to act on"
        assert action.shape == self.action.shape[1:], (action.shape, self.action.shape)
        obs = step.obs.to(self.device, torch.float32)
        final_obs = step.final_obs.to(self.device, torch.float32)
        reward = step.reward.to(self.device, torch.float32)
        done = step.done.to(self.device)
        self._refuse_nonfinite(torch.isfinite(obs + final_obs).all(-1) & torch.isfinite(reward))
        self._make_room(1 + done.long())
        left = (self.head, self._envs)
        self.action[left] = action.to(self.device, torch.float32)
        self.reward[left] = reward
        self.terminated[left] = step.terminated.to(self.device)
        self.closed[left] = False
        self.starts[(self.first_start + self.num_starts) % self.rows, self._envs] = self.head.int()
        self.num_starts += 1
        reached = (self.head + 1) % self.rows
        self.obs[reached, self._envs] = final_obs
        self.closed[reached, self._envs] = True
        # Where no episode ended this is the row just written, and obs equals final_obs.
        self._write_newest((reached + done) % self.rows, obs)
        for fault in step.faults:
            self._discard_episode(fault.index)
        self._total = int(self.num_starts.sum())

    def sample(self, batch_size: int, horizon: int, generator: torch.Generator) -> Batch:
        """Windows of `horizon` transitions, starts uniform over all stored ones (with replacement).

        A window that outlasts its episode is padded and masked, see `Batch`; none is left out.
        Raises DataError while no transition is stored.
        """
        row, env = self._locate(self._draw(self._total, batch_size, generator))
        steps = torch.arange(horizon + 1, device=self.device).unsqueeze(1)
        cells = (row + steps[:-1]) % self.rows * self.num_envs + env  # [T, B]
        # Behind a closed row may lie rows that are not allocated yet; what is read there counts for nothing.
        closed = self.closed.view(-1)[cells.clamp_(max=self.closed.numel() - 1)]
        valid = closed.cumsum(0) == 0
        length = valid.sum(0)
        cells = (row + steps.minimum(length)) % self.rows * self.num_envs + env  # [T + 1, B]
        obs = self.obs.flatten(0, 1).index_select(0, cells.view(-1))
        cells, padding = cells[:-1].reshape(-1), ~valid
        action = self.action.flatten(0, 1).index_select(0, cells)
        return Batch(
            obs=obs.view(horizon + 1, batch_size, -1),
            action=action.view(horizon, batch_size, -1).masked_fill_(padding.unsqueeze(-1), 0.0),
            reward=self.reward.view(-1)[cells].view_as(valid).masked_fill_(padding, 0.0),
            terminated=self.terminated.view(-1)[cells].view_as(valid) & valid,
            valid=valid,
            task=self.task_ids[env],
        )

    def sample_starts(
        self, batch_size: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B O"], Int[Tensor, " B"]]:
        """Observations to imagine from (and their tasks), uniform over those that are not final.

        The newest observation of every environment is among them. Raises DataError while no transition is stored.
        """
        if not self._total:
            self._draw(0, batch_size, generator)
        rank = self._draw(self._total + self.num_envs, batch_size, generator)
        row, env = self._locate(rank.clamp(max=self._total - 1))
        newest = rank >= self._total
        env = torch.where(newest, rank - self._total, env)
        row = torch.where(newest, self.head[env], row)
        return self.obs[row, env], self.task_ids[env]

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything stored, as tensors and numbers; of the rows, only those ever used."""
        state: dict[str, Tensor | int] = {name: getattr(self, name).clone() for name in ENV_FIELDS}
        state |= {name: getattr(self, name)[: self._filled].clone() for name in ROW_FIELDS}
        return state | {"capacity": self.capacity}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Return to a saved state; sampling and adding then go on exactly as they would have.

        Raises CheckpointError where the state was saved by a buffer of other dimensions.
        """
        missing = sorted({*ROW_FIELDS, *ENV_FIELDS, "capacity"} - state.keys())
        if missing:
            raise CheckpointError(f"the saved replay buffer lacks {', '.join(missing)}: the checkpoint is damaged")
        if state["capacity"] != self.capacity:
            raise CheckpointError(
                f"the saved replay buffer has training.wm_buffer_size {state['capacity']}, this run {self.capacity}: "
                "resume with the value it was saved with"
            )
        saved = {name: torch.as_tensor(state[name]) for name in ROW_FIELDS + ENV_FIELDS}
        for name in ROW_FIELDS + ENV_FIELDS:
            width = getattr(self, name).shape[1 if name in ROW_FIELDS else 0 :]
            found = saved[name].shape[1 if name in ROW_FIELDS else 0 :]
            if found != width:
                raise CheckpointError(
                    f"the saved replay buffer's '{name}' has dimensions {tuple(found)} where this run has "
                    f"{tuple(width)}: resume with the task and task.num_envs it was saved with"
                )
        wrapped = bool((saved["count"] > saved["head"] + 1).any())
        needed = self.rows if wrapped else int(saved["head"].max()) + 1
        found_rows = {name: len(saved[name]) for name in ROW_FIELDS}
        if set(found_rows.values()) != {len(saved["obs"])} or not needed <= len(saved["obs"]) <= self.rows:
            raise CheckpointError(
                f"the saved replay buffer has {found_rows} rows where its lanes use {needed}: "
                "the checkpoint is damaged, resume from another one"
            )
        for name, value in saved.items():
            setattr(self, name, value.to(self.device, getattr(self, name).dtype, copy=True))
        self._filled = len(self.obs)
        self._total = int(self.num_starts.sum())

    def _zeros(self, rows: int, *width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(rows, self.num_envs, *width, dtype=dtype, device=self.device)

    def _refuse_nonfinite(self, finite: Tensor) -> None:
        if not bool(finite.all()):
            copies = (~finite).nonzero().flatten().tolist()
            raise EnvironmentFailure(
                f"the simulator returned a non-finite observation or reward in environment copies {copies}: "
                "nothing of this step was stored; the task's simulation has diverged"
            )

    def _make_room(self, needed: Int[Tensor, " N"]) -> None:
        """Count `needed` (1 or 2) more rows per ring as filled; full rings give up their oldest.

        The rows given up are never the newest one, because a ring has at least 3.
        """
        if self._filled + 2 > self.rows:
            surplus = (self.count + needed - self.rows).clamp_(min=0)
            oldest = self.head - self.count + 1
            evicted = torch.zeros_like(surplus)
            for age in range(2):
                row = (oldest + age) % self.rows
                evicted += (surplus > age) & ~self.closed[row, self._envs]
            self.first_start = (self.first_start + evicted) % self.rows
            self.num_starts -= evicted
            self.count -= surplus
        self.count += needed
        self._filled = max(self._filled, int(self.count.max()))
        self._grow(self._filled)

    def _grow(self, needed: int) -> None:
        """Allocate at least `needed` rows. Only rings that never wrapped grow, so rows keep their place."""
        allocated = len(self.obs)
        if needed <= allocated:
            return
        extra = min(self.rows, max(needed, 2 * allocated)) - allocated
        for name in ROW_FIELDS:
            field: Tensor = getattr(self, name)
            setattr(self, name, torch.cat((field, field.new_zeros(extra, *field.shape[1:]))))

    def _write_newest(self, row: Int[Tensor, " N"], obs: Float[Tensor, "N O"]) -> None:
        self.obs[row, self._envs] = obs
        self.closed[row, self._envs] = True
        self.head = row

    def _discard_episode(self, env: int) -> None:
        """Take the ring back to the first row of its newest episode, which now holds the newest observation."""
        head, count = int(self.head[env]), int(self.count[env])
        length = 0
        while length + 1 < count and not self.closed[(head - length - 1) % self.rows, env]:
            length += 1
        first = (head - length) % self.rows
        self.obs[first, env] = self.obs[head, env]
        self.closed[first, env] = True
        self.head[env] = first
        self.count[env] -= length
        self.num_starts[env] -= length

    def _draw(self, population: int, batch_size: int, generator: torch.Generator) -> Int[Tensor, " B"]:
        if not population:
            raise DataError("the replay buffer is empty: collect at least one step before sampling")
        rank = torch.randint(population, (batch_size,), generator=generator, device=generator.device)
        return rank.to(self.device)

    def _locate(self, rank: Int[Tensor, " B"]) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """Row and environment of the rank-th stored transition (one environment after another, oldest first)."""
        ends = self.num_starts.cumsum(0)
        env = torch.searchsorted(ends, rank, right=True)
        position = self.first_start[env] + rank - (ends - self.num_starts)[env]
        return self.starts[position % self.rows, env].long(), env
