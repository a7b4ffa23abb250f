"""Signal to noise of a checkpoint's gradients: the actor's in two variants, and the world model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from flowmbpo.diagnostics.diagnosis import Diagnosis, Row
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.esnr.estimate import Esnr, esnr_from_gram
from flowmbpo.diagnostics.esnr.samples import Gradient, actor_gradients, collect, model_gradients
from flowmbpo.diagnostics.statistics import Interval
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.errors import NonFiniteError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GradientSnr:
    """ESNR of one kind of gradient, each estimate of it from `batch` samples `of`; of `size` coordinates.

    `per_coordinate` is PWM's figure (see `per_coordinate_snr`), not comparable with `esnr`.
    """

    esnr: Esnr
    per_coordinate: Interval
    batch: int
    of: str
    size: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            **self.esnr.to_dict(),
            "N": self.batch,
            "N_of": self.of,
            "coordinates": self.size,
            "per_coordinate_snr": self.per_coordinate.to_dict(),
        }


@dataclass(frozen=True)
class EsnrDiagnosis(Diagnosis):
    """`policy`: start states fixed; `total`: drawn again; `model`: the world model's loss over fresh windows."""

    name: ClassVar[str] = "esnr"
    policy: GradientSnr
    total: GradientSnr
    model: GradientSnr
    horizon: int
    source: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; an infinite ESNR has `value` null and `infinite` true."""
        return {
            "horizon": self.horizon,
            "actor": {"policy": self.policy.to_dict(), "total": self.total.to_dict()},
            "model": self.model.to_dict(),
            "samples_from": self.source,
        }

    def rows(self) -> list[Row]:
        """ESNR, gradient length and PWM's figure of each kind."""
        kinds = {
            "actor, total": (self.total, "start states drawn again"),
            "actor, policy": (self.policy, "start states fixed"),
            "world model": (self.model, "fresh windows"),
        }
        found: list[Row] = []
        for name, (snr, drawn) in kinds.items():
            found.append((f"ESNR: {name}", f"{snr.esnr}, N {snr.batch} {snr.of} ({drawn})"))
            found.append((f"  length of a gradient: {name}", f"{snr.esnr.norm}, {snr.size:,} coordinates"))
            found.append((f"  per-coordinate SNR (PWM's code): {name}", str(snr.per_coordinate)))
        found.append(("imagined steps of the actor's gradient", str(self.horizon)))
        found.append(("samples come from", self.source))
        return found

    def draw(self, figure: Figure) -> None:
        """ESNR with its interval, on a scale that is linear near zero and logarithmic beyond."""
        axes = figure.subplots()
        kinds = {"actor\n(total)": self.total, "actor\n(policy)": self.policy, "world model": self.model}
        for place, snr in enumerate(kinds.values()):
            estimate = snr.esnr
            if estimate.value is None:
                axes.annotate("infinite", (place, 1.0), ha="center")
                continue
            axes.plot(place, estimate.value, "o", color="#4477aa")
            if estimate.interval is not None:
                axes.vlines(place, estimate.interval.low, estimate.interval.high, color="#4477aa")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.axhline(0.0, color="0.6", linewidth=0.8)
        axes.set_xticks(range(len(kinds)), [f"{name}\nN {snr.batch}" for name, snr in kinds.items()])
        axes.set_xlim(-0.5, len(kinds) - 0.5)
        axes.set_ylabel(f"ESNR, M {self.total.esnr.gradients}")


def measure_esnr(subject: Subject, effort: Effort) -> EsnrDiagnosis:
    """Draw `effort.gradients` gradients of each kind. Raises NonFiniteError where one is not finite."""
    training = subject.config.training

    def measure(kind: str, gradient: Gradient, batch: int, of: str) -> GradientSnr:
        sample = collect(gradient, effort.gradients)
        estimate = esnr_from_gram(sample.gram, subject.generator(f"esnr/bootstrap/{kind}"), effort.resamples)
        return GradientSnr(estimate, sample.per_coordinate, batch, of, sample.size)

    states = "start states"
    if training.noise_replicas > 1:
        states += f" rolled out {training.noise_replicas} times each"
    return EsnrDiagnosis(
        policy=measure("policy", actor_gradients(subject, "fixed"), subject.batch_size, states),
        total=measure("total", actor_gradients(subject, "resampled"), subject.batch_size, states),
        model=measure("model", model_gradients(subject), training.wm_batch_size, "windows"),
        horizon=subject.actor_horizon,
        source=subject.windows_source,
    )


def light_esnr(subject: Subject, effort: Effort) -> dict[str, float]:
    """Unbiased ESNR of the actor (`total`) and of the world model from few gradients: rough, without interval.

    A figure that is infinite, or whose gradient is not finite (the update guards count those), is left out.
    """
    found = {}
    wanted = [("esnr/actor", actor_gradients(subject, "resampled"))] if subject.trains_policy else []
    wanted += [("esnr/model", model_gradients(subject))] if subject.trains_model else []
    for key, gradient in wanted:
        try:
            estimate = esnr_from_gram(collect(gradient, effort.gradients).gram)
        except NonFiniteError:
            continue
        if estimate.value is not None:
            found[key] = estimate.value
    return found
