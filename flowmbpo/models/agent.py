"""Everything that is learned, in one module: what a checkpoint holds and evaluation needs."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowmbpo.config.actors import ActorConfig
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.model import CriticConfig, ModelConfig
from flowmbpo.models.build import build_actor
from flowmbpo.models.heads import CriticEnsemble, TwoHotReward
from flowmbpo.models.reward_normalizer import Normalization, RewardNormalizer
from flowmbpo.models.task_context import TaskContext
from flowmbpo.models.world_model import WorldModel
from flowmbpo.nets.running import RunningStd
from flowmbpo.nets.two_hot import symexp, symlog
from flowmbpo.spec import EnvSpec

RETURN_SCALE_DECAY = 0.99


class Agent(nn.Module):
    """World model, actor, critic (and its optional EMA target), and the running scales."""

    def __init__(
        self,
        model: ModelConfig,
        actor: ActorConfig,
        critic: CriticConfig,
        spec: EnvSpec,
        reward_normalization: Normalization,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.world_model = WorldModel(model, spec)
        self.actor = build_actor(actor, model.latent_dim, model.task_dim, spec.action_dim)
        self.critic = CriticEnsemble(critic, model.latent_dim, model.task_dim)
        self.target_critic = None
        if critic.target_decay is not None:
            self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.reward_normalizer = RewardNormalizer(reward_normalization)
        self.return_scale = RunningStd(1, RETURN_SCALE_DECAY)

    @torch.no_grad()
    def act(
        self, obs: Float[Tensor, "N O"], task: Int[Tensor, " N"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "N A"]:
        """Closed loop: encode real observations and act on them (deterministic without a generator)."""
        context = self.world_model.context(task)
        z = self.world_model.latent(self.world_model.encode(obs, context))
        action: Tensor = self.actor(z, context, generator)
        return action

    @property
    def bootstrap_critic(self) -> CriticEnsemble:
        """The critic that targets are made of: the EMA target, where there is one."""
        return self.critic if self.target_critic is None else self.target_critic

    def learning_reward(self, reward: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """A real reward in the units of the model's rewards, and so of the critic: a head may stay in symlog space."""
        normalised: Tensor = self.reward_normalizer(reward)
        return symlog(normalised) if self._rewards_in_symlog else normalised

    @torch.no_grad()  # a figure for people
    def predict_reward(
        self, z: Float[Tensor, "B D"], action: Float[Tensor, "B A"], context: TaskContext
    ) -> Float[Tensor, " B"]:
        """Predicted rewards in the environment's own units: the inverse of `learning_reward`."""
        reward = self.world_model.reward(z, action, context)
        return self.reward_normalizer.inverse(symexp(reward) if self._rewards_in_symlog else reward)

    @property
    def _rewards_in_symlog(self) -> bool:
        """PWM's actor maximises symlog rewards."""
        head = self.world_model.reward_head
        return isinstance(head, TwoHotReward) and head.config.decode == "symlog"


def build_agent(config: ExperimentConfig, spec: EnvSpec) -> Agent:
    """The untrained agent of a config, initialised from torch's global generator."""
    return Agent(config.model, config.actor, config.critic, spec, config.training.reward_normalization)


def build_meta_agent(config: ExperimentConfig, spec: EnvSpec) -> Agent:
    """The agent without memory behind its weights: for counting only."""
    with torch.device("meta"):
        return build_agent(config, spec)


def seeded_agent(config: ExperimentConfig, spec: EnvSpec) -> Agent:
    """The agent of a new run: initial weights depend on the seed alone."""
    torch.manual_seed(config.seed)
    return build_agent(config, spec)
