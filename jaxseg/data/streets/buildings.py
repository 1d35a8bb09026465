"""Buildings: a facade along the street (or across its end), an end wall, a roof, windows and doors."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxseg.data.streets.canvas import Canvas
from jaxseg.data.streets.colours import pick

BUILDING = 11


@dataclasses.dataclass(frozen=True)
class Building:
    """A block on the ground: two corners of its front (x, z), the direction into the block, its height."""

    start: tuple[float, float]
    end: tuple[float, float]
    inward: tuple[float, float]
    """Vector (x, z) from the front to the back wall."""
    height: float
    roof: float
    """Height of the ridge above the wall; 0 is flat."""
    shade: tuple[float, float]
    """Brightness of the front and of the end wall."""
    style: int
    """Seed of the look: the same wherever it is drawn."""


def draw_building(canvas: Canvas, building: Building) -> None:
    """Draws end wall, front and roof with their windows."""
    rng = np.random.default_rng(building.style)
    colour = pick(rng, "facade")
    material = "brick" if rng.random() < 0.4 else "plaster"
    start, end = np.array(building.start), np.array(building.end)
    inward, depth = np.array(building.inward), _depth(canvas, building)
    front = _wall(start, end, building.height)
    side = _wall(start + inward, start, building.height)
    roof_colour = pick(rng, "facade") * 0.8
    look = _look(rng, colour)
    if building.roof:
        ridge = [(*(p + inward / 2), building.height + building.roof) for p in (start, end)]
        ridge_xyz = np.array([(x, y, z) for x, z, y in ridge])
        gable = np.array([side[2], side[3], ridge_xyz[0]])
        canvas.world_polygon(gable, canvas.surface(colour * building.shade[1], BUILDING, material, depth))
        slope = np.array([front[3], front[2], ridge_xyz[1], ridge_xyz[0]])
        canvas.world_polygon(slope, canvas.surface(roof_colour, BUILDING, "brick", depth))
    for wall, shade, doors in ((side, building.shade[1], False), (front, building.shade[0], True)):
        if not canvas.sees(canvas.camera.view(wall)):
            continue
        canvas.world_polygon(wall, canvas.surface(colour * shade, BUILDING, material, depth))
        _decorate(canvas, rng, wall, look, (shade, depth), doors)


def _wall(start: np.ndarray, end: np.ndarray, height: float) -> np.ndarray:
    """Corners [4, 3]: bottom start, bottom end, top end, top start."""
    (ax, az), (bx, bz) = start, end
    return np.array([(ax, 0, az), (bx, 0, bz), (bx, height, bz), (ax, height, az)])


def _depth(canvas: Canvas, building: Building) -> float:
    middle = (np.array(building.start) + np.array(building.end)) / 2
    return max(1.0, float(canvas.camera.view(np.array([middle[0], 0, middle[1]]))[2]))


@dataclasses.dataclass(frozen=True)
class _Look:
    """Proportions (metres and shares) and colours of what is on a wall."""

    storey: float
    bay: float
    fill: tuple[float, float]
    """Share of bay and storey that a window takes."""
    glass: np.ndarray
    frame: np.ndarray
    shop: np.ndarray
    has_shops: bool
    has_bands: bool
    has_courses: bool
    base: np.ndarray
    course: np.ndarray


def _look(rng: np.random.Generator, colour: np.ndarray) -> _Look:
    strip = rng.random() < 0.15
    glass = (
        pick(rng, "sky") * 0.8 if rng.random() < 0.2 else np.array([0.16, 0.18, 0.21]) * rng.uniform(0.6, 1.8)
    )
    return _Look(
        storey=rng.uniform(2.7, 4.0),
        bay=rng.uniform(1.8, 3.8),
        fill=(0.96 if strip else rng.uniform(0.35, 0.65), rng.uniform(0.4, 0.65)),
        glass=glass,
        frame=np.clip(colour * rng.choice([0.7, 1.3]), 0, 0.95)
        if rng.random() < 0.5
        else pick(rng, "facade"),
        shop=pick(rng, "paint"),
        has_shops=rng.random() < 0.45,
        has_bands=rng.random() < 0.5,
        has_courses=rng.random() < 0.5,
        course=colour * rng.choice([0.75, 1.22]),
        base=colour * rng.uniform(0.6, 1.1),
    )


def _decorate(
    canvas: Canvas,
    rng: np.random.Generator,
    wall: np.ndarray,
    look: _Look,
    light: tuple[float, float],
    doors: bool,
) -> None:
    """Windows in rows and columns, bands between storeys; a base with doors or shops on a front."""
    shade, depth = light
    length, height = float(np.linalg.norm(wall[1] - wall[0])), float(wall[2, 1])
    storeys, bays = max(1, round(height / look.storey)), max(1, int(length / look.bay))
    if bays * storeys > 600:
        return
    t, s = (a.ravel() for a in np.meshgrid(np.arange(storeys), np.arange(bays), indexing="ij"))
    if doors:
        s, t = s[t > 0], t[t > 0]
    half_s, half_t = look.fill[0] / 2, look.fill[1] / 2
    tones = np.exp(0.3 * rng.standard_normal(len(s)))
    if look.has_courses:
        at = np.arange(0.3, height, 0.6)
        lines = np.stack([0 * at, 0 * at + 1.0, at / height, (at + 0.14) / height], axis=1)
        _rectangles(canvas, wall, lines, look.course * shade, "plaster", depth)
    if look.has_bands:
        ledges = np.arange(1, storeys)
        rects = np.stack([0 * ledges, 0 * ledges + 1.0, ledges - 0.06, ledges + 0.06], axis=1) / [
            1,
            1,
            storeys,
            storeys,
        ]
        _rectangles(canvas, wall, rects, look.frame * shade, "plaster", depth)
    frames = np.stack(
        [s + 0.5 - half_s - 0.06, s + 0.5 + half_s + 0.06, t + 0.5 - half_t - 0.07, t + 0.55 + half_t], axis=1
    )
    panes = np.stack([s + 0.5 - half_s, s + 0.5 + half_s, t + 0.5 - half_t, t + 0.5 + half_t], axis=1)
    size = [bays, bays, storeys, storeys]
    _rectangles(canvas, wall, frames / size, look.frame * shade, "plaster", depth)
    _rectangles(canvas, wall, panes / size, tones[:, None] * look.glass, "glass", depth)
    if doors:
        _ground_floor(canvas, rng, wall, look, (shade, depth), 1 / storeys)


def _ground_floor(
    canvas: Canvas,
    rng: np.random.Generator,
    wall: np.ndarray,
    look: _Look,
    light: tuple[float, float],
    top: float,
) -> None:
    shade, depth = light
    _rectangles(canvas, wall, np.array([[0, 1, 0, top]]), look.base * shade, "plaster", depth)
    count = max(1, int(np.linalg.norm(wall[1] - wall[0]) / 4))
    at = (np.arange(count) + 0.5) / count
    wide = (0.42 if look.has_shops else 0.2) / count
    openings = np.stack([at - wide, at + wide, 0 * at + (0.1 * top), 0 * at + 0.72 * top], axis=1)
    door = int(rng.integers(count))
    openings[door] = [at[door] - 0.13 / count, at[door] + 0.13 / count, 0, 0.75 * top]
    tones = look.glass * rng.uniform(0.6, 1.4, (count, 1))
    tones[door] = look.shop * 0.7
    _rectangles(canvas, wall, openings, tones, "glass", depth)
    if look.has_shops:
        board = np.array([[0.05, 0.95, 0.76 * top, 0.95 * top]])
        _rectangles(canvas, wall, board, look.shop * shade, "paint", depth)


def _rectangles(
    canvas: Canvas, wall: np.ndarray, rects: np.ndarray, colours: np.ndarray, material: str, depth: float
) -> None:
    """Rectangles [n, 4] (from, to along the wall; from, to upwards; shares of the wall)."""
    view = canvas.camera.view(wall)
    across, up = view[1] - view[0], view[3] - view[0]
    s = rects[:, [0, 1, 1, 0], None]
    t = rects[:, [2, 2, 3, 3], None]
    canvas.view_quads(view[0] + s * across + t * up, colours, BUILDING, material, depth)
