"""Cars, vans, buses and trucks: convex solids with glass, lights and wheels, seen from any side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxseg.data.streets.camera import NEAR
from jaxseg.data.streets.canvas import Canvas

CAR, TRUCK, BUS = 26, 27, 28


@dataclasses.dataclass(frozen=True)
class Solid:
    """A frustum: along the vehicle from `start` to `end` (shares of its length; front is +0.5)."""

    bottom: tuple[float, float]
    top: tuple[float, float]
    heights: tuple[float, float]
    """Shares of the vehicle's height."""
    taper: float
    """Width of the top over that of the vehicle."""
    glass: str
    """'none', 'cabin' (all around), 'bus' (a row of windows) or 'cab' (front and sides)."""
    painted: bool = True


@dataclasses.dataclass(frozen=True)
class Kind:
    """Metres: length, width, height; wheel radius and places along the length."""

    label: int
    size: tuple[float, float, float]
    solids: tuple[Solid, ...]
    wheel: float
    axles: tuple[float, ...]


_LOW = Solid((-0.5, 0.5), (-0.49, 0.48), (0.13, 0.58), 0.96, "none")
KINDS = {
    "saloon": Kind(
        CAR,
        (4.5, 1.8, 1.45),
        (_LOW, Solid((-0.38, 0.24), (-0.24, 0.06), (0.57, 1), 0.78, "cabin")),
        0.33,
        (-0.3, 0.32),
    ),
    "hatchback": Kind(
        CAR,
        (3.9, 1.75, 1.5),
        (_LOW, Solid((-0.49, 0.24), (-0.42, 0.05), (0.57, 1), 0.8, "cabin")),
        0.32,
        (-0.31, 0.32),
    ),
    "suv": Kind(
        CAR,
        (4.6, 1.9, 1.8),
        (_LOW, Solid((-0.49, 0.28), (-0.46, 0.14), (0.57, 1), 0.84, "cabin")),
        0.38,
        (-0.3, 0.31),
    ),
    "van": Kind(
        CAR,
        (5.2, 2.0, 2.3),
        (_LOW, Solid((-0.5, 0.42), (-0.49, 0.26), (0.56, 1), 0.9, "cab")),
        0.36,
        (-0.3, 0.33),
    ),
    "bus": Kind(
        BUS, (11.5, 2.5, 3.2), (Solid((-0.5, 0.5), (-0.5, 0.49), (0.1, 1), 0.96, "bus"),), 0.5, (-0.27, 0.31)
    ),
    "truck": Kind(
        TRUCK,
        (8.0, 2.4, 3.3),
        (
            Solid((-0.5, 0.5), (-0.5, 0.5), (0.15, 0.28), 0.9, "none", painted=False),
            Solid((-0.5, 0.24), (-0.5, 0.24), (0.28, 1), 1.0, "none"),
            Solid((0.27, 0.5), (0.27, 0.46), (0.15, 0.78), 0.95, "cab"),
        ),
        0.5,
        (-0.3, 0.36),
    ),
}
# Corners of a solid: bottom then top, each rear left, rear right, front right, front left. A face lists
# bottom start, bottom end, top end, top start.
_FACES = {
    "rear": (0, 1, 5, 4),
    "front": (2, 3, 7, 6),
    "left": (3, 0, 4, 7),
    "right": (1, 2, 6, 5),
    "top": (4, 5, 6, 7),
}


@dataclasses.dataclass(frozen=True)
class Vehicle:
    """Where it stands (m), where its front points (radians from +z towards +x), and its look."""

    kind: str
    x: float
    z: float
    heading: float
    colour: np.ndarray
    glass: np.ndarray
    sun: tuple[float, float]
    """Horizontal direction (x, z) towards the sun times its strength."""

    def footprint(self) -> np.ndarray:
        """[4, 2] (x, z)."""
        return self.place(
            np.array([[s, w, 0.0] for s, w in ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5))])
        )[:, [0, 2]]

    def place(self, shares: np.ndarray) -> np.ndarray:
        """Shares (along, across, up) [n, 3] of the size -> world [n, 3]."""
        along, across, up = (shares * np.array(KINDS[self.kind].size)).T
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        return np.array([self.x + along * sin + across * cos, up, self.z + along * cos - across * sin]).T


def draw_vehicle(canvas: Canvas, vehicle: Vehicle) -> None:
    """Draws solids far to near, then wheels on the side that is seen."""
    kind = KINDS[vehicle.kind]
    depth = float(canvas.camera.view(np.array([vehicle.x, 0.0, vehicle.z]))[2])
    box = np.array([(s, w, u) for s in (-0.5, 0.5) for w in (-0.5, 0.5) for u in (0, 1)])
    if depth < 2 * NEAR or not canvas.sees(canvas.camera.view(vehicle.place(box))):
        return
    _wheels(canvas, vehicle, kind, depth, far_side=True)
    faces_away = np.cos(vehicle.heading) > 0
    solids = (
        kind.solids
        if vehicle.kind != "truck"
        else (kind.solids[0], *kind.solids[1:][:: -1 if faces_away else 1])
    )
    for solid in solids:
        _draw_solid(canvas, vehicle, solid, depth)
    _wheels(canvas, vehicle, kind, depth, far_side=False)


def _draw_solid(canvas: Canvas, vehicle: Vehicle, solid: Solid, depth: float) -> None:
    label = KINDS[vehicle.kind].label
    (b0, b1), (t0, t1), half = solid.bottom, solid.top, solid.taper / 2
    low, high = solid.heights
    bottom = [(b0, -0.5, low), (b0, 0.5, low), (b1, 0.5, low), (b1, -0.5, low)]
    top = [(t0, -half, high), (t0, half, high), (t1, half, high), (t1, -half, high)]
    shares = np.array([*bottom, *top])
    world = vehicle.place(shares)
    corners = canvas.camera.view(world)
    colour = vehicle.colour if solid.painted else np.array([0.12, 0.12, 0.13])
    index = np.array(list(_FACES.values()))
    faces, centres = corners[index], corners[index].mean(axis=1)
    normals = _cross(faces[:, 1] - faces[:, 0], faces[:, 3] - faces[:, 0])
    normals *= np.sign((normals * (centres - corners.mean(axis=0))).sum(axis=1, keepdims=True))
    outward = (world[index].mean(axis=1) - world.mean(axis=0))[:, [0, 2]]
    outward /= np.maximum(0.3, np.hypot(outward[:, 0], outward[:, 1]))[:, None]
    facing = (normals * centres).sum(axis=1) < 0
    for i, name in enumerate(_FACES):
        if facing[i]:
            shade = 1.12 if name == "top" else 0.86 + 0.22 * float(outward[i] @ np.array(vehicle.sun))
            canvas.view_polygon(faces[i], canvas.surface(colour * shade, label, "paint", depth))
            _details(canvas, vehicle, solid, name, faces[i], (label, depth))


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """np.cross of [n, 3], several times faster on few rows."""
    return a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]


def _details(
    canvas: Canvas, vehicle: Vehicle, solid: Solid, name: str, face: np.ndarray, facts: tuple[int, float]
) -> None:
    """Glass on cabins; bumpers, lights and a plate on the ends of bodies."""

    def inset(rects: Sequence[tuple[float, ...]], look: tuple[np.ndarray, str]) -> None:
        canvas.view_quads(_inset(face, rects), look[0], facts[0], look[1], facts[1])

    glass, dark = (vehicle.glass, "glass"), (np.array([0.09, 0.09, 0.1]), "paint")
    if solid.glass == "cabin" and name != "top":
        inset(
            [(0.08, 0.5, 0.14, 0.86), (0.55, 0.93, 0.14, 0.86)]
            if name in ("left", "right")
            else [(0.07, 0.93, 0.12, 0.88)],
            glass,
        )
    elif solid.glass == "bus" and name != "top":
        rows = [(i / 7 + 0.012, i / 7 + 0.13, 0.48, 0.83) for i in range(7)]
        inset(rows if name in ("left", "right") else [(0.06, 0.94, 0.4, 0.85)], glass)
    elif solid.glass == "cab" and name == "front":
        inset([(0.06, 0.94, 0.3 if solid.heights[0] > 0.5 else 0.5, 0.92)], glass)
    elif solid.glass == "cab" and name in ("left", "right"):
        wide = 0.3 if solid.heights[0] > 0.5 else 0.75
        start, end = (0.04, wide) if name == "left" else (1 - wide, 0.96)
        inset([(start, end, 0.2, 0.85)], glass)
    if name in ("front", "rear") and solid.glass in ("none", "bus") and solid.painted:
        inset([(0.0, 1.0, 0.0, 0.14)], dark)
        lamp = np.array((0.92, 0.9, 0.8) if name == "front" else (0.66, 0.1, 0.08)), "paint"
        level = (0.2, 0.3) if solid.glass == "bus" else (0.52, 0.76)
        inset([(0.03, 0.2, *level), (0.8, 0.97, *level)], lamp)
        if name == "front" and solid.glass == "none":
            inset([(0.26, 0.74, 0.36, 0.62)], dark)
        inset([(0.38, 0.62, 0.16, 0.3)], (np.array([0.85, 0.85, 0.8]), "paint"))
    elif name in ("left", "right") and solid.glass == "none" and solid.painted:
        inset([(0.0, 1.0, 0.0, 0.12)], dark)


def _inset(face: np.ndarray, rects: Sequence[tuple[float, ...]]) -> np.ndarray:
    """Rectangles (from, to along; from, to upwards) in shares of a face [4, 3] -> [n, 4, 3]."""
    r = np.array(rects)
    s, t = r[:, [0, 1, 1, 0], None], r[:, [2, 2, 3, 3], None]
    low = face[0] + s * (face[1] - face[0])
    high = face[3] + s * (face[2] - face[3])
    return low + t * (high - low)


_CIRCLE = np.stack([np.cos(np.arange(10) * np.pi / 5), np.sin(np.arange(10) * np.pi / 5)], axis=1)


def _wheels(canvas: Canvas, vehicle: Vehicle, kind: Kind, depth: float, *, far_side: bool) -> None:
    length, _, height = kind.size
    sides = canvas.camera.view(vehicle.place(np.array([(0, -0.5, 0.2), (0, 0.5, 0.2)])))
    nearer = -0.5 if (sides[0] ** 2).sum() < (sides[1] ** 2).sum() else 0.5
    side = (-nearer if far_side else nearer) * (0.9 if far_side else 1.01)
    tyre = canvas.surface((0.07, 0.07, 0.08), kind.label, "paint", depth)
    hub = canvas.surface((0.45, 0.46, 0.48), kind.label, "metal", depth)
    for axle in kind.axles:
        for radius, surface in ((kind.wheel, tyre), (kind.wheel * 0.55, hub))[: 1 if far_side else 2]:
            along = axle + _CIRCLE[:, 0] * radius / length
            up = (kind.wheel + _CIRCLE[:, 1] * radius) / height
            shares = np.stack([along, np.full(10, side), up], axis=1)
            canvas.view_polygon(canvas.camera.view(vehicle.place(shares)), surface)
