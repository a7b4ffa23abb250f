"""Train and compare two world models on the toy pendulum, from Python.

    python examples/train_in_python.py OUT

Each run gets its own folder under OUT; a folder that already holds a run is refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flowmbpo.errors import FlowMBPOError
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.train import train

ARMS = {"flow": "quickstart", "mlp": "quickstart-baseline"}
"""Folder name, and the preset that runs in it."""


def main(out: Path) -> int:
    """Run both arms and print their returns; 0 when both finished."""
    for arm, preset in ARMS.items():
        config = load_experiment(preset, ["training.epochs=100"], seed=1)
        try:
            outcome = train(config, out=out / arm, resume=None, command=sys.argv)
        except FlowMBPOError as error:
            print(f"{arm}: {error}", file=sys.stderr)
            return error.exit_code
        result = outcome.to_dict()
        print(f"{arm:5} {result['final_return_mean']:7.1f} +- {result['final_return_std']:.1f}  {result['run_dir']}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
