#!/usr/bin/env bash
# The stages A -> B -> C in small, from nothing, on reacher-easy, walker-stand and cheetah-run:
#
#   three single-task runs -> a dataset of random, noise and their behaviour -> A: a world model, offline
#   -> B: online on all three tasks -> C: online on one of them -> returns of the policy and of a planner
#
# Finished steps are not repeated: call it again after an interruption.
#
# FLOWMBPO  the command (default: flowmbpo on the PATH, or .venv/bin/flowmbpo)
# OUT       where everything goes (default: outputs/pipeline-abc): collectors and dataset in seedSEED, A, B and C in
#           seedSEED/ARM, so that other values start other runs
# ARM       baseline | flowpolicy | flowwm | fullflow | residual (default: residual)
# TASK      the task of stage C (default: walker-stand)
# SEED      seed of every step (default: 0)
# QUICK=1   a smoke test: the same steps, too short to learn anything, in OUT/quick
#
# Sizes: COLLECTOR_EPOCHS, EPISODES (of each task and policy), A_EPOCHS, B_EPOCHS, C_EPOCHS, EVAL_EPISODES,
# PLANNER_EPISODES. Empty epochs mean the preset's own. What is finished keeps its size: give others another OUT.
set -euo pipefail

examples=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source-path=SCRIPTDIR source=command.sh
. "$examples/command.sh"
arm=${ARM:-residual}
task=${TASK:-walker-stand}
seed=${SEED:-0}
out=${OUT:-outputs/pipeline-abc}
if [ "${QUICK:-0}" = 1 ]; then
    out=$out/quick
    collector_epochs=${COLLECTOR_EPOCHS:-3} episodes=${EPISODES:-2}
    a_epochs=${A_EPOCHS:-3} b_epochs=${B_EPOCHS:-3} c_epochs=${C_EPOCHS:-3}
    eval_episodes=${EVAL_EPISODES:-3} planner_episodes=${PLANNER_EPISODES:-1}
    small=(--set evaluation.every=0 --set "evaluation.episodes=$eval_episodes" --set diagnostics.every=0
        --set training.warmup_model_updates=0)
    planner=(--planner-set samples=32 --planner-set elites=8 --planner-set iterations=2)
else
    collector_epochs=${COLLECTOR_EPOCHS:-2140} episodes=${EPISODES:-20}
    a_epochs=${A_EPOCHS:-} b_epochs=${B_EPOCHS:-} c_epochs=${C_EPOCHS:-}
    eval_episodes=${EVAL_EPISODES:-10} planner_episodes=${PLANNER_EPISODES:-2}
    small=()
    planner=()
fi
tasks="reacher-easy walker-stand cheetah-run"
collected=$out/seed$seed
data=$collected/data
stages=$collected/$arm

step() { printf '\n== %s\n' "$*"; }
run() { # RUN COMMAND [OPTIONS]
    FLOWMBPO=$flowmbpo bash "$examples/run_or_resume.sh" "$@" --seed "$seed" ${small[@]+"${small[@]}"}
}
again() { # this command for another task, with every variable that was set
    local name other=cheetah-run
    [ "$task" != "$other" ] || other=walker-stand
    for name in FLOWMBPO QUICK OUT ARM SEED COLLECTOR_EPOCHS EPISODES A_EPOCHS B_EPOCHS C_EPOCHS EVAL_EPISODES \
        PLANNER_EPISODES; do
        [ -z "${!name:-}" ] || printf '%s=%q ' "$name" "${!name}"
    done
    printf 'TASK=%s bash %q' "$other" "$examples/pipeline_abc.sh"
}
epochs() { [ -z "$1" ] || printf -- '--set training.epochs=%s' "$1"; } # no value holds a space

policies=(--policy random --policy noise)
for name in $tasks; do
    step "a policy for the data: $name"
    run "$collected/collector-$name" train --preset "dmc-latent-$name-residual" --set "training.epochs=$collector_epochs"
    policies+=(--policy "$collected/collector-$name:$name")
done

step "the dataset: $data"
if [ -e "$data/dataset.json" ] && grep -q '^ "complete": true' "$data/dataset.json"; then
    echo "done already: $data"
else
    "$flowmbpo" data collect "$data" --set mini3 "${policies[@]}" --episodes "$episodes" --seed "$seed"
fi
"$flowmbpo" data verify "$data"
"$flowmbpo" data inspect "$data"

# Word splitting of `epochs` is wanted: an option and its value, or nothing.
# shellcheck disable=SC2046
{
    step "stage A: a world model of three tasks, offline"
    run "$stages/a" pretrain --preset "mini3-a-$arm" --data "$data" $(epochs "$a_epochs")
    step "stage B: online on three tasks"
    run "$stages/b" finetune --preset "mini3-b-$arm" --from "$stages/a" $(epochs "$b_epochs")
    step "stage C: online on $task"
    run "$stages/c-$task" specialize --preset "mini3-c-$arm" --from "$stages/b" --task "$task" $(epochs "$c_epochs")
}

step "what the policy earns in $task"
"$flowmbpo" eval "$stages/c-$task" --episodes "$eval_episodes"
step "what a planner earns in the same world model"
"$flowmbpo" eval "$stages/c-$task" --planner mppi ${planner[@]+"${planner[@]}"} --episodes "$planner_episodes"

cat <<END

The dataset:      $data
Stages A, B, C:   $stages/a  $stages/b  $stages/c-$task
What C took over: $stages/c-$task/initial.json
What led to it:   $stages/c-$task/run.json   (outcome.lineage)
Another task:     $(again)   (repeats stage C alone)
END
