"""`flowmbpo diagnose` on the command line: what goes where, exit codes, and what is refused before any work."""

import json
import shutil

import pytest
import torch

from flowmbpo.diagnostics.interface import SUMMARIES, Brief, Diagnosis
from flowmbpo.diagnostics.registry import DIAGNOSTICS
from flowmbpo.errors import DataError
from flowmbpo_cli.diagnose import complete_name

TINY = (
    "phase=test",
    "device=cpu",
    "task.num_envs=4",
    "model.latent_dim=16",
    "model.encoder.units=[16]",
    "model.dynamics.units=[16]",
    "model.reward.units=[16]",
    "actor.units=[16]",
    "critic.units=[16]",
    "training.epochs=2",
    "training.rounds=1",
    "training.wm_batch_size=8",
    "training.actor_batch_size=8",
    "training.warmup_model_updates=2",
    "evaluation.every=0",
    "evaluation.episodes=2",
)


class Fake(Diagnosis):
    """A diagnosis that measured nothing."""

    def __init__(self, name, healthy=True):
        self.name, self._healthy = name, healthy

    @property
    def healthy(self):
        return self._healthy

    def to_dict(self):
        return {"verdict": f"the verdict of {self.name}", "figure": float("nan")}

    def rows(self):
        return [("figure of " + self.name, "1.5 [1, 2]")]

    def draw(self, figure):
        figure.text(0.5, 0.5, self.name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a second."""
    from flowmbpo.presets.load import load_experiment
    from flowmbpo.runs.train import train

    folder = tmp_path_factory.mktemp("finished") / "run"
    threads = torch.get_num_threads()
    config = load_experiment("quickstart", TINY).model_copy(update={"name": "tiny"})
    train(config, out=folder, console=False)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, under the name that a run has."""
    return shutil.copytree(finished, tmp_path / "outputs/test/toy-pendulum-swingup/tiny/seed0")


@pytest.fixture
def diagnostics(monkeypatch):
    """Replace what every name measures: a diagnosis, or an error to raise."""

    def arrange(**results):
        for name in SUMMARIES:
            result = results.get(name, Fake(name))

            def measure(subject, effort, result=result):
                if isinstance(result, Exception):
                    raise result
                print("chatter")
                return result

            monkeypatch.setitem(DIAGNOSTICS, name, measure)

    return arrange


@pytest.fixture
def untouched(monkeypatch):
    """Loading anything is a failure: the command must refuse before."""

    def refuse(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr("flowmbpo.runs.diagnose.load_subject", refuse)


def test_one_name_prints_its_table_and_the_checkpoint(command, diagnostics, run):
    diagnostics()
    finished = command("diagnose", "esnr", run)
    assert finished.code == 0
    assert "figure of esnr" in finished.stdout and "1.5 [1, 2]" in finished.stdout
    assert "tiny on toy-pendulum-swingup, epoch 2" in finished.stdout and str(run) in finished.stdout
    assert "Measuring esnr (1 of 1)" in finished.stderr


def test_verbose_shows_every_figure_in_the_place_of_the_brief(command, diagnostics, run, monkeypatch):
    diagnostics()
    monkeypatch.setattr(Fake, "brief", lambda self: Brief("In brief", ("finding",), [("none",)], ["remark"]))
    brief = command("diagnose", "esnr", run).stdout
    assert "In brief" in brief and "remark" in brief and "figure of esnr" not in brief
    whole = command("diagnose", "esnr", run, "--verbose").stdout
    assert "figure of esnr" in whole and "In brief" not in whole


def test_json_is_the_only_thing_on_stdout(command, diagnostics, run):
    diagnostics()
    finished = command("diagnose", "esnr", run, "--json")
    document = finished.document
    assert document["esnr"] == {"verdict": "the verdict of esnr", "figure": None}  # JSON has no nan
    assert (document["config"], document["epoch"], document["healthy"]) == ("tiny", 2, True)
    assert document["windows"] == "the run's replay buffer"
    assert "chatter" in finished.stderr


def test_real_diagnostic_measures_a_real_run(command, run):
    document = command("diagnose", "compute", run, "--json").document
    assert document["compute"]["measured"]["model"]["flops"] > 0


@pytest.mark.slow
def test_every_real_diagnostic_measures_a_real_run(command, run, tmp_path):
    finished = command("diagnose", "all", run, "--episodes", "2", "--json")
    assert finished.code in (0, 3)  # two epochs make no good agent
    assert finished.document["failed"] == []
    assert all("error" not in finished.document[name] for name in SUMMARIES)
    html = (tmp_path / finished.document["files"]["html"]).read_text()
    assert html.count("data:image/png;base64,") == len(SUMMARIES)


def test_newest_run_is_taken_where_none_is_named_and_said(command, diagnostics, run):
    diagnostics()
    finished = command("diagnose", "esnr", "--json")
    assert finished.document["checkpoint"].endswith("seed0/checkpoints/latest.pt")
    assert "No checkpoint named: diagnosing outputs/test/" in finished.stderr


def test_no_run_anywhere_is_an_error_with_advice(command):
    finished = command("diagnose", "esnr", "--json")
    assert finished.code == 2
    assert finished.document["error"]["kind"] == "checkpoint"
    assert "flowmbpo train" in finished.stderr


def test_unhealthy_ends_with_3(command, diagnostics, run):
    diagnostics(health=Fake("health", healthy=False))
    assert command("diagnose", "health", run).code == 3
    finished = command("diagnose", "health", run, "--json")
    assert (finished.code, finished.document["healthy"]) == (3, False)


def test_failure_of_the_one_named_is_the_commands(command, diagnostics, run):
    diagnostics(rollout=DataError("no window is long enough"))
    finished = command("diagnose", "rollout", run, "--json")
    assert (finished.code, finished.document) == (
        2,
        {"error": {"kind": "data", "message": "no window is long enough"}},
    )


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ({}, 0),
        ({"rollout": DataError("no window")}, 1),
        ({"health": Fake("health", healthy=False)}, 3),
        ({"health": Fake("health", healthy=False), "rollout": DataError("no window")}, 3),  # what is known counts
    ],
)
def test_all_writes_both_files_and_exits_by_its_verdict(command, diagnostics, run, tmp_path, results, code):
    diagnostics(**results)
    finished = command("diagnose", "all", run)
    assert finished.code == code
    folder = tmp_path / "results/test/toy-pendulum-swingup/tiny/seed0"
    assert sorted(path.name for path in folder.iterdir()) == ["diagnosis.html", "diagnosis.json"]
    assert "Wrote results/test/toy-pendulum-swingup/tiny/seed0/diagnosis.html" in finished.stdout
    failed = [name for name, result in results.items() if isinstance(result, Exception)]
    assert json.loads((folder / "diagnosis.json").read_text())["failed"] == failed
    assert all((f"figure of {name}" in finished.stdout) != (name in failed) for name in SUMMARIES)
    assert ("Not measured: no window" in finished.stdout) == bool(failed)


def test_all_in_json_holds_every_diagnostic_and_the_files(command, diagnostics, run, tmp_path):
    diagnostics()
    document = command("diagnose", "all", run, "--json", "--out", tmp_path / "here").document
    assert set(SUMMARIES) <= document.keys()
    assert document["files"] == {key: str(tmp_path / "here" / f"diagnosis.{key}") for key in ("json", "html")}
    assert (tmp_path / "here" / "diagnosis.html").is_file() and not (tmp_path / "results").exists()


def test_plot_draws_one_or_all(command, diagnostics, run, tmp_path):
    diagnostics()
    assert "Wrote p.png" in command("diagnose", "esnr", run, "--plot", "p.png").stdout
    assert command("diagnose", "all", run, "--plot", "q.png").code == 0
    one, every = (tmp_path / name for name in ("p.png", "q.png"))
    assert one.read_bytes().startswith(b"\x89PNG") and every.stat().st_size > one.stat().st_size


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("reward",), "unknown diagnostic 'reward'. Did you mean 'reward-gap'? There are: health"),
        (("esnr", "--plot", "p.jpg"), "must end in .png"),
        (("esnr", "--plot", "absent/p.png"), "folder 'absent' does not exist"),
        (("esnr", "--out", "here"), "only `diagnose all` writes files"),
        (("esnr", "--episodes", "1"), "greater than or equal to 2"),
        (("esnr", "--seed", "-1"), "greater than or equal to 0"),
        (("esnr", "--task", "walker-stan"), "walker-stand"),
        (("esnr", "--device", "tpu"), "tpu"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(command, untouched, run, args, message):
    finished = command("diagnose", args[0], run, *args[1:])
    assert finished.code == 2
    assert message in " ".join(finished.stderr.split())


def test_file_that_is_no_checkpoint_is_refused(command, tmp_path):
    (tmp_path / "x.pt").write_text("hello")
    finished = command("diagnose", "all", "x.pt")
    assert finished.code == 2 and "x.pt" in finished.stderr and "bug" not in finished.stderr
    assert not (tmp_path / "results").exists()


def test_completion_offers_every_name_and_all():
    assert [name for name, _ in complete_name("")] == [*SUMMARIES, "all"]
    assert [name for name, _ in complete_name("r")] == ["rollout", "reward-gap"]
