"""What each task sets in dflex: the class and the arguments of PWM's published configs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Setting = tuple[str, Mapping[str, float | bool]]
"""The name of the class in `dflex.envs`, and the arguments of its constructor."""


def _legged(environment: str, caching: int, height: float, penalty: float, **own: float | bool) -> Setting:
    """A robot whose episode ends below `height`; its mass matrix serves `caching` physics substeps."""
    shared = {"MM_caching_frequency": caching, "early_termination": True, "termination_height": height}
    return environment, {**shared, "action_penalty": penalty, **own}


_HOPPER_ENDS = {"termination_angle": 0.524, "termination_height_tolerance": 0.15, "termination_angle_tolerance": 0.05}
_ANYMAL_REWARDS = {"heading_rew_scale": 1.0, "heigh_rew_scale": 1.0}  # spelled so in dflex
_HUMANOID = {"joint_vel_obs_scaling": 0.1, "up_rew_scale": 0.1, "heading_rew_scale": 1.0}

SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "dflex-ant": _legged("AntEnv", 16, 0.27, 0.0, joint_vel_obs_scaling=0.1, up_rew_scale=0.1),
        "dflex-hopper": _legged(
            "HopperEnv", 16, -0.45, -0.1, height_rew_scale=1.0, angle_rew_scale=1.0, **_HOPPER_ENDS
        ),
        "dflex-anymal": _legged("AnymalEnv", 16, 0.25, -5e-3, nan_state_fix=True, up_rew_scale=0.1, **_ANYMAL_REWARDS),
        "dflex-humanoid": _legged(
            "HumanoidEnv", 48, 0.74, -0.002, termination_tolerance=0.1, height_rew_scale=10.0, **_HUMANOID
        ),
        "dflex-snu-humanoid": _legged(
            "SNUHumanoidEnv", 8, 0.46, -1e-3, termination_tolerance=0.05, height_rew_scale=4.0, **_HUMANOID
        ),
        "dflex-cartpole": ("CartPoleSwingUpEnv", {"MM_caching_frequency": 8}),
        "dflex-double-pendulum": ("DoublePendulumEnv", {"MM_caching_frequency": 8}),
    }
)

READ_URDF = ("dflex-anymal", "dflex-cartpole", "dflex-double-pendulum")
"""Whose model is a URDF file, which dflex reads with the package urchin."""
