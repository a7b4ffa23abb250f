"""Where published datasets and checkpoints are to be had, and what reads them. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """One download: `page` is where it is, `layout` how its files lie, `command` what reads them here."""

    name: str
    kind: str
    page: str
    size: str
    layout: str
    command: str
    note: str = ""


_TDMPC2 = "https://www.tdmpc2.com"
_HUB = "https://huggingface.co"
PUBLISHED = (
    Published(
        name="TD-MPC2 MT30",
        kind="dataset",
        page=f"{_TDMPC2}/dataset",
        size="about 20 GB, 690,000 episodes",
        layout="mt30/chunk_0.pt ... mt30/chunk_3.pt",
        command="flowmbpo data convert mt30 data/mt30",
        note="30 tasks of DMControl, 501 rows an episode",
    ),
    Published(
        name="TD-MPC2 MT80",
        kind="dataset",
        page=f"{_TDMPC2}/dataset",
        size="about 34 GB, 5,450,000 episodes",
        layout="mt80/chunk_0.pt ... mt80/chunk_19.pt",
        command="flowmbpo data convert mt80 data/mt80",
        note="MT30's tasks and 50 of Meta-World (v2 physics; this project simulates v3), 101 rows an episode",
    ),
    Published(
        name="PWM dflex data",
        kind="dataset",
        page=f"{_HUB}/imgeorgiev/pwm/tree/main/dflex/data",
        size="see the page",
        layout="one .pt per task",
        command="flowmbpo data convert FILE.pt data/dflex-ant --format pwm-dflex --task dflex-ant",
        note="read as the published recorder writes them; the files themselves could not be tried",
    ),
    Published(
        name="MMBench demonstrations (Newt)",
        kind="dataset",
        page=f"{_HUB}/datasets/nicklashansen/mmbench",
        size="see the page",
        layout="<task>.pt in one folder",
        command="flowmbpo data convert mmbench data/mmbench --set mt30",
        note="--task NAME reads one; without --set every file of the folder",
    ),
    Published(
        name="TD-MPC2 checkpoints",
        kind="checkpoint",
        page=f"{_HUB}/nicklashansen/tdmpc2",
        size="1M to 317M parameters",
        layout="multitask/mt30-48M.pt, ...; single-task files in a folder per domain",
        command="flowmbpo checkpoint import mt30-48M.pt",
    ),
    Published(
        name="PWM multi-task world models",
        kind="checkpoint",
        page=f"{_HUB}/imgeorgiev/pwm/tree/main/multitask",
        size="48M parameters",
        layout="one .pt per model",
        command="flowmbpo checkpoint import FILE.pt",
        note="TD-MPC2's format, trained with horizon 16",
    ),
    Published(
        name="PWM dflex world models",
        kind="checkpoint",
        page=f"{_HUB}/imgeorgiev/pwm/tree/main/dflex/pretrained",
        size="see the page",
        layout="one .pt per task",
        command="flowmbpo checkpoint import FILE.pt",
        note="PWM's own format, with pickled statistics that are never run",
    ),
    Published(
        name="Newt checkpoints",
        kind="checkpoint",
        page=f"{_HUB}/nicklashansen/newt",
        size="S 2M, B 5M, L 20M, XL 80M parameters",
        layout="soup-*.pt for all tasks, <task>.pt for one (B)",
        command="flowmbpo checkpoint import FILE.pt",
    ),
)


def document() -> dict[str, Any]:
    """What `data where --json` prints."""
    return {"published": [asdict(entry) for entry in PUBLISHED]}
