"""The diagnostics by name, for the command line. Imports no torch."""

from __future__ import annotations

SUMMARIES = {
    "health": "A verdict in words: what is broken in the run, with the figures behind it.",
    "jacobians": "Norms of the model's Jacobians in state and action, per step and through the horizon.",
    "esnr": "Signal to noise of the actor's and the world model's gradients.",
    "gradient": "The model's actor gradient against a reference from the real environment.",
    "rollout": "Latent and reward error of 1- to 32-step predictions against real trajectories.",
    "reward-gap": "The same policy's return in the model and in the environment.",
    "actions": "Spread, saturation and modes of the policy's actions.",
    "compute": "Network evaluations, FLOPs, seconds and memory of each update.",
}
