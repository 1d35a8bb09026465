"""The page's colours for those who see no red or no green."""

import numpy as np
import pytest

from jaxseg.data.labels import STREET_CLASSES
from jaxseg.report import writing
from jaxseg.report.colours import for_page
from jaxseg.types import ClassTable

# G. M. Machado, M. M. Oliveira, L. A. F. Fernandes, "A Physiologically-based Model for Simulation of Color
# Vision Deficiency", IEEE TVCG 15(6), 2009, severity 1.0; of linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "no red": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
APART = 15.0
"""CIE76; about 2.3 can just be seen side by side."""


def lab(palette, sight):
    """CIELAB [N, 3] (D65) of sRGB colours as somebody sees them."""
    value = np.array(palette) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ SIGHT[sight].T, 0, 1) @ XYZ.T / XYZ.sum(axis=1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def nearest(palette, sight):
    """The two colours that look most alike, and their distance."""
    seen = lab(palette, sight)
    distance = np.linalg.norm(seen[:, None] - seen, axis=-1)
    distance[np.tril_indices(len(seen))] = np.inf
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    return (int(i), int(j)), float(distance[i, j])


@pytest.mark.parametrize("sight", SIGHT)
def test_street_classes_are_told_apart_on_the_page(sight):
    table = for_page(STREET_CLASSES)
    (a, b), distance = nearest(table.palette, sight)
    assert distance > APART, (table.names[a], table.names[b])
    # A void pixel is black and grey in stripes.
    assert nearest((*table.palette, (0, 0, 0)), sight)[1] > APART


def test_cityscapes_own_colours_are_not():
    pair, distance = nearest(STREET_CLASSES.palette, "no green")
    assert [STREET_CLASSES.names[i] for i in pair] == ["person", "vegetation"] and distance < 7


def test_all_of_the_page_has_these_colours(monkeypatch, tmp_path):
    """Pictures, legend and tables take them from one table; other colours are left as they are."""
    given = []

    def stop(runs, models, classes, *_, **__):
        given.append(classes)
        raise InterruptedError

    monkeypatch.setattr(writing, "check_comparable", lambda runs: None)
    monkeypatch.setattr(writing, "named_apart", lambda runs: runs)
    monkeypatch.setattr(writing, "make_gallery", stop)
    own = ClassTable(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    for classes in (STREET_CLASSES, own):
        with pytest.raises(InterruptedError):
            writing.write_report([], [], classes, "val", tmp_path / "x.html")
    assert given[0].names == STREET_CLASSES.names and given[0].palette == for_page(STREET_CLASSES).palette
    assert given[0].palette != STREET_CLASSES.palette and given[1] == own
