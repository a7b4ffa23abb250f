"""Drawing follows the episode by replaying it."""

from __future__ import annotations

import numpy as np
from scripted_simulator import TASK, ScriptedSimulator

from flowmbpo.envs.processes.rendering import FrameDrawer, drawer_handlers
from flowmbpo.envs.processes.worker import CPU, RENDER

ACTIONS = np.linspace(0, 0.5, 8, dtype=np.float32).reshape(4, 2)


class CountingSimulator(ScriptedSimulator):
    """Knows how many episodes and steps it was put through."""

    episodes = 0
    steps = 0

    def reset(self, seed, obs):
        super().reset(seed, obs)
        type(self).episodes += 1

    def step(self, action, obs):
        type(self).steps += 1
        return super().step(action, obs)


def test_only_new_steps_are_replayed_and_another_episode_starts_over(monkeypatch):
    monkeypatch.setattr(CountingSimulator, "episodes", 0)
    monkeypatch.setattr(CountingSimulator, "steps", 0)
    drawer = FrameDrawer(CountingSimulator, TASK)
    # (copy, episode, actions so far) -> picture (its step number), episodes begun, steps made in all
    visits = [
        ((3, 0, 0), ACTIONS[:0], 0, 1, 0),
        ((3, 0, 0), ACTIONS[:2], 2, 1, 2),
        ((3, 0, 0), ACTIONS[:3], 3, 1, 3),
        ((3, 1, 0), ACTIONS[:3], 3, 2, 6),
        ((3, 1, 1), ACTIONS[:3], 3, 3, 9),
        ((3, 1, 1), ACTIONS[:1], 1, 4, 10),  # back in time
        ((3, 1, 1), ACTIONS[1:3], 2, 5, 12),  # the same episode, other actions
    ]
    for episode, actions, picture, episodes, steps in visits:
        assert (drawer.frame(episode, actions) == picture).all()
        assert (CountingSimulator.episodes, CountingSimulator.steps) == (episodes, steps)


def test_a_drawing_process_answers_for_frames_and_its_time():
    handlers = drawer_handlers(ScriptedSimulator, TASK)
    assert handlers[RENDER](((3, 0, 0), ACTIONS)).max() == 4
    assert handlers[CPU](None) > 0
