"""The faults, each in several variants and strengths."""

from __future__ import annotations

import math

import torch

from planted.code import (
    detach_first_layer,
    end_in_simnorm,
    freeze,
    has_encoder,
    has_many_actions,
    has_velocity,
    hook_parameters,
    is_scalar,
    patch_method,
    permute_actions,
    scale_gradient,
    swap_environment,
    wrap_actor,
)
from planted.saved import (
    Fault,
    both_late,
    edit_columns,
    forget,
    forget_encoder,
    one_member,
    poison,
    quieten,
    reset,
    scale,
    scale_replayed,
    scale_rewards,
    scale_weights,
    shift_bias,
    shift_replay,
    swap_replayed,
    weaken_memory,
)


def all_faults() -> list[Fault]:
    """Every variant of every fault."""
    return [
        *reward_head(),
        *reward_scale(),
        *velocity(),
        *actor(),
        *weights(),
        *critic(),
        *policy(),
        *columns(),
        *replay(),
        *encoder(),
        *lost_observation(),
        *slopes(),
        *entropy(),
    ]


def reward_head() -> list[Fault]:
    """Predicted rewards that hardly vary."""
    name = "flat-reward-head"
    level = patch_method("world_model.reward_head.decode", lambda decode: lambda out: decode(out) * 0.0 + 0.7)
    shrunk = patch_method("world_model.reward_head.decode", lambda decode: lambda out: _squeeze(decode(out), 0.03))
    return [
        Fault(name, "output layer zero", saved=scale("world_model.reward_head", 0.0)),
        Fault(name, "output layer zero, bias 1", saved=scale("world_model.reward_head", 0.0, bias=1.0)),
        Fault(name, "output weights x 0.05", saved=scale_weights("world_model.reward_head", 0.05)),
        Fault(name, "output weights x 0.01", saved=scale_weights("world_model.reward_head", 0.01)),
        Fault(name, "as initialised", saved=reset("world_model.reward_head.")),
        Fault(name, "decodes to a constant", code=level),
        Fault(name, "spread squeezed to 3%", code=shrunk, fits=is_scalar),
    ]


def reward_scale() -> list[Fault]:
    """Rewards off by a factor between model, normaliser and environment."""
    name = "reward-scale"
    hundred = patch_method("world_model.reward_head.decode", lambda decode: lambda out: decode(out) * 100.0)
    ten = patch_method("world_model.reward_head.decode", lambda decode: lambda out: decode(out) * 10.0)
    return [
        Fault(name, "moments x 100", saved=scale_rewards(100.0)),
        Fault(name, "moments x 0.01", saved=scale_rewards(0.01)),
        Fault(name, "moments x 10", saved=scale_rewards(10.0)),
        Fault(name, "head x 100", code=hundred),
        Fault(name, "head x 10", code=ten),
        Fault(name, "output layer x 100", saved=scale("world_model.reward_head", 100.0), fits=is_scalar),
        Fault(name, "replayed rewards x 100", saved=scale_replayed(100.0)),
        Fault(name, "replayed rewards x 0.01", saved=scale_replayed(0.01)),
    ]


def velocity() -> list[Fault]:
    """A displacement head that ends in SimNorm."""
    name = "simnorm-velocity"
    return [
        Fault(name, "whole, unprojected", code=end_in_simnorm(1.0), fits=has_velocity),
        Fault(name, "whole, projected", code=end_in_simnorm(1.0, projected=True), fits=has_velocity),
        Fault(name, "half, unprojected", code=end_in_simnorm(0.5), fits=has_velocity),
        Fault(name, "a tenth, unprojected", code=end_in_simnorm(0.1), fits=has_velocity),
    ]


def actor() -> list[Fault]:
    """Something between the objective and the actor's weights."""
    name = "actor-without-gradient"
    cut = patch_method("world_model.next", lambda method: lambda *a, **k: method(*a, **k).detach())
    unread = patch_method("critic.value", lambda method: lambda *a, **k: method(*a, **k).detach())
    hidden = patch_method("actor.forward", torch.no_grad())
    return [
        Fault(name, "actions detached", code=wrap_actor(lambda a: a.detach())),
        Fault(name, "gradient x 0.001", code=wrap_actor(lambda a: scale_gradient(a, 1e-3))),
        Fault(name, "gradient x 0.5", code=wrap_actor(lambda a: scale_gradient(a, 0.5))),
        Fault(name, "forward without grad", code=hidden),
        Fault(name, "hooks x 0.001", code=hook_parameters("actor", 1e-3)),
        Fault(name, "hooks x 0", code=hook_parameters("actor", 0.0)),
        Fault(name, "dynamics detached", code=cut),
        Fault(name, "terminal value detached", code=unread),
        Fault(name, "hidden layers detached", code=detach_first_layer),
        Fault(name, "requires_grad off", code=freeze("actor")),
        Fault(name, "requires_grad off for a third", code=freeze("actor", share=0.34)),
        Fault(name, "as initialised", saved=reset("actor.")),
        Fault(name, "optimiser without moments", saved=forget("actor", lambda index: False, how="drop")),
        Fault(name, "one tensor without moments", saved=forget("actor", lambda index: index != 1, how="drop")),
        Fault(name, "moments zero", saved=forget("actor", lambda index: False, how="zero")),
        Fault(name, "trained on 0.001 of it", saved=weaken_memory("actor", 1e-3)),
    ]


def weights() -> list[Fault]:
    """Numbers that are none."""
    name = "nan-weights"
    return [
        Fault(name, "one entry of the encoder", saved=poison("world_model.", math.nan)),
        Fault(name, "whole actor", saved=poison("actor.", math.nan, everywhere=True)),
        Fault(name, "one infinite entry of the critic", saved=poison("critic.", math.inf)),
        Fault(name, "everything", saved=poison("", math.nan, everywhere=True)),
        Fault(name, "reward moments", saved=poison("reward_normalizer.", math.nan)),
        Fault(name, "one entry of the reward head", saved=poison("world_model.reward_head.", -math.inf)),
    ]


def critic() -> list[Fault]:
    """Values that tell no state from another."""
    name = "dead-critic"
    constant = patch_method("critic.forward", lambda method: lambda *a: method(*a) * 0.0 + 50.0)
    cut = patch_method("critic.forward", lambda method: lambda *a: method(*a).detach())
    return [
        Fault(name, "output layer zero", saved=scale("critic", 0.0)),
        Fault(name, "output layer zero, bias 100", saved=scale("critic", 0.0, bias=100.0)),
        Fault(name, "output layer x 0.01", saved=scale("critic", 0.01)),
        Fault(name, "output weights x 0.01", saved=scale_weights("critic", 0.01)),
        Fault(name, "output layer x 0.05", saved=scale("critic", 0.05)),
        Fault(name, "one member zero", saved=one_member(0.0)),
        Fault(name, "one member constant", saved=one_member(0.0, bias=500.0)),
        Fault(name, "one member x 0.1", saved=one_member(0.1)),
        Fault(name, "as initialised", saved=reset("critic.")),
        Fault(name, "hidden layer zero", saved=poison("critic.network.weights.0", 0.0, everywhere=True)),
        Fault(name, "constant output", code=constant),
        Fault(name, "no gradient to the latent", code=cut),
        Fault(name, "optimiser without moments", saved=forget("critic", lambda index: False, how="drop")),
    ]


def policy() -> list[Fault]:
    """Actions at the ends of their range, and no way back."""
    name = "saturated-policy"
    loud = patch_method("actor.preactivation", lambda method: lambda *a: 50.0 * method(*a))
    return [
        Fault(name, "output layer x 100", saved=scale("actor", 100.0)),
        Fault(name, "output layer x 30", saved=scale("actor", 30.0)),
        Fault(name, "bias 9", saved=shift_bias("actor", 9.0)),
        Fault(name, "input of the tanh x 50", code=loud),
        Fault(name, "bias 20", saved=shift_bias("actor", 20.0)),
        Fault(name, "first dimension's bias 12", saved=shift_bias("actor", 12.0, first=True)),
        Fault(name, "actions clipped at 100 times", code=wrap_actor(lambda a: (100.0 * a).clamp(-1.0, 1.0))),
        Fault(name, "signs of actions", code=wrap_actor(torch.sign)),
    ]


def columns() -> list[Fault]:
    """Action columns in another order than the one that was learnt."""
    name = "swapped-action-columns"
    both = ("world_model.dynamics", "world_model.reward_head")

    def swap(weight: torch.Tensor) -> torch.Tensor:
        return torch.cat([weight[:, 1:2], weight[:, 0:1], weight[:, 2:]], dim=1)

    def turn(weight: torch.Tensor) -> torch.Tensor:
        return weight.flip(1)

    many = has_many_actions
    reverse_next = patch_method("world_model.next", permute_actions(None))
    reverse_reward = patch_method("world_model.reward", permute_actions(None))
    return [
        Fault(name, "first two, everywhere", saved=edit_columns(both, swap), fits=many),
        Fault(name, "first two, dynamics", saved=edit_columns(both[:1], swap), fits=many),
        Fault(name, "reversed, dynamics", saved=edit_columns(both[:1], turn), fits=many),
        Fault(name, "reversed in next and reward", code=lambda s: (reverse_next(s), reverse_reward(s)), fits=many),
        Fault(name, "reversed in the environment", code=swap_environment, fits=many),
        Fault(name, "replay, first two", saved=swap_replayed, fits=many),
        Fault(name, "sign, dynamics", saved=edit_columns(both[:1], torch.neg)),
    ]


def replay() -> list[Fault]:
    """Stored columns that belong to another row."""
    name = "off-by-one-replay"
    return [
        Fault(name, "actions one row late", saved=shift_replay("action", 1)),
        Fault(name, "actions one row early", saved=shift_replay("action", -1)),
        Fault(name, "rewards one row late", saved=shift_replay("reward", 1)),
        Fault(name, "actions and rewards one row late", saved=both_late),
        Fault(name, "actions one row late in half the lanes", saved=shift_replay("action", 1, lanes=slice(0, None, 2))),
    ]


def encoder() -> list[Fault]:
    """An encoder that does not learn."""
    name = "frozen-encoder"
    fits = has_encoder
    prefix = "world_model.encoder."
    detached = patch_method("world_model.encoder.forward", lambda method: lambda x: method(x).detach())
    faint = patch_method("world_model.encoder.forward", lambda method: lambda x: scale_gradient(method(x), 1e-3))
    return [
        Fault(name, "as initialised", saved=reset(prefix), fits=fits),
        Fault(name, "optimiser without moments", saved=forget_encoder("drop"), fits=fits),
        Fault(name, "moments zero", saved=forget_encoder("zero"), fits=fits),
        Fault(name, "output detached", code=detached, fits=fits),
        Fault(name, "gradient x 0.001", code=faint, fits=fits),
        Fault(name, "requires_grad off", code=freeze("world_model", "encoder"), fits=fits),
        Fault(name, "first layer's requires_grad off", code=freeze("world_model", "encoder", share=0.01), fits=fits),
    ]


def lost_observation() -> list[Fault]:
    """An encoder that keeps little or nothing of the observation."""
    name, path = "encoder-lost-observation", "world_model.encoder.forward"

    def noise(method):
        generator = torch.Generator().manual_seed(0)
        return lambda x: method(torch.randn(x.shape, generator=generator))

    sign = patch_method(path, lambda method: lambda x: method(x[..., :1].sign().expand_as(x)))
    return [
        Fault(name, "noise in its place", code=patch_method(path, noise), fits=has_encoder),
        Fault(name, "one sign of it", code=sign, fits=has_encoder),
    ]


def slopes() -> list[Fault]:
    """Values that go down where the real return goes up, though the level is right."""
    upside_down = patch_method("critic.forward", lambda method: lambda *a: 2.0 * method(*a).mean() - method(*a))
    return [Fault("critic-slopes-untrained", "upside down", code=upside_down)]


def entropy() -> list[Fault]:
    """A policy without noise to speak of."""
    return [Fault("entropy-collapse", f"noise x {share}", saved=quieten(share)) for share in (0.03, 0.001)]


def _squeeze(x: torch.Tensor, share: float) -> torch.Tensor:
    mean = x.detach().mean()
    return mean + share * (x - mean)
