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
    "yellow": (0.88, 0.76, 0.16),
    "magenta": (0.72, 0.18, 0.46),
}

# How often (relative) a class wears a colour. Each colour is worn by several classes.
WEIGHTS = {
    "facade": (0, 0, 1, 2, 3, 4, 2, 2, 1, 1, 0, 1, 1, 3, 8, 12, 4, 12, 2, 4, 6, 2, 1),
    "paint": (7, 3, 2, 3, 8, 9, 4, 4, 9, 2, 2, 1, 0, 0, 0, 2, 0, 1, 4, 1, 0, 2, 1),
    "cloth": (3, 1, 0, 1, 1, 3, 0, 2, 4, 6, 1, 2, 0, 0, 5, 1, 1, 1, 13, 13, 9, 11, 11),
    "trousers": (10, 6, 1, 2, 0, 1, 2, 1, 12, 1, 1, 0, 1, 0, 1, 2, 3, 0, 1, 0, 0, 0, 1),
    "leaf": (0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 14, 22, 14, 3, 2, 0, 2, 1, 1, 3, 0, 2, 1),
    "pavement": (0, 8, 18, 8, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0),
    "walk": (0, 0, 1, 4, 10, 4, 1, 0, 0, 0, 0, 0, 0, 1, 3, 14, 1, 6, 0, 0, 3, 0, 0),
    "soil": (0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 3, 4, 6, 6, 6, 5, 1, 0, 0, 0, 1, 0),
    "sky": (0, 0, 0, 1, 5, 10, 3, 18, 3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0),
}
_TABLE = np.array(list(PALETTE.values()))
_CUMULATIVE = {name: np.cumsum(w) / np.sum(w) for name, w in WEIGHTS.items()}


def pick(rng: np.random.Generator, kind: str, spread: float = 0.07) -> np.ndarray:
    """A colour [3] of `kind` (a key of WEIGHTS), varied in hue and brightness."""
    base = _TABLE[int(np.searchsorted(_CUMULATIVE[kind], rng.random()))]
    varied = base * (1 + spread * 1.5 * rng.standard_normal()) + spread * 0.4 * rng.standard_normal(3)
    return np.clip(varied, 0.03, 0.97)
