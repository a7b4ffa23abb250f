#!/usr/bin/env bash
# The toy cart-pole with three world models, a few seeds each; prints one line per run.
#
# FLOWMBPO  the command (default: flowmbpo on the PATH, or .venv/bin/flowmbpo)
# SEEDS     the seeds (default: "0 1 2")
# ARMS      which mini-cartpole presets (default: "mlp residual flow")
set -euo pipefail

# shellcheck source-path=SCRIPTDIR source=command.sh
. "$(dirname "${BASH_SOURCE[0]}")/command.sh"
line='import json, sys
done = json.load(sys.stdin)
print("%-28s %5s %10.1f %8.1f" % (*sys.argv[1:], done["final_return_mean"], done["cpu_s"]))'

printf '%-28s %5s %10s %8s\n' preset seed return cpu_s
for arm in ${ARMS:-mlp residual flow}; do
    for seed in ${SEEDS:-0 1 2}; do
        "$flowmbpo" train --preset "mini-cartpole-$arm" --seed "$seed" --json |
            python3 -c "$line" "mini-cartpole-$arm" "$seed"
    done
done
