# shellcheck shell=bash
# Sourced by the scripts beside it: sets `flowmbpo`, the command.
#
# That is FLOWMBPO; else `flowmbpo` on the PATH; else the one that `make setup` installs into .venv of the repository.

flowmbpo=${FLOWMBPO:-}
if [ -z "$flowmbpo" ]; then
    if [ -n "$(type -P flowmbpo)" ]; then # a folder of that name in the current one is no command
        flowmbpo=flowmbpo
    else
        flowmbpo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)/.venv/bin/flowmbpo
        if [ ! -x "$flowmbpo" ]; then
            echo "flowmbpo is not on the PATH, and there is no $flowmbpo: run 'make setup', or" \
                "activate the .venv that has it, or set FLOWMBPO to the command" >&2
            exit 127
        fi
    fi
fi
