"""Named sets of tasks, in their published order: a task's place is its id."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flowmbpo.errors import ConfigError, nearest

MT30: tuple[str, ...] = tuple(
    """
    walker-stand walker-walk walker-run cheetah-run reacher-easy reacher-hard acrobot-swingup
    pendulum-swingup cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse
    cup-catch finger-spin finger-turn-easy finger-turn-hard fish-swim hopper-stand hopper-hop
    walker-walk-backwards walker-run-backwards cheetah-run-backwards cheetah-run-front cheetah-run-back
    cheetah-jump hopper-hop-backwards reacher-three-easy reacher-three-hard cup-spin pendulum-spin
    """.split()  # noqa: SIM905  ninety lines otherwise
)
"""TD-MPC2's 30 tasks of DMControl (Hansen et al. 2024)."""

MT50: tuple[str, ...] = tuple(
    """
    mw-assembly mw-basketball mw-button-press-topdown mw-button-press-topdown-wall mw-button-press
    mw-button-press-wall mw-coffee-button mw-coffee-pull mw-coffee-push mw-dial-turn mw-disassemble
    mw-door-open mw-door-close mw-drawer-close mw-drawer-open mw-faucet-open mw-faucet-close mw-hammer
    mw-handle-press-side mw-handle-press mw-handle-pull-side mw-handle-pull mw-lever-pull
    mw-peg-insert-side mw-peg-unplug-side mw-pick-out-of-hole mw-pick-place mw-pick-place-wall
    mw-plate-slide mw-plate-slide-side mw-plate-slide-back mw-plate-slide-back-side mw-push-back mw-push
    mw-push-wall mw-reach mw-reach-wall mw-shelf-place mw-soccer mw-stick-push mw-stick-pull
    mw-sweep-into mw-sweep mw-window-open mw-window-close mw-bin-picking mw-box-close mw-door-lock
    mw-door-unlock mw-hand-insert
    """.split()  # noqa: SIM905  ninety lines otherwise
)
"""The 50 tasks of Meta-World, in the order in which TD-MPC2's MT80 numbers them from 30."""

TASK_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"mt30": MT30, "mt80": MT30 + MT50, "mini3": ("reacher-easy", "walker-stand", "cheetah-run")}
)
"""The tasks that one agent learns together; their order is the task id."""


def task_set(name: str, *, key: str = "task.set") -> tuple[str, ...]:
    """The tasks of the set called `name`; raises ConfigError, which names `key`, where there is none."""
    if name not in TASK_SETS:
        raise ConfigError(
            f"{key}: no task set is called '{name}'.{nearest(name, TASK_SETS)} Task sets: {', '.join(TASK_SETS)}."
        )
    return TASK_SETS[name]
