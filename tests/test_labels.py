import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxseg.data.cityscapes import _PUBLISHED_TRAIN, _PUBLISHED_VAL
from jaxseg.data.labels import (
    CAMVID_MAPPING,
    CITYSCAPES_MAPPING,
    STREET_CLASSES,
    classes_hash,
    map_colours,
    map_ids,
    mapping_of,
    void_class,
)
from jaxseg.errors import UsageError, UserError
from jaxseg.types import ClassTable

# The class of each Cityscapes label id, spelled out by name (the official table's names, ids 0..33).
CITYSCAPES_BY_NAME = {
    "void": (0, 1, 2, 3, 4, 5, 6),
    "road": (7,),
    "background": (8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22),
    "building": (11,),
    "vegetation": (21,),
    "sky": (23,),
    "person": (24, 25),
    "vehicle": (26, 27, 28, 29, 30, 31, 32, 33),
}


def test_cityscapes_mapping_by_name():
    for name, ids in CITYSCAPES_BY_NAME.items():
        expected = 255 if name == "void" else STREET_CLASSES.names.index(name)
        assert [CITYSCAPES_MAPPING.table[i] for i in ids] == [expected] * len(ids), name
    known = [i for i, entry in enumerate(CITYSCAPES_MAPPING.table) if entry is not None]
    assert known == list(range(34))


def test_camvid_mapping_is_the_recipes():
    assert CAMVID_MAPPING.table[:12] == (6, 2, 0, 1, 0, 5, 0, 0, 3, 4, 4, 255)
    assert set(CAMVID_MAPPING.table[12:]) == {None}


def test_published_totals_are_all_pixels_of_the_splits():
    """Void is background there, so the totals have to be every pixel of 2975 and 500 photos."""
    assert sum(_PUBLISHED_TRAIN) == 2975 * 2048 * 1024
    assert sum(_PUBLISHED_VAL) == 500 * 2048 * 1024


@given(st.lists(st.sampled_from([0, 1, 7, 255]), min_size=6, max_size=6))
def test_map_ids_is_the_table(ids):
    mapping = mapping_of({0: 2, 1: 0, 7: 1, 255: 255})
    ids_hw = np.array(ids, np.uint8).reshape(2, 3)
    mapped = map_ids(mapping, ids_hw, where="m.png", mend="")
    assert mapped.dtype == np.uint8
    assert mapped.ravel().tolist() == [mapping.table[i] for i in ids]


def test_map_ids_names_id_file_and_pixels():
    ids_hw = np.array([[0, 9, 9], [0, 12, 0]], np.uint8)
    with pytest.raises(UserError) as error:
        map_ids(mapping_of({0: 0}), ids_hw, where="m.png", mend="mend it")
    assert str(error.value) == (
        "m.png: id 9 (2 pixels) (and 1 other unknown ids) is not in the mapping, which knows 0; mend it"
    )


def test_map_colours():
    mapping = mapping_of({}, {(10, 20, 30): 1, (0, 0, 0): 255, (255, 255, 255): 0})
    rgb = np.array([[(10, 20, 30), (0, 0, 0)], [(255, 255, 255), (10, 20, 30)]], np.uint8)
    assert map_colours(mapping, rgb, where="m.png", mend="").tolist() == [[1, 255], [0, 1]]


@pytest.mark.parametrize("colour", [(10, 20, 31), (11, 20, 30), (255, 255, 254), (0, 0, 1), (30, 20, 10)])
def test_an_unknown_colour_is_an_error(colour):
    mapping = mapping_of({}, {(10, 20, 30): 1, (255, 255, 255): 0})
    rgb = np.array([[(10, 20, 30), colour]], np.uint8)
    with pytest.raises(UserError, match="colour #{:02x}{:02x}{:02x} \\(1 pixels\\)".format(*colour)):
        map_colours(mapping, rgb, where="m.png", mend="")


def test_hashes_cover_what_they_say():
    ids = mapping_of({0: 0, 1: 1})
    with_colours = mapping_of({0: 0, 1: 1}, {(1, 2, 3): 1, (4, 5, 6): 0})
    assert len({ids.hash, with_colours.hash, mapping_of({0: 1, 1: 0}).hash}) == 3
    assert with_colours.hash != mapping_of({0: 0, 1: 1}, {(1, 2, 3): 0, (4, 5, 6): 0}).hash
    assert with_colours.hash == mapping_of({1: 1, 0: 0}, {(4, 5, 6): 0, (1, 2, 3): 1}).hash
    recoloured = dataclasses.replace(STREET_CLASSES, palette=((0, 0, 0),) * 7)
    swapped = ClassTable(STREET_CLASSES.names[::-1], STREET_CLASSES.palette)
    assert classes_hash(recoloured) == classes_hash(STREET_CLASSES) != classes_hash(swapped)


def test_void_policy():
    assert void_class("ignore", STREET_CLASSES) is None
    assert void_class("background", STREET_CLASSES) == 0
    table = ClassTable(("road", "background"), ((0, 0, 0), (1, 1, 1)))
    assert void_class("background", table) == 1
    with pytest.raises(UsageError, match="needs a class of that name, the data has road, car"):
        void_class("background", ClassTable(("road", "car"), ((0, 0, 0), (1, 1, 1))))
    with pytest.raises(UsageError, match=r"dataset\.void='bg'"):
        void_class("bg", STREET_CLASSES)
