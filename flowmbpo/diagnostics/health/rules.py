"""What is sound: one row per finding, with the figure that it judges and the range in which that is sound.

Ranges were set on healthy runs of all presets that train in minutes, with a margin of several times between the worst
healthy figure, the limit, and the weakest planted fault. The notes say what healthy runs have.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flowmbpo.diagnostics.health.probes import Figures, in_words
from flowmbpo.diagnostics.health.probes.columns import BETTER, POLICY_BETTER, REWARD_BETTER
from flowmbpo.diagnostics.health.probes.dynamics import ROUNDING
from flowmbpo.diagnostics.health.probes.reward import FLAT_SLOPE

Severity = Literal["broken", "note"]
Range = tuple[float, float]

NONE: Range = (0.0, 0.0)
INF = math.inf
OPTIMISER, EPISODES, REPLAY, BOTH = ("optimiser",), ("episodes",), ("replay",), ("replay", "episodes")


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    `figure` is where the probe has it, its keys joined by dots: a number, or what is counted. Outside of `sound` (NaN
    always is) it is the finding `name`: `broken`, or a `note`. A figure that is missing or None is not judged, nor is
    any where the figure `when` is false. Of the rows of one `topic` the first that finds something speaks. `says` is a
    format string over the probe's figures, those beside the judged one first, and `value`. `light`: in training too.
    `needs` is what figures are measured on. `state`, in the range's place: what that figure must say.
    """

    name: str
    probe: str
    figure: str
    sound: Range
    says: str
    needs: tuple[str, ...] = ()
    light: bool = False
    severity: Severity = "broken"
    topic: str = ""
    when: str = ""
    state: str = ""

    def value(self, figures: Figures) -> float | None:
        """The figure that is judged; None where it is not."""
        value = _counted(_at(figures, self.figure))
        return None if value is None or (self.when and not _at(figures, self.when)) else float(value)

    def finds(self, figures: Figures, value: float) -> bool:
        """Whether these figures, the judged one `value`, are the finding."""
        return bool(figures["state"] == self.state) if self.state else not self.sound[0] <= value <= self.sound[1]

    def message(self, figures: Figures) -> str:
        """One or two plain sentences: what was measured and what to do."""
        value, beside = _counted(_at(figures, self.figure)), _at(figures, self.figure.rpartition(".")[0]) or {}
        return _Words().vformat(self.says, (), {**figures, **beside, "value": value})


class _Words(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, Mapping | list | tuple):
            return in_words(value)
        return "?" if value is None else str(super().format_field(value, format_spec))


def _graded(broken: float, note: float) -> tuple[tuple[float, Severity], ...]:
    """Two limits of one figure, the worse first: the first row of a topic speaks."""
    return (broken, "broken"), (note, "note")


def _counted(value: Any) -> Any:
    return len(value) if isinstance(value, Mapping | list) else value


def _at(figures: Figures, path: str) -> Any:
    value: Any = figures
    for key in path.split(".") if path else ():
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


_GO_BACK = "The run cannot go on from here: return to an earlier checkpoint, and lower the learning rates or the clips."
_NO_SLOPE = "No gradient passes the tanh there; raise training.preactivation_penalty or lower training.actor_lr."
_PLAIN_HEAD = "Give it a plain linear head and train anew."
_LOOK = "Look at its last layer, its learning rate and its optimiser."
_YOUNG = "but its weights still move at full speed: it needs more updates."
_UNFREEZE = "Check what detaches it, requires_grad, and which parameters the model's optimiser has."
_LEAVE = (
    "Within 50 imagined steps latents leave the simplex: group sums by {largest_sum_error:.3g}, negative parts of "
    "{largest_negative_part:.3g}, mean logits by {largest_logit_drift:.3g} of their size. Rewards and values are read "
    "where nothing was learnt: check the velocity's projection, or set dynamics.retraction."
)
_SWAPPED = (
    "agrees better with the action's columns as {arrangement} (log error ratio {reached[effect]:.2f}, z "
    "{reached[z]:.1f}): columns are exchanged or turned between environment, buffer and network. Check the order of "
    "the inputs, and train anew."
)
_IGNORED = (
    "The dynamics predicts as well with other rows' actions (log error ratio {effect:.3f}, z {z:.1f}; they change its "
    "predictions by {response:.2g} of a step), though in reality they matter (a regression without them errs by "
    "{matters:.2f} more): no gradient of any use reaches the actor through it. Check the action's way into the "
    "network, and its alignment."
)
_STORE = "Check where transitions are stored and windows are cut, and train anew."
_SHIFTED = (
    "stand {steps} step(s) too {direction}: their profile over shifts correlates {similarity:.2f} with that of fresh "
    "episodes when moved so, {similarity_unshifted:.2f} unmoved. " + _STORE
)
_HARDLY_VARIES = (
    "The value varies over states by {spread_over_targets:.2g} of what its own targets vary by (healthy: 0.9 to 1.1)"
    "{beside_returns}"
)
_ACCOUNTS = (
    "Over one horizon the value accounts for {slope:.2g} (standard error {standard_error:.2g}) of the imagined rewards "
    "(healthy: 0.45 to 1.25), and leaves {residual:.2g} of its targets' spread unexplained (healthy: up to 0.5)"
)
_LEVEL = (
    "The value is {value_mean:.3g} on average where the policy really earns {return_mean:.3g} (discounted, in learning "
    "rewards; {bootstrapped_share:.0%} of it bootstrapped): the policy exploits its model, the critic feeds on itself, "
    "or the reward's scale is wrong."
)
_RETURN_OFF = (
    "Over {horizon} steps the model promises the policy {imagined_return[value]:.3g} where the environment pays "
    "{earned_return[value]:.3g} (real rewards, discounted): {cause}, or rewards are predicted in the wrong scale."
)
_EARLY = (
    "{ended_early} of {episodes} episodes were ended by the task within a fifth of the time limit (after "
    "{ended_early_length:.0f} of {limit:.0f} steps on average): the agent falls or fails at once"
)
_ARRIVES = (
    "The actor gets {gradient_arrives:.3g} of the gradient that finite differences of its objective show "
    "(actor_input_gradient: {input_gradient}; 1 is right)."
)
_CUT = "Look for a detach, no_grad, hook or scaling between the objective and the actor."
_EXPLODES = (
    "The gradient of the return to the first action is {growth_through_horizon:.3g} times that to the last, and "
    "{sensitivity:.3g} spreads of the return per unit of action: a few start states drown the others. Shorten "
    "training.horizon or penalise the dynamics' Jacobian (model.dynamics.jacobian_penalty)."
)
_NO_GRADIENT, _DEAD, _OFF_BY_ONE = "actor-without-gradient", "dead-critic", "off-by-one-replay"
_HEAD, _SCALE, _COLUMNS, _SIMNORM = "flat-reward-head", "reward-scale", "swapped-action-columns", "simnorm-velocity"

# fmt: off
RULES: tuple[Rule, ...] = (
    *(Rule("nan-weights", "weights", figure, NONE, f"{says} {{{figure}}}. {_GO_BACK}", needs, light=True)
      for figure, says, needs in (
        ("nonfinite_weights", "NaN or infinite entries in", ()),
        ("nonfinite_moments", "NaN or infinite entries in", OPTIMISER),
        ("overflowing_weights", "Finite weights, but entries above 1.8e+19, whose squares overflow, in", ()),
        ("nonfinite_outputs", "Finite weights, but NaN or infinite outputs (in so many states) of", ()))),
    Rule("nan-replay", "weights", "nonfinite_replay", NONE,
         "Replay buffer: NaN or infinite entries in {nonfinite_replay}. Every update that draws them is lost; the file "
         "was damaged or written by something else than a run.", REPLAY, light=True),
    Rule("nonfinite-updates", "weights", "nonfinite_updates", NONE,
         "{value} updates of this run had a non-finite loss or gradient and were left out; their batches are in the "
         "run's nonfinite/ folder.", light=True, severity="note"),
    Rule("replay-damaged", "weights", "replay_altered", NONE,
         "{replay_trouble} What was learnt from it cannot be checked against it.", REPLAY),

    # Healthy: slopes 0.75 to 1.04, RMS ratios 0.81 to 1.07, cosines 0.96 and more.
    *(Rule(_HEAD, "reward", f"{source}.slope_over_reference", (FLAT_SLOPE, INF),
           f"On {source.replace('_', ' ')} " "the predicted reward hardly follows the real one: slope {slope:.2g}, "
           "correlation {correlation:.2g}, spread {spread_ratio:.2g} times the real one's, where a regression explains "
           "{reference_r2:.0%} of its variance. The actor has nothing to follow: check the reward head's loss, its "
           "last layer and model.reward.kind.", needs, topic=_HEAD)
      for source, needs in (("fresh_episodes", EPISODES), ("replayed_transitions", REPLAY))),
    # Where leaving out the action costs a regression much, healthy heads respond to it by 0.68 to 1.1 of that.
    Rule(_HEAD, "reward", "action.response", (0.1, INF),
         "The predicted reward is flat in the action: other rows' actions change it by {response:.2g} of what they "
         "change a regression, and that regression errs by {without_action[effect]:.2f} more (log error ratio, z "
         "{without_action[z]:.1f}) without the action. The reward gives the actor no gradient of its own: check the "
         "action's way into the reward head.", EPISODES, topic=_HEAD),
    # Healthy: within 1e-4 of finite differences.
    *(Rule(_HEAD, "reward", f"gradient_to_{name}.slope", (1.0 / 2.0, 2.0),
           f"The reward's gradient to {said} " "is {slope:.3g} times what its predictions change by: something between "
           "head and actor cuts or scales it (a detach, a hook).", topic=_HEAD)
      for name, said in (("z", "the latent"), ("action", "the action"))),
    *(Rule(_SCALE, "reward", f"{source}.{figure}", (1.0 / 3.0, 3.0),
           f"On {source.replace('_', ' ')} " "the predicted reward has the shape of the real one (correlation "
           "{correlation:.2f}, cosine {cosine:.2f}) but {rms_ratio:.3g} times its size (slope {slope:.3g}): check the "
           "reward normaliser's moments and what scales rewards before and after the head.", needs, topic=_SCALE)
      for source, needs in (("fresh_episodes", EPISODES), ("replayed_transitions", REPLAY))
      for figure in ("size", "size_of_slope")),
    # Healthy: within 4%.
    Rule(_SCALE, "reward", "stored_over_running_rms", (1.0 / 2.0, 2.0),
         "The stored rewards are {value:.3g} times the size that the reward normaliser's moments say: rewards were "
         "scaled on one of the two ways, or the moments were changed. The head learns in a wrong unit.",
         REPLAY, topic=_SCALE),
    # Healthy: 0.8 and more.
    Rule(_HEAD, "reward", "spread_over_real", (0.05, INF),
         "On replayed transitions the predicted reward varies by {value:.2g} of what the real one varies by: the actor "
         "has nothing to follow. `flowmbpo diagnose health` says more.", REPLAY, light=True),

    # Healthy: 0.73 at most (a fresh MLP, whose first step is 3.8 times as bad as standing still, because it rebuilds
    # the latent from nothing), mostly below 0.3.
    Rule("dynamics-worse-than-trivial", "dynamics", "error_over_trivial", (-INF, 1.5),
         "After {judged_steps} step(s) on real trajectories the dynamics' latent error is {value:.3g} times that of "
         "the better of two trivial predictors (standing still; the mean state). The actor learns in a world that does "
         "not exist: check actions, alignment and the velocity, or train the model longer.", EPISODES),

    Rule("too-few-updates", "dynamics", "updates_per_step", (0.1, INF),
         "The world model makes {value:.2g} updates per agent step, and its error is still {error_over_trivial:.2g} "
         "times that of a trivial predictor: raise training.wm_iterations, or training.rounds (updates_per_step).",
         EPISODES, severity="note", when="error_is_high"),

    Rule(_SIMNORM, "latents", "velocity.on_simplex", NONE,
         "The dynamics' velocity is never negative and always sums to {total:.3g}: it ends in a softmax "
         "(SimNorm), though a displacement is signed and sums to 0 per group. " + _PLAIN_HEAD, topic=_SIMNORM),
    # Healthy: 1e-6.
    Rule(_SIMNORM, "latents", "velocity.deviation", (-INF, 1e-3),
         "The dynamics' velocity is not what its linear head puts out (off by {value:.2%} of its size): something like "
         "SimNorm stands behind the head. " + _PLAIN_HEAD, topic=_SIMNORM),
    Rule(_SIMNORM, "latents", "error_with_simnorm_head.certain", NONE,
         "With a SimNorm behind its linear head the dynamics predicts better (log error ratio {effect:.2f}, z "
         "{z:.1f}): the velocity was trained with one. " + _PLAIN_HEAD, topic=_SIMNORM),
    Rule(_SIMNORM, "latents", "equal_gain", (-INF, 0.0),
         "Every imagined step adds {value:.3g} to the sum of every group of the latent: a velocity that ends in "
         "SimNorm does that. " + _PLAIN_HEAD, topic=_SIMNORM),
    # Sums and drifts are rounding until something adds to them; negative parts of unretracted tangent latents reach
    # 0.1, those of SimNorm velocities 0.3 in one step.
    Rule("latents-leave-simplex", "latents", "largest_sum_error", (-INF, ROUNDING), _LEAVE, topic="walk"),
    Rule("latents-leave-simplex", "latents", "largest_logit_drift", (-INF, ROUNDING), _LEAVE, topic="walk"),
    Rule("latents-leave-simplex", "latents", "largest_negative_part", (-INF, 0.5), _LEAVE, topic="walk"),
    # Healthy: 4e-3 in episodes of one policy, 5e-2 in replay buffers.
    Rule("latent-collapse", "latents", "spread_share", (1e-4, INF),
         "The encoder maps all states to nearly one latent: their variance is {value:.2g} of its mean square. Nothing "
         "downstream can tell states apart: check the encoder's last layer and the weight of the reward loss."),

    # Healthy: gradient 0.19 to 6.4 times the dynamics', over the run 0.45 to 4.9 times; the least moved tensor has
    # moved 0.24 times as far as the dynamics' median tensor; the chain rule holds to rounding.
    *(Rule("frozen-encoder", "encoder", figure, sound, f"The encoder does not learn: {says}. {_UNFREEZE}", needs,
           topic=f"encoder {topic}")
      for topic, figure, sound, needs, says in (
        ("gradient", "unreached", NONE, (), "no gradient of the model's loss reaches {value} tensors: {unreached}"),
        ("gradient", "gradient_over_dynamics", (0.02, INF), (), "its gradient is {value:.2g} of the dynamics'"),
        ("gradient", "gradient_by_chain_rule", (0.5, INF), (),
         "its gradient is {value:.2g} of what its outputs' gradient makes of it"),
        ("memory", "optimiser_lacks_it", NONE, OPTIMISER, "the saved optimiser holds nothing of it"),
        ("memory", "optimiser_steps_over_others", (0.5, INF), OPTIMISER,
         "the optimiser has stepped it {value:.2g} times as often as the rest of the model"),
        ("memory", "optimiser_gradient_over_dynamics", (0.02, INF), OPTIMISER,
         "its gradients over the run were {value:.2g} of the dynamics'"),
        ("values", "tensors_as_constructed", NONE, (),
         "{value} tensors are still exactly as constructed: {tensors_as_constructed}"),
        ("movement", "least_movement_over_dynamics", (0.02, INF), ("initial",),
         "{least_moved} has moved {value:.2g} as far as the dynamics' weights"))),

    # Healthy: 0.66 and more; on PWM's latent values, stuck at 393 on walker-stand, 0.55.
    *(Rule("encoder-lost-observation", "encoder", "observation_r2", (limit, INF),
           "From the latent a regression reads back {value:.0%} of the observation's variance (least: {least_kept}): "
           "what control needs may be lost. Normalise observations (model.encoder.normalize_steps), and let a decoder "
           "shape the encoder (model.decoder, model.encoder_learns_dynamics: false).", severity=severity, topic="kept")
      for limit, severity in _graded(0.2, 0.5)),

    # Healthy: other actions change a prediction by 0.14 to 1.2 of a step, and cost 0.17 (z 12) and more.
    Rule("action-ignored", "action_columns", "ignored.response", (0.05, INF), _IGNORED, EPISODES, topic="columns"),
    *(Rule(_COLUMNS, "action_columns", f"{source}_rearranged.certain", (-BETTER, INF),
           f"On {said} the dynamics {_SWAPPED}", needs, topic="columns")
      for source, said, needs in (("explored", "explored real episodes", EPISODES),
                                  ("replay", "the replay buffer", REPLAY))),
    Rule(_COLUMNS, "action_columns", "reward_rearranged_in_both.certain", (-REWARD_BETTER, INF),
         f"On explored real episodes the reward head {_SWAPPED}", BOTH, topic="columns"),
    Rule(_COLUMNS, "action_columns", "policy_rearranged.certain", (-POLICY_BETTER, INF),
         f"On the replay buffer the policy {_SWAPPED}", REPLAY, topic="columns", when="policy_rearranged.follows"),
    # Healthy models are the worse for every exchange with latents, planted ones -0.15 and beyond.
    Rule(_COLUMNS, "action_columns", "misplaced_input.certain", (-0.08, INF),
         f"On explored real episodes the dynamics {_SWAPPED}", EPISODES, topic="columns"),
    Rule("action-ignored", "action_columns", "ignored.certain", (0.03, INF), _IGNORED, EPISODES, topic="columns"),

    *(rule for kind in ("action", "reward") for rule in (
        Rule(_OFF_BY_ONE, "alignment", f"replay_{kind}_alignment.vanished", NONE,
             f"No shift of the {kind}s in the replay buffer explains the observations beside them, though in fresh "
             f"episodes one does. {_STORE}", BOTH, topic="alignment"),
        Rule(_OFF_BY_ONE, "alignment", f"replay_{kind}_alignment.gap", (-INF, 0.2),
             f"The {kind}s in the replay buffer {_SHIFTED}", BOTH, topic="alignment",
             when="replay_action_alignment.mends" if kind == "action" else ""))),
    Rule(_OFF_BY_ONE, "alignment", "shifted_parts.names", NONE,
         "The actions in {names} of the replay buffer " + _SHIFTED, BOTH, topic="alignment"),
    Rule(_OFF_BY_ONE, "alignment", "disagreement.effect", (-0.25, INF),
         "In the replay buffer the rewards of {late} stand {steps} step(s) later than those of {early}: a regression "
         "of the reward fitted on either explains the other's better when moved so (log error ratio {effect:.2f}, z "
         "{z:.1f}, at least). Check where transitions are stored, and train anew.", REPLAY, topic="alignment"),
    # Healthy models prefer shift 0, actions by 0.06 and rewards by 0.02.
    *(Rule(_OFF_BY_ONE, "alignment", f"preference_{source}_{kind}.{figure}", (limit, INF),
           f"On {said} the model agrees better with the {kind} " "of {steps} step(s) {direction} (log error ratio "
           "{effect:.2f}, z {z:.1f}): it was trained on misaligned rows, or these rows are. Check where transitions "
           "are stored and windows are cut.", needs, topic="alignment")
      for source, said, kind, figure, limit, needs in (
          ("fresh", "fresh episodes", "action", "effect", -0.05, EPISODES),
          ("replay", "the replay buffer", "action", "effect", -0.05, REPLAY),
          ("replay", "the replay buffer", "reward", "effect", -0.7, REPLAY),
          ("replay", "the replay buffer", "reward", "effect_denied_by_fresh", -0.25, BOTH))),

    Rule(_NO_GRADIENT, "actor", "wrong_tensors", NONE,
         _ARRIVES + " Wrong in {wrong_tensors}. " + _CUT, light=True, topic="reach"),
    # Healthy: 2e-6; float64 leaves only the difference's own error.
    Rule(_NO_GRADIENT, "actor", "gradient_mismatch", (-INF, 0.01),
         f"{_ARRIVES} {_CUT}", light=True, topic="reach"),
    # Healthy: 1e-2 to 0.5 spreads of the return per unit of action, and a growth of 0.6 to 16 over the horizon.
    *(Rule(name, "actor", figure, sound, says, light=True, topic="size") for name, figure, sound, says in (
        ("actor-gradient-explodes", "sensitivity", (-INF, 1e2), _EXPLODES),
        (_NO_GRADIENT, "sensitivity", (1e-7, INF),
         "The imagined return does not depend on the actions: reward head, dynamics and critic give the actor no "
         "gradient at all. Look at the reward head first."),
        ("actor-gradient-vanishes", "sensitivity", (1e-4, INF),
         "An action moves the imagined return by {value:.2g} of its spread over start states (healthy: 0.01 and more): "
         "the actor learns nothing. Look at the reward head, the dynamics and the critic."),
        ("actor-gradient-explodes", "growth_through_horizon", (-INF, 1e3), _EXPLODES))),
    Rule(_NO_GRADIENT, "actor", "lost_tensors", NONE,
         "{value} of the actor's {trainable} tensors got a gradient in training and get none now: {lost_tensors}. "
         "Weights behind them are zero, or what they feed is cut off or saturated.", OPTIMISER),
    *(rule for part, name in (("actor", _NO_GRADIENT), ("critic", _DEAD)) for rule in (
        Rule(name, part, "frozen_tensors", NONE,
             f"{{value}} tensors of the {part} are set not to learn (requires_grad is off): {{frozen_tensors}}.",
             light=part == "actor"),
        Rule(name, part, "learning_rate_zero", NONE,
             f"The learning rate of the {part}'s saved optimiser is 0: the {part} stands still.", OPTIMISER),
        Rule(name, part, "untrained", NONE,
             f"{{untrained}} of the {part}'s {{trainable}} tensors were never trained (unknown to the saved optimiser, "
             "without moments, or still at their initial values): {untrained_tensors}.", ("optimiser", "initial"),
             topic=f"{part} memory"))),
    # Healthy: 0.66 to 3.0.
    Rule(_NO_GRADIENT, "actor", "saved_over_measured_gradient", (0.15, INF),
         "The gradients that the actor's optimiser remembers are {value:.2g} of those measured now at the same weights "
         "(healthy: 0.7 to 3): during training most of the gradient never arrived.", OPTIMISER, topic="actor memory"),

    Rule(_DEAD, "critic", "spread_over_targets", (0.2, INF),
         _HARDLY_VARIES + ": the critic hardly tells good states from bad ones. " + _LOOK, light=True,
         topic="value", state="flat"),
    # Healthy: up to 1.24.
    Rule("critic-off", "critic", "rewards_accounted_for.low", (-INF, 3.0),
         _ACCOUNTS + ": it is many times what the rewards come to. Its weights are not those that were trained, or the "
         "reward's scale changed under it.", light=True, topic="value"),
    Rule(_DEAD, "critic", "rewards_accounted_for.slope", (0.35, INF),
         _ACCOUNTS + ": the critic does not tell good states from bad ones. " + _LOOK, light=True, topic="value",
         state="unaccounted"),
    Rule("critic-young", "critic", "rewards_accounted_for.slope", (0.35, INF), f"{_ACCOUNTS}, {_YOUNG}",
         severity="note", topic="value", state="young and unaccounted"),
    Rule("critic-off", "critic", "rewards_accounted_for.residual", (-INF, 0.7),
         "The value holds the rewards of a horizon, but leaves {value:.2g} of its targets' spread unexplained (sound: "
         "up to 0.5): it is behind a policy or an encoder that changes fast, or its learning rate is too high.",
         light=True, severity="note", topic="value", state="behind"),
    Rule("critic-young", "critic", "spread_over_targets", (0.2, INF), f"{_HARDLY_VARIES}, {_YOUNG}",
         severity="note", topic="value", state="young and flat"),
    Rule(_DEAD, "critic", "dead_members", NONE,
         "Of the critic's {members} members, {dead_members} (counted from 0) are dead: their values hardly vary over "
         "states where others do (spreads, in order: {member_spreads}), or pass no gradient on.", light=True),
    # Healthy: 0.4 and more. A value cannot know what the policy's own noise earns, so that 0 alone proves nothing.
    *(Rule("critic-slopes-untrained", "critic", "real_rewards_accounted_for.correlation_high", (limit, INF),
           "Along the policy's real steps the value hardly changes by what is earned on the way (correlation "
           "{correlation:.2f}, at most {value:.2f}; slope {slope:.2g}): its slopes at real encodings, which the actor "
           "climbs, are untrained. Let it learn on replayed states too (training.critic_replay), with a target network "
           "(critic.target_decay).", EPISODES, severity=severity, topic="slopes")
      for limit, severity in _graded(0.0, 0.2)),
    # Healthy: up to 0.76 sizes of the returns.
    Rule("critic-off", "critic", "offset_over_size", (-5.0, 5.0), _LEVEL, EPISODES, topic="level"),
    Rule("critic-off", "critic", "offset_over_size", (-1.0, 1.0), _LEVEL, EPISODES, severity="note", topic="level"),

    # Healthy: 0.19 and more.
    *(Rule("entropy-collapse", "policy", "noise_spread", (limit, INF),
           "The policy's noise moves its actions, before the tanh, by {value:.2g} only: it explores nothing itself, "
           "and imagination shows it one action per state. Raise the floor of its noise (actor.min_logstd, "
           "actor.min_noise_std, actor.noise_floor).", severity=severity, topic="noise", light=True)
      for limit, severity in _graded(0.01, 0.05)),
    # Healthy: 0.00, bang-bang policies included; output layer times 30: 0.06 to 1.00.
    Rule("saturated-policy", "policy", "deeply_saturated_share", (-INF, 0.1),
         "{deeply_saturated_share:.0%} of all sampled actions lie beyond tanh(7) (healthy: 0%) and "
         "{saturated_share:.0%} beyond 0.99; the mean slope of the tanh is {tanh_slope:.2g}. " + _NO_SLOPE,
         light=True, topic="saturation"),
    Rule("saturated-policy", "policy", "lost_dimensions", NONE,
         "Action dimensions {lost_dimensions} (counted from 0) sit at the ends of their range: the slope of their tanh "
         "is {smallest_tanh_slope:.2g} on average (healthy: 0.02 and more). " + _NO_SLOPE,
         light=True, topic="saturation"),
    Rule("policy-nearly-saturated", "policy", "saturated_share", (-INF, 0.85),
         "{value:.0%} of all sampled actions lie beyond 0.99: a bang-bang policy, or one about to get stuck.",
         severity="note", topic="saturation"),

    Rule("model-return-off", "imagined_return", "certain_gap", (-5.0, 5.0), _RETURN_OFF, EPISODES, topic="return"),
    Rule("model-return-off", "imagined_return", "certain_gap", (-0.5, 0.5), _RETURN_OFF, EPISODES, severity="note",
         topic="return"),

    Rule("episodes-end-early", "endings", "ended_early_share", (-INF, 0.5),
         _EARLY + "; whatever the losses say, it has not learnt the task.", EPISODES, when="grown"),
    Rule("episodes-end-early", "endings", "ended_early_share", (-INF, 0.5), _EARLY + ", and the run is young.",
         EPISODES, severity="note", when="young"),
    Rule("broken-episodes", "endings", "broken_episodes", NONE,
         "The simulator broke {value} of {episodes} episodes; they are cut before the broken step.", EPISODES,
         severity="note"),
)
# fmt: on
