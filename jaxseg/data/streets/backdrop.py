"""Sky, road, sidewalk and soil: computed for each pixel, since they have no outline of their own."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxseg.data.streets.camera import Camera
from jaxseg.data.streets.canvas import MATERIAL_IDS
from jaxseg.data.streets.colours import pick

ROAD, SIDEWALK, TERRAIN, SKY = 7, 8, 22, 23


@dataclasses.dataclass(frozen=True)
class Ground:
    """The plan of the street (metres) and what it is made of (colours [3])."""

    left: float
    """x of the left kerb; negative."""
    right: float
    sidewalk: tuple[float, float]
    """Width of the left and right sidewalk."""
    crossing: tuple[float, float] | None
    """z range of a cross street."""
    lane: float
    marks: str
    """'dashed', 'solid', 'double' or 'none'."""
    beyond: tuple[str, str]
    """What lies behind the sidewalks: 'soil' or 'paving'."""
    road_colour: np.ndarray
    mark_colour: np.ndarray
    walk_colour: np.ndarray
    soil_colour: np.ndarray
    tile: float
    """Metres between the joints of the sidewalk."""
    patches: np.ndarray
    """[n, 5]: x, z, half width, half length (m), brightness of repaired road."""
    waves: np.ndarray
    """[n, 3]: frequency in x and z (1/m) and phase of stains."""


class Backdrop(NamedTuple):
    """Arrays [rows, cols, ...] as the canvas table would give them."""

    colour: np.ndarray
    label: np.ndarray
    material: np.ndarray
    depth: np.ndarray


def plan_ground(rng: np.random.Generator, paved: tuple[bool, bool]) -> Ground:
    """Draws the plan of a street; `paved` says whether paving reaches the building line."""
    lanes, lane = int(rng.integers(1, 5)), float(rng.uniform(2.8, 3.8))
    share = rng.uniform(0.3, 0.7)
    width = lanes * lane + rng.uniform(0.5, 4)
    start = rng.uniform(9, 45)
    road = pick(rng, "pavement")
    walk = np.clip(road * rng.uniform(0.8, 1.3), 0, 0.95) if rng.random() < 0.15 else pick(rng, "walk")
    return Ground(
        left=-width * share,
        right=width * (1 - share),
        sidewalk=(float(rng.uniform(2, 6)), float(rng.uniform(2, 6))),
        crossing=(start, start + rng.uniform(6, 14)) if rng.random() < 0.45 else None,
        lane=lane,
        marks=str(rng.choice(["dashed", "solid", "double", "none"], p=[0.5, 0.15, 0.1, 0.25])),
        beyond=("paving" if paved[0] else "soil", "paving" if paved[1] else "soil"),
        road_colour=road,
        mark_colour=np.array([0.88, 0.88, 0.86]) if rng.random() < 0.8 else np.array([0.85, 0.7, 0.25]),
        walk_colour=walk,
        soil_colour=pick(rng, "soil"),
        tile=float(rng.choice([0.5, 0.8, 1.2])),
        patches=rng.uniform([-6, 3, 0.2, 0.5, 0.7], [6, 40, 1.6, 5, 1.2], (5, 5)),
        waves=np.concatenate([rng.normal(0, 0.5, (4, 2)), rng.uniform(0, 6.28, (4, 1))], axis=1),
    )


def draw_backdrop(camera: Camera, ground: Ground, sky: np.ndarray) -> Backdrop:
    """The scene without things. `sky` is [rows, cols, 3]."""
    x, z, depth = camera.ground()
    above = depth > 400
    in_crossing = np.zeros(x.shape, bool)
    if ground.crossing is not None:
        in_crossing = (z > ground.crossing[0]) & (z < ground.crossing[1])
    on_road = ((x > ground.left) & (x < ground.right)) | in_crossing
    left = x < (ground.left + ground.right) / 2
    out = np.where(left, ground.left - x, x - ground.right)
    on_walk = ~on_road & (out < np.where(left, *ground.sidewalk))
    paved = np.where(left, ground.beyond[0] == "paving", ground.beyond[1] == "paving")
    walk = on_walk | (~on_road & paved)
    label = np.where(on_road, ROAD, np.where(walk, SIDEWALK, TERRAIN))
    marks = _marks(ground, x, z, in_crossing, np.float32(camera.focal) / np.maximum(depth, 0.1))[..., None]
    # One table look-up and one factor a pixel: several times faster than choosing between colour images.
    table = np.stack([ground.road_colour, ground.walk_colour, ground.soil_colour]).astype(np.float32)
    colour = table[np.where(on_road, 0, np.where(walk, 1, 2))]
    shade = np.where(on_road, _road_shade(ground, x, z), np.where(walk, _joints(ground, x, z, out, depth), 1))
    marks = np.where(on_road[..., None], marks, 0).astype(np.float32)
    colour = (
        colour * (shade.astype(np.float32)[..., None] * (1 - marks))
        + ground.mark_colour.astype(np.float32) * marks
    )
    material = np.select(
        [on_road, walk], [MATERIAL_IDS["asphalt"], MATERIAL_IDS["paving"]], MATERIAL_IDS["grass"]
    )
    return Backdrop(
        colour=np.where(above[..., None], sky, colour),
        label=np.where(above, SKY, label).astype(np.uint8),
        material=np.where(above, MATERIAL_IDS["sky"], material),
        depth=depth,
    )


def _road_shade(ground: Ground, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Stains, worn tracks and repaired patches: a factor on the road's colour."""
    shade = np.ones(x.shape, np.float32)
    for along_x, along_z, phase in ground.waves.astype(np.float32):
        shade += np.float32(0.03) * np.sin(along_x * x + along_z * z + phase)
    for px, pz, half_width, half_length, brightness in ground.patches:
        shade[(np.abs(x - px) < half_width) & (np.abs(z - pz) < half_length)] *= brightness
    return shade


def _marks(
    ground: Ground, x: np.ndarray, z: np.ndarray, in_crossing: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Coverage [0, 1] by paint: lane lines, a zebra before a cross street. `scale` is pixels a metre."""
    blur = 0.5 / scale
    lane = np.abs((x - ground.left) / ground.lane - np.round((x - ground.left) / ground.lane)) * ground.lane
    inside = (x > ground.left + 0.5 * ground.lane) & (x < ground.right - 0.5 * ground.lane)
    half = 0.09
    distance = np.abs(lane - 0.15) if ground.marks == "double" else lane
    line = np.clip((half - distance) / (2 * blur) + 0.5, 0, 1) * np.minimum(1, half / blur)
    if ground.marks == "dashed":
        line = line * (np.mod(z, 9) < 4)
    paint = line * inside * ~in_crossing * (0 if ground.marks == "none" else 0.85)
    if ground.crossing is not None:
        near = ground.crossing[0]
        bars = (
            (z > near - 4) & (z < near - 1) & (np.mod(x, 1.1) < 0.55) & (x > ground.left) & (x < ground.right)
        )
        paint = np.where(bars, 0.8, paint * ~((z > near - 4) & (z < near)))
    return np.asarray(paint, np.float32)


def _joints(ground: Ground, x: np.ndarray, z: np.ndarray, out: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """A bright kerbstone and the dark joints of tiles: a factor on the sidewalk's colour."""
    shade = np.where(out < 0.3, 1.25, 1.0).astype(np.float32)
    joint = (np.mod(x, ground.tile) < 0.06) | (np.mod(z, ground.tile) < 0.08)
    shade = shade * np.where(joint & (depth < 25), 0.72, 1.0)
    return np.where((out > 0) & (out < 0.1), 0.5, shade)
