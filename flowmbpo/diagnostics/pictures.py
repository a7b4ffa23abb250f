"""Diagnoses as PNG pictures. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from flowmbpo.atomic import StagedFile
from flowmbpo.diagnostics.diagnosis import Diagnosis

SIZE = (9.0, 5.0)  # inches
DPI = 110


def draw_png(diagnosis: Diagnosis) -> bytes:
    """The picture of one diagnosis."""
    canvas = _drawn(diagnosis)
    data = io.BytesIO()
    canvas.figure.savefig(data, format="png")
    return data.getvalue()


def write_picture(diagnoses: Sequence[Diagnosis], out: Path) -> Path:
    """Write the pictures of all diagnoses, one below the other, as one PNG. Raises StorageError."""
    rows = [np.asarray(_drawn(diagnosis).buffer_rgba()) for diagnosis in diagnoses]  # type: ignore[no-untyped-call]
    data = io.BytesIO()
    imsave(data, np.vstack(rows), format="png", dpi=DPI)
    with StagedFile(out) as staged:
        staged.write(data.getvalue())
        staged.commit()
    return out


def _drawn(diagnosis: Diagnosis) -> FigureCanvasAgg:
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    diagnosis.draw(figure)
    if not figure.get_suptitle():
        figure.suptitle(diagnosis.name, x=0.01, ha="left", fontsize=11, fontweight="bold")
    canvas.draw()  # type: ignore[no-untyped-call]
    return canvas
