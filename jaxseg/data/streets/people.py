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
        top=pick(rng, "cloth"),
        legs=pick(rng, "cloth") * 0.8,
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

    def body(self) -> None:
        """Legs, torso, arms, bag, head."""
        p = self.person
        stride, wide = p.stride, 0.072 if p.sideways else 0.12
        lift = 0.12 if p.rides else 0.0
        hip, shoulder = 0.47 + lift, 0.82 + lift
        lean = 0.06 if p.rides and p.sideways else 0.0
        knee = 0.26 + lift
        for side in (-1, 1):
            leg = p.legs * (0.82 if side < 0 else 1.0)
            foot_x, at = side * stride, side * (0.02 if p.sideways else 0.045)
            bend = 0.02 if p.sideways else 0.0
            low = 0.12 + 0.05 * side if p.rides else 0.0
            shape = [(at - 0.05, hip), (at + 0.05, hip), ((at + foot_x) / 2 + bend + 0.04, knee)]
            shape += [
                (foot_x + 0.03, low + 0.03),
                (foot_x - 0.03, low + 0.03),
                ((at + foot_x) / 2 + bend - 0.04, knee),
            ]
            self._fill(shape, leg)
            toe = 0.075 if p.sideways else 0.04
            self._fill(
                [
                    (foot_x - 0.035, low),
                    (foot_x + toe, low),
                    (foot_x + 0.03, low + 0.04),
                    (foot_x - 0.035, low + 0.04),
                ],
                p.hair,
            )
        if p.bag == "back" and p.sideways:
            self._fill(
                [(-0.17, 0.56 + lift), (-0.05, 0.56 + lift), (-0.05, 0.8 + lift), (-0.16, 0.78 + lift)],
                p.extra,
            )
        hem = 0.33 if p.coat and not p.rides else hip - 0.03
        top_wide = wide * 1.05
        torso = [
            (-wide * 0.85, hem),
            (wide * 0.85, hem),
            (lean + top_wide, shoulder - 0.05),
            (lean + top_wide * 0.7, shoulder),
        ]
        self._fill([*torso, (lean - top_wide * 0.7, shoulder), (lean - top_wide, shoulder - 0.05)], p.top)
        for side in (-1, 1):
            if p.sideways:
                swing = (0.12, 0.6 + lift) if p.rides else (-side * stride * 0.8, 0.45 + lift)
                arm = [
                    (lean - 0.03, shoulder - 0.02),
                    (lean + 0.035, shoulder - 0.03),
                    (swing[0] + 0.025, swing[1]),
                    (swing[0] - 0.025, swing[1]),
                ]
            else:
                out = side * (wide + 0.035)
                arm = [
                    (side * wide * 0.75, shoulder - 0.01),
                    (out, shoulder - 0.06),
                    (out + side * 0.01, 0.46 + lift),
                    (out - side * 0.045, 0.46 + lift),
                ]
            self._fill(arm, p.top * (0.75 if side < 0 else 0.88))
        if p.bag == "hand":
            at = wide + 0.05
            self._fill(
                [
                    (at - 0.045, 0.26 + lift),
                    (at + 0.075, 0.26 + lift),
                    (at + 0.06, 0.44 + lift),
                    (at - 0.03, 0.44 + lift),
                ],
                p.extra,
            )
        self._head(lean, 0.925 + lift)

    def _head(self, x: float, y: float) -> None:
        p = self.person
        self._fill(
            [(x - 0.025, y - 0.11), (x + 0.025, y - 0.11), (x + 0.025, y), (x - 0.025, y)], p.skin * 0.85
        )
        self._ellipse(x, y, 0.058, 0.073, p.hair)
        shift = 0.018 if p.sideways else 0.0
        self._ellipse(x + shift, y - 0.018, 0.044, 0.053, p.skin)

    def bicycle(self) -> None:
        """Two wheels and a frame; one wheel when seen from the front."""
        p = self.person
        line = max(1, round(0.022 * self.scale))
        surface = self.canvas.surface(p.extra * 0.6, BICYCLE, "metal", self.depth)
        spread = 0.3 if p.sideways else 0.0
        for at in (-spread, spread):
            column, row = self._pixel(at, 0.19)
            half = (0.19 if p.sideways else 0.035) * self.scale
            self.canvas.ring(column, row, (half, 0.19 * self.scale), line, surface)
        for a, b in (
            ((-0.3, 0.19), (-0.05, 0.5)),
            ((-0.05, 0.5), (0.24, 0.5)),
            ((0.3, 0.19), (0.2, 0.6)),
            ((-0.02, 0.2), (0.22, 0.48)),
        ):
            if p.sideways:
                thick = 0.014
                self._fill(
                    [(a[0], a[1] - thick), (b[0], b[1] - thick), (b[0], b[1] + thick), (a[0], a[1] + thick)],
                    p.extra * 0.7,
                    BICYCLE,
                )

    def _pixel(self, x: float, y: float) -> tuple[float, float]:
        return float(self.foot[0] + x * self.person.facing * self.scale), float(self.foot[1] - y * self.scale)

    def _fill(self, shape: list[tuple[float, float]], colour: np.ndarray, label: int | None = None) -> None:
        surface = self.canvas.surface(colour, label or self.label, "cloth", self.depth)
        self.canvas.polygon(np.array([self._pixel(x, y) for x, y in shape]), surface)

    def _ellipse(self, x: float, y: float, half_x: float, half_y: float, colour: np.ndarray) -> None:
        surface = self.canvas.surface(colour, self.label, "cloth", self.depth)
        self.canvas.ellipse(*self._pixel(x, y), (half_x * self.scale, half_y * self.scale), surface)
