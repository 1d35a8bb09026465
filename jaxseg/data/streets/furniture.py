"""Trees, bushes, hedges, poles, signs, traffic lights, fences and bins."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxseg.data.streets.camera import NEAR
from jaxseg.data.streets.canvas import Canvas
from jaxseg.data.streets.colours import pick

STATIC, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION = 4, 12, 13, 17, 19, 20, 21


@dataclasses.dataclass(frozen=True)
class Tree:
    """A trunk and a crown of leaf clumps; without a trunk it is a bush."""

    x: float
    z: float
    trunk: float
    """Height of the lowest leaves (m)."""
    crown: tuple[float, float]
    """Radius and height of the crown (m)."""
    shape: str
    """'round', 'cone' or 'column'."""
    style: int
    sun: float
    """-1 to 1: from which side the light comes, times its strength."""


def draw_tree(canvas: Canvas, tree: Tree) -> None:
    """Trunk, then clumps from dark and inner to bright and outer."""
    rng = np.random.default_rng(tree.style)
    view = canvas.camera.view(np.array([tree.x, 0.0, tree.z]))
    reach = view + 1.3 * tree.crown[0] * np.array([[-1.0, 0, 0], [1.0, 0, 0]])
    if view[2] < 3 * NEAR or not canvas.sees(reach):
        return
    depth, scale = float(view[2]), canvas.camera.focal / float(view[2])
    column, row = canvas.camera.pixels(view)
    leaf, bark = (
        pick(rng, "leaf"),
        pick(rng, "leaf") * 0.4 + np.array([0.2, 0.17, 0.14]) * rng.uniform(0.5, 1.6),
    )
    radius, tall = tree.crown
    if tree.trunk > 0:
        half, lean = max(0.6, radius * 0.07 * scale), rng.normal(0, 0.05) * scale
        top = row - (tree.trunk + 0.4 * tall) * scale
        trunk = np.array(
            [
                (column - half, row),
                (column + half, row),
                (column + lean + half * 0.6, top),
                (column + lean - half * 0.6, top),
            ]
        )
        canvas.polygon(trunk, canvas.surface(bark, VEGETATION, "bark", depth))
    count = int(np.clip(radius * scale * 1.6, 8, 70))
    size = radius * float(np.clip(2.1 / np.sqrt(count), 0.22, 0.6))
    y, angle = rng.random(count), rng.uniform(0, 2 * np.pi, count)
    profile = {
        "round": np.sqrt(np.maximum(0.05, 1 - (2 * y - 1) ** 2)),
        "cone": 1.08 - y,
        "column": np.full(count, 0.8),
    }
    outward = np.sqrt(rng.random(count))
    across = np.cos(angle) * outward * profile[tree.shape] * radius
    tone = 0.62 + 0.3 * y + 0.22 * tree.sun * np.cos(angle) * outward + 0.12 * rng.standard_normal(count)
    hue = 1 + 0.08 * rng.standard_normal((count, 3))
    sizes = size * rng.uniform(0.6, 1.25, (count, 2)) * [1.15, 0.9]
    order = np.argsort(outward + 0.5 * y, kind="stable")
    right = (column + across * scale)[order].tolist()
    up = (row - (tree.trunk + size * 0.6 + y * (tall - size)) * scale)[order].tolist()
    halves = (sizes * scale)[order].tolist()
    colours = (leaf * hue * tone[:, None])[order].tolist()
    for at_column, at_row, half_axes, colour in zip(right, up, halves, colours, strict=True):
        clump = canvas.surface(colour, VEGETATION, "leaf", depth)
        canvas.ellipse(at_column, at_row, (half_axes[0], half_axes[1]), clump)


@dataclasses.dataclass(frozen=True)
class Strip:
    """A fence, wall or hedge along the street."""

    kind: str
    """'fence', 'wall' or 'hedge'."""
    start: tuple[float, float]
    end: tuple[float, float]
    height: float
    colour: np.ndarray


def draw_strip(canvas: Canvas, strip: Strip) -> None:
    """A wall or hedge is solid; a fence shows what is behind it between its bars."""
    (ax, az), (bx, bz) = strip.start, strip.end
    if not canvas.sees(canvas.camera.view(np.array([(ax, 0.0, az), (bx, 0.0, bz)]))):
        return
    depth = float(max(1.0, canvas.camera.view(np.array([(ax + bx) / 2, 0, (az + bz) / 2]))[2]))
    corners = np.array([(ax, 0, az), (bx, 0, bz), (bx, strip.height, bz), (ax, strip.height, az)])
    if strip.kind == "hedge":
        _draw_hedge(canvas, corners, strip, depth)
    elif strip.kind == "wall":
        canvas.world_polygon(corners, canvas.surface(strip.colour, WALL, "brick", depth))
        corners[:2, 1] = strip.height - 0.12
        canvas.world_polygon(corners, canvas.surface(strip.colour * 1.15, WALL, "plaster", depth))
    else:
        look = (FENCE, "metal", depth)
        bars = max(2, int(np.hypot(bx - ax, bz - az) / 0.35))
        at = np.arange(bars)[:, None, None] / bars + np.array([0, 0.35, 0.35, 0])[None, :, None] / bars
        level = np.array([0, 0, strip.height, strip.height])
        points = corners[0] + at * (corners[1] - corners[0])
        points[..., 1] = level
        canvas.view_quads(canvas.camera.view(points), strip.colour, *look)
        for low in (0.25, 0.8):
            rail = corners.copy()
            rail[:, 1] = np.array([low, low, low + 0.08, low + 0.08]) * strip.height
            canvas.world_polygon(rail, canvas.surface(strip.colour, *look))


def _draw_hedge(canvas: Canvas, corners: np.ndarray, strip: Strip, depth: float) -> None:
    canvas.world_polygon(corners, canvas.surface(strip.colour * 0.75, VEGETATION, "leaf", depth))
    rng = np.random.default_rng(int(abs(strip.start[1]) * 1000))
    share = rng.random((60, 2))
    points = corners[0] + share[:, :1] * (corners[1] - corners[0])
    points[:, 1] = strip.height * (0.15 + 0.9 * share[:, 1])
    view = canvas.camera.view(points)
    tones = 0.7 + 0.35 * share[:, 1] + 0.1 * rng.standard_normal(60)
    for i in np.flatnonzero(view[:, 2] > 2 * NEAR):
        scale = canvas.camera.focal / view[i, 2]
        surface = canvas.surface(strip.colour * tones[i], VEGETATION, "leaf", depth)
        column, row = (float(v) for v in canvas.camera.pixels(view[i]))
        canvas.ellipse(column, row, (0.28 * scale, 0.2 * scale), surface)


@dataclasses.dataclass(frozen=True)
class Post:
    """A pole with what it carries."""

    x: float
    z: float
    height: float
    carries: str
    """'nothing', 'lamp', 'sign', 'light' or 'bin' (no pole: a bin)."""
    colour: np.ndarray
    board: np.ndarray
    shape: int
    """0 disc, 1 triangle, 2 rectangle, 3 rhombus."""
    lit: int


def draw_post(canvas: Canvas, post: Post) -> None:
    """Draws the pole and the lamp, sign, traffic light or bin."""
    view = canvas.camera.view(np.array([post.x, 0.0, post.z]))
    if view[2] < 2 * NEAR:
        return
    depth, scale = float(view[2]), canvas.camera.focal / float(view[2])
    column, row = (float(v) for v in canvas.camera.pixels(view))
    if post.carries == "bin":
        body = canvas.surface(post.board, STATIC, "metal", depth)
        canvas.polygon(
            np.array(
                [
                    (column + a * scale, row - b * scale)
                    for a, b in ((-0.22, 0), (0.22, 0), (0.28, 0.95), (-0.28, 0.95))
                ]
            ),
            body,
        )
        return
    half, top = max(0.5, 0.06 * scale), row - post.height * scale
    pole = canvas.surface(post.colour, POLE, "metal", depth)
    canvas.polygon(
        np.array(
            [
                (column - half, row),
                (column + half, row),
                (column + half * 0.7, top),
                (column - half * 0.7, top),
            ]
        ),
        pole,
    )
    side = -1.0 if post.x > 0 else 1.0
    if post.carries == "lamp":
        reach, thick = column + side * 1.4 * scale, max(0.5, 0.08 * scale)
        canvas.polygon(
            np.array(
                [(column, top - thick), (reach, top - 2 * thick), (reach, top + thick), (column, top + thick)]
            ),
            pole,
        )
    elif post.carries == "sign":
        _draw_sign(canvas, post, (column, top, scale), depth)
    elif post.carries == "light":
        box = canvas.surface((0.08, 0.08, 0.08), TRAFFIC_LIGHT, "metal", depth)
        w, h = 0.19 * scale, 0.95 * scale
        canvas.polygon(
            np.array([(column - w, top), (column + w, top), (column + w, top + h), (column - w, top + h)]),
            box,
        )
        for i, bright in enumerate(((0.95, 0.2, 0.15), (0.95, 0.7, 0.15), (0.2, 0.9, 0.5))):
            tone = np.array(bright) * (1.0 if i == post.lit else 0.25)
            lens = canvas.surface(tone, TRAFFIC_LIGHT, "glass", depth)
            canvas.ellipse(column, top + h * (0.2 + 0.3 * i), (0.11 * scale, 0.11 * scale), lens)


def _draw_sign(canvas: Canvas, post: Post, at: tuple[float, float, float], depth: float) -> None:
    column, top, scale = at
    board = canvas.surface(post.board, TRAFFIC_SIGN, "paint", depth)
    inner = canvas.surface((0.88, 0.88, 0.86), TRAFFIC_SIGN, "paint", depth)
    radius = 0.42 * scale
    corners: dict[int, list[tuple[float, float]]] = {
        1: [(0, -1), (0.95, 0.75), (-0.95, 0.75)],
        2: [(-1, -0.7), (1, -0.7), (1, 0.7), (-1, 0.7)],
        3: [(0, -1), (1, 0), (0, 1), (-1, 0)],
    }
    for share, surface in ((1.0, board), (0.62, inner)):
        if post.shape == 0:
            canvas.ellipse(column, top, (radius * share, radius * share), surface)
        else:
            canvas.polygon((column, top) + np.array(corners[post.shape]) * radius * share, surface)
