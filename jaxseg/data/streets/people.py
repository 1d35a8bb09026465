"""People on foot and on bicycles: flat figures that face the camera."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxseg.data.streets.camera import NEAR
from jaxseg.data.streets.canvas import Canvas
from jaxseg.data.streets.colours import pick

PERSON, RIDER, BICYCLE = 24, 25, 33
SKIN = np.array([(0.86, 0.68, 0.57), (0.74, 0.54, 0.42), (0.55, 0.38, 0.28), (0.36, 0.25, 0.19)])


@dataclasses.dataclass(frozen=True)
class Person:
    """Where somebody stands (m), how tall (m), and the look."""

    x: float
    z: float
    height: float
    sideways: bool
    stride: float
    """Distance of the feet from the middle, share of the height; 0 stands."""
    facing: int
    """-1 or 1: the side to which a sideways figure looks."""
    rides: bool
    bag: str
    """'none', 'hand' or 'back'."""
    coat: bool
    stripes: bool
    top: np.ndarray
    legs: np.ndarray
    skin: np.ndarray
    hair: np.ndarray
    extra: np.ndarray
    """Colour of bag or bicycle."""


def sample_person(rng: np.random.Generator, x: float, z: float, *, rides: bool = False) -> Person:
    """Somebody at (x, z)."""
    sideways = rng.random() < 0.5
    walks = rng.random() < 0.75
    return Person(
        x=x,
        z=z,
        height=float(rng.uniform(1.0, 1.4) if rng.random() < 0.1 else rng.normal(1.74, 0.09)),
        sideways=sideways,
        stride=float(rng.uniform(0.06, 0.15) * (1.0 if sideways else 0.45)) if walks else 0.03,
        facing=int(rng.choice([-1, 1])),
        rides=rides,
        bag=str(rng.choice(["none", "hand", "back"], p=[0.6, 0.25, 0.15])),
        coat=bool(rng.random() < 0.3),
        stripes=bool(rng.random() < 0.5),
        top=pick(rng, "cloth"),
        legs=pick(rng, "trousers") * 0.9,
        skin=SKIN[int(rng.integers(len(SKIN)))],
        hair=np.array([0.14, 0.1, 0.08]) * rng.uniform(0.5, 3.5),
        extra=pick(rng, "cloth"),
    )


def draw_person(canvas: Canvas, person: Person) -> None:
    """Draws the figure, its feet on the ground."""
    view = canvas.camera.view(np.array([person.x, 0.0, person.z]))
    if view[2] < 2 * NEAR:
        return
    foot = canvas.camera.pixels(view)
    figure = _Figure(canvas, foot, canvas.camera.focal / view[2] * person.height, person, float(view[2]))
    if person.rides:
        figure.bicycle()
    figure.body()


class _Figure:
    """Draws in shares of the height: x to the facing side, y up."""

    def __init__(self, canvas: Canvas, foot: np.ndarray, scale: float, person: Person, depth: float) -> None:
        self.canvas, self.foot, self.scale, self.person, self.depth = canvas, foot, scale, person, depth
        self.label = RIDER if person.rides else PERSON
        self.lift = 0.12 if person.rides else 0.0
        self.hip, self.shoulder = 0.47 + self.lift, 0.83 + self.lift
        self.wide = 0.088 if person.sideways else 0.132
        self.lean = 0.06 if person.rides and person.sideways else 0.0

    def body(self) -> None:
        """Legs, torso, arms, bag, head."""
        p = self.person
        for side in (-1, 1):
            self._leg(side)
        if p.bag == "back" and p.sideways:
            self._limb((-0.13, 0.56 + self.lift), (-0.11, 0.8 + self.lift), 0.06, 0.055, p.extra)
        hem = 0.33 if p.coat and not p.rides else self.hip - 0.03
        chest, neck = (self.lean, self.shoulder - 0.05), (self.lean, self.shoulder)
        self._limb((0.0, hem), chest, self.wide * 0.85, self.wide, p.top)
        self._limb(chest, neck, self.wide, self.wide * 0.7, p.top)
        if p.stripes:
            for low in np.arange(self.hip + 0.02, self.shoulder - 0.06, 0.1):
                middle = self.lean * (low - hem) / (self.shoulder - hem)
                self._limb((middle, low), (middle, low + 0.045), self.wide * 0.93, self.wide * 0.93, p.extra)
        for side in (-1, 1):
            self._arm(side)
        if p.bag == "hand":
            at = self.wide + 0.06
            self._limb((at, 0.26 + self.lift), (at, 0.44 + self.lift), 0.06, 0.045, p.extra)
        self._limb((self.lean, neck[1] - 0.02), (self.lean, neck[1] + 0.09), 0.027, 0.027, p.skin * 0.85)
        self._ellipse(self.lean, neck[1] + 0.1, 0.063, 0.076, p.hair)
        self._ellipse(self.lean + (0.018 if p.sideways else 0.0), neck[1] + 0.085, 0.048, 0.057, p.skin)

    def _leg(self, side: int) -> None:
        p = self.person
        colour = p.legs * (0.82 if side < 0 else 1.0)
        hip_x, foot_x = side * (0.02 if p.sideways else 0.048), side * p.stride
        low = 0.12 + 0.05 * side if p.rides else 0.0
        knee = ((hip_x + foot_x) / 2 + (0.02 if p.sideways else 0.0), (self.hip + low) / 2 + 0.03)
        self._limb((hip_x, self.hip), knee, 0.056, 0.045, colour)
        self._limb(knee, (foot_x, low + 0.03), 0.045, 0.034, colour)
        toe = (0.02, 0.055) if p.sideways else (0.0, 0.038)
        self._limb((foot_x + toe[0], low), (foot_x + toe[0] * 0.5, low + 0.04), toe[1], 0.033, p.hair)

    def _arm(self, side: int) -> None:
        p = self.person
        colour = p.top * (0.75 if side < 0 else 0.88)
        if p.sideways:
            hand = (0.12, 0.6 + self.lift) if p.rides else (-side * p.stride * 0.8, 0.45 + self.lift)
            self._limb((self.lean, self.shoulder - 0.03), hand, 0.034, 0.026, colour)
        else:
            at = side * (self.wide + 0.012)
            hand = (at + side * 0.012, 0.46 + self.lift)
            self._limb((at - side * 0.012, self.shoulder - 0.035), hand, 0.032, 0.027, colour)

    def bicycle(self) -> None:
        """Two wheels and a frame; one wheel when seen from the front."""
        p = self.person
        line = max(1, round(0.022 * self.scale))
        surface = self.canvas.surface(p.extra * 0.6, BICYCLE, "metal", self.depth)
        for at in (-0.3, 0.3) if p.sideways else (0.0,):
            column, row = self._pixel(at, 0.19)
            half = (0.19 if p.sideways else 0.035) * self.scale
            self.canvas.ring(column, row, (half, 0.19 * self.scale), line, surface)
        tubes = (
            ((-0.3, 0.19), (-0.05, 0.5)),
            ((-0.05, 0.5), (0.24, 0.5)),
            ((0.3, 0.19), (0.2, 0.6)),
            ((-0.02, 0.2), (0.22, 0.48)),
        )
        for start, end in tubes if p.sideways else ():
            self._limb(start, end, 0.014, 0.014, p.extra * 0.7, BICYCLE)

    def _limb(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        start_half: float,
        end_half: float,
        colour: np.ndarray,
        label: int | None = None,
    ) -> None:
        """A tapering stroke; the half widths are across its direction."""
        (ax, ay), (bx, by) = start, end
        length = max(1e-6, float(np.hypot(bx - ax, by - ay)))
        nx, ny = (by - ay) / length, (ax - bx) / length
        shape = (
            (ax - nx * start_half, ay - ny * start_half),
            (ax + nx * start_half, ay + ny * start_half),
            (bx + nx * end_half, by + ny * end_half),
            (bx - nx * end_half, by - ny * end_half),
        )
        surface = self.canvas.surface(colour, label or self.label, "cloth", self.depth)
        self.canvas.polygon(np.array([self._pixel(x, y) for x, y in shape]), surface)

    def _ellipse(self, x: float, y: float, half_x: float, half_y: float, colour: np.ndarray) -> None:
        surface = self.canvas.surface(colour, self.label, "cloth", self.depth)
        self.canvas.ellipse(*self._pixel(x, y), (half_x * self.scale, half_y * self.scale), surface)

    def _pixel(self, x: float, y: float) -> tuple[float, float]:
        return (
            float(self.foot[0] + x * self.person.facing * self.scale),
            float(self.foot[1] - y * self.scale),
        )
