"""A pinhole camera over a gently bending street.

World coordinates are metres: x to the right of the street's axis, y up, z along the street. Camera
coordinates are x right, y up relative to the eye, z forward.
"""

from __future__ import annotations

import dataclasses

import numpy as np

NEAR = 0.6
"""Metres in front of the eye at which everything is cut off."""


@dataclasses.dataclass(frozen=True)
class Camera:
    """Where the eye is and how it projects. `rows`, `cols`, `focal` and `horizon` are pixels."""

    rows: int
    cols: int
    focal: float
    horizon: float
    eye: float
    """Metres above the ground."""
    offset: float
    """Metres to the right of the street's axis."""
    yaw: float
    roll: float
    bend: float
    """Curvature of the street: x shifts by bend * z^2 (1/m)."""

    def view(self, points: np.ndarray) -> np.ndarray:
        """World [..., 3] -> camera coordinates [..., 3]."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        x = x - self.offset + self.bend * z * np.abs(z)
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        seen = np.empty(points.shape)
        seen[..., 0], seen[..., 1], seen[..., 2] = x * cos - z * sin, y - self.eye, x * sin + z * cos
        return seen

    def pixels(self, view: np.ndarray) -> np.ndarray:
        """Camera coordinates [..., 3], z > 0 -> (column, row) [..., 2]."""
        scale = self.focal / view[..., 2]
        across, down = view[..., 0] * scale, self.horizon - self.rows / 2 - view[..., 1] * scale
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        pixels = np.empty((*across.shape, 2))
        pixels[..., 0] = self.cols / 2 + across * cos - down * sin
        pixels[..., 1] = self.rows / 2 + across * sin + down * cos
        return pixels

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """(across, below), each [rows, cols]: pixels right of the axis and below the horizon, roll undone."""
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        right = (np.arange(self.cols) + 0.5 - self.cols / 2)[None, :]
        down = (np.arange(self.rows) + 0.5 - self.rows / 2)[:, None]
        across = (right * cos).astype(np.float32) + (down * sin).astype(np.float32)
        below = (down * cos + self.rows / 2 - self.horizon).astype(np.float32) - (right * sin).astype(
            np.float32
        )
        return across, below

    def ground(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World x and z of the ground under each pixel and its depth, [rows, cols]; depth 1e4 in the sky."""
        across, below = self.rays()
        depth = np.float32(self.focal * self.eye) / np.maximum(below, np.float32(0.05))
        depth = np.where(below > 0.05, depth, np.float32(1e4))
        across = across * depth / np.float32(self.focal)
        cos, sin = np.float32(np.cos(self.yaw)), np.float32(np.sin(self.yaw))
        z = depth * cos - across * sin
        x = across * cos + depth * sin + np.float32(self.offset) - np.float32(self.bend) * z * np.abs(z)
        return x, z, depth


def clip_near(view: np.ndarray) -> np.ndarray:
    """The part of a polygon [n, 3] beyond NEAR (I. Sutherland and G. Hodgman, CACM 1974, one plane)."""
    kept: list[np.ndarray] = []
    for here, there in zip(view, np.roll(view, -1, axis=0), strict=True):
        if here[2] >= NEAR:
            kept.append(here)
        if (here[2] >= NEAR) != (there[2] >= NEAR):
            kept.append(here + (there - here) * ((NEAR - here[2]) / (there[2] - here[2])))
    return np.array(kept)
