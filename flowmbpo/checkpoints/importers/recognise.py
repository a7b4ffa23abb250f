"""Which project a file is from, by its names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flowmbpo.checkpoints.importers.foreign import ForeignModel
from flowmbpo.checkpoints.importers.layouts import recognise_layout
from flowmbpo.checkpoints.importers.pwm import is_pwm, read_pwm
from flowmbpo.checkpoints.importers.reading import ForeignFile
from flowmbpo.checkpoints.importers.tdmpc2 import read_tdmpc2
from flowmbpo.errors import CheckpointError

KNOWN = "TD-MPC2 (three layouts), PWM, Newt, or a folder that `flowmbpo checkpoint export` wrote"
_UNCHECKED_NOTE = (
    "The file is of torch's old kind, which stores no checksums: damage to its numbers would not be noticed. Compare "
    "its SHA-256 with one from where it was published."
)


def foreign_model(file: ForeignFile) -> ForeignModel:
    """The model that a file holds. Raises CheckpointError where it is not known or does not fit."""
    model = _recognised(file)
    return model if file.checksums else replace(model, notes=(*model.notes, _UNCHECKED_NOTE))


def _recognised(file: ForeignFile) -> ForeignModel:
    try:
        if is_pwm(file.content):
            return read_pwm(file.content)
        state = file.content.get("model", file.content)
        if isinstance(state, Mapping) and all(isinstance(name, str) for name in state):
            layout = recognise_layout({name.removeprefix("module."): None for name in state})
            if layout is not None:
                return read_tdmpc2(state, layout)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}. Nothing was imported.") from error
    names = state.keys() if isinstance(state, Mapping) else file.content.keys()
    if any(str(name).startswith("_encoder.rgb") for name in names):
        raise CheckpointError(f"{file.path}: is a model of images; those of states can be imported.")
    shown = ", ".join(sorted(map(str, names))[:4]) or "nothing"
    raise CheckpointError(f"{file.path}: is no checkpoint that is known here (it holds {shown}). Known are: {KNOWN}.")
