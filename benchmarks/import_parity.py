"""Import synthetic published checkpoints of every format and size, and compare with their own tensors.

    python benchmarks/import_parity.py [--formats tdmpc2 newt] [--sizes 48M 317M] [--seed 0]

Each file has random weights under the names and shapes of its format. What the imported checkpoint
computes in float32 is compared with a double-precision evaluation straight from the file's tensors
(tests/checkpoints/importers/published.py). Markdown on stdout: the largest absolute difference per
function over 24 inputs, parameters by TD-MPC2's count, seconds to import, peak memory of the process
so far. One file at a time; 317M needs 6 GB of memory and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests" / "checkpoints" / "importers"))

import parity
import published
import published_pwm

from flowmbpo.checkpoints.importers.conversion import import_checkpoint

FORMATS = ("tdmpc2", "tdmpc2-current", "tdmpc2-oldest", "pwm", "newt")
MT30_ROWS = [*range(19), *range(21, 32)]  # of Newt's 200 tasks
SINGLE_TASK = ("cheetah-run", 17, 6)
FUNCTIONS = ("encode", "next", "reward", "q", "pi", "actor", "critic")


def cases(formats: list[str], sizes: list[str] | None) -> list[tuple[str, str, str]]:
    """(format, size, task set or task) of every file that is compared."""
    found = []
    for layout in formats:
        for size in published.NEWT_SIZES if layout == "newt" else published.SIZES:
            if layout == "tdmpc2-oldest":
                purposes = [SINGLE_TASK[0]]
            else:
                purposes = ["mt30"] if layout == "newt" else ["mt30", "mt80"]
            found += [(layout, size, purpose) for purpose in purposes if not sizes or size in sizes]
    return found


def make(layout: str, size: str, purpose: str, seed: int) -> tuple[dict, published.Widths]:
    """A synthetic file's content and widths."""
    if layout == "newt":
        return published.newt_file(published.newt(size), seed), published.newt(size)
    if layout == "tdmpc2-oldest":
        w = published.single(size, *SINGLE_TASK[1:])
        return published.oldest_file(w, seed), w
    w = published.widths(size, purpose)
    if layout == "pwm":
        return published_pwm.pwm_file(w, seed), w
    if layout == "tdmpc2":
        return published.tdmpc2_file(w, seed), w
    return published.current_file(w, purpose, seed), w


def compare(layout: str, size: str, purpose: str, seed: int, folder: Path) -> str:
    """One row of the table."""
    content, w = make(layout, size, purpose, seed)
    source, out = folder / "source.pt", folder / "imported.pt"
    published_pwm.save(content, source)
    started = time.perf_counter()
    outcome = import_checkpoint(source, out=out, task=SINGLE_TASK[0] if layout == "tdmpc2-oldest" else None)
    seconds = time.perf_counter() - started
    source.unlink()
    if layout == "pwm":
        agent, _ = parity.opened(out)
        found = published_pwm.differences(agent, content, w)
    else:
        rows = MT30_ROWS if layout == "newt" else None
        found = parity.differences(out, content["model"], layout, w, rows)
    out.unlink()
    figures = [f"{found[name]:.1e}" if name in found else "-" for name in FUNCTIONS]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cells = [layout, size, purpose, *figures, f"{outcome['parameters']['total']:,}", f"{seconds:.1f}", f"{peak:.1f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--sizes", nargs="+", help="1M, 5M, 19M, 48M, 317M; Newt's S, B, L, XL. [default: all]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"| format | size | for | {' | '.join(FUNCTIONS)} | parameters | import, s | peak, GB |")
    print("|---" * (6 + len(FUNCTIONS)) + "|")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for layout, size, purpose in cases(options.formats, options.sizes):
            print(compare(layout, size, purpose, options.seed, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
