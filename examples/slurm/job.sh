# shellcheck shell=bash
# What every wrapper in this folder does inside its job; sourced by it, after `set -euo pipefail`.
#
# The array's task id is the seed, and stands for `{seed}` in every option. The run lies in RUN_ROOT/seed{seed}.
#
# Two minutes before the time is up Slurm sends USR1 to this shell alone (--signal=B:USR1@120). It is passed on; the
# trainer finishes its epoch, saves and exits with 75; the job goes back into the queue (which takes Slurm two
# minutes) and comes here again, where the run is resumed.
#
# FLOWMBPO  the command (default: flowmbpo on the PATH, or .venv/bin/flowmbpo)
# SETUP     a file to source first, which puts the command on the PATH or loads modules

run_stage() { # COMMAND [OPTIONS]
    local seed=${SLURM_ARRAY_TASK_ID:?submit an array whose task ids are the seeds, such as --array=0-2}
    local run=${RUN_ROOT:?the run directory without its last part, such as outputs/stage-a/mt30/stage-a-baseline}/seed$seed
    local name=${SLURM_JOB_NAME%_s"$seed"}_s$seed # a job that comes back has it already
    # Not SLURM_JOB_ID: of one task it is the id of the whole array.
    local job=${SLURM_ARRAY_JOB_ID}_$seed
    local trainer code=0 signalled=0 time_is_up=0

    # The tasks of an array share one name until they take their own.
    scontrol update JobId="$job" JobName="$name" || echo "the job keeps the name $SLURM_JOB_NAME" >&2
    if [ -n "${SETUP:-}" ]; then
        # shellcheck source=/dev/null
        source "$SETUP"
    fi
    echo "$(date -Is) $name on $(hostname), attempt $((${SLURM_RESTART_COUNT:-0} + 1)): $run"

    bash examples/run_or_resume.sh "$run" "${@//\{seed\}/$seed}" --seed "$seed" &
    trainer=$!
    trap 'signalled=1 time_is_up=1; kill -USR1 "$trainer" 2>/dev/null || true' USR1
    trap 'signalled=1; kill -TERM "$trainer" 2>/dev/null || true' TERM
    wait "$trainer" || code=$?
    while [ "$signalled" -eq 1 ]; do # a signal ended the waiting, not the trainer
        signalled=0 code=0
        wait "$trainer" || code=$?
    done
    if [ "$code" -eq 75 ] && [ "$time_is_up" -eq 1 ]; then
        echo "$(date -Is) saved; back into the queue"
        scontrol requeue "$job"
    fi
    return "$code"
}
