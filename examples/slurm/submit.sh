#!/usr/bin/env bash
# Submit one wrapper for several seeds; prints the job's id. From the top of the repository:
#
#   examples/slurm/submit.sh WRAPPER PHASE ENV CONFIG SEEDS [SBATCH OPTIONS] -- [OPTIONS OF THE COMMAND]
#   examples/slurm/submit.sh pretrain stage-a mt30 stage-a-baseline 0-2 --time=8:00:00 -- \
#       --preset stage-a-baseline --data data/mt30
#
# WRAPPER  pretrain, finetune, specialize or policy
# SEEDS    an array of Slurm's: 0-2, or 0,3,7, or 0-9%2
#
# Job    flowmbpo_PHASE_ENV_CONFIG_s{seed}
# Run    outputs/PHASE/ENV/CONFIG/seed{seed}
# Logs   logs/slurm/PHASE/ENV/train_CONFIG_seed{seed}_{job}.{out,err}
#
# FLOWMBPO and SETUP (see job.sh) and all else in the environment go with the job.
set -euo pipefail

if [ $# -lt 5 ]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
wrapper=$1 phase=$2 env=$3 config=$4 seeds=$5
shift 5
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
done
[ $# -eq 0 ] || shift

script=examples/slurm/$wrapper.sbatch
if [ ! -f "$script" ]; then
    echo "$script: not found. Call from the top of the repository; wrappers: pretrain finetune specialize policy" >&2
    exit 2
fi
logs=logs/slurm/$phase/$env # sbatch makes no folders: without this one a job would end without a word
mkdir -p "$logs"
RUN_ROOT=outputs/$phase/$env/$config sbatch --parsable \
    --job-name="flowmbpo_${phase}_${env}_${config}" --array="$seeds" \
    --output="$logs/train_${config}_seed%a_%j.out" --error="$logs/train_${config}_seed%a_%j.err" \
    ${options[@]+"${options[@]}"} "$script" "$@"
