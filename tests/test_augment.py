"""Augmentation: what moves together, what covers what, and that only the key decides."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.augment import (
    Augmentation,
    Boxes,
    Occlusion,
    Regions,
    build_augmentation,
    fill_frames,
    fill_tiles,
    make_augment,
)
from jaxseg.errors import UsageError
from jaxseg.types import IGNORE_LABEL

H, W = 48, 64
OFF = {
    "flip": 0.0,
    "scale_crop": (1.0, 1.0),
    "colour": 0.0,
    "occlusion": Occlusion(Boxes(0.0, 2, 0.1, 0.3), Regions(0.0, 2, 0.3, 0.7, 0.7)),
}


def scene(count=4):
    """Images whose red channel tells the label, with one person (class 4) box each."""
    label = np.zeros((count, H, W), np.uint8)
    label[:, :, : W // 2] = 1
    label[:, 30:, :] = 2
    boxes = np.zeros((count, 16, 4), np.int32)
    for i in range(count):
        left = 8 + i % 40
        boxes[i, 0] = (10, left, 30, left + 10)
        label[i, 10:30, left : left + 10] = 4
    image = np.repeat((label * 60)[..., None], 3, axis=-1)
    key = np.random.default_rng(1).integers(0, 2**32, (count, 2), np.uint32)
    return image, label, boxes, key, np.arange(count, dtype=np.int32)


def run(config, batch):
    return jax.tree.map(np.asarray, jax.jit(make_augment(config))(*batch))


def test_nothing_but_conversion_by_default():
    batch = scene()
    out = run(Augmentation(), batch)
    assert np.allclose(out.image, batch[0] / 255.0, rtol=1e-6, atol=0)
    assert (out.label == batch[1]).all() and out.label.dtype == np.int32
    assert not out.occlusion.any()


def test_flip_moves_image_and_label_together():
    batch = scene(16)
    out = run(Augmentation(flip=0.5), batch)
    kinds = set()
    for i in range(16):
        for flipped in (False, True):
            step = -1 if flipped else 1
            if (out.label[i] == batch[1][i][:, ::step]).all():
                assert np.allclose(out.image[i], batch[0][i][:, ::step] / 255.0, atol=1e-6)
                kinds.add(flipped)
    assert kinds == {False, True}


@pytest.mark.parametrize("planted", [False, True])
def test_scale_and_crop_keeps_image_and_label_aligned(planted):
    batch = scene(8)
    image, label = batch[0], batch[1]
    if planted:
        image = np.roll(image, 3, axis=2)
    out = run(Augmentation(flip=0.5, scale_crop=(0.6, 1.8)), (image, label, *batch[2:]))
    inside = out.label != IGNORE_LABEL
    # Bilinear values differ from the nearest label only along borders between classes.
    agree = np.abs(out.image[..., 0] * 255 - out.label * 60.0) < 1.0
    share = agree[inside].mean()
    assert (share > 0.93) != planted
    assert (out.image[~inside] == 0).all()
    assert (~inside).any(), "zooming out pads with void"


def test_boxes_move_with_the_label():
    """The region's box, moved, is the box of the moved label: seen through full-size occlusion."""
    batch = scene(12)
    config = Augmentation(flip=0.5, scale_crop=(0.7, 1.5), regions=Regions(1.0, 1, 1.0, 1.0, 0.5))
    out = run(config, batch)
    for i in range(12):
        person, covered = out.label[i] == 4, out.occlusion[i]
        union = (person | covered).sum()
        assert (person & covered).sum() / union > 0.85


def test_boxes_are_flipped_with_the_label():
    """Of two regions each lies where its label is, flipped or not; boxes that are not used stay so."""
    image, label, boxes, key, ids = scene(12)
    label[:, :8, :12] = 4
    boxes[:, 1] = (0, 0, 8, 12)
    config = Augmentation(flip=0.5, regions=Regions(1.0, 16, 1.0, 1.0, 0.5))
    out = run(config, (image, label, boxes, key, ids))
    np.testing.assert_array_equal(out.occlusion, out.label == 4)
    assert len({bool(covered[0, 0]) for covered in out.occlusion}) == 2, "some are flipped"


def test_a_flip_is_exact():
    """It resamples nothing: each pixel is one of the photo's."""
    batch = scene(16)
    batch = (np.random.default_rng(0).integers(0, 256, (16, H, W, 3), np.uint8), *batch[1:])
    out = run(Augmentation(flip=1.0), batch)
    np.testing.assert_array_equal(out.image, run(Augmentation(), batch).image[:, :, ::-1])


def test_random_boxes_are_black_and_the_label_stays():
    batch = scene(8)
    out = run(Augmentation(boxes=Boxes(1.0, 2, 0.1, 0.3)), batch)
    assert out.occlusion.any(axis=(1, 2)).all()
    assert (out.image[out.occlusion] == 0).all()
    assert (out.label == batch[1]).all()
    shares = out.occlusion.mean(axis=(1, 2))
    assert (shares <= 2 * 0.3**2 + 0.02).all() and (shares >= 0.1**2 * 0.7).all()
    untouched = ~out.occlusion
    assert np.allclose(out.image[untouched], (batch[0] / 255.0)[untouched], atol=1e-6)


def test_person_occlusion_lies_in_the_person_box_at_the_stated_size():
    batch = scene(64)
    out = run(Augmentation(regions=Regions(0.6, 2, 0.3, 0.7, 0.7)), batch)
    chosen = 0
    for i in range(64):
        top, left, bottom, right = batch[2][i, 0]
        inside = np.zeros((H, W), bool)
        inside[top:bottom, left:right] = True
        assert not (out.occlusion[i] & ~inside).any()
        if out.occlusion[i].any():
            chosen += 1
            rows, cols = (np.ptp(np.nonzero(out.occlusion[i])[a]) + 1 for a in (0, 1))
            assert 0.3 * 20 - 1 <= rows <= 0.7 * 20 + 1
            assert 0.3 * 10 - 1 <= cols <= 0.7 * 10 + 1
    assert 0.42 <= chosen / 64 <= 0.78, "each region with probability 0.6"
    assert (out.label == batch[1]).all(), "the label under a box stays"


def test_noise_is_grey_normal_or_uniform():
    batch = scene(32)
    grey = run(Augmentation(regions=Regions(1.0, 1, 0.7, 0.7, 1.0)), batch)
    uniform = run(Augmentation(regions=Regions(1.0, 1, 0.7, 0.7, 0.0)), batch)
    a, b = grey.image[grey.occlusion], uniform.image[uniform.occlusion]
    assert abs(a.mean() - 0.5) < 0.01 and abs(a.std() - 0.1) < 0.01
    assert abs(b.mean() - 0.5) < 0.02 and abs(b.std() - 12**-0.5) < 0.02


def test_no_region_no_occlusion():
    image, label, boxes, key, ids = scene()
    out = run(Augmentation(regions=Regions(1.0)), (image, label, np.zeros_like(boxes), key, ids))
    assert not out.occlusion.any()


def noise_plan(size, seed=0):
    """(images, boxes, which are grey, keys): boxes that overlap, touch the edges, are a frame, or empty."""
    rng = np.random.default_rng(seed)
    count, (h, w) = 6, size
    first = rng.integers(0, (h, w), (count, 3, 2))
    last = np.minimum(first + rng.integers(1, (h, w), (count, 3, 2)), (h, w))
    boxes = np.concatenate([first, last], axis=-1).astype(np.int32)
    boxes[0], boxes[1, 0], boxes[2, 1], boxes[3] = 0, 0, (0, 0, h, w), (h - 1, w - 1, h, w)
    image = rng.random((count, h, w, 3), np.float32)
    return image, boxes, rng.random((count, 3)) < 0.5, jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("size", [(48, 64), (8, 37)])
def test_noise_in_tiles_is_that_of_whole_frames(size):
    """Bit for bit: what jax.random draws for a frame, drawn for its boxes alone."""
    plan = noise_plan(size)
    whole, tiles = (np.asarray(jax.jit(fill)(*plan)) for fill in (fill_frames, fill_tiles))
    np.testing.assert_array_equal(tiles, whole)
    assert (whole[0] == plan[0][0]).all() and (whole[2] != plan[0][2]).mean() > 0.99
    image, boxes, is_grey, key = plan
    later_below = np.asarray(fill_tiles(image, boxes[:, ::-1], is_grey[:, ::-1], key))
    assert not (later_below == whole).all(), "which box is on top must show"


EVERYTHING = Augmentation(0.5, (0.8, 1.3), 0.3, Boxes(0.5), Regions(0.6))


def test_an_example_depends_on_its_key_alone():
    """Whatever stands beside it in the batch, and wherever it stands, an example comes out the same."""
    batch = scene(6)
    order = np.array([3, 1, 5])
    whole, part = run(EVERYTHING, batch), run(EVERYTHING, tuple(a[order] for a in batch))
    assert (whole.occlusion[order] == part.occlusion).all()
    assert (whole.label[order] == part.label).all()
    assert np.allclose(whole.image[order], part.image, atol=1e-6)
    other = (*batch[:3], batch[3] ^ np.uint32(1), batch[4])
    assert not (run(EVERYTHING, other).occlusion == whole.occlusion).all()


def test_switching_an_operation_on_leaves_the_draws_of_the_others():
    batch = scene(8)
    alone = run(Augmentation(regions=Regions(0.6)), batch)
    beside = run(Augmentation(colour=0.3, regions=Regions(0.6)), batch)
    assert (alone.occlusion == beside.occlusion).all()


def test_colour_stays_in_range_and_keeps_grey_grey():
    batch = scene(8)
    out = run(Augmentation(colour=0.5), batch)
    assert out.image.min() >= 0 and out.image.max() <= 1
    assert np.allclose(out.image[..., 0], out.image[..., 2], atol=1e-5)
    assert not np.allclose(out.image, batch[0] / 255.0, atol=0.02)


def test_masks_are_jax_arrays_on_the_device():
    out = jax.jit(make_augment(EVERYTHING))(*scene())
    assert isinstance(out.occlusion, jax.Array) and out.occlusion.dtype == jnp.bool_


def test_no_product_is_rounded_below_float32():
    """An accelerator's default for float32 is TF32 or bfloat16: three digits, and other ones a device."""
    text = str(jax.make_jaxpr(make_augment(EVERYTHING))(*scene()))
    products = text.split("dot_general[")[1:]
    assert len(products) >= 4
    assert all("HIGHEST" in product.split("preferred_element_type")[0] for product in products)


def test_a_config_section_builds():
    assert build_augmentation(**OFF) == Augmentation()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"flip": 1.5}, "augment.flip=1.5"),
        ({"colour": -0.1}, "augment.colour=-0.1"),
        ({"scale_crop": (1.5, 0.5)}, "augment.scale_crop"),
    ],
)
def test_wrong_values_are_named(change, says):
    with pytest.raises(UsageError, match=says):
        build_augmentation(**{**OFF, **change})


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("boxes", {"probability": 2.0}, "augment.occlusion.boxes.probability=2.0"),
        ("regions", {"min_share": 0.9}, "augment.occlusion.regions.min_share=0.9 is above"),
        ("regions", {"count": 0}, "augment.occlusion.regions.count=0"),
    ],
)
def test_wrong_occlusion_values_are_named(part, change, says):
    section = dataclasses.replace(getattr(OFF["occlusion"], part), **change)
    occlusion = dataclasses.replace(OFF["occlusion"], **{part: section})
    with pytest.raises(UsageError, match=says):
        build_augmentation(**{**OFF, "occlusion": occlusion})
