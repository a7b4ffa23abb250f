"""The toy system behind each `toy-*` task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from flowmbpo.envs.toy.bounce import SOFT, STIFF, Bounce
from flowmbpo.envs.toy.cartpole import CartPole, HiddenCartPole, PushedCartPole
from flowmbpo.envs.toy.lqr import Regulator
from flowmbpo.envs.toy.maps import ShiftedMap, fold_map, inelastic_map, smooth_map
from flowmbpo.envs.toy.pendulum import HiddenPendulum, Pendulum, PushedPendulum
from flowmbpo.envs.toy.risk import Gust, Pillar, RarePush, SkewPush, Slip
from flowmbpo.envs.toy.system import ToySystem
from flowmbpo.envs.toy.two_goals import TwoGoals
from flowmbpo.spec import TaskInfo

_SYSTEMS: Mapping[str, Callable[[TaskInfo], ToySystem]] = MappingProxyType(
    {
        "toy-pendulum-swingup": Pendulum,
        "toy-pendulum-push": PushedPendulum,
        "toy-pendulum-hidden": HiddenPendulum,
        "toy-cartpole-swingup": CartPole,
        "toy-cartpole-push": PushedCartPole,
        "toy-cartpole-hidden": HiddenCartPole,
        "toy-map-smooth": partial(ShiftedMap, follow=smooth_map),
        "toy-map-inelastic": partial(ShiftedMap, follow=inelastic_map),
        "toy-map-fold": partial(ShiftedMap, follow=fold_map),
        "toy-lqr": Regulator,
        "toy-two-goals": TwoGoals,
        "toy-bounce-soft": partial(Bounce, stiffness=SOFT),
        "toy-bounce-stiff": partial(Bounce, stiffness=STIFF),
        "toy-gust": Gust,
        "toy-rare-push": RarePush,
        "toy-skew-push": SkewPush,
        "toy-pillar": Pillar,
        "toy-slip": Slip,
    }
)


def toy_system(task: TaskInfo) -> ToySystem:
    """The system that a toy task runs."""
    return _SYSTEMS[task.name](task)
