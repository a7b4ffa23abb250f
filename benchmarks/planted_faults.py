"""Plant every fault in copies of sound runs and see whether `diagnose health` finds it by name.

    python benchmarks/planted_faults.py RUN... [--only FAULT]... [--json FILE]

Each run is judged untouched first: whatever is called broken there is a false alarm. Then every variant that
fits the run is planted in memory. The table has a row per variant and a column per run: `found`, `MISSED`, or a
dash where the variant does not fit; other names that were found are listed in the JSON file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "diagnostics" / "health"))

from planted.catalogue import all_faults
from planted.saved import Fault

from flowmbpo.diagnostics.health.engine import HealthDiagnosis, measure_health
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.runs.subjects import load_subject


def main() -> None:
    """Parse the command line, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--only", action="append", help="faults to plant, by name [default: all]")
    parser.add_argument("--json", type=Path, help="write all findings here")
    arguments = parser.parse_args()
    faults = [fault for fault in all_faults() if arguments.only is None or fault.finding in arguments.only]
    document = {}
    for run in arguments.runs:
        document[str(run)] = judge_run(run, faults)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(document, indent=1), encoding="utf-8")
    print_table(document, faults)


def judge_run(run: Path, faults: list[Fault]) -> dict[str, Any]:
    """Names found broken in the untouched run, and for every variant that fits."""
    sound = fresh(run)
    alarms = broken_names(measure_health(sound, Effort()))
    print(f"{run}: untouched: {', '.join(alarms) or 'healthy'}", file=sys.stderr, flush=True)
    variants = {}
    for fault in faults:
        subject = fresh(run)
        if not fault.fits(subject):
            continue
        fault.plant(subject)
        names = broken_names(measure_health(subject, Effort()))
        variants[key(fault)] = names
        mark = "found" if fault.finding in names else "MISSED"
        print(f"  {mark:7s} {key(fault)}: {', '.join(names)}", file=sys.stderr, flush=True)
    return {"untouched": alarms, "variants": variants}


def fresh(run: Path) -> Subject:
    """The run's subject, loaded anew."""
    return load_subject(run, task=None, device="cpu", seed=0, episodes=Effort().episodes)


def broken_names(health: HealthDiagnosis) -> list[str]:
    """Names of what is broken, each once."""
    return list(dict.fromkeys(finding.name for finding in health.findings if finding.severity == "broken"))


def key(fault: Fault) -> str:
    """A variant's name in tables."""
    return f"{fault.finding}: {fault.variant}"


def print_table(document: dict[str, Any], faults: list[Fault]) -> None:
    """Markdown: a row per variant, a column per run."""
    runs = list(document)
    print("| fault | " + " | ".join(Path(run).name for run in runs) + " |")
    print("|---" * (len(runs) + 1) + "|")
    alarms = [", ".join(document[run]["untouched"]) or "healthy" for run in runs]
    print("| untouched | " + " | ".join(alarms) + " |")
    for fault in faults:
        cells = []
        for run in runs:
            names = document[run]["variants"].get(key(fault))
            cells.append("-" if names is None else "found" if fault.finding in names else "MISSED")
        print(f"| {key(fault)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
