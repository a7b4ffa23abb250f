#!/usr/bin/env bash
# A -> B -> C as three arrays of jobs, one seed per task; every stage begins when the one before it has succeeded
# for all seeds, and is cancelled where it failed. Options given here go to sbatch. From the top of the repository:
#
#   DATA=data/mt30 examples/slurm/submit_abc.sh --partition=gpu --time=32:00:00
#   FAMILY=mini3 ENV=mini3 DATA=data/mini3 examples/slurm/submit_abc.sh --gres=none --cpus-per-task=1 --mem=4G
#
# DATA    the dataset of stage A (required)
# FAMILY  the presets' family: stage, or mini3 (default: stage)
# ENV     the name of its task set (default: mt30)
# ARM     baseline, flowpolicy, flowwm, fullflow or residual (default: baseline)
# TASK    the task of stage C (default: walker-stand)
# SEEDS   an array of Slurm's (default: 0-2)
# FLOWMBPO, SETUP  see job.sh
set -euo pipefail

data=${DATA:?the dataset of stage A, such as data/mt30}
family=${FAMILY:-stage} env=${ENV:-mt30} arm=${ARM:-baseline} task=${TASK:-walker-stand} seeds=${SEEDS:-0-2}
submit=examples/slurm/submit.sh
# Named as the commands name their runs: after the preset and what it began from.
a=$family-a-$arm
b=$family-b-$arm+from-$a
c=$family-c-$arm+from-$b
after() { printf -- '--dependency=afterok:%s' "$1"; }

job_a=$(bash "$submit" pretrain stage-a "$env" "$a" "$seeds" "$@" -- --preset "$a" --data "$data")
job_b=$(bash "$submit" finetune stage-b "$env" "$b" "$seeds" "$@" "$(after "$job_a")" --kill-on-invalid-dep=yes -- \
    --preset "$family-b-$arm" --from "outputs/stage-a/$env/$a/seed{seed}")
job_c=$(bash "$submit" specialize stage-c "$task" "$c" "$seeds" "$@" "$(after "$job_b")" --kill-on-invalid-dep=yes -- \
    --preset "$family-c-$arm" --from "outputs/stage-b/$env/$b/seed{seed}" --task "$task")
echo "A $job_a   B $job_b   C $job_c"
