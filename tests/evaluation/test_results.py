"""Evaluation in the (scripted) real environment: which episodes count, what is said of them, and its files."""

import csv
import dataclasses
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from flowmbpo.envs.episodes import Fault
from flowmbpo.errors import EnvironmentFailure, StorageError
from flowmbpo.evaluation.results import RESULTS_SCHEMA, Evaluation, evaluate, write_results

NAN = float("nan")


def tenth_of_the_clock(obs, task_ids):
    """An action that only a closed loop can produce: it depends on the step inside the episode."""
    return obs[:, 2:] / 10


def sum_of_tenths(length):
    return sum(step / 10 for step in range(length))


def test_returns_are_sums_of_real_rewards_under_closed_loop_actions(scripted):
    env = scripted([(3, True, NAN), (5, False, NAN)])
    result = evaluate(tenth_of_the_clock, env, episodes=2, seed=0)
    assert result.returns == pytest.approx((0.3, 1.0), abs=1e-6)
    assert result.lengths == (3, 5)
    assert result.steps == 8 and result.length_mean == 4.0
    torch.testing.assert_close(torch.cat(env.actions).flatten()[:4], torch.tensor([0.0, 0.1, 0.2, 0.0]))


def test_short_episodes_are_not_preferred(scripted):
    """Taking the first four to finish would report four episodes of the short copy."""
    env = scripted([(1, True, NAN)], [(10, False, NAN)])
    assert evaluate(tenth_of_the_clock, env, episodes=4, seed=0).lengths == (1, 1, 10, 10)


def test_uneven_episodes_give_the_first_environments_one_more(scripted):
    env = scripted([(1, True, NAN)], [(2, True, NAN)], [(3, True, NAN)])
    assert evaluate(tenth_of_the_clock, env, episodes=5, seed=0).lengths == (1, 1, 2, 2, 3)
    assert evaluate(tenth_of_the_clock, env, episodes=2, seed=0).lengths == (1, 2)


def test_results_do_not_depend_on_how_long_others_take(scripted):
    lane = [(4, True, 1.0), (2, False, 0.0), (7, True, 1.0)]
    beside_short = evaluate(tenth_of_the_clock, scripted(lane, [(1, True, NAN)]), episodes=6, seed=0)
    beside_long = evaluate(tenth_of_the_clock, scripted(lane, [(50, True, NAN)]), episodes=6, seed=0)
    assert beside_short.lengths[:3] == beside_long.lengths[:3] == (4, 2, 7)
    assert beside_short.returns[:3] == beside_long.returns[:3]


def test_the_seed_reaches_the_environment(scripted):
    env = scripted([(3, True, NAN), (5, False, NAN)])
    assert evaluate(tenth_of_the_clock, env, episodes=1, seed=1).lengths == (5,)


def test_policy_is_told_each_task_and_results_name_it(scripted):
    env = scripted([(2, True, NAN)], [(2, True, NAN)], tasks=("walk", "run"), task_ids=[1, 0])
    result = evaluate(lambda obs, task_ids: task_ids.unsqueeze(1) / 2, env, episodes=2, seed=0)
    assert result.tasks == ("run", "walk")
    assert result.returns == (1.0, 0.0)


def test_success_is_of_the_last_step_or_absent(scripted):
    env = scripted([(3, True, 1.0), (3, True, 0.0)], [(2, False, NAN)])
    result = evaluate(tenth_of_the_clock, env, episodes=4, seed=0)
    assert result.successes == (1.0, 0.0, None, None)
    assert result.success == 0.5


def test_moments_are_those_of_the_episodes():
    result = Evaluation(returns=(1.0, 2.0, 6.0), lengths=(1, 2, 3), successes=(None,) * 3, tasks=("a",) * 3)
    assert result.return_mean == 3.0
    assert result.return_std == pytest.approx(math.sqrt(14 / 3))  # divided by n
    assert result.success is None
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["return_mean"] == 3.0


def test_one_episode_has_no_spread(scripted):
    assert evaluate(tenth_of_the_clock, scripted([(3, True, NAN)]), episodes=1, seed=0).return_std == 0.0


def test_a_non_finite_reward_is_reported_with_its_copy(scripted):
    env = scripted([(2, True, NAN)], [(2, True, NAN)])
    with pytest.raises(EnvironmentFailure, match="copy 1"):
        evaluate(lambda obs, task_ids: torch.tensor([[0.0], [NAN]]), env, episodes=2, seed=0)


def test_zero_episodes_are_refused(scripted):
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(tenth_of_the_clock, scripted([(2, True, NAN)]), episodes=0, seed=0)


def test_evaluation_is_bit_equal_when_repeated(scripted):
    env = scripted([(4, True, 1.0), (9, False, 0.0)], [(6, True, NAN)])
    first = evaluate(tenth_of_the_clock, env, episodes=5, seed=3)
    assert evaluate(tenth_of_the_clock, env, episodes=5, seed=3) == first
    assert first.returns[0] == pytest.approx(sum_of_tenths(9), abs=1e-6)


class BreakingEnv:
    """A scripted environment whose first copy breaks at its second step, once or always."""

    def __init__(self, env, always=False):
        self.env, self.always, self.calls = env, always, 0
        self.spec, self.num_envs, self.task_ids = env.spec, env.num_envs, env.task_ids

    def reset(self, seed):
        return self.env.reset(seed)

    def step(self, action):
        step = self.env.step(action)
        self.calls += 1
        if self.calls != 2 and not self.always:
            return step
        self.env.clock[0] = 0
        fault = Fault(0, "scripted", 0, 0, 2, "a result is absurd", "state", np.zeros((1, 1), np.float32))
        obs = torch.tensor([self.env.observe(copy) for copy in range(self.num_envs)])
        return dataclasses.replace(step, obs=obs, final_obs=obs, terminated=step.terminated & False, faults=(fault,))


def test_a_broken_episode_is_run_again_and_counted(scripted, caplog):
    env = BreakingEnv(scripted([(3, True, NAN)], [(9, True, NAN)]))
    result = evaluate(tenth_of_the_clock, env, episodes=2, seed=0)
    assert result.faults == 1
    assert result.lengths == (3, 9)
    assert result.returns[0] == pytest.approx(0.3)
    assert "environment 0 broke in step 2" in caplog.text


def test_an_environment_that_only_breaks_is_an_error(scripted):
    env = BreakingEnv(scripted([(3, True, NAN)], [(9, True, NAN)]), always=True)
    with pytest.raises(EnvironmentFailure, match="3 episodes broke while 2 were to be evaluated"):
        evaluate(tenth_of_the_clock, env, episodes=2, seed=0)


def test_figures_are_given_per_task():
    result = Evaluation((1.0, 3.0, 10.0), (1, 1, 1), (1.0, 0.0, None), ("walk", "walk", "run"))
    assert result.per_task() == {
        "walk": {"episodes": 2, "return_mean": 2.0, "success": 0.5},
        "run": {"episodes": 1, "return_mean": 10.0, "success": None},
    }


def test_policies_that_remember_are_told_where_episodes_begin(scripted):
    env = scripted([(2, True, NAN), (3, False, NAN)], [(4, True, NAN)])
    told = []

    def policy(obs, task_ids):
        told.append("act")
        return obs[:, :1] * 0

    evaluate(policy, env, episodes=3, seed=0, on_start=lambda begins: told.append(begins.tolist()))
    # steps:    1            2                          3      4 (copy 1 is stepped on)         5
    assert told == [[True, True], "act", "act", [True, False], "act", "act", [False, True], "act"]


def test_episodes_that_follow_a_fault_are_begun_too(scripted, monkeypatch):
    env = scripted([(3, True, NAN)])
    plain, told = env.step, []

    def breaks_once(action):
        step = plain(action)
        if len(env.actions) != 2:
            return step
        obs = env.reset(1)
        fault = Fault(0, "scripted", 0, 0, 2, "a result is absurd", "state", np.zeros((1, 1), np.float32))
        return dataclasses.replace(step, obs=obs, final_obs=obs, faults=(fault,))

    monkeypatch.setattr(env, "step", breaks_once)
    evaluate(
        tenth_of_the_clock, env, episodes=1, seed=0, on_start=lambda begins: told.append((len(env.actions), begins))
    )
    assert told == [(0, torch.tensor([True])), (2, torch.tensor([True]))]


SHA = "0123456789abcdef" * 4
META = {
    "checkpoint": "outputs/run/checkpoints/best.pt",
    "checkpoint_sha256": SHA,
    "seed": 7,
    "task": "walker-stand",
    "planner": {"kind": "policy"},
}
EVALUATION = Evaluation(
    returns=(1.5, 0.1 + 0.2), lengths=(3, 4), successes=(1.0, None), tasks=("walker-stand", "walker-stand")
)


def test_names_carry_checkpoint_hash_and_seed(tmp_path):
    path = write_results(tmp_path / "results" / "deep", EVALUATION, META)
    stem = "best-0123456789ab-seed7"
    assert path.name == f"{stem}.json"
    assert {each.name for each in path.parent.iterdir()} == {f"{stem}.json", f"{stem}.csv", "README.md"}


def test_json_holds_the_evaluation_and_what_it_was_of(tmp_path):
    document = json.loads(write_results(tmp_path, EVALUATION, META).read_text())
    assert document == {"schema_version": RESULTS_SCHEMA, **META, **EVALUATION.to_dict()}
    assert document["success"] == 1.0 and document["return_mean"] == pytest.approx(0.9)


def test_csv_has_one_exact_row_per_episode(tmp_path):
    rows = list(csv.DictReader(write_results(tmp_path, EVALUATION, META).with_suffix(".csv").open()))
    assert [float(row["return"]) for row in rows] == list(EVALUATION.returns)
    assert [row["length"] for row in rows] == ["3", "4"]
    assert [row["success"] for row in rows] == ["1.0", ""]


def test_another_evaluation_of_the_same_checkpoint_and_seed_is_kept(tmp_path):
    first = write_results(tmp_path, EVALUATION, META)
    before = (first.read_bytes(), first.with_suffix(".csv").read_bytes())
    second = write_results(tmp_path, replace(EVALUATION, returns=(2.0, 2.0)), META)
    assert second.name == "best-0123456789ab-seed7-2.json"
    assert (first.read_bytes(), first.with_suffix(".csv").read_bytes()) == before
    assert json.loads(second.read_text())["returns"] == [2.0, 2.0]


def test_writing_the_same_evaluation_again_changes_nothing(tmp_path):
    write_results(tmp_path, EVALUATION, META)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write_results(tmp_path, EVALUATION, META)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_readme_names_every_checkpoint_and_its_whole_hash(tmp_path):
    write_results(tmp_path, EVALUATION, META)
    other = {**META, "checkpoint": "latest.pt", "checkpoint_sha256": "f" * 64}
    readme = (write_results(tmp_path, EVALUATION, other).parent / "README.md").read_text()
    assert f"| `outputs/run/checkpoints/best.pt` | `{SHA}` | walker-stand | 7 | 2 | 0.9 +- 0.6 | 1.00 |" in readme
    assert f"| `latest.pt` | `{'f' * 64}` |" in readme


def test_foreign_files_in_the_folder_do_no_harm(tmp_path):
    (tmp_path / "other-seed1.json").write_text("{")
    assert write_results(tmp_path, EVALUATION, META).exists()
    assert "| `other-seed1` | not readable |" in (tmp_path / "README.md").read_text()


def test_evaluations_of_another_schema_version_are_named_and_not_read(tmp_path):
    first = write_results(tmp_path, EVALUATION, META)
    first.write_text(json.dumps({**json.loads(first.read_text()), "schema_version": 1}))
    write_results(tmp_path, EVALUATION, {**META, "seed": 8})
    said = "schema version 1; this flowmbpo reads 2: evaluate the checkpoint again"
    assert said in (tmp_path / "README.md").read_text()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_results(tmp_path / "file", EVALUATION, META)


def test_a_refused_write_leaves_no_claim_behind(tmp_path, monkeypatch):
    def full_disk(path, data):
        raise StorageError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("flowmbpo.evaluation.results.write_bytes_atomic", full_disk)
    with pytest.raises(StorageError, match="No space"):
        write_results(tmp_path, EVALUATION, META)
    assert not list(tmp_path.iterdir())
