"""PWM's dflex data, as the published recorder writes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from flowmbpo.data.convert.conversion import convert
from flowmbpo.data.convert.detection import open_source
from flowmbpo.errors import DataError


@pytest.fixture
def recorded():
    """3 episodes of 6 transitions of dflex-ant, index 0 NaN, actions as the policy gave them: before the tanh."""
    generator = torch.Generator().manual_seed(0)
    obs, action = torch.randn(3, 7, 37, generator=generator), 2.0 * torch.randn(3, 7, 8, generator=generator)
    reward = torch.randn(3, 7, generator=generator)
    action[:, 0], reward[:, 0] = torch.nan, torch.nan
    return TensorDict({"obs": obs, "action": action, "reward": reward}, batch_size=(3, 7))


@pytest.mark.parametrize("name", ["ep_data_AntEnv_ep3.pt", "dflex_ant.pt", "ant.pt"])
def test_episodes_are_realigned_and_the_name_says_the_task(tmp_path, recorded, stored, name):
    torch.save(recorded, tmp_path / name)
    dataset = convert(open_source(tmp_path / name), tmp_path / "data")
    assert dataset.tasks[0].name == "dflex-ant"
    assert dataset.source["squash"] == "tanh"
    episodes = stored(dataset)
    assert sorted(episodes) == [0, 1, 2]
    for number, (_, obs, action, reward, terminated) in episodes.items():
        np.testing.assert_array_equal(obs, recorded["obs"][number].numpy())
        # Two libraries' tanh differ in the last bit.
        np.testing.assert_allclose(action, recorded["action"][number, 1:].tanh().numpy(), atol=2e-7)
        np.testing.assert_array_equal(reward, recorded["reward"][number, 1:].numpy())
        assert not terminated.any()


def test_actions_within_their_bounds_are_kept_as_they_are(tmp_path, recorded, stored):
    recorded["action"][:, 1:] = recorded["action"][:, 1:].tanh()
    torch.save(recorded, tmp_path / "ant.pt")
    dataset = convert(open_source(tmp_path / "ant.pt"), tmp_path / "data")
    assert dataset.source["squash"] == "none"
    np.testing.assert_array_equal(stored(dataset)[2][2], recorded["action"][2, 1:].numpy())


def test_squashing_can_be_decided_by_hand(tmp_path, recorded):
    torch.save(recorded, tmp_path / "ant.pt")
    assert open_source(tmp_path / "ant.pt", squash="none").options() == {"squash": "none"}


@pytest.mark.parametrize("key, shape", [("action", (3, 7)), ("obs", (3, 7)), ("reward", (3,)), ("obs", (3, 1, 37))])
def test_what_are_no_episodes_is_refused(tmp_path, recorded, key, shape):
    torch.save({**recorded, key: torch.zeros(shape)}, tmp_path / "ant.pt")
    with pytest.raises(DataError, match="are no episodes"):
        open_source(tmp_path / "ant.pt")


def test_a_file_without_episodes_is_refused(tmp_path, recorded):
    torch.save(recorded[:0].clone(), tmp_path / "ant.pt")
    with pytest.raises(DataError, match=r"ant\.pt: holds no episodes \(obs is \[0, 7, 37\]\)"):
        open_source(tmp_path / "ant.pt")


def test_another_tasks_widths_and_unknown_tasks_are_refused(tmp_path, recorded):
    torch.save(recorded, tmp_path / "data.pt")
    with pytest.raises(DataError, match=r"'data' is no task of dflex. Say which one it is with --task"):
        open_source(tmp_path / "data.pt")
    with pytest.raises(DataError, match="wrong widths: 37 observations and 8 actions, but dflex-hopper has 11 and 3"):
        open_source(tmp_path / "data.pt", task="dflex-hopper")
    with pytest.raises(DataError, match="--set mt30: PWM's dflex data are of one task"):
        open_source(tmp_path / "data.pt", set_name="mt30")
    assert open_source(tmp_path / "data.pt", task="dflex-ant").tasks[0].obs_dim == 37
    with pytest.raises(DataError, match=r"is a folder; PWM's dflex data are one file per task. Name one of data\.pt"):
        open_source(tmp_path)
