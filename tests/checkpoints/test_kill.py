"""A process killed while saving leaves a verified checkpoint with its own replay buffer."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from flowmbpo.checkpoints.load import load, load_replay, resolve
from flowmbpo.checkpoints.save import CheckpointStore

Checkpoint = tuple[dict[str, object], dict[str, object]]


def checkpoint(epoch: int) -> Checkpoint:
    agent = {"w": torch.full((64, 64), float(epoch))}
    steps = {"agent_steps": epoch, "env_steps": epoch}
    return {"config": {}, "epoch": epoch, **steps, "agent": agent}, {"obs": torch.full((32,), float(epoch))}


def save_in_a_loop(folder: Path, epoch: int, begun: int) -> None:
    """In a forked child: save until killed. It must never return into the test runner."""
    try:
        store = CheckpointStore(folder)
        os.write(begun, b"!")
        while True:
            epoch += 1
            store.save("latest", *checkpoint(epoch))
    finally:
        os._exit(1)


def kill_repeatedly(folder: Path, repeats: int, longest_s: float) -> list[int]:
    """Kill a saving process at random times; the epoch found on the disk after each kill."""
    chooser = random.Random(0)
    start = time.perf_counter()
    CheckpointStore(folder).save("latest", *checkpoint(0))
    longest_s = max(longest_s, 4.0 * (time.perf_counter() - start))  # a busy machine saves more slowly
    waits, begun = os.pipe()
    found = [0]
    for _ in range(repeats):
        child = os.fork()
        if child == 0:
            save_in_a_loop(folder, found[-1], begun)
        os.read(waits, 1)
        time.sleep(chooser.uniform(0.0, longest_s))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child failed by itself before it was killed"
        loaded = load(resolve(folder))
        assert loaded.verified
        epoch = loaded.payload["epoch"]
        assert bool((loaded.payload["agent"]["w"] == epoch).all())
        buffer = load_replay(loaded)
        assert buffer is not None and bool((buffer["obs"] == epoch).all())
        found.append(epoch)
    os.close(waits)
    os.close(begun)
    return found


def check(folder: Path, found: list[int]) -> None:
    assert found == sorted(found), "a committed checkpoint was lost"
    assert found[-1] > len(found) // 4, "the children were killed before they saved anything"
    CheckpointStore(folder).save("latest", *checkpoint(found[-1] + 1))
    left = sorted(file.name for file in folder.iterdir())
    assert left[:2] == ["latest.pt", "manifest.json"]
    assert len(left) == 3 and left[2].startswith("replay-"), f"garbage left behind: {left}"


def test_kill_at_any_point_leaves_a_verified_latest(tmp_path: Path) -> None:
    check(tmp_path, kill_repeatedly(tmp_path, repeats=12, longest_s=0.06))


@pytest.mark.slow
def test_three_hundred_kills_leave_a_verified_latest(tmp_path: Path) -> None:
    check(tmp_path, kill_repeatedly(tmp_path, repeats=300, longest_s=0.08))
