"""One street: what stands where, drawn far to near."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxseg.data.streets.backdrop import Ground, draw_backdrop, plan_ground
from jaxseg.data.streets.buildings import Building, draw_building
from jaxseg.data.streets.camera import Camera
from jaxseg.data.streets.canvas import Canvas
from jaxseg.data.streets.colours import pick
from jaxseg.data.streets.furniture import Post, Strip, Tree, draw_post, draw_strip, draw_tree
from jaxseg.data.streets.light import SCALE, Light, develop, draw_sky, sample_light
from jaxseg.data.streets.people import Person, draw_person, sample_person
from jaxseg.data.streets.vehicles import KINDS, Vehicle, draw_vehicle

EGO_VEHICLE, BORDER = 1, 2
Rng = np.random.Generator
SPLITS = ("train", "val", "test")
Thing = tuple[float, Callable[[Canvas, Any], None], Any]
"""z of its far end (m), what draws it, and what it is."""


def render_scene(seed: int, split: str, index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Scene `index` of `split`, as `render` returns it; the same whatever was drawn before."""
    return render(np.random.default_rng([seed, SPLITS.index(split), index]), height, width)


def render(rng: Rng, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(photo [height, width, 3] uint8 sRGB, Cityscapes label ids [height, width] uint8) of a new street."""
    light = sample_light(rng)
    kinds = (_side_kind(rng), _side_kind(rng))
    ground = plan_ground(rng, (kinds[0] == "urban", kinds[1] == "urban"))
    camera = sample_camera(rng, ground, height * SCALE, width * SCALE)
    things: list[Thing] = []
    shadows: list[tuple[np.ndarray, float]] = []
    for side, kind in zip((-1, 1), kinds, strict=True):
        things += _build_side(rng, ground, side, kind, light, shadows)
        things += _plant_side(rng, ground, side, kind, light, shadows)
    things += _close_street(rng, ground, light)
    things += _traffic(rng, ground, camera, light, shadows)
    things += _people(rng, ground, camera, shadows)
    texture_rng = np.random.default_rng(rng.integers(2**63))
    canvas = Canvas(camera)
    for footprint, tall in shadows:
        canvas.shadow(footprint, tall, light.sun)
    for _, draw, what in sorted(things, key=lambda thing: -thing[0]):
        draw(canvas, what)
    _draw_void(rng, canvas)
    backdrop = draw_backdrop(camera, ground, draw_sky(texture_rng, camera, light))
    return develop(texture_rng, canvas, backdrop, light)


def sample_camera(rng: Rng, ground: Ground, rows: int, cols: int) -> Camera:
    """On the road or, in one of six, on a sidewalk; pitch, turn, height and angle of view vary."""
    on_walk = rng.random() < 0.16
    place = rng.uniform(ground.right + 0.3, ground.right + ground.sidewalk[1]) if on_walk else None
    return Camera(
        rows=rows,
        cols=cols,
        focal=rows * rng.uniform(0.9, 1.4),
        horizon=rows * rng.uniform(0.28, 0.6),
        eye=rng.uniform(1.3, 2.9),
        offset=place if place is not None else rng.uniform(ground.left * 0.7, ground.right * 0.8),
        yaw=rng.normal(0, 0.13),
        roll=rng.normal(0, 0.02),
        bend=rng.normal(0, 0.0016),
    )


def _side_kind(rng: Rng) -> str:
    return str(rng.choice(["urban", "suburb", "park"], p=[0.5, 0.32, 0.18]))


def _edge(ground: Ground, side: int, out: float) -> float:
    """x at `out` metres outside the kerb."""
    return (ground.left - out) if side < 0 else (ground.right + out)


def _in_crossing(ground: Ground, z: float, margin: float = 0.0) -> bool:
    return ground.crossing is not None and ground.crossing[0] - margin < z < ground.crossing[1] + margin


def _build_side(
    rng: Rng, ground: Ground, side: int, kind: str, light: Light, shadows: list[tuple[np.ndarray, float]]
) -> list[Thing]:
    """Blocks of buildings along one side, with gaps and side streets."""
    if kind == "park":
        return []
    walk = ground.sidewalk[0 if side < 0 else 1]
    line = walk + (rng.uniform(0, 1) if kind == "urban" else rng.uniform(2.5, 7))
    mean_height = rng.uniform(7, 22) if kind == "urban" else rng.uniform(3.5, 8)
    things: list[Thing] = []
    z = rng.uniform(-8, 3)
    while z < 130:
        length = rng.uniform(8, 24) if kind == "urban" else rng.uniform(7, 14)
        if ground.crossing is not None and z < ground.crossing[1] and z + length > ground.crossing[0] - 1:
            z = ground.crossing[1] + rng.uniform(0.5, 3)
            continue
        x = _edge(ground, side, line + (rng.uniform(0, 0.6) if rng.random() < 0.3 else 0))
        roof = rng.uniform(1.5, 4.5) if rng.random() < (0.25 if kind == "urban" else 0.75) else 0.0
        lit = 0.22 * np.tanh(2 * light.shadow) * np.sign(light.sun[0]) * side
        building = Building(
            start=(x, z),
            end=(x, z + length),
            inward=(side * rng.uniform(7, 14), 0.0),
            height=mean_height * rng.uniform(0.65, 1.35),
            roof=roof,
            shade=(0.92 + lit, 0.82 + 0.12 * np.sign(light.sun[1])),
            style=int(rng.integers(2**62)),
        )
        things.append((z + length, draw_building, building))
        if z < 60:
            corners = [
                (x, z),
                (x, z + length),
                (x + building.inward[0], z + length),
                (x + building.inward[0], z),
            ]
            shadows.append((np.array(corners), building.height))
        z += length + (rng.uniform(3, 9) if rng.random() < (0.15 if kind == "urban" else 0.8) else 0)
    return things


def _plant_side(
    rng: Rng, ground: Ground, side: int, kind: str, light: Light, shadows: list[tuple[np.ndarray, float]]
) -> list[Thing]:
    """Trees, bushes, hedges, fences, posts and bins of one side."""
    walk = ground.sidewalk[0 if side < 0 else 1]
    things: list[Thing] = []
    rows = {
        "urban": [(walk * 0.25 + 0.4, 12, 0.5)],
        "suburb": [(walk + 1.2, 9, 0.7), (walk * 0.3 + 0.4, 14, 0.3)],
    }
    park = [(walk + 1.5, 6, 0.8), (walk + 6, 5, 0.9), (walk + 12, 5, 1.0)]
    for out, step, chance in rows[kind] if kind in rows else park:
        style = int(rng.integers(2**62))
        for z in np.arange(rng.uniform(3, 9), 55, step):
            place = float(z + rng.uniform(-0.3, 0.3) * step)
            if rng.random() < chance and not _in_crossing(ground, place, 1):
                same = rng.random() < 0.6
                tree = _tree(
                    rng,
                    _edge(ground, side, out + rng.uniform(-0.3, 0.5)),
                    place,
                    light,
                    style if same else None,
                )
                things.append((place, draw_tree, tree))
                half = tree.crown[0] * 0.6
                corners = tree.x + half * np.array([-1, 1, 1, -1]), tree.z + half * np.array([-1, -1, 1, 1])
                shadows.append((np.stack(corners, axis=1), tree.trunk + tree.crown[1] * 0.9))
    if kind != "urban" and rng.random() < 0.55:
        things += _strips(rng, ground, side, walk)
    for _ in range(int(rng.poisson(1.3))):
        z = float(rng.uniform(4, 45))
        post = _post(rng, _edge(ground, side, rng.uniform(0.2, max(0.4, walk * 0.4))), z)
        things.append((z, draw_post, post))
    return things


def _tree(rng: Rng, x: float, z: float, light: Light, style: int | None) -> Tree:
    radius = rng.uniform(1.5, 3.5)
    bush = rng.random() < 0.22
    shape = str(rng.choice(["round", "cone", "column"], p=[0.7, 0.17, 0.13]))
    return Tree(
        x=x,
        z=z,
        trunk=0.0 if bush else rng.uniform(0.8, 3.0),
        crown=(radius * 0.45, radius * 0.7) if bush else (radius, radius * rng.uniform(1.4, 2.6)),
        shape="round" if bush else shape,
        style=int(rng.integers(2**62)) if style is None else style,
        sun=float(-np.sign(light.sun[0]) * light.shadow * 1.8),
    )


def _strips(rng: Rng, ground: Ground, side: int, walk: float) -> list[Thing]:
    kind = str(rng.choice(["fence", "wall", "hedge"], p=[0.15, 0.35, 0.5]))
    x, tall = _edge(ground, side, walk + 0.3), rng.uniform(0.8, 2.0)
    colour = pick(rng, "leaf" if kind == "hedge" else "facade")
    things: list[Thing] = []
    for z in np.arange(rng.uniform(0, 4), 60, 7.0):
        if rng.random() < 0.8 and not _in_crossing(ground, z, 7):
            strip = Strip(kind, (x, float(z)), (x, float(z) + 6.6), tall, colour)
            things.append((float(z) + 6.6, draw_strip, strip))
    return things


def _post(rng: Rng, x: float, z: float) -> Post:
    carries = str(rng.choice(["nothing", "lamp", "sign", "light", "bin"], p=[0.12, 0.25, 0.33, 0.2, 0.1]))
    tall = {"lamp": (5, 9), "sign": (2.2, 3.2), "light": (2.8, 3.8)}
    low, high = tall[carries] if carries in tall else (3, 8)
    return Post(
        x=x,
        z=z,
        height=rng.uniform(low, high),
        carries=carries,
        colour=pick(rng, "pavement") * rng.uniform(0.4, 1.1),
        board=pick(rng, "paint"),
        shape=int(rng.integers(4)),
        lit=int(rng.integers(3)),
    )


def _close_street(rng: Rng, ground: Ground, light: Light) -> list[Thing]:
    """What stands at the end of the street: buildings, trees, or nothing but the horizon."""
    kind = str(rng.choice(["buildings", "trees", "open"], p=[0.45, 0.35, 0.2]))
    things: list[Thing] = []
    if kind == "buildings":
        far, x = rng.uniform(45, 120), -70.0
        while x < 70:
            width = rng.uniform(10, 25)
            building = Building(
                (x, far),
                (x + width, far),
                (0.0, 10.0),
                rng.uniform(5, 22),
                0.0,
                (0.95, 0.8),
                int(rng.integers(2**62)),
            )
            things.append((far + 12, draw_building, building))
            x += width + (rng.uniform(2, 8) if rng.random() < 0.3 else 0)
    elif kind == "trees":
        far, style = rng.uniform(40, 110), int(rng.integers(2**62))
        for x in np.arange(-70, 70, 5.0):
            tree = _tree(rng, float(x), far, light, style)
            tree = dataclasses.replace(tree, trunk=0.3, crown=(tree.crown[0] * 1.7, tree.crown[1] * 1.4))
            things.append((far + 12, draw_tree, tree))
    return things


def _traffic(
    rng: Rng, ground: Ground, camera: Camera, light: Light, shadows: list[tuple[np.ndarray, float]]
) -> list[Thing]:
    """Parked cars at the kerbs, cars in the lanes, cross traffic."""
    vehicles: list[Vehicle] = []
    for side in (-1, 1):
        density, z = rng.choice([0.0, 0.3, 0.8]), rng.uniform(2, 9)
        while z < 32:
            if rng.random() < density and not _in_crossing(ground, z, 3):
                x = _edge(ground, side, -1.05)
                vehicles.append(_vehicle(rng, light, x, z, 0.0 if side > 0 else np.pi))
            z += rng.uniform(5.6, 8)
    for _ in range(int(rng.poisson(2.6))):
        x, z = rng.uniform(ground.left + 2.8, max(ground.left + 3, ground.right - 2.8)), rng.uniform(5.5, 20)
        middle = (ground.left + ground.right) / 2
        vehicles.append(_vehicle(rng, light, x, z, (0.0 if x > middle else np.pi) + rng.normal(0, 0.08)))
    if ground.crossing is not None:
        for _ in range(int(rng.poisson(1.6))):
            z = rng.uniform(ground.crossing[0] + 1.5, ground.crossing[1] - 1.5)
            vehicles.append(_vehicle(rng, light, rng.uniform(-14, 14), z, rng.choice([-1, 1]) * np.pi / 2))
    kept = _apart(vehicles, camera)
    shadows += [(v.footprint(), KINDS[v.kind].size[2] * 0.8) for v in kept]
    return [(v.z, draw_vehicle, v) for v in kept]


def _vehicle(rng: Rng, light: Light, x: float, z: float, heading: float) -> Vehicle:
    kind = str(rng.choice(list(KINDS), p=[0.27, 0.24, 0.2, 0.13, 0.07, 0.09]))
    dark = np.array([0.13, 0.15, 0.18]) * rng.uniform(0.5, 1.8)
    return Vehicle(
        kind=kind,
        x=float(x),
        z=float(z),
        heading=float(heading),
        colour=pick(rng, "paint"),
        glass=dark if rng.random() < 0.65 else pick(rng, "sky") * 0.7,
        sun=(-np.sign(light.sun[0]) * 2 * light.shadow, -np.sign(light.sun[1]) * 2 * light.shadow),
    )


def _apart(vehicles: list[Vehicle], camera: Camera) -> list[Vehicle]:
    """Leaves out vehicles that would stand in each other or in the camera."""
    kept: list[Vehicle] = []
    for v in vehicles:
        reach = KINDS[v.kind].size[0] / 2
        near_camera = v.z - reach < 2.5 and abs(v.x - camera.offset) < 2.2
        if not near_camera and all(
            abs(v.x - o.x) > 2.3 or abs(v.z - o.z) > reach + KINDS[o.kind].size[0] / 2 for o in kept
        ):
            kept.append(v)
    return kept


def _people(rng: Rng, ground: Ground, camera: Camera, shadows: list[tuple[np.ndarray, float]]) -> list[Thing]:
    """Mostly on sidewalks, some in the road, alone and in groups; a few on bicycles."""
    people: list[Person] = []
    for _ in range(int(rng.poisson(1.2 * camera.cols / camera.rows))):
        x, z = _place_in_view(rng, ground, camera)
        for _ in range(int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1]))):
            people.append(sample_person(rng, x, z))
            x, z = x + float(rng.uniform(0.5, 0.9)), z + float(rng.normal(0, 0.3))
    if rng.random() < 0.12:
        x = float(rng.uniform(ground.left + 0.5, ground.right - 0.5))
        people.append(sample_person(rng, x, float(rng.uniform(5, 12)), rides=True))
    corners = np.array([(-0.2, -0.1), (0.2, -0.1), (0.2, 0.1), (-0.2, 0.1)])
    shadows += [(corners + np.array([p.x, p.z]), p.height) for p in people]
    return [(p.z, draw_person, p) for p in people]


def _place_in_view(rng: Rng, ground: Ground, camera: Camera) -> tuple[float, float]:
    """x and z of somebody 8 to 31 % of the photo tall; the last of six tries may be out of it."""
    for _ in range(6):
        tall = rng.uniform(0.15, 0.31) if rng.random() < 0.85 else rng.uniform(0.08, 0.15)
        z = float(1.74 * camera.focal / (tall * camera.rows))
        side = int(rng.choice([-1, 1]))
        walk = ground.sidewalk[0 if side < 0 else 1]
        in_road = rng.random() < 0.2
        x = (
            float(rng.uniform(ground.left, ground.right))
            if in_road
            else _edge(ground, side, rng.uniform(0.3, walk))
        )
        view = camera.view(np.array([x, 0.0, z]))
        if view[2] > 3 and abs(view[0]) < 0.9 * camera.cols / 2 / camera.focal * view[2]:
            break
    return x, z


def _draw_void(rng: Rng, canvas: Canvas) -> None:
    """What is in the way of the camera: its car's bonnet, the border of a rectified photo."""
    rows, cols = canvas.camera.rows, canvas.camera.cols
    if rng.random() < 0.25:
        tall, shift = rng.uniform(0.04, 0.12) * rows, rng.uniform(-0.15, 0.15) * cols
        surface = canvas.surface(pick(rng, "paint") * 0.7, EGO_VEHICLE, "paint", 1.0)
        canvas.ellipse(cols / 2 + shift, rows + tall, (cols * rng.uniform(0.5, 0.75), 2 * tall), surface)
    if rng.random() < 0.15:
        surface = canvas.surface((0.0, 0.0, 0.0), BORDER, "sky", 1.0)
        line = rows * rng.uniform(0.008, 0.025)
        for box in (
            (0, 0, cols, line),
            (0, rows - line, cols, rows),
            (0, 0, line, rows),
            (cols - line, 0, cols, rows),
        ):
            left, top, right, bottom = box
            canvas.polygon(np.array([(left, top), (right, top), (right, bottom), (left, bottom)]), surface)
