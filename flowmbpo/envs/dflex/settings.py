"""What each task sets in dflex: the class and the arguments of PWM's published configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Setting:
    """`environment` is the name of the class in `dflex.envs`, `arguments` go to its constructor.

    `reads_urdf`: the model is a URDF file, which dflex reads with the package urchin.
    """

    environment: str
    arguments: Mapping[str, float | bool]
    reads_urdf: bool = False


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "dflex-ant": Setting(
            "AntEnv",
            {
                "MM_caching_frequency": 16,
                "early_termination": True,
                "termination_height": 0.27,
                "action_penalty": 0.0,
                "joint_vel_obs_scaling": 0.1,
                "up_rew_scale": 0.1,
            },
        ),
        "dflex-hopper": Setting(
            "HopperEnv",
            {
                "MM_caching_frequency": 16,
                "early_termination": True,
                "termination_height": -0.45,
                "termination_angle": 0.524,
                "termination_height_tolerance": 0.15,
                "termination_angle_tolerance": 0.05,
                "height_rew_scale": 1.0,
                "angle_rew_scale": 1.0,
                "action_penalty": -0.1,
            },
        ),
        "dflex-anymal": Setting(
            "AnymalEnv",
            {
                "MM_caching_frequency": 16,
                "early_termination": True,
                "nan_state_fix": True,
                "termination_height": 0.25,
                "action_penalty": -5e-3,
                "up_rew_scale": 0.1,
                "heading_rew_scale": 1.0,
                "heigh_rew_scale": 1.0,  # spelled so in dflex
            },
            reads_urdf=True,
        ),
        "dflex-humanoid": Setting(
            "HumanoidEnv",
            {
                "MM_caching_frequency": 48,
                "early_termination": True,
                "termination_height": 0.74,
                "action_penalty": -0.002,
                "joint_vel_obs_scaling": 0.1,
                "termination_tolerance": 0.1,
                "height_rew_scale": 10.0,
                "up_rew_scale": 0.1,
                "heading_rew_scale": 1.0,
            },
        ),
        "dflex-snu-humanoid": Setting(
            "SNUHumanoidEnv",
            {
                "MM_caching_frequency": 8,
                "early_termination": True,
                "termination_height": 0.46,
                "termination_tolerance": 0.05,
                "height_rew_scale": 4.0,
                "up_rew_scale": 0.1,
                "heading_rew_scale": 1.0,
                "action_penalty": -1e-3,
                "joint_vel_obs_scaling": 0.1,
            },
        ),
        "dflex-cartpole": Setting("CartPoleSwingUpEnv", {"MM_caching_frequency": 8}, reads_urdf=True),
        "dflex-double-pendulum": Setting("DoublePendulumEnv", {"MM_caching_frequency": 8}, reads_urdf=True),
    }
)
