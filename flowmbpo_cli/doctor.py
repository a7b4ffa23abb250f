"""`flowmbpo doctor` and `flowmbpo version`: what is installed and works on this machine."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flowmbpo import __version__
from flowmbpo_cli.output import Json, answer

if TYPE_CHECKING:
    from flowmbpo.envs.simulators import SimulatorInfo

_LEAST_DISK_GIB = 5


@dataclass(frozen=True)
class MachineCheck:
    """One line of the report; `advice` is for where it is not `ok`. `core`: without it nothing can be trained."""

    section: str
    name: str
    ok: bool
    detail: str
    advice: str = ""
    core: bool = False


def doctor(json_: Json = False) -> None:
    """Say what works on this machine, and what to do about what does not."""
    report = [asdict(check) | ({"advice": ""} if check.ok else {}) for check in checks(Path.cwd())]
    core_works = all(check["ok"] for check in report if check["core"])
    answer({"ok": core_works, "checks": report}, json_, _show)
    raise typer.Exit(0 if core_works else 1)


def _show(document: dict[str, Any]) -> None:
    from flowmbpo_cli.tables import print_records

    columns = {"section": "section", "name": "what", "state": "state", "detail": "found", "advice": "what to do"}
    rows = [{**check, "state": "ok" if check["ok"] else "missing"} for check in document["checks"]]
    print_records("doctor", columns, rows)
    typer.echo("The core works." if document["ok"] else "The core does not work: see the lines above.")


def version(json_: Json = False) -> None:
    """Print the versions of flowmbpo, Python and torch."""
    versions = {"flowmbpo": __version__, "python": platform.python_version(), "torch": package_version("torch")}
    line = f"flowmbpo {__version__} (Python {versions['python']}, torch {versions['torch'] or 'not installed'})"
    answer(versions, json_, line)


def checks(folder: Path) -> Iterator[MachineCheck]:
    """Every check, in the report's order; `folder` is where runs would be written."""
    enough, where = sys.version_info >= (3, 11), f"{platform.python_version()} at {sys.executable}"
    yield MachineCheck("python", "python", enough, where, "Use Python 3.11 or 3.12.", core=True)
    yield from _torch()
    yield from _simulators()
    loadable = {name: _loads(name) for name in ("EGL", "OSMesa")}
    for name, ok in loadable.items():
        yield MachineCheck("rendering", name, ok, "library loads" if ok else "library not found")
    some, backend = any(loadable.values()), os.environ.get("MUJOCO_GL")
    chosen = f"MUJOCO_GL={backend}" if backend else "MUJOCO_GL is not set: the first that loads is used"
    advice = "Install libegl1 or libosmesa6 for `eval --video` and `envs render` of MuJoCo's tasks."
    yield MachineCheck("rendering", "video", some, chosen if some else "no off-screen renderer", advice)
    from flowmbpo.envs.simulators import SIMULATORS
    from flowmbpo.tracking.wandb import wandb_key_present

    dflex = SIMULATORS["dflex"]
    yield _simulator("dflex", dflex, f"Optional; {dflex.licence}, so it is not shipped here: {dflex.install}")
    sbatch = shutil.which("sbatch")
    yield MachineCheck("slurm", "sbatch", sbatch is not None, sbatch or "not on PATH", "Optional: for clusters.")
    package, key = package_version("wandb"), wandb_key_present()
    yield MachineCheck("wandb", "wandb", package is not None, package or "not installed", "Install wandb.")
    advice = "Run `wandb login` to use --track wandb online; WANDB_MODE=offline needs none."
    yield MachineCheck("wandb", "key", key, "present" if key else "no key in the environment or in netrc", advice)
    free = shutil.disk_usage(folder).free / 2**30
    advice = "Free some space: a paper-scale replay buffer alone takes several GiB."
    yield MachineCheck("disk", "free space", free >= _LEAST_DISK_GIB, f"{free:.1f} GiB free in {folder}", advice)


def package_version(name: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    try:
        return installed(name)
    except PackageNotFoundError:
        return None


def _torch() -> Iterator[MachineCheck]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield MachineCheck("torch", "torch", False, f"cannot be imported: {error}", "Install torch 2.13.", core=True)
        return
    yield MachineCheck("torch", "torch", True, f"{torch.__version__}", core=True)
    cores = os.cpu_count() or 1
    yield MachineCheck("torch", "threads", True, f"torch uses {torch.get_num_threads()} of {cores} CPU cores")
    if not torch.cuda.is_available():
        advice = "Training runs on the CPU; the paper-scale presets need a GPU and a CUDA build of torch."
        yield MachineCheck("torch", "GPU", False, "no CUDA device", advice)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield MachineCheck("torch", "GPU", True, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def _simulators() -> Iterator[MachineCheck]:
    """Those that may be missing; dflex has a section of its own."""
    from flowmbpo.envs.simulators import SIMULATORS

    for simulator in SIMULATORS.values():
        if simulator.modules and simulator.name != "dflex":
            yield _simulator("simulators", simulator, f"For its tasks: {simulator.install}")
    advice = "Install mujoco==3.3.0 again; the toy tasks need no simulator."
    try:
        import mujoco
    except (ImportError, OSError) as error:
        yield MachineCheck("simulators", "step", False, f"mujoco cannot be imported: {error}", advice)
        return
    point = '<mujoco><worldbody><body><freejoint/><geom size=".1"/></body></worldbody></mujoco>'
    model = mujoco.MjModel.from_xml_string(point)  # it falls, which needs no rendering
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data)
    fell = float(data.qvel[2]) < 0.0
    yield MachineCheck("simulators", "step", fell, "a simulated step works" if fell else "a step moved nothing", advice)


def _simulator(section: str, simulator: SimulatorInfo, advice: str) -> MachineCheck:
    from flowmbpo.envs.tasks import all_tasks

    versions = {module: package_version(module) for module in simulator.modules}
    held = ", ".join(f"{module} {version}" for module, version in versions.items() if version) or "not installed"
    detail = f"{held}; {len(all_tasks(simulator.name))} tasks ({simulator.title})"
    return MachineCheck(section, simulator.name, simulator.installed, detail, advice)


def _loads(library: str) -> bool:
    path = ctypes.util.find_library(library)
    try:
        return path is not None and ctypes.CDLL(path) is not None
    except OSError:
        return False
