"""The light diagnostics that a run makes of itself, between epochs."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Mapping
from typing import Any

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.health.finding import Finding
from flowmbpo.diagnostics.light import measure_light
from flowmbpo.diagnostics.subject import Origin, Subject
from flowmbpo.errors import FlowMBPOError
from flowmbpo.runs.build import initial_agent
from flowmbpo.training.trainer import Trainer

log = logging.getLogger("flowmbpo")


class SelfDiagnosis:
    """Measures the trainer's agent every `diagnostics.every` epochs and warns once of what it finds.

    It draws from generators of its own, seeded by the run's seed and the epoch, and leaves weights,
    statistics and modes as they are: a run with it is bit-equal to one without. `findings` are the
    names found so far and `seconds` what all of it took; both belong to a checkpoint (`state`).
    """

    def __init__(self, config: ExperimentConfig, trainer: Trainer, state: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.trainer = trainer
        self.effort = Effort.light(config.diagnostics)
        self.findings: list[str] = list(state["findings"]) if state is not None else []
        self.seconds = float(state["seconds"]) if state is not None else 0.0

    @property
    def due(self) -> bool:
        """Whether the epoch that just ended is one to measure after."""
        every = self.config.diagnostics.every
        return every > 0 and self.trainer.epoch % every == 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"findings": list(self.findings), "seconds": self.seconds}

    def measure(self) -> dict[str, float]:
        """The metrics of this moment, and the seconds that they took.

        A measurement that fails is warned of and costs no training.
        """
        began = time.monotonic()
        metrics: dict[str, float] = {}
        agent = self.trainer.agent
        mode = agent.training
        agent.eval()
        try:
            light = measure_light(self.subject(), self.effort)
            metrics |= light.metrics
            metrics["health/findings"] = float(len(light.findings))
            for finding in light.findings:
                self._warn(finding)
        except FlowMBPOError as error:
            log.warning("epoch %d: the run could not be diagnosed: %s; it goes on", self.trainer.epoch, error)
        except Exception:  # a measurement may fail in any way; the training must not be lost with it
            log.exception("epoch %d: the run could not be diagnosed; it goes on", self.trainer.epoch)
        finally:
            agent.train(mode)
        seconds = time.monotonic() - began
        self.seconds += seconds
        return metrics | {"diagnostics/seconds": seconds}

    def subject(self) -> Subject:
        """The trainer's agent as it stands, with draws of this epoch."""
        trainer = self.trainer
        return Subject(
            trainer.agent,
            self.config,
            device=trainer.device,
            seed=zlib.crc32(f"{self.config.seed} {trainer.epoch}".encode()) >> 1,
            make_env=None,
            origin=Origin(epoch=trainer.epoch, env_steps=trainer.env_steps, nonfinite=trainer.nonfinite),
            replay=trainer.replay,
            optimisers={name: optimiser.state_dict() for name, optimiser in trainer.optimisers.items()},
            initial=lambda: initial_agent(self.config),
            episodes=0,
        )

    def _warn(self, finding: Finding) -> None:
        if finding.name in self.findings:
            return
        self.findings.append(finding.name)
        log.warning("epoch %d: %s: %s", self.trainer.epoch, finding.name, finding.message)
