"""Estimated costs against what torch counts around real updates, and counted FLOPs against a count by hand.

A linear layer of `rows` inputs costs 2 rows in out forward (one multiply and one add each), the same again
backward to its weights, and the same again backward to its inputs. Where nothing that is learned stands
before a layer (the observation before the encoder, the start state before the actor's first step, the
replayed latent before the critic) no gradient to its input is computed: that third share is missing.
"""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.compute import measure_compute
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.envs.make import make_env
from flowmbpo.envs.tasks import task_info
from flowmbpo.models.agent import build_agent, build_meta_agent
from flowmbpo.parity.flops import FlopCount, estimate_cost
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.train import run_epoch
from flowmbpo.spec import EnvSpec
from flowmbpo.training.batches import ReplayBatches
from flowmbpo.training.collector import Collector
from flowmbpo.training.learner import Learner, make_generators

SMALL = (
    "task.name=toy-two-goals",
    "task.num_envs=8",
    "training.wm_buffer_size=1000",
    "training.wm_batch_size=16",
    "training.horizon=4",
    "training.actor_batch_size=8",
    "training.warmup_model_updates=0",
    "training.rounds=1",
    "training.wm_iterations=1",
    "training.critic_iterations=2",
    "training.critic_batches=2",
    "model.encoder.units=[16]",
    "model.latent_dim=32",
    "model.dynamics.units=[24]",
    "model.reward.units=[16]",
    "actor.units=[16]",
    "critic.units=[16]",
)
CASES = {
    "mlp-gaussian": ("quickstart-baseline",),
    "flow-flow": ("quickstart",),
    "gaussian": ("mini-cartpole-gaussian",),
    "generative": ("mini-cartpole-genflow",),
    "neural-ode": ("mini-cartpole-neuralode",),
    "pwm": ("phase1-baseline",),
    "jacobian-penalty": ("phase1p5-jacobian-penalty",),
    "truncated": ("quickstart", "training.actor_horizon=2"),
    "adaptive": ("quickstart", "training.actor_horizon=3", "training.adaptive_horizon={tolerance: 1e9}"),
    "widened": ("quickstart-widemlp",),
    "spectral-norm": ("quickstart", "model.dynamics.spectral_norm=true"),
    "two-hot": ("phase1p5-two-hot",),
    "everything": (
        "quickstart",
        "training.rounds=2",
        "training.noise_replicas=3",
        "model.task_dim=4",
        "model.termination={units: [16]}",
        "model.dynamics.source=teacher",
        "critic.target_decay=0.9",
        "training.critic_batches=7",  # does not divide the 96 rows: minibatches of 14, the last of 12
        "training.preactivation_penalty=0.1",
    ),
}


def experiment(name, *more):
    preset, *overrides = CASES[name]
    return load_experiment(preset, (*SMALL, *overrides, *more))


def spec_of(config):
    return EnvSpec((task_info(config.task.name, config.task.backend),))


class Untracked:
    """In place of FlopCounterMode's module tracker, whose hooks fail on `torch.autograd.grad`."""

    parents = frozenset({"Global"})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def counted(function):
    """FLOPs by torch's own counter."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Untracked()
    with counter:
        function()
    return counter.get_total_flops()


@pytest.fixture
def trainer():
    """A started learner and collector of a config: its buffer is filled, nothing is learned yet."""

    def make(config):
        env = make_env(config.task)
        agent = build_agent(config, env.spec)
        replay = ReplayBuffer(
            config.training.wm_buffer_size, env.num_envs, env.spec.obs_dim, env.spec.action_dim, env.task_ids
        )
        generators = make_generators(0, torch.device("cpu"))
        batches = ReplayBatches(replay, config.training, generators["replay"])
        learner = Learner(agent, config.training, batches, generators=generators, dump=print)
        collector = Collector(env, replay, config.training, seed=0, generator=generators["exploration"], dump=print)
        collector.start(agent)
        learner.start()
        return learner, collector

    return make


@pytest.mark.parametrize("name", CASES)
def test_estimated_flops_are_those_of_the_real_updates(trainer, name):
    config = experiment(name)
    cost = estimate_cost(config, spec_of(config))
    real, collector = trainer(config)
    assert counted(real.update_model) == cost.updates["model"].flops
    batches = cost.updates_per_epoch["critic"] // config.training.rounds
    policy = cost.updates["actor"].flops + batches * cost.updates["critic"].flops
    assert counted(real.update_policy) == pytest.approx(policy, rel=1e-6)  # per minibatch, rounded to whole FLOPs
    assert counted(lambda: run_epoch(real, collector)) == pytest.approx(cost.flops_per_epoch, rel=1e-6)


@pytest.mark.parametrize(("learn", "idle"), [("all", ()), ("model", ("actor", "critic")), ("policy", ("model",))])
def test_what_an_offline_run_does_not_train_costs_nothing(learn, idle):
    online = experiment("mlp-gaussian")
    cost = estimate_cost(online, spec_of(online))
    config = online.model_copy(
        update={"training": online.training.model_copy(update={"mode": "offline", "learn": learn})}
    )
    offline = estimate_cost(config, spec_of(config))
    expected = {name: 0 if name in idle else count for name, count in cost.updates_per_epoch.items()}
    assert offline.updates_per_epoch == expected
    assert (cost.act_flops > 0, offline.act_flops) == (True, 0)
    assert offline.flops_per_epoch == sum(cost.updates[name].flops * count for name, count in expected.items())


def test_estimate_at_full_batch_is_linear_in_the_batch():
    costs = [
        estimate_cost(config, spec_of(config)).updates["model"]
        for config in (experiment("flow-flow", f"training.wm_batch_size={rows}") for rows in (16, 64, 112))
    ]
    assert costs[2].flops - costs[1].flops == costs[1].flops - costs[0].flops > 0
    assert (
        costs[2].activation_bytes - costs[1].activation_bytes == costs[1].activation_bytes - costs[0].activation_bytes
    )


def test_estimating_leaves_the_global_generator_alone():
    config = experiment("flow-flow")
    before = torch.get_rng_state()
    estimate_cost(config, spec_of(config))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "nfe", "actor_nfe", "index"),
    [
        # 4 steps of (dynamics + reward), twice for forward and backward, and the actor likewise
        (("model.dynamics={kind: mlp}", "actor={kind: gaussian}"), 1, 1, 2 * 4 * (1 + 1) + 2 * 4 * 1),
        # Heun: 2 evaluations per substep
        (("model.dynamics={kind: flow, integrator: heun, substeps: 4}",), 8, 4, 2 * 4 * (8 + 1) + 2 * 4 * 4),
        (("model.dynamics={kind: flow, integrator: euler, substeps: 8}",), 8, 4, 2 * 4 * (8 + 1) + 2 * 4 * 4),
        (
            ("model.dynamics={kind: flow, integrator: rk4, substeps: 2}", "actor.substeps=4"),
            8,
            8,
            2 * 4 * 9 + 2 * 4 * 8,
        ),
        (("training.actor_horizon=3",), 2, 4, 2 * 3 * (2 + 1) + 2 * 3 * 4),
        (("model.termination={units: [8]}",), 2, 4, 2 * 4 * (2 + 2) + 2 * 4 * 4),
    ],
)
def test_compute_index_counts_network_calls(changes, nfe, actor_nfe, index):
    config = experiment("flow-flow", *changes)
    agent = build_meta_agent(config, spec_of(config))
    assert (agent.world_model.dynamics.nfe, agent.actor.nfe) == (nfe, actor_nfe)
    assert estimate_cost(config, spec_of(config)).compute_index == index


def test_document_names_every_figure():
    config = experiment("mlp-gaussian")
    document = estimate_cost(config, spec_of(config)).to_dict()
    assert set(document["flops"]) == {"model_update", "actor_update", "critic_update", "epoch"}
    assert document["updates_per_epoch"] == {"model": 1, "actor": 1, "critic": 2 * 2}
    assert all(size > 0 for size in document["memory_mb"].values())


def test_memory_of_buffer_and_optimisers_is_what_they_hold(trainer):
    config = experiment("mlp-gaussian", "training.wm_buffer_size=700")
    cost = estimate_cost(config, spec_of(config))
    real, collector = trainer(config)
    while collector.agent_steps < 900:
        run_epoch(real, collector)
    fields = ("obs", "action", "reward", "terminated", "closed", "starts")
    held = sum(getattr(collector.replay, name).nbytes for name in fields)
    assert cost.memory_bytes["replay_when_full"] == pytest.approx(held, rel=0.05)
    weights = sum(p.nbytes for p in real.agent.parameters() if p.requires_grad)
    moments = sum(
        value.nbytes
        for optimiser in real.optimisers.values()
        for state in optimiser.adam.state.values()
        for name, value in state.items()
        if name.startswith("exp_avg")
    )
    assert cost.memory_bytes["weights_and_optimisers"] == pytest.approx(2 * weights + moments, rel=0.01)


def test_memory_kept_for_backward_is_what_autograd_keeps(trainer):
    config = experiment("mlp-gaussian")
    estimated = estimate_cost(config, spec_of(config)).updates["model"].activation_bytes
    real, _ = trainer(config)
    own = {p.data_ptr() for p in real.agent.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        real.update_model()
    assert estimated == pytest.approx(sum(kept.values()), rel=0.15)


OBS, A = 3, 1  # toy-pendulum-swingup
D, ENCODER, DYNAMICS, REWARD, ACTOR, CRITIC = 16, 10, 12, 14, 18, 20  # widths; every network has one hidden layer
MEMBERS, HORIZON, WINDOWS, STARTS, BATCHES = 3, 4, 6, 8, 2
CONFIG = {
    "name": "two-layers",
    "phase": "test",
    "task": {"name": "toy-pendulum-swingup", "num_envs": 4},
    "model": {
        "latent_dim": D,
        "encoder": {"kind": "mlp", "units": [ENCODER]},
        "dynamics": {"kind": "mlp", "units": [DYNAMICS]},
        "reward": {"kind": "scalar", "units": [REWARD]},
    },
    "actor": {"kind": "gaussian", "units": [ACTOR]},
    "critic": {"units": [CRITIC], "ensemble": MEMBERS},
    "training": {
        "horizon": HORIZON,
        "wm_batch_size": WINDOWS,
        "actor_batch_size": STARTS,
        "critic_batches": BATCHES,
        "wm_buffer_size": 1000,
        "actor_input_gradient": "through",
    },
}


def linear(rows, width_in, width_out):
    """A product of [rows, in] and [in, out]; each of its two derivatives costs as much."""
    return 2 * rows * width_in * width_out


def two_layers(rows, width_in, hidden, width_out):
    return linear(rows, width_in, hidden) + linear(rows, hidden, width_out)


@pytest.fixture(scope="module")
def subject():
    """An untrained two-layer agent whose buffer holds ten random steps of four pendulums."""
    config = ExperimentConfig.model_validate(CONFIG)
    env = make_env(config.task)
    replay = ReplayBuffer(1000, env.num_envs, OBS, A, env.task_ids)
    replay.start(env.reset(0))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        action = torch.rand(env.num_envs, A, generator=generator) * 2 - 1
        replay.add(action, env.step(action))
    env.close()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        agent = build_agent(config, env.spec).eval()
    return Subject(agent, config, device=torch.device("cpu"), seed=0, make_env=None, replay=replay)


@pytest.fixture(scope="module")
def measured(subject):
    """FLOPs as counted around each update."""
    return {name: update.flops for name, update in measure_compute(subject, Effort()).measured.items()}


def test_model_update_costs_what_its_layers_do(measured):
    targets = two_layers(HORIZON * WINDOWS, OBS, ENCODER, D)  # forward alone: targets carry no gradient
    first = two_layers(WINDOWS, OBS, ENCODER, D)
    encoder = first + first + linear(WINDOWS, ENCODER, D)  # no gradient to the observation
    dynamics = 3 * HORIZON * two_layers(WINDOWS, D + A, DYNAMICS, D)
    reward = 3 * two_layers(HORIZON * WINDOWS, D + A, REWARD, 1)
    assert measured["model"] == targets + encoder + dynamics + reward


def values(rows):
    """The critics' forward pass; LayerNorm's shift is folded into the second bias, one row of it per member."""
    return MEMBERS * (two_layers(rows, D, CRITIC, 1) + linear(1, CRITIC, 1))


def test_actor_update_costs_what_its_layers_do(measured):
    encoded = two_layers(STARTS, OBS, ENCODER, D)
    policy = two_layers(STARTS, D, ACTOR, A)
    # forward, to the weights, to the inputs; the start state takes no gradient, so the first step's first layer
    # passes none on
    actor = 3 * HORIZON * policy - linear(STARTS, D, ACTOR)
    model = 2 * HORIZON * two_layers(STARTS, D + A, DYNAMICS, D)  # forward and to the inputs: its weights are frozen
    reward = 2 * two_layers(HORIZON * STARTS, D + A, REWARD, 1)
    terminal = values(STARTS) + MEMBERS * two_layers(STARTS, D, CRITIC, 1)
    targets = values(HORIZON * STARTS)  # of the critic's update, forward alone
    assert measured["actor"] == encoded + actor + model + reward + terminal + targets


def test_critic_update_costs_what_its_layers_do(measured):
    rows = HORIZON * STARTS // BATCHES
    to_weights = values(rows)
    to_inputs = MEMBERS * (linear(rows, CRITIC, 1) + linear(1, CRITIC, 1))  # the imagined latents take no gradient
    assert measured["critic"] == values(rows) + to_weights + to_inputs


def test_measured_and_estimated_costs_agree(subject, measured):
    cost = estimate_cost(subject.config, EnvSpec((task_info("toy-pendulum-swingup"),)))
    assert measured == {name: update.flops for name, update in cost.updates.items()}


@pytest.mark.parametrize(("learned_input", "shares"), [(False, 2), (True, 3)])
def test_first_layer_has_input_gradient_only_where_it_learns(learned_input, shares):
    x = torch.ones(5, 7, requires_grad=learned_input)
    layers = nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 2))
    with FlopCount() as count:
        layers(x).sum().backward()
    assert count.flops == shares * linear(5, 7, 11) + 3 * linear(5, 11, 2)
