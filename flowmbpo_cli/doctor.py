"""What works on this machine, checked one thing at a time."""

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
from typing import TYPE_CHECKING, Annotated

import typer

from flowmbpo_cli.output import only_document, people, print_document

if TYPE_CHECKING:
    from flowmbpo.envs.simulators import SimulatorInfo


_LEAST_DISK_GIB = 5


@dataclass(frozen=True)
class MachineCheck:
    """One line of the report. `core`: without it nothing can be trained."""

    section: str
    name: str
    ok: bool
    detail: str
    advice: str = ""
    core: bool = False

    def to_dict(self) -> dict[str, object]:
        """The JSON object."""
        return asdict(self)


def checks(folder: Path) -> Iterator[MachineCheck]:
    """Every check, in the report's order; `folder` is where runs would be written."""
    yield _python()
    yield from _torch()
    yield from _simulators()
    yield from _rendering()
    yield _dflex()
    yield _slurm()
    yield from _wandb()
    yield _disk(folder)


def package_version(name: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    try:
        return installed(name)
    except PackageNotFoundError:
        return None


def _python() -> MachineCheck:
    ok = sys.version_info >= (3, 11)
    advice = "" if ok else "Use Python 3.11 or 3.12."
    return MachineCheck("python", "python", ok, f"{platform.python_version()} at {sys.executable}", advice, core=True)


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
            advice = "" if simulator.installed else f"For its tasks: {simulator.install}"
            yield MachineCheck("simulators", simulator.name, simulator.installed, _simulator_detail(simulator), advice)
    yield _mujoco_step()


def _simulator_detail(simulator: SimulatorInfo) -> str:
    """What it is, its packages' versions, and how many tasks it runs."""
    from flowmbpo_cli.environments.catalogue import all_tasks

    versions = {module: package_version(module) for module in simulator.modules}
    found = ", ".join(f"{module} {version}" for module, version in versions.items() if version) or "not installed"
    count = sum(task.simulator == simulator.name for task in all_tasks())
    return f"{found}; {count} tasks ({simulator.title})"


def _mujoco_step() -> MachineCheck:
    """One step of a falling point, which needs no rendering."""
    advice = "Install mujoco==3.3.0 again; the toy tasks need no simulator."
    try:
        import mujoco
    except (ImportError, OSError) as error:
        return MachineCheck("simulators", "step", False, f"mujoco cannot be imported: {error}", advice)
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body><freejoint/><geom size=".1"/></body></worldbody></mujoco>'
    )
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data)
    if float(data.qvel[2]) < 0.0:
        return MachineCheck("simulators", "step", True, "a simulated step works")
    return MachineCheck("simulators", "step", False, "a step moved nothing", advice)


def _rendering() -> Iterator[MachineCheck]:
    loadable = []
    for name in ("EGL", "OSMesa"):
        found = _loads(name)
        loadable += [name] if found else []
        yield MachineCheck("rendering", name, found, "library loads" if found else "library not found")
    backend = os.environ.get("MUJOCO_GL")
    chosen = f"MUJOCO_GL={backend}" if backend else "MUJOCO_GL is not set: the first that loads is used"
    advice = "" if loadable else "Install libegl1 or libosmesa6 for `eval --video` and `envs render` of MuJoCo's tasks."
    yield MachineCheck("rendering", "video", bool(loadable), chosen if loadable else "no off-screen renderer", advice)


def _loads(library: str) -> bool:
    path = ctypes.util.find_library(library)
    if path is None:
        return False
    try:
        ctypes.CDLL(path)
    except OSError:
        return False
    return True


def _dflex() -> MachineCheck:
    from flowmbpo.envs.simulators import SIMULATORS

    dflex = SIMULATORS["dflex"]
    advice = "" if dflex.installed else f"Optional; {dflex.licence}, so it is not shipped here: {dflex.install}"
    return MachineCheck("dflex", "dflex", dflex.installed, _simulator_detail(dflex), advice)


def _slurm() -> MachineCheck:
    path = shutil.which("sbatch")
    return MachineCheck(
        "slurm", "sbatch", path is not None, path or "not on PATH", "" if path else "Optional: for clusters."
    )


def _wandb() -> Iterator[MachineCheck]:
    found = package_version("wandb")
    yield MachineCheck("wandb", "wandb", found is not None, found or "not installed", "" if found else "Install wandb.")
    from flowmbpo.tracking.wandb import wandb_key_present

    key = wandb_key_present()
    advice = "" if key else "Run `wandb login` to use --track wandb online; WANDB_MODE=offline needs none."
    yield MachineCheck("wandb", "key", key, "present" if key else "no key in the environment or in netrc", advice)


def _disk(folder: Path) -> MachineCheck:
    free = shutil.disk_usage(folder).free / 2**30
    ok = free >= _LEAST_DISK_GIB
    advice = "" if ok else "Free some space: a paper-scale replay buffer alone takes several GiB."
    return MachineCheck("disk", "free space", ok, f"{free:.1f} GiB free in {folder}", advice)


def doctor(json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """Say what works on this machine, and what to do about what does not."""
    from flowmbpo_cli.doctor import checks

    with only_document(json_):
        found = list(checks(Path.cwd()))
    core_works = all(check.ok for check in found if check.core)
    if json_:
        print_document({"ok": core_works, "checks": [check.to_dict() for check in found]})
    else:
        from flowmbpo_cli.tables import print_table

        console = people(json_)
        rows = [[c.section, c.name, "ok" if c.ok else "missing", c.detail, c.advice] for c in found]
        print_table(console, "doctor", ["section", "what", "state", "found", "what to do"], rows)
        console.print("The core works." if core_works else "The core does not work: see the lines above.")
    raise typer.Exit(0 if core_works else 1)
