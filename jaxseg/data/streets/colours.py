"""One palette for everything: what a thing is cannot be told from its colour."""

from __future__ import annotations

import numpy as np

PALETTE = {
    "black": (0.10, 0.10, 0.11),
    "charcoal": (0.23, 0.23, 0.24),
    "asphalt": (0.36, 0.36, 0.37),
    "grey": (0.50, 0.50, 0.50),
    "silver": (0.66, 0.67, 0.69),
    "white": (0.87, 0.87, 0.85),
    "slate": (0.42, 0.48, 0.55),
    "sky": (0.55, 0.68, 0.84),
    "blue": (0.20, 0.31, 0.58),
    "teal": (0.22, 0.44, 0.44),
    "dark green": (0.14, 0.24, 0.12),
    "green": (0.27, 0.42, 0.18),
    "olive": (0.42, 0.44, 0.22),
    "sage": (0.56, 0.62, 0.48),
    "ochre": (0.74, 0.60, 0.31),
    "beige": (0.73, 0.66, 0.54),
    "brown": (0.38, 0.28, 0.19),
    "brick": (0.55, 0.30, 0.23),
    "red": (0.62, 0.15, 0.13),
    "orange": (0.74, 0.42, 0.16),
    "pink": (0.78, 0.58, 0.60),
}

# How often (relative) a class wears a colour. Each colour is worn by several classes.
WEIGHTS = {
    "facade": (0, 1, 2, 4, 4, 5, 3, 3, 1, 2, 1, 2, 2, 4, 6, 9, 4, 8, 3, 3, 4),
    "paint": (5, 3, 3, 3, 5, 6, 3, 4, 6, 3, 2, 2, 1, 1, 1, 2, 1, 1, 7, 2, 0),
    "cloth": (5, 4, 2, 2, 1, 4, 2, 3, 6, 2, 2, 2, 1, 1, 2, 2, 3, 2, 6, 4, 3),
    "leaf": (0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 12, 18, 12, 4, 3, 0, 4, 2, 1, 4, 1),
    "pavement": (0, 6, 14, 8, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 1, 0, 0, 0),
    "walk": (0, 1, 4, 8, 9, 3, 2, 0, 0, 0, 0, 0, 0, 1, 2, 9, 2, 5, 0, 0, 2),
    "soil": (0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 9, 8, 4, 3, 3, 5, 1, 0, 0, 0),
    "sky": (0, 0, 0, 2, 6, 9, 4, 14, 4, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 2),
}
_TABLE = np.array(list(PALETTE.values()))
_CUMULATIVE = {name: np.cumsum(w) / np.sum(w) for name, w in WEIGHTS.items()}


def pick(rng: np.random.Generator, kind: str, spread: float = 0.07) -> np.ndarray:
    """A colour [3] of `kind` (a key of WEIGHTS), varied in hue and brightness."""
    base = _TABLE[int(np.searchsorted(_CUMULATIVE[kind], rng.random()))]
    varied = base * (1 + spread * 1.5 * rng.standard_normal()) + spread * 0.4 * rng.standard_normal(3)
    return np.clip(varied, 0.03, 0.97)
