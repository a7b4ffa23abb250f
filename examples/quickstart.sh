#!/usr/bin/env bash
# Train the small default agent, evaluate it in the real environment, and say where to look.
# Every call trains into a fresh numbered folder: nothing is overwritten.
#
# FLOWMBPO    the command (default: flowmbpo on the PATH, or .venv/bin/flowmbpo)
# RUNS        where the numbered run folders go
# TRAIN_ARGS  more arguments for `flowmbpo train`, such as "--seed 3"
# EVAL_ARGS   more arguments for `flowmbpo eval`, such as "--episodes 100"
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=command.sh
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
runs=${RUNS:-outputs/make-quickstart}

number=1
while [ -e "$runs/$(printf 'run-%03d' "$number")" ]; do
    number=$((number + 1))
done
run=$runs/$(printf 'run-%03d' "$number")

# Word splitting is wanted: both are lists of arguments.
# shellcheck disable=SC2086
"$flowmbpo" train --preset quickstart --out "$run" ${TRAIN_ARGS:-}
# shellcheck disable=SC2086
"$flowmbpo" eval "$run" --plot "$run/learning-curve.png" ${EVAL_ARGS:-}

cat <<END

The run:         $run
Learning curve:  $run/learning-curve.png
Metrics:         $run/metrics.jsonl   (one JSON object a line)
Configuration:   $run/config.yaml   (complete: it rebuilds the run)
Watch it act:    $flowmbpo eval $run --video pendulum.mp4
The baseline:    $flowmbpo train --preset quickstart-baseline
All presets:     $flowmbpo presets list
END
