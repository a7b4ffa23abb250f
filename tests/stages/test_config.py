"""What a stage's command line comes to: task, weights, data, defaults and the run's name."""

from dataclasses import replace
from pathlib import Path

import pytest

from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import ConfigError
from flowmbpo.presets.load import load_experiment
from flowmbpo.stages.config import Request, placed, stage_config

CKPT = Path("a/checkpoints/latest.pt")


def source(preset="mini3-a-residual", **changes):
    return load_experiment(preset).model_copy(update=changes)


def test_pretraining_is_offline_on_the_dataset_and_names_no_weights():
    config = stage_config(Request("pretrain", preset="mini3-a-flowwm", data=Path("some/data"), seed=3))
    assert (config.training.mode, config.training.learn) == ("offline", "model")
    assert config.data.path == str(Path("some/data").absolute()) and config.initial is None
    assert (config.name, config.phase, config.seed) == ("mini3-a-flowwm", "stage-a", 3)


def test_pretraining_the_model_alone_is_a_choice():
    config = stage_config(Request("pretrain", preset="mini3-a-flowwm", data=Path("d"), learn="model"))
    assert config.training.learn == "model"


def test_offline_start_states_are_pwms_where_the_config_names_none():
    config = stage_config(Request("pretrain", preset="dmc-latent-walker-stand-baseline", data=Path("d")))
    assert config.training.actor_batch_size == 64
    own = stage_config(Request("pretrain", preset="phase1-baseline", data=Path("d")))
    assert own.training.actor_batch_size == 512


@pytest.mark.parametrize("preset", [None, "mini3-c-residual"])
def test_specialising_keeps_the_whole_set_and_runs_one_task(preset):
    config = stage_config(
        Request("specialize", preset=preset, checkpoint=CKPT, source=source(), task="walker-stand", seed=1)
    )
    assert (config.task.set, config.task.only) == ("mini3", "walker-stand")
    assert resolve(config.task).label == "walker-stand"
    assert (config.training.mode, config.training.learn, config.phase) == ("online", "all", "stage-c")
    assert config.initial.checkpoint == str(CKPT.absolute()) and config.evaluation.at_start
    assert config.name == (preset or "stage-c") + "+from-mini3-a-residual"


def test_names_tell_the_whole_way():
    middle = stage_config(Request("finetune", preset="mini3-b-residual", checkpoint=CKPT, source=source()))
    last = stage_config(
        Request("specialize", preset="mini3-c-residual", checkpoint=CKPT, source=middle, task="reacher-easy")
    )
    assert last.name == "mini3-c-residual+from-mini3-b-residual+from-mini3-a-residual"


def test_a_long_chain_keeps_its_newest_stages_and_a_mark_of_the_rest():
    config, names = source(), []
    for epochs in range(1, 13):
        overrides = [f"training.epochs={epochs}"]
        config = stage_config(
            Request("specialize", checkpoint=CKPT, source=config, task="walker-stand", overrides=overrides)
        )
        names.append(config.name)
    assert max(map(len, names)) <= 128 and len(set(names)) == 12
    *_, before, last = names
    assert last.startswith("stage-c+") and last.split("+from-")[1] == before.split("+from-")[0]
    assert last.split("+from-")[-1].startswith("earlier-")
    config_of(last)  # a folder may be called so


def config_of(name):
    return load_experiment("mini3-c-residual").model_validate(source().model_dump() | {"name": name})


@pytest.mark.parametrize(
    ("flag", "value", "key"), [("learn", "all", "training.learn"), ("embedding_from", "reacher-easy", None)]
)
def test_a_flag_that_changes_the_experiment_marks_the_name(flag, value, key):
    request = Request("pretrain", preset="mini3-a-residual", checkpoint=CKPT, source=source(), data=Path("d"))
    plain, flagged = stage_config(request), stage_config(replace(request, **{flag: value}))
    assert plain.name == "mini3-a-residual+from-mini3-a-residual"
    assert flagged.name.startswith("mini3-a-residual+") and flagged.name != plain.name
    if key is not None:
        assert stage_config(replace(request, overrides=[f"{key}={value}"])).name == flagged.name
    same = stage_config(replace(request, learn=plain.training.learn))
    assert same.name == plain.name


def test_an_embedding_of_no_checkpoint_is_refused():
    with pytest.raises(ConfigError, match=r"--embedding-from walker-stand.*--from CKPT"):
        stage_config(Request("finetune", preset="mini3-b-residual", embedding_from="walker-stand"))


@pytest.mark.parametrize("stage", ["train", "pretrain"])
def test_what_an_earlier_stage_left_alone_is_learnt_again(stage):
    frozen = source("mini3-policy-residual")
    config = stage_config(Request(stage, checkpoint=CKPT, source=frozen, data=Path("d")))
    assert config.training.learn == "all"
    model_alone = stage_config(Request(stage, checkpoint=CKPT, source=source(), data=Path("d")))
    assert model_alone.training.learn == ("all" if stage == "train" else "model")


def test_an_override_wins_over_the_stage_and_marks_the_name():
    config = stage_config(
        Request(
            "specialize",
            checkpoint=CKPT,
            source=source(),
            task="reacher-easy",
            overrides=["training.epochs=7", "evaluation.at_start=false"],
        )
    )
    assert config.training.epochs == 7 and not config.evaluation.at_start
    plain, mark, rest = config.name.split("+")
    assert (plain, len(mark), rest) == ("stage-c", 6, "from-mini3-a-residual")


def test_a_task_that_the_checkpoint_never_saw_joins_its_set():
    config = stage_config(Request("specialize", checkpoint=CKPT, source=source(), task="walker-walk"))
    assert config.task.set == "mini3-with-walker-walk" and config.task.only == "walker-walk"
    assert config.task.tasks == ("reacher-easy", "walker-stand", "cheetah-run", "walker-walk")


def test_a_single_task_s_checkpoint_goes_to_the_other_task_itself():
    single = load_experiment("dmc-latent-walker-stand-residual")
    config = stage_config(Request("specialize", checkpoint=CKPT, source=single, task="cheetah-run"))
    assert (config.task.name, config.task.set, config.task.only) == ("cheetah-run", None, None)


def test_going_on_from_one_task_of_a_set_to_all_of_them():
    one = stage_config(Request("specialize", checkpoint=CKPT, source=source(), task="walker-stand"))
    back = stage_config(Request("finetune", checkpoint=CKPT, source=one))
    assert back.task.set == "mini3" and back.task.only is None


def test_a_policy_alone_learns_offline_in_a_frozen_model():
    config = stage_config(
        Request(
            "policy",
            preset="phase3-mt30-flowpolicy",
            checkpoint=CKPT,
            source=load_experiment("stage-a-baseline"),
            data=Path("d"),
            task="walker-stand",
        )
    )
    assert (config.training.mode, config.training.learn) == ("offline", "policy")
    assert (config.task.set, config.task.only, config.phase) == ("mt30", "walker-stand", "phase3")


def test_a_preset_of_another_published_set_is_refused():
    with pytest.raises(ConfigError, match=r"phase3-mt80-baseline is for the task set 'mt80'.*knows 'mt30'"):
        stage_config(
            Request(
                "policy",
                preset="phase3-mt80-baseline",
                checkpoint=CKPT,
                source=load_experiment("stage-a-baseline"),
                data=Path("d"),
                task="walker-stand",
            )
        )


def test_neither_preset_nor_checkpoint_is_refused_with_both_named():
    with pytest.raises(ConfigError, match=r"needs a preset .*or a checkpoint"):
        stage_config(Request("finetune"))


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"walker-stnd.*walker-stand"):
        stage_config(Request("specialize", checkpoint=CKPT, source=source(), task="walker-stnd"))


def test_a_member_that_is_not_in_the_set_is_refused():
    config = load_experiment("mini3-c-residual", ["task.only=hopper-hop"])
    with pytest.raises(ConfigError, match=r"task\.only: 'hopper-hop' is not one of the tasks of 'mini3'"):
        resolve(config.task)


def test_placing_keeps_copies_and_disturbances():
    known = load_experiment("mini3-c-residual", ["task.num_envs=5", "task.perturbation.rate=0.1"]).task
    there = placed(known, "cheetah-run")
    assert (there.num_envs, there.perturbation.rate, there.only) == (5, 0.1, "cheetah-run")


def test_going_online_from_an_offline_checkpoint_collects_as_an_online_run_does():
    config = stage_config(Request("specialize", checkpoint=CKPT, source=source(), task="walker-stand"))
    assert (config.training.random_episodes, config.training.actor_batch_size) == (1, None)
    kept = stage_config(Request("finetune", checkpoint=CKPT, source=source("mini3-b-residual", name="b")))
    assert kept.training.actor_batch_size == 128


def test_a_preset_of_an_offline_stage_is_no_online_stage_s():
    with pytest.raises(ConfigError, match=r"mini3-a-residual is of an offline stage.*`finetune` learns online"):
        stage_config(Request("finetune", preset="mini3-a-residual", checkpoint=CKPT, source=source()))
