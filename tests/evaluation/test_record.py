"""Frames of whole episodes."""

import torch

from flowmbpo.evaluation.record import record_episodes


def test_every_observation_that_is_acted_upon_gives_one_frame(scripted):
    env = scripted([(3, True), (2, False), (9, True)], [(1, True)])
    frames = list(record_episodes(lambda obs, task_ids: obs[:, :1], env, episodes=2, seed=0))
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1, 2, 10, 11]
    assert all(frame.shape == (2, 2, 3) and frame.dtype == "uint8" for frame in frames)


def test_recording_leaves_the_caller_s_gradients_on(scripted):
    frames = record_episodes(lambda obs, task_ids: obs[:, :1], scripted([(3, True)]), episodes=1, seed=0)
    next(frames)
    next(frames)
    assert torch.is_grad_enabled()
