"""Diagnoses as PNG pictures, and as one page of HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from flowmbpo.diagnostics.interface import SUMMARIES, Diagnosis, Row
from flowmbpo.files import StagedFile

SIZE, DPI = (9.0, 5.0), 110  # inches


def draw_png(diagnosis: Diagnosis) -> bytes:
    """The picture of one diagnosis."""
    data = io.BytesIO()
    _drawn(diagnosis).figure.savefig(data, format="png")
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


READINGS = {
    "health": "Every finding names a part that is broken and the figures that show it; no finding means that none of "
    "the known faults was seen, not that the policy is good.",
    "esnr": "Above 0 dB one gradient is more signal than noise; a high figure alone proves nothing, for an "
    "over-smoothed gradient is quiet and wrong: read it beside the cosine of `gradient`.",
    "jacobians": "Norms that grow through the horizon make exploding gradients, norms that shrink make vanishing ones; "
    "they are the model's, and say nothing of whether its derivatives are right.",
    "gradient": "A cosine near 1 means that the model pulls the policy where the real environment would; an interval "
    "that holds 0 means that the measurement cannot tell.",
    "rollout": "A ratio below 1 beats predicting that nothing changes; where it crosses 1, longer imagination is "
    "guesswork.",
    "reward-gap": "A model that promises more than the environment pays is being exploited by its policy.",
    "actions": "Saturated dimensions pass no gradient, and a policy whose spread has collapsed explores nothing.",
    "compute": "Equal results at unequal cost are not equal: compare FLOPs and seconds beside returns.",
}
"""How to read each diagnostic, in one sentence."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; }
table { border-collapse: collapse; margin: .8rem 0; } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top;
border-bottom: 1px solid #eee; font-variant-numeric: tabular-nums; } td:first-child { color: #555; }
img { max-width: 100%; height: auto; } code { font-size: .9em; overflow-wrap: anywhere; }
.verdict { padding: .8rem 1rem; border-left: 6px solid #228833; background: #eef7f0; white-space: pre-line; }
.verdict.bad { border-color: #cc3311; background: #fbeeea; } .verdict.unknown { border-color: #aa8800;
background: #faf6e8; } .error { color: #a02000; } .how { color: #555; }
.reading { font-weight: 600; } nav a { margin-right: 1rem; }
"""


@dataclass(frozen=True)
class Section:
    """One diagnostic of the page: what it says, picture (PNG) and table, or the error that stands in their place."""

    name: str
    rows: Sequence[Row] = ()
    picture: bytes | None = None
    reading: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Page:
    """What the page says. `healthy` is None where the run's health is not known; `facts` say what was measured."""

    title: str
    verdict: str
    healthy: bool | None
    facts: Sequence[Row]
    sections: Sequence[Section]

    def render(self) -> str:
        """The whole page: UTF-8 HTML, pictures inside."""
        kind = {True: "", False: " bad", None: " unknown"}[self.healthy]
        links = "".join(f'<a href="#{escape(each.name)}">{escape(each.name)}</a>' for each in self.sections)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f'<h1>{escape(self.title)}</h1>\n<p class="verdict{kind}">{escape(self.verdict)}</p>\n'
            f"{_table(self.facts)}<nav>{links}</nav>\n"
            f"{''.join(_section(section) for section in self.sections)}</body>\n</html>\n"
        )


def _section(section: Section) -> str:
    name, summary, how = (escape(text) for text in (section.name, SUMMARIES[section.name], READINGS[section.name]))
    html = f'<section id="{name}">\n<h2>{name}</h2>\n<p>{summary} <span class="how">{how}</span></p>\n'
    if section.error is not None:
        return f'{html}<p class="error">Not measured: {escape(section.error)}</p>\n</section>\n'
    html += f'<p class="reading">{escape(section.reading)}</p>\n' if section.reading else ""
    if section.picture is not None:
        data = base64.b64encode(section.picture).decode("ascii")
        html += f'<img alt="{name}, drawn" src="data:image/png;base64,{data}">\n'
    return f"{html}{_table(section.rows)}</section>\n"


def _table(rows: Sequence[Row]) -> str:
    lines = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>\n" for name, value in rows)
    return f"<table>\n{lines}</table>\n"
