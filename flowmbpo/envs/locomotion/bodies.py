"""The robots by their task's name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flowmbpo.envs.locomotion.ant import Ant
from flowmbpo.envs.locomotion.body import Body
from flowmbpo.envs.locomotion.hopper import Hopper

BODIES: Mapping[str, Body] = MappingProxyType({"mujoco-ant": Ant(), "mujoco-hopper": Hopper()})
