"""Fixed-step explicit Runge-Kutta integrators over flow time tau in [0, 1], differentiable."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Step = Callable[[Velocity, Tensor, float, float], Tensor]


def euler(velocity: Velocity, y: Tensor, tau: float, dt: float) -> Tensor:
    """First order, one evaluation."""
    return y + dt * velocity(y, tau)


def heun(velocity: Velocity, y: Tensor, tau: float, dt: float) -> Tensor:
    """Explicit trapezoidal rule; second order, two evaluations."""
    k1 = velocity(y, tau)
    k2 = velocity(y + dt * k1, tau + dt)
    return y + (0.5 * dt) * (k1 + k2)


def midpoint(velocity: Velocity, y: Tensor, tau: float, dt: float) -> Tensor:
    """Explicit midpoint rule; second order, two evaluations."""
    return y + dt * velocity(y + (0.5 * dt) * velocity(y, tau), tau + 0.5 * dt)


def rk4(velocity: Velocity, y: Tensor, tau: float, dt: float) -> Tensor:
    """Classical Runge-Kutta; fourth order, four evaluations."""
    k1 = velocity(y, tau)
    k2 = velocity(y + (0.5 * dt) * k1, tau + 0.5 * dt)
    k3 = velocity(y + (0.5 * dt) * k2, tau + 0.5 * dt)
    k4 = velocity(y + dt * k3, tau + dt)
    return y + (dt / 6.0) * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


STEPS: dict[str, Step] = {"euler": euler, "heun": heun, "midpoint": midpoint, "rk4": rk4}


def integrate(
    velocity: Velocity,
    y: Float[Tensor, "B D"],
    *,
    method: str,
    substeps: int,
    perturb: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "B D"]:
    """y(1) from y(0) = y under dy/dtau = velocity(y, tau), in `substeps` equal steps of `method`.

    `perturb`, where given, is applied to the state after every substep (noise per substep).
    Costs `substeps * STAGES[method]` (`flowmbpo.config.dynamics`) velocity evaluations.
    """
    step = STEPS[method]
    dt = 1.0 / substeps
    for k in range(substeps):
        y = step(velocity, y, k * dt, dt)
        if perturb is not None:
            y = perturb(y)
    return y
