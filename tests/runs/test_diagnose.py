"""From a checkpoint to diagnoses and their files: what is refused, what is replaced, what goes on without."""

import json
import logging
import math
import os
from pathlib import Path

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.diagnostics.health.engine import judge
from flowmbpo.diagnostics.health.probes.weights import measure_weights
from flowmbpo.diagnostics.health.rules import RULES
from flowmbpo.diagnostics.interface import SUMMARIES, Diagnosis, Effort
from flowmbpo.diagnostics.registry import DIAGNOSTICS
from flowmbpo.errors import CheckpointError, ConfigError, DataError, StorageError
from flowmbpo.runs import diagnose as diagnosis_files
from flowmbpo.runs import subjects as checkpoint_subject
from flowmbpo.runs.diagnose import DIAGNOSIS_SCHEMA, diagnose, report_page, write_report
from flowmbpo.runs.subjects import load_subject, newest_checkpoint

FEW = Effort(episodes=2)


@pytest.fixture
def subject():
    """Load a checkpoint as `diagnose` does."""

    def make(path, task=None, seed=0):
        return load_subject(path, task=task, device="cpu", seed=seed, episodes=2)

    return make


@pytest.fixture
def altered(run, tmp_path):
    """A lone checkpoint that is the run's with a changed payload."""

    def make(change):
        payload = dict(load(run / "checkpoints" / "latest.pt").payload)
        del payload["replay"]
        change(payload)
        torch.save(payload, tmp_path / "latest.pt")
        return tmp_path / "latest.pt"

    return make


class Fake(Diagnosis):
    """A diagnosis that measured nothing."""

    def __init__(self, name, healthy=True, figure=1.0):
        self.name, self._healthy, self._figure = name, healthy, figure

    @property
    def healthy(self):
        return self._healthy

    def to_dict(self):
        return {"figure": self._figure, "verdict": f"{self.name} <says> so"}

    def rows(self):
        return [("figure", str(self._figure))]

    def draw(self, figure):
        figure.text(0.5, 0.5, self.name)


@pytest.fixture
def diagnostics(monkeypatch):
    """Replace what every name measures: a value, or an error to raise."""

    def arrange(**results):
        def function(name):
            result = results.get(name.replace("-", "_"), Fake(name))

            def measure(subject, effort):
                if isinstance(result, Exception):
                    raise result
                return result

            return measure

        for name in SUMMARIES:
            monkeypatch.setitem(DIAGNOSTICS, name, function(name))

    return arrange


def diagnosed(path, names=tuple(SUMMARIES), **options):
    return diagnose(names, path, device="cpu", effort=FEW, **options)


def test_every_name_has_its_diagnostic():
    assert list(DIAGNOSTICS) == list(SUMMARIES)


def test_subject_is_the_checkpoints_agent_with_its_experience(subject, run):
    found = subject(run)
    loaded = load(run / "checkpoints" / "latest.pt")
    assert all(torch.equal(found.agent.state_dict()[key], value) for key, value in loaded.payload["agent"].items())
    assert not found.agent.training
    assert found.replay.num_transitions == loaded.payload["agent_steps"] == found.origin.agent_steps
    assert found.windows is found.replay
    assert (found.origin.epoch, found.origin.sha256) == (4, loaded.sha256)
    assert set(found.optimisers) == {"model", "actor", "critic"}


def test_initial_agent_is_the_one_that_training_began_with(subject, run, config, train, tmp_path):
    from flowmbpo.envs.resolve import resolve
    from flowmbpo.models.agent import seeded_agent

    began = seeded_agent(config(), resolve(config().task).spec).state_dict()
    state = torch.get_rng_state()
    found = subject(run).initial().state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(found[key], began[key]) for key in began)


def test_checkpoint_without_a_buffer_is_diagnosed_on_fresh_episodes_and_says_so(subject, run, caplog):
    found = subject(run / "checkpoints" / "best.pt")
    assert "best.pt holds no replay buffer" in caplog.text and "fresh episodes" in caplog.text
    assert found.windows_source == "fresh episodes of the policy"
    assert found.windows is found.episodes


def findings_of_buffer(found):
    rows = judge({"weights": measure_weights(found)}, RULES)
    return [row.finding for row in rows if row.finding is not None]


def test_damaged_buffer_is_left_aside_and_named(subject, run, caplog):
    (buffer,) = (run / "checkpoints").glob("replay-*.pt")
    data = bytearray(buffer.read_bytes())
    data[len(data) // 2] ^= 1
    buffer.write_bytes(bytes(data))
    found = subject(run)
    assert found.windows is found.episodes
    assert buffer.name in caplog.text and "fresh episodes" in caplog.text
    (finding,) = findings_of_buffer(found)
    assert (finding.name, finding.severity) == ("replay-damaged", "broken") and buffer.name in finding.message


def test_buffer_that_was_edited_is_there_for_health_alone(subject, run):
    (buffer,) = (run / "checkpoints").glob("replay-*.pt")
    content = torch.load(buffer, weights_only=True)
    content["state"]["action"] = content["state"]["action"].roll(1, 0)
    torch.save(content, buffer)
    found = subject(run)
    assert torch.equal(found.replay.state_dict()["action"], content["state"]["action"])
    assert found.windows is found.episodes
    assert "SHA-256" in found.replay_trouble


def test_buffer_that_cannot_be_read_is_left_aside(subject, run):
    (buffer,) = (run / "checkpoints").glob("replay-*.pt")
    buffer.write_bytes(b"no archive")
    found = subject(run)
    assert found.replay is None and found.replay_trouble


def test_checkpoint_that_a_run_replaces_meanwhile_is_read_again(subject, run, monkeypatch):
    (buffer,) = (run / "checkpoints").glob("replay-*.pt")
    moved = buffer.with_name("replay-elsewhere.pt")

    def racing(path, device):
        loaded = load(path, device)
        if buffer.is_file():
            buffer.rename(moved)
        else:
            moved.rename(buffer)
        return loaded

    monkeypatch.setattr(checkpoint_subject, "load", racing)
    assert subject(run).replay is not None


def test_sound_buffer_is_no_finding(subject, run):
    assert findings_of_buffer(subject(run)) == []


def test_missing_buffer_is_named(subject, run, caplog):
    (buffer,) = (run / "checkpoints").glob("replay-*.pt")
    buffer.unlink()
    assert subject(run).replay is None
    assert f"{buffer.name}: is missing" in caplog.text


@pytest.mark.parametrize("key", ["config", "agent", "epoch", "agent_steps", "env_steps"])
def test_checkpoint_that_lacks_what_is_needed_is_refused_naming_it(subject, altered, key):
    with pytest.raises(CheckpointError, match=rf"latest\.pt: lacks {key}"):
        subject(altered(lambda payload: payload.pop(key)))


def test_checkpoint_without_a_critic_is_refused_naming_its_weights(subject, altered):
    def drop(payload):
        payload["agent"] = {key: value for key, value in payload["agent"].items() if not key.startswith("critic.")}

    with pytest.raises(CheckpointError, match=r"another architecture.*critic\.network"):
        subject(altered(drop))


def test_checkpoint_without_optimisers_is_diagnosed_without_them(subject, altered):
    assert subject(altered(lambda payload: payload.pop("optimisers"))).optimisers is None


def test_damaged_checkpoint_is_refused(subject, run):
    file = run / "checkpoints" / "latest.pt"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"truncated.*best\.pt"):
        subject(run)


def test_run_directory_without_a_checkpoint_is_refused(subject, tmp_path):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint at all"):
        subject(tmp_path / "empty")


@pytest.mark.parametrize("task", ["pendulum-swingup", "toy-cartpole-swingup"])  # of the same widths, of others
def test_task_that_the_model_does_not_know_is_refused_with_what_it_knows(subject, swung, task):
    with pytest.raises(ConfigError, match=rf"--task {task}: .* trained on toy-pendulum-swingup alone"):
        subject(swung, task=task)


def test_naming_the_only_task_changes_nothing(subject, run):
    found = subject(run, task="toy-two-goals")
    assert found.only is None
    assert found.windows is found.replay


def test_one_task_of_a_set_is_diagnosed_on_episodes_of_its_own(train, config, subject):
    pair = ["toy-two-goals", "toy-map-smooth"]
    changes = {"task.name": None, "task.set": "pair", "task.tasks": pair, "model.task_dim": 4, "task.num_envs": 4}
    outcome = train(config(**changes, **{"training.epochs": 1, "evaluation.every": 0}))
    found = subject(Path(outcome.run_dir), task="toy-map-smooth")
    assert (found.only, found.replay) == (1, None)
    assert set(found.episodes.task.tolist()) == {1}
    with pytest.raises(ConfigError, match=r"not one of the tasks of pair.*toy-two-goals, toy-map-smooth"):
        subject(Path(outcome.run_dir), task="toy-lqr")


def test_newest_run_is_the_one_saved_last(tmp_path):
    for age, name in enumerate(("new", "old", "older")):
        file = tmp_path / "outputs" / "phase" / name / "checkpoints" / "latest.pt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (1000 - age, 1000 - age))
    assert newest_checkpoint() == Path("outputs/phase/new/checkpoints/latest.pt")


def test_no_run_at_all_says_what_to_do():
    with pytest.raises(CheckpointError, match=r"none under outputs/.*flowmbpo train"):
        newest_checkpoint()


def poison(payload):
    agent = dict(payload["agent"])
    name = next(key for key in agent if key.startswith("world_model.encoder"))
    agent[name] = agent[name].clone()
    agent[name].view(-1)[3] = math.nan
    payload["agent"] = agent


def test_non_finite_weights_are_refused_by_every_diagnostic_but_health(diagnostics, altered):
    diagnostics()
    path = altered(poison)
    outcome = diagnosed(path, keep_going=True)
    assert [each.name for each in outcome.failed] == [name for name in SUMMARIES if name != "health"]
    assert all(isinstance(each.error, CheckpointError) for each in outcome.failed)
    with pytest.raises(CheckpointError, match=r"latest\.pt.*world_model\.encoder"):
        diagnosed(path, ["compute"])


def test_failure_of_one_is_raised_or_kept_as_asked(diagnostics, run):
    diagnostics(rollout=DataError("no window is long enough"))
    with pytest.raises(DataError, match="no window"):
        diagnosed(run)
    outcome = diagnosed(run, keep_going=True)
    assert [each.name for each in outcome.failed] == ["rollout"]
    assert len(outcome.diagnoses) == len(SUMMARIES) - 1
    assert outcome.healthy
    document = outcome.to_dict()
    assert document["rollout"] == {"error": {"kind": "data", "message": "no window is long enough"}}
    assert document["failed"] == ["rollout"]
    assert set(document["seconds"]) == set(SUMMARIES)


def test_progress_and_preparation_come_before_any_measurement(diagnostics, run):
    diagnostics(health=DataError("measured"))
    seen = []
    with pytest.raises(DataError, match="measured"):
        diagnosed(run, prepare=lambda planned: seen.append(planned.folder), progress=seen.append)
    assert seen == [Path("results/test/toy-two-goals/tiny/seed0"), "health"]


def test_report_is_one_document_and_one_page(diagnostics, run):
    diagnostics(health=Fake("health", healthy=False), esnr=Fake("esnr", figure=math.inf), actions=DataError("none"))
    outcome = diagnosed(run, keep_going=True)
    files = write_report(outcome, outcome.folder)
    assert sorted(path.name for path in outcome.folder.iterdir()) == ["diagnosis.html", "diagnosis.json"]
    document = json.loads(files["json"].read_text())
    assert document["checkpoint_sha256"] == outcome.origin.sha256
    assert document["schema_version"] == DIAGNOSIS_SCHEMA
    assert document["esnr"]["figure"] is None  # JSON has no infinity
    html = files["html"].read_text()
    assert "health &lt;says&gt; so\nNot measured: actions" in html and '<p class="verdict bad">' in html
    assert html.count("data:image/png;base64,") == len(SUMMARIES) - 1
    assert outcome.origin.sha256 in html


def test_page_does_not_call_a_run_healthy_whose_health_is_not_known(diagnostics, run):
    diagnostics(health=DataError("the buffer is empty"))
    page = report_page(diagnosed(run, keep_going=True))
    assert page.healthy is None
    assert "not known: the buffer is empty" in page.verdict
    assert report_page(diagnosed(run, ["compute"])).healthy is None


def test_same_report_is_replaced_and_another_kept(diagnostics, run):
    diagnostics(health=Fake("health", figure=1.0))
    first = write_report(diagnosed(run), Path("r"))
    diagnostics(health=Fake("health", figure=2.0))
    again = write_report(diagnosed(run), Path("r"))
    assert again == first and json.loads(again["json"].read_text())["health"]["figure"] == 2.0
    other = write_report(diagnosed(run, seed=1), Path("r"))
    assert (other["json"].name, other["html"].name) == ("diagnosis-2.json", "diagnosis-2.html")
    assert json.loads(first["json"].read_text())["seed"] == 0


def test_report_of_another_schema_version_is_kept(diagnostics, run):
    diagnostics(health=Fake("health", figure=1.0))
    first = write_report(diagnosed(run), Path("r"))
    first["json"].write_text(json.dumps({**json.loads(first["json"].read_text()), "schema_version": 1}))
    assert write_report(diagnosed(run), Path("r"))["json"].name == "diagnosis-2.json"


def test_somebody_elses_file_is_never_replaced(diagnostics, run):
    diagnostics()
    Path("r").mkdir()
    Path("r/diagnosis.html").write_text("mine")
    Path("r/diagnosis-2.json").write_text("mine too")
    assert write_report(diagnosed(run), Path("r"))["json"].name == "diagnosis-3.json"
    assert Path("r/diagnosis.html").read_text() == "mine" and not Path("r/diagnosis.json").exists()


def test_full_disk_leaves_the_earlier_report_whole(diagnostics, run, monkeypatch):
    diagnostics(health=Fake("health", figure=1.0))
    files = write_report(diagnosed(run), Path("r"))
    before = files["json"].read_bytes(), files["html"].read_bytes()
    diagnostics(health=Fake("health", figure=2.0))

    class Full(diagnosis_files.StagedFile):
        def write(self, data):
            if self.path.suffix == ".html":
                self._failure = OSError(28, "No space left on device")
                return len(data)
            return super().write(data)

    monkeypatch.setattr(diagnosis_files, "StagedFile", Full)
    with pytest.raises(StorageError, match=r"diagnosis\.html: cannot be written"):
        write_report(diagnosed(run), Path("r"))
    assert (files["json"].read_bytes(), files["html"].read_bytes()) == before
    assert len(list(Path("r").iterdir())) == 2


def test_folder_that_cannot_be_made_is_refused_before_anything_is_measured(diagnostics, run):
    diagnostics(health=DataError("measured"))
    Path("file").touch()
    with pytest.raises(StorageError, match="file/below"):
        diagnosed(run, prepare=lambda planned: diagnosis_files.claim_folder(Path("file/below")))


@pytest.fixture(autouse=True)
def logged(caplog):
    """Warnings, which the command line shows on stderr."""
    caplog.set_level(logging.WARNING, logger="flowmbpo")
