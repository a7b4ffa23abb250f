"""Size classes of the published models, told by their widths."""

from __future__ import annotations

from flowmbpo.checkpoints.importers.foreign import ForeignModel, count, hidden_units

# (first encoder width, width of the other networks, encoder layers): latent widths differ by task set.
_CLASSES = {
    (256, 384, 2): "1M",
    (256, 512, 2): "5M",
    (1024, 1024, 3): "19M",
    (1792, 1792, 4): "48M",
    (4096, 4096, 5): "317M",
    (128, 256, 2): "S",
    (2048, 2048, 4): "XL",
}
_NEWT = {"5M": "B", "19M": "L"}


def size_class(model: ForeignModel) -> str | None:
    """TD-MPC2's size (`48M`), Newt's (`B`), or None for a model of other widths."""
    widths = (hidden_units(model.encoder)[0], hidden_units(model.dynamics)[0], len(model.encoder))
    name = _CLASSES.get(widths)
    return _NEWT.get(name, name) if name is not None and model.format == "newt" else name


def part_parameters(model: ForeignModel) -> dict[str, int]:
    """Learnable scalars by part; `total` as TD-MPC2 counts them (no copies of the Q functions)."""
    parts = {
        "encoder": count(model.encoder),
        "dynamics": count(model.dynamics),
        "reward": count(model.reward),
        "task_embedding": 0 if model.embeddings is None else model.embeddings.numel(),
        "termination": count(model.termination),
        "policy_prior": count(model.pi),
        "q_functions": count(model.q),
    }
    if model.pwm is not None:
        logstd = 0 if model.pwm.logstd is None else model.pwm.logstd.numel()
        parts |= {"actor": count(model.pwm.actor) + logstd, "critic": count(model.pwm.critic)}
    found = {name: number for name, number in parts.items() if number}
    return found | {"total": sum(found.values())}
