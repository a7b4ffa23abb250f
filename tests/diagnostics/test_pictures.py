"""Diagnoses as pictures."""

import numpy as np
import pytest
from matplotlib.image import imread

from flowmbpo.diagnostics.diagnosis import Diagnosis
from flowmbpo.diagnostics.page import DPI, SIZE, draw_png, write_picture
from flowmbpo.errors import StorageError


class Line(Diagnosis):
    """Draws a line of its colour."""

    name = "line"

    def __init__(self, colour):
        self.colour = colour

    def to_dict(self):
        return {}

    def rows(self):
        return []

    def draw(self, figure):
        figure.subplots().plot([0, 1], [0, 1], color=self.colour, linewidth=20)


WIDTH, HEIGHT = (round(inches * DPI) for inches in SIZE)


def test_picture_has_the_stated_size_and_what_was_drawn(tmp_path):
    (tmp_path / "p.png").write_bytes(draw_png(Line("red")))
    image = imread(tmp_path / "p.png")
    assert image.shape[:2] == (HEIGHT, WIDTH)
    assert (image[..., :3] == [1.0, 0.0, 0.0]).all(-1).any()


def test_several_pictures_stand_below_each_other(tmp_path):
    write_picture([Line("red"), Line("blue")], tmp_path / "both.png")
    image = imread(tmp_path / "both.png")
    assert image.shape[:2] == (2 * HEIGHT, WIDTH)
    red, blue = ((image[..., :3] == colour).all(-1).any(1) for colour in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0]))
    assert np.flatnonzero(red).max() < HEIGHT <= np.flatnonzero(blue).min()


def test_picture_that_the_disk_refuses_leaves_nothing(tmp_path):
    with pytest.raises(StorageError, match="absent"):
        write_picture([Line("red")], tmp_path / "absent" / "p.png")
    assert list(tmp_path.iterdir()) == []
