#!/usr/bin/env bash
# Bring a run to its end, wherever it stands: start it, go on with it, or leave a finished one alone.
#
#   run_or_resume.sh RUN COMMAND [OPTIONS]
#   run_or_resume.sh outputs/my-a pretrain --preset mini3-a-residual --data data/mini3
#
# RUN is the run directory (`--out`). Exits like the command: 75 is interrupted, saved, and resumable.
#
# FLOWMBPO  the command (default: flowmbpo on the PATH, or .venv/bin/flowmbpo)
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=command.sh
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
if [ $# -lt 2 ]; then
    echo "usage: run_or_resume.sh RUN COMMAND [OPTIONS]" >&2
    exit 2
fi
run=$1
shift

if [ ! -e "$run/run.json" ]; then
    exec "$flowmbpo" "$@" --out "$run"
fi
if grep -q '^  "status": "done"' "$run/run.json"; then
    echo "done already: $run"
    exit 0
fi
if [ -e "$run/checkpoints/latest.pt" ]; then
    exec "$flowmbpo" "$@" --out "$run" --resume "$run"
fi
if ! flock --nonblock "$run/.lock" true; then
    echo "$run: another process is running it" >&2
    exit 1
fi
# It ended before its first checkpoint: there is nothing to go on with, and nothing is thrown away.
aside=$run.no-checkpoint-$(date +%Y%m%dT%H%M%S)
mv "$run" "$aside"
echo "$run: ended before its first checkpoint; moved to $aside, starting again" >&2
exec "$flowmbpo" "$@" --out "$run"
