"""Runs that take a fraction of a second."""

import copy
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.envs.resolve import resolve
from flowmbpo.runs.resume import StopRequest
from flowmbpo.runs.session import TrainingSession
from flowmbpo.runs.start import begin
from flowmbpo.runs.train import assembled
from flowmbpo.runs.train import train as start_training
from flowmbpo.tracking.sink import read_rows

TINY = {
    "name": "tiny",
    "phase": "test",
    "device": "cpu",
    "task": {"name": "toy-two-goals", "num_envs": 4},  # episodes of 25 steps
    "model": {
        "latent_dim": 16,
        "encoder": {"kind": "mlp", "units": [16]},
        "dynamics": {"kind": "mlp", "units": [16, 16]},
        "reward": {"kind": "scalar", "units": [16]},
    },
    "actor": {"kind": "gaussian", "units": [16]},
    "critic": {"units": [16]},
    "training": {
        "epochs": 4,
        "horizon": 4,
        "wm_batch_size": 8,
        "wm_iterations": 2,
        "critic_iterations": 2,
        "critic_batches": 2,
        "warmup_model_updates": 2,
    },
    "evaluation": {"every": 2, "episodes": 2},
    "checkpoint": {"every": 2},
    "compute": {"threads": 1},
}
FLOW = {
    "model.dynamics": {"kind": "flow", "units": [16, 16], "geometry": "logit", "substeps": 2, "endpoint_weight": 1.0},
    "actor": {"kind": "flow", "units": [16]},
    "critic.target_decay": 0.9,
}
TIMING = (
    "wall_s",
    "cpu_s",
    "speed/agent_steps_per_s",
    "speed/updates_per_s",
    "memory/rss_mb",
    "diagnostics/seconds",
    "diagnostics/share",
)


def build(**changes):
    data = copy.deepcopy(TINY)
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        node = data
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return ExperimentConfig.model_validate(data)


@pytest.fixture
def config():
    """Build the tiny config; `**{"dotted.key": value}` change it."""
    return build


@pytest.fixture
def flow_config():
    """The tiny config with flow dynamics, flow actor and a target critic."""
    return lambda **changes: build(**{**FLOW, **changes})


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """Runs and results go to a folder of the test."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def train():
    """Train quietly."""
    return lambda *args, **kwargs: start_training(*args, console=False, **kwargs)


@pytest.fixture(scope="session")
def trained(once):
    """Train what `build` makes of `changes`, once for every process: the folder, and what came of it."""

    def outcome(name, **changes):
        threads = torch.get_num_threads()
        made = once(
            name, lambda out: start_training(build(**changes), out=out, command=["flowmbpo", "train"], console=False)
        )
        torch.set_num_threads(threads)
        return made

    return outcome


@pytest.fixture(scope="session")
def finished(trained):
    """A finished run of the tiny config, for the whole session: to be read, not changed."""
    return trained("finished")[0]


@pytest.fixture(scope="session")
def uninterrupted(trained):
    """What came of the tiny config and of that with flows: to be read, not changed."""
    return lambda variant: trained("finished-flow", **FLOW)[1] if variant == "flow_config" else trained("finished")[1]


@pytest.fixture(scope="session")
def swung(trained):
    """A run on the pendulum, whose actions are repeated and whose widths another simulator's task has too."""
    return trained("swung", **{"task.name": "toy-pendulum-swingup"})[0]


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def figures():
    """What must not depend on interruptions: weights, optimisers, generators, environment, metrics."""

    def read(outcome):
        loaded = load(Path(outcome.checkpoint))
        parts = {
            key: loaded.payload[key]
            for key in ("agent", "optimisers", "env", "rng", "epoch", "agent_steps", "env_steps", "best")
        }
        rows = [
            {key: value for key, value in row.items() if key not in TIMING}
            for row in read_rows(loaded.path.parent.parent / "metrics.jsonl")
        ]
        return parts, rows

    return read


@pytest.fixture
def same():
    """Whether two nested structures hold bit-equal tensors and equal values."""

    def compare(left, right):
        if isinstance(left, torch.Tensor):
            return torch.equal(left, right)
        if isinstance(left, dict):
            return left.keys() == right.keys() and all(compare(left[key], right[key]) for key in left)
        if isinstance(left, (list, tuple)):
            return len(left) == len(right) and all(map(compare, left, right))
        return left == right

    return compare


@pytest.fixture
def assemble(tmp_path):
    """The learner and the collector of a config's run, as `train` makes them."""
    with ExitStack() as opened:

        def make(config):
            task = resolve(config.task)
            start = begin(config, task, None)
            return opened.enter_context(assembled(start, torch.device("cpu"), tmp_path))

        yield make


@pytest.fixture
def stop_after(monkeypatch):
    """Ask the next runs to stop once they have finished epoch `epoch`; None undoes it."""
    whole = TrainingSession.record_epoch

    def arrange(epoch):
        def one(session, metrics):
            whole(session, metrics)
            if session.learner.epoch == epoch:
                requests[-1].signal = "SIGINT"

        requests = []
        make = StopRequest.__init__

        def remember(request):
            make(request)
            requests.append(request)

        monkeypatch.setattr(StopRequest, "__init__", remember)
        monkeypatch.setattr(TrainingSession, "record_epoch", one)

    return arrange
