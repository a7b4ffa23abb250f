"""The source's world model on the target's tasks: what teaches dynamics that cannot be loaded."""

from __future__ import annotations

from dataclasses import replace

import torch

from flowmbpo.models.agent import Agent
from flowmbpo.models.transfer.agent import transfer
from flowmbpo.models.transfer.source import Architecture, SourceAgent
from flowmbpo.models.transfer.widths import adopt_widths
from flowmbpo.models.world_model import WorldModel


def teacher_model(source: SourceAgent, target: Agent, *, embedding_from: str | None = None) -> WorldModel:
    """A frozen world model like the target's, with the source's dynamics, on the target's device.

    It speaks the target's tasks and widths, and its encoder and reward head are what `transfer` puts into the target.
    The global random generator is left as it was. Raises as `transfer` does.
    """
    asked = Architecture.of(target)
    theirs = asked.model.model_copy(update={"dynamics": source.model.dynamics})
    model, actor = adopt_widths(theirs, asked.actor, asked.spec, source)
    with torch.random.fork_rng(devices=[]):
        agent = replace(asked, model=model, actor=actor).build()
    agent.to(next(target.parameters()).device)
    transfer(source, agent, embedding_from=embedding_from)
    return agent.world_model.requires_grad_(False).eval()
