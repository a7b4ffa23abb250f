"""Estimated costs against what torch counts around the real updates."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.make import make_env
from flowmbpo.envs.tasks import task_info
from flowmbpo.models.agent import build_meta_agent
from flowmbpo.parity.cost import estimate_cost
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.train import run_epoch
from flowmbpo.spec import EnvSpec
from flowmbpo.training.batches import ReplayBatches
from flowmbpo.training.collector import Collector
from flowmbpo.training.learner import Learner, make_generators

SMALL = (
    "task.name=toy-pendulum-swingup",
    "task.num_envs=8",
    "training.wm_buffer_size=1000",
    "training.wm_batch_size=16",
    "training.horizon=4",
    "training.actor_batch_size=8",
    "training.warmup_model_updates=0",
    "training.rounds=2",
    "training.wm_iterations=1",
    "training.critic_iterations=2",
    "training.critic_batches=2",
)
CASES = {
    "mlp-gaussian": ("quickstart-baseline",),
    "flow-flow": ("quickstart",),
    "gaussian": ("mini-cartpole-gaussian",),
    "generative": ("mini-cartpole-genflow",),
    "neural-ode": ("mini-cartpole-neuralode",),
    "pwm-5m": ("phase1-baseline",),
    "jacobian-penalty": ("phase1p5-jacobian-penalty", "model.dynamics.units=[64, 64]", "model.latent_dim=64"),
    "truncated": ("quickstart", "training.actor_horizon=2"),
    "adaptive": ("quickstart", "training.actor_horizon=3", "training.adaptive_horizon={tolerance: 1e9}"),
    "widened": ("quickstart-widemlp",),
    "spectral-norm": ("quickstart", "model.dynamics.spectral_norm=true"),
    "two-hot": ("phase1p5-two-hot", "model.dynamics.units=[64, 64]", "model.latent_dim=64"),
    "everything": (
        "quickstart",
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
        from flowmbpo.parity.parameters import build_agent

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
    assert counted(real.update_model) == cost.model_update.flops
    batches = cost.updates_per_epoch["critic"] // config.training.rounds
    policy = cost.actor_update.flops + batches * cost.critic_update.flops
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
    flops = {"model": cost.model_update.flops, "actor": cost.actor_update.flops, "critic": cost.critic_update.flops}
    assert offline.flops_per_epoch == sum(flops[name] * count for name, count in expected.items())


def test_estimate_at_full_batch_is_linear_in_the_batch():
    costs = [
        estimate_cost(config, spec_of(config)).model_update
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
    assert document["updates_per_epoch"] == {"model": 2, "actor": 2, "critic": 2 * 2 * 2}
    assert all(size > 0 for size in document["memory_mb"].values())


def test_memory_of_the_full_buffer_and_of_the_optimisers_is_what_they_hold(trainer):
    config = experiment("mlp-gaussian", "training.wm_buffer_size=700")
    cost = estimate_cost(config, spec_of(config))
    real, collector = trainer(config)
    while collector.env_steps < 1500:
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
    estimated = estimate_cost(config, spec_of(config)).model_update.activation_bytes
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
