"""A small anti-aliased rasteriser: enough to see a toy system move."""

from __future__ import annotations

import numpy as np

HEIGHT, WIDTH = 240, 320  # pixels
_BACKGROUND = 245.0

Point = tuple[float, float]
Colour = tuple[int, int, int]


class Canvas:
    """A picture whose origin is its centre, y upwards, `units_high` world units from bottom to top."""

    def __init__(self, units_high: float) -> None:
        self._unit = units_high / HEIGHT  # world units per pixel
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
        self._x = (columns + 0.5 - WIDTH / 2) * self._unit
        self._y = (HEIGHT / 2 - rows - 0.5) * self._unit
        self._pixels = np.full((HEIGHT, WIDTH, 3), _BACKGROUND)

    def line(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """A straight stroke with round ends; `width` in world units."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        length_squared = dx * dx + dy * dy
        along = (self._x - start[0]) * dx + (self._y - start[1]) * dy
        share = np.clip(along / length_squared, 0.0, 1.0) if length_squared > 0 else 0.0
        distance = np.hypot(self._x - start[0] - share * dx, self._y - start[1] - share * dy)
        cover = np.clip((width / 2 - distance) / self._unit + 0.5, 0.0, 1.0)[..., None]
        self._pixels += cover * (np.asarray(colour, dtype=float) - self._pixels)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """A filled circle; `radius` in world units."""
        self.line(centre, centre, 2 * radius, colour)

    def frame(self) -> np.ndarray:
        """The picture, uint8 [240, 320, 3]."""
        picture: np.ndarray = np.rint(self._pixels).astype(np.uint8)
        return picture
