"""What is drawn where: one canvas of surface numbers, and a table row (colour, label, ...) a surface.

Image and label come from the same surface numbers, so they cannot disagree. Things are drawn far to
near; what is nearer overwrites.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxseg.data.streets.camera import NEAR, Camera, clip_near

Colour = np.ndarray
"""[3] float, sRGB in [0, 1]."""

# Strength of (fine, leafy, broad) noise that a material shows, relative to its brightness.
MATERIALS = {
    "asphalt": (0.10, 0.02, 0.05),
    "paving": (0.08, 0.04, 0.05),
    "grass": (0.16, 0.10, 0.06),
    "plaster": (0.04, 0.02, 0.06),
    "brick": (0.14, 0.04, 0.05),
    "glass": (0.02, 0.01, 0.14),
    "paint": (0.02, 0.00, 0.10),
    "cloth": (0.06, 0.05, 0.02),
    "leaf": (0.26, 0.34, 0.08),
    "bark": (0.16, 0.06, 0.04),
    "metal": (0.05, 0.02, 0.05),
    "sky": (0.00, 0.00, 0.00),
}
MATERIAL_IDS = {name: i for i, name in enumerate(MATERIALS)}


class Canvas:
    """Surface numbers [rows, cols] (0 is the backdrop), their table, and a mask of shadow on the ground."""

    def __init__(self, camera: Camera) -> None:
        from PIL import Image, ImageDraw

        self.camera = camera
        self._ids = Image.new("I", (camera.cols, camera.rows), 0)
        self._shadow = Image.new("L", (camera.cols, camera.rows), 0)
        self._draw = ImageDraw.Draw(self._ids)
        self._draw_shadow = ImageDraw.Draw(self._shadow)
        self._colours: list[Sequence[float]] = [(0.0, 0.0, 0.0)]
        self._facts: list[tuple[int, int, float]] = [(0, 0, 0.0)]

    def surface(self, colour: Sequence[float] | Colour, label: int, material: str, depth: float) -> int:
        """A new table row; its number is what is drawn. The colour is cut to [0, 1] later."""
        self._colours.append(tuple(colour))
        self._facts.append((label, MATERIAL_IDS[material], depth))
        return len(self._facts) - 1

    def polygon(self, pixels: np.ndarray, surface: int) -> None:
        """Fills [n, 2] (column, row)."""
        self._draw.polygon(pixels.ravel().tolist(), fill=surface)

    def ellipse(self, column: float, row: float, half: tuple[float, float], surface: int) -> None:
        """Fills an upright ellipse with half axes (columns, rows)."""
        self._draw.ellipse((column - half[0], row - half[1], column + half[0], row + half[1]), fill=surface)

    def ring(self, column: float, row: float, half: tuple[float, float], line: int, surface: int) -> None:
        """The outline of an upright ellipse, `line` pixels wide."""
        box = (column - half[0], row - half[1], column + half[0], row + half[1])
        self._draw.ellipse(box, outline=surface, width=line)

    def view_polygon(self, view: np.ndarray, surface: int) -> None:
        """Fills a polygon of camera coordinates [n, 3], cut off at NEAR."""
        if view[:, 2].min() < NEAR:
            view = clip_near(view)
        if len(view) >= 3:
            self.polygon(_bounded(self.camera.pixels(view)), surface)

    def world_polygon(self, points: np.ndarray, surface: int) -> None:
        """Fills a polygon of world coordinates [n, 3]."""
        self.view_polygon(self.camera.view(points), surface)

    def sees(self, view: np.ndarray) -> bool:
        """False where the hull of camera coordinates [n, 3] is certainly out of the photo."""
        # 1.1 leaves room for the roll of the camera.
        edge = (1.1 * self.camera.cols / 2 / self.camera.focal) * view[:, 2]
        x = view[:, 0]
        return not ((view[:, 2] < NEAR).all() or (x > edge).all() or (-x > edge).all())

    def view_quads(
        self, view: np.ndarray, colours: np.ndarray, label: int, material: str, depth: float
    ) -> None:
        """Fills quads [n, 4, 3] in one colour [3] or one each [n, 3].

        Those that reach behind NEAR, are out of the photo or below half a pixel are left out.
        """
        colours = np.broadcast_to(colours, (len(view), 3))
        ahead = view[..., 2].min(axis=1) > NEAR
        if not ahead.all():
            view, colours = view[ahead], colours[ahead]
            if not len(view):
                return
        pixels = self.camera.pixels(view)
        low, high = pixels.min(axis=1), pixels.max(axis=1)
        shown = ((high - low > 0.5) & (high > 0) & (low < (self.camera.cols, self.camera.rows))).all(axis=1)
        rows, tones = pixels[shown].reshape(-1, 8).tolist(), colours[shown].tolist()
        first = len(self._facts)
        self._colours += tones
        self._facts += [(label, MATERIAL_IDS[material], depth)] * len(tones)
        for i, row in enumerate(rows):
            self._draw.polygon(row, fill=first + i)

    def shadow(self, footprint: np.ndarray, height: float, sun: tuple[float, float]) -> None:
        """The shadow on the ground of a prism: `footprint` [n, 2] (x, z) metres, `sun` its shift a metre."""
        moved = footprint + height * np.asarray(sun)
        outline = convex_hull(np.concatenate([footprint, moved]))
        view = self.camera.view(np.insert(outline, 1, 0.0, axis=1))
        view = clip_near(view) if view[:, 2].min() < NEAR else view
        if len(view) >= 3:
            self._draw_shadow.polygon(_bounded(self.camera.pixels(view)).ravel().tolist(), fill=255)

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Surface numbers, shadow share [rows, cols]; the table's colour [n, 3], label, material, depth."""
        labels, materials, depths = zip(*self._facts, strict=True)
        return (
            np.asarray(self._ids),
            np.asarray(self._shadow, np.float32) / 255,
            np.clip(np.array(self._colours, np.float32), 0, 1),
            np.array(labels, np.uint8),
            np.array(materials),
            np.array(depths, np.float32),
        )


def _bounded(pixels: np.ndarray) -> np.ndarray:
    """Keeps far-off corners within what the rasteriser's integers hold."""
    return np.minimum(np.maximum(pixels, -1e4), 1e4)


def convex_hull(points: np.ndarray) -> np.ndarray:
    """Corners [m, 2] of the hull of [n, 2] (A. M. Andrew's monotone chain, 1979)."""
    ordered = sorted(map(tuple, points.tolist()))

    def half(run: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        kept: list[tuple[float, ...]] = []
        for p in run:
            while len(kept) > 1 and _turn(kept[-2], kept[-1], p) <= 0:
                kept.pop()
            kept.append(p)
        return kept[:-1]

    return np.array(half(ordered) + half(ordered[::-1]))


def _turn(a: tuple[float, ...], b: tuple[float, ...], c: tuple[float, ...]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
