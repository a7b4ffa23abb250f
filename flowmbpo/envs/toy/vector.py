"""Toy systems as a vector environment."""

from __future__ import annotations

from flowmbpo.envs.batch.vector import BatchVectorEnv
from flowmbpo.envs.toy.batch import ToyBatch
from flowmbpo.envs.toy.system import ToySystem


class ToyVectorEnv(BatchVectorEnv):
    """N copies of a toy system, in this process."""

    def __init__(self, system: ToySystem, num_envs: int) -> None:
        super().__init__(ToyBatch(system, num_envs))
        self.system = system
