"""Augmentation: pure JAX on whole batches, image, label and regions moved together.

What happens to an example is a function of its key alone, and the key of (seed, epoch, example), so
neither the batch size nor the number of workers, devices or hosts changes it. Every operation draws
from a stream of its own: switching one on leaves the draws of the others as they were.

To add an operation, write a pure function on one example, give it a stream, and call it in `_one`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from jaxseg.errors import UsageError
from jaxseg.types import IGNORE_LABEL, Batch

# Stream numbers. Append, never renumber: a run's augmentation depends on them.
_FLIP, _SCALE, _COLOUR, _BOXES, _REGIONS, _NOISE = range(6)

_NOISE_FLOOR = 1e-6
"""The quantile function of the normal distribution has no value at 0."""

_TILE = 16
"""Pixels to a side in which noise is drawn on a CPU."""

_FLOAT32 = jax.lax.Precision.HIGHEST
"""Of products: an accelerator's default rounds float32 to TF32 or bfloat16."""


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Black boxes at random places.

    R. Fong, A. Vedaldi, "Occlusions for Effective Data Augmentation in Image Classification",
    ICCVW 2019, doi 10.1109/ICCVW.2019.00511.
    """

    probability: float = 0.0
    """Of each box; 0 switches the operation off."""
    count: int = 2
    min_share: float = 0.1
    """Of the image's height and width."""
    max_share: float = 0.3


@dataclasses.dataclass(frozen=True)
class Regions:
    """Noise over parts of regions of the rare class (persons); the label under them stays.

    Up to `count` of an image's regions, drawn at random, are each covered with `probability` by a box
    of `min_share` to `max_share` of the region's height and width, filled with grey noise (normal,
    mean 0.5, deviation 0.1) with probability `grey`, else with uniform noise.
    """

    probability: float = 0.0
    """Of each drawn region; 0 switches the operation off."""
    count: int = 2
    min_share: float = 0.3
    max_share: float = 0.7
    grey: float = 0.7


@dataclasses.dataclass(frozen=True)
class Occlusion:
    """What a config's `augment.occlusion` holds."""

    boxes: Boxes = Boxes()
    regions: Regions = Regions()


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to a training image; the defaults do nothing."""

    flip: float = 0.0
    """Probability of a left-right flip."""
    scale_crop: tuple[float, float] = (1.0, 1.0)
    """Range of the zoom (log-uniform): above 1 crops, below 1 pads with black and void."""
    colour: float = 0.0
    """Strength of brightness, contrast and saturation jitter: factors within 1 +- colour."""
    boxes: Boxes = Boxes()
    regions: Regions = Regions()


def build_augmentation(
    *,
    flip: float,
    scale_crop: tuple[float, float],
    colour: float,
    occlusion: Occlusion,
) -> Augmentation:
    """An Augmentation from a config's `augment` section. Raises UsageError that names the key."""
    boxes, regions = occlusion.boxes, occlusion.regions
    shares = {
        "flip": flip,
        "colour": colour,
        **{f"occlusion.boxes.{k}": getattr(boxes, k) for k in ("probability", "min_share", "max_share")},
        **{
            f"occlusion.regions.{k}": getattr(regions, k)
            for k in ("probability", "min_share", "max_share", "grey")
        },
    }
    for key, value in shares.items():
        if not 0.0 <= value <= 1.0:
            raise UsageError(f"augment.{key}={value} is not a share; use a number from 0 to 1")
    for name, section in (("boxes", boxes), ("regions", regions)):
        if section.min_share > section.max_share:
            raise UsageError(
                f"augment.occlusion.{name}.min_share={section.min_share} is above its "
                f"max_share={section.max_share}; swap them"
            )
        if section.count < 1:
            raise UsageError(
                f"augment.occlusion.{name}.count={section.count} covers nothing; "
                "use at least 1, or probability=0 to switch it off"
            )
    if not 0.1 <= scale_crop[0] <= scale_crop[1] <= 10.0:
        raise UsageError(
            f"augment.scale_crop={scale_crop} is no range of zooms; "
            "use e.g. (0.75, 1.5), or (1.0, 1.0) for none"
        )
    return Augmentation(flip, (float(scale_crop[0]), float(scale_crop[1])), colour, boxes, regions)


def make_augment(config: Augmentation) -> Callable[..., Batch]:
    """A pure function of a HostBatch's arrays: augment(image, label, boxes, key, example_id) -> Batch.

    `image` [B, H, W, 3] uint8, `label` [B, H, W] uint8, `boxes` [B, K, 4] int32, `key` [B, 2] uint32,
    `example_id` [B] int32. Jit it. Evaluation uses `make_augment(Augmentation())`, which only converts.
    """

    def augment(
        image: jax.Array, label: jax.Array, boxes: jax.Array, key: jax.Array, example_id: jax.Array
    ) -> Batch:
        keys = jax.random.wrap_key_data(key)
        one = jax.vmap(lambda *example: _one(config, *example))
        image, label, boxes, occlusion = one(image, label, boxes, keys)
        if config.regions.probability:
            image, covered = _occlude_regions(image, boxes, keys, config.regions)
            occlusion |= covered
        return Batch(image=image, label=label, occlusion=occlusion, example_id=example_id)

    return augment


def _one(
    config: Augmentation, image: jax.Array, label: jax.Array, boxes: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One example: geometry, colour, then occlusion, so that a box is never resampled or tinted.

    Gives image, label, moved boxes and what is covered; the regions are covered by the batch.
    """
    image = image.astype(jnp.float32) / 255.0
    label = label.astype(jnp.int32)
    if config.scale_crop != (1.0, 1.0):
        image, label, boxes = _zoom(image, label, boxes, jax.random.fold_in(key, _SCALE), config.scale_crop)
    if config.flip:
        flipped = jax.random.bernoulli(jax.random.fold_in(key, _FLIP), config.flip)
        image, label, boxes = _flip(image, label, boxes, flipped)
    if config.colour:
        image = _jitter(image, jax.random.fold_in(key, _COLOUR), config.colour)
    occlusion = jnp.zeros(label.shape, bool)
    if config.boxes.probability:
        image, occlusion = _random_boxes(image, jax.random.fold_in(key, _BOXES), config.boxes)
    return image, label, boxes, occlusion


def _flip(
    image: jax.Array, label: jax.Array, boxes: jax.Array, flipped: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Left to right where `flipped` says so; unused boxes stay zeros."""
    top, left, bottom, right = boxes.T
    width = jnp.where(right > left, label.shape[1], 0)
    mirrored = jnp.stack([top, width - right, bottom, width - left], axis=1)
    return (
        jnp.where(flipped, image[:, ::-1], image),
        jnp.where(flipped, label[:, ::-1], label),
        jnp.where(flipped & (width > 0)[:, None], mirrored, boxes),
    )


def _zoom(
    image: jax.Array, label: jax.Array, boxes: jax.Array, key: jax.Array, zooms: tuple[float, float]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Zoom and crop in one resampling: bilinear for the image, nearest for the label.

    The map is separable, so the image is two small matmuls (rows, then columns) instead of a gather of
    four neighbours a pixel.
    """
    h, w = label.shape
    zoom_key, row_key, col_key = jax.random.split(key, 3)
    low, high = (float(np.log(s)) for s in zooms)
    zoom = jnp.exp(jax.random.uniform(zoom_key, (), minval=low, maxval=high))
    # In source pixels: where the window's first edge lies. Negative where the window is the larger one.
    top = jax.random.uniform(row_key) * (h - h / zoom)
    left = jax.random.uniform(col_key) * (w - w / zoom)

    rows = top + (jnp.arange(h) + 0.5) / zoom
    cols = left + (jnp.arange(w) + 0.5) / zoom
    image = jnp.einsum("yh,hwc->ywc", _bilinear(rows, h), image, precision=_FLOAT32)
    image = jnp.einsum("xw,ywc->yxc", _bilinear(cols, w), image, precision=_FLOAT32)

    def nearest(at: jax.Array, size: int) -> jax.Array:
        return jnp.clip(jnp.floor(at).astype(jnp.int32), 0, size - 1)

    inside = _inside(rows, h)[:, None] & _inside(cols, w)[None, :]
    moved = label[nearest(rows, h)][:, nearest(cols, w)]
    label = jnp.where(inside, moved, IGNORE_LABEL)

    edges = boxes.astype(jnp.float32)
    y0, x0, y1, x1 = ((edges[:, i] - o) * zoom for i, o in enumerate((top, left, top, left)))
    moved_boxes = jnp.stack(
        [jnp.clip(y0, 0, h), jnp.clip(x0, 0, w), jnp.clip(y1, 0, h), jnp.clip(x1, 0, w)], 1
    )
    used = (boxes[:, 2] > boxes[:, 0])[:, None]
    return image, label, jnp.where(used, jnp.round(moved_boxes).astype(jnp.int32), 0)


def _inside(at: jax.Array, size: int) -> jax.Array:
    return (at >= 0) & (at < size)


def _bilinear(at: jax.Array, size: int) -> jax.Array:
    """[len(at), size] weights that sample at positions `at` (pixel centres at +0.5); zero rows outside."""
    centre = jnp.clip(at - 0.5, 0, size - 1)
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(centre[:, None] - jnp.arange(size, dtype=jnp.float32)[None, :]))
    return jnp.where(_inside(at, size)[:, None], weights, 0.0)


def _jitter(image: jax.Array, key: jax.Array, strength: float) -> jax.Array:
    """Brightness, contrast (about the mean grey) and saturation (about each pixel's grey), clipped."""
    factors = jax.random.uniform(key, (3,), minval=1.0 - strength, maxval=1.0 + strength)
    luma = jnp.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    image = image * factors[0]
    grey = jnp.matmul(image, luma, precision=_FLOAT32)
    image = _blend(image, jnp.broadcast_to(grey.mean(), image.shape), factors[1])
    grey = jnp.matmul(image, luma, precision=_FLOAT32)
    image = _blend(image, jnp.broadcast_to(grey[..., None], image.shape), factors[2])
    return jnp.clip(image, 0.0, 1.0)


def _blend(image: jax.Array, towards: jax.Array, factor: jax.Array) -> jax.Array:
    return towards + (image - towards) * factor


def _random_boxes(image: jax.Array, key: jax.Array, config: Boxes) -> tuple[jax.Array, jax.Array]:
    h, w = image.shape[:2]
    frame = jnp.array([[0, 0, h, w]], jnp.int32)
    inner, chosen, _ = _draw_boxes(jnp.repeat(frame, config.count, axis=0), key, config)
    covered = (_masks(inner, (h, w)) & chosen[:, None, None]).any(axis=0)
    return jnp.where(covered[..., None], 0.0, image), covered


def _occlude_regions(
    image_bhwc: jax.Array, boxes_bk4: jax.Array, key_b: jax.Array, config: Regions
) -> tuple[jax.Array, jax.Array]:
    """A batch with noise over its regions, and what is covered [B, H, W]."""
    draw = jax.vmap(lambda boxes, key: _draw_regions(boxes, jax.random.fold_in(key, _REGIONS), config))
    inner, is_grey = draw(boxes_bk4, key_b)
    noise_key = jax.vmap(lambda key: jax.random.fold_in(key, _NOISE))(key_b)
    # The same numbers either way. A GPU draws a frame faster than it asks how large the boxes are.
    image_bhwc = jax.lax.platform_dependent(
        image_bhwc, inner, is_grey, noise_key, cpu=fill_tiles, default=fill_frames
    )
    h, w = image_bhwc.shape[1:3]
    covered = jax.vmap(lambda boxes: _masks(boxes, (h, w)).any(axis=0))(inner)
    return image_bhwc, covered


def _draw_regions(boxes: jax.Array, key: jax.Array, config: Regions) -> tuple[jax.Array, jax.Array]:
    """Of one image: the boxes [K, 4] that are covered, empty where none is, and which of them are grey."""
    pick_key, draw_key = jax.random.split(key)
    visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    # A random order with the unused rows last: the first `count` are the regions drawn.
    lot = jnp.where(visible, jax.random.uniform(pick_key, visible.shape), 2.0)
    picked = jnp.argsort(lot)[: config.count]
    inner, chosen, grey_draw = _draw_boxes(boxes[picked], draw_key, config)
    return jnp.where((chosen & visible[picked])[:, None], inner, 0), grey_draw < config.grey


def fill_frames(
    image_bhwc: jax.Array, boxes_bk4: jax.Array, is_grey_bk: jax.Array, key_b: jax.Array
) -> jax.Array:
    """Noise in the boxes, drawn for whole frames; where two overlap, the later one is on top."""

    def fill(image: jax.Array, boxes: jax.Array, is_grey: jax.Array, key: jax.Array) -> jax.Array:
        h, w = image.shape[:2]
        uniform = jax.random.uniform(key, image.shape, minval=_NOISE_FLOOR, maxval=1.0)
        for mask, grey in zip(_masks(boxes, (h, w)), is_grey, strict=True):
            image = jnp.where(mask[..., None], _filling(uniform, grey), image)
        return image

    return jax.vmap(fill)(image_bhwc, boxes_bk4, is_grey_bk, key_b)


def fill_tiles(
    image_bhwc: jax.Array, boxes_bk4: jax.Array, is_grey_bk: jax.Array, key_b: jax.Array
) -> jax.Array:
    """The same as `fill_frames`, with noise drawn where there is a box: a tile of each image at a time."""
    h, w = image_bhwc.shape[1:3]
    tile = min(_TILE, h), min(_TILE, w)
    across = -(-(boxes_bk4[..., 2:] - boxes_bk4[..., :2]) // jnp.array([[tile]]))
    ends_bk = jnp.cumsum(across.prod(axis=-1), axis=1)

    def fill(
        number: jax.Array,
        image: jax.Array,
        boxes: jax.Array,
        is_grey: jax.Array,
        across: jax.Array,
        ends: jax.Array,
        key: jax.Array,
    ) -> jax.Array:
        k = jnp.minimum((number >= ends).sum(), len(ends) - 1)
        down, right = jnp.divmod(number - ends[k] + across[k].prod(), jnp.maximum(across[k, 1], 1))
        y = jnp.clip(boxes[k, 0] + down * tile[0], 0, h - tile[0])
        x = jnp.clip(boxes[k, 1] + right * tile[1], 0, w - tile[1])
        rows, cols = y + jnp.arange(tile[0]), x + jnp.arange(tile[1])
        old = jax.lax.dynamic_slice(image, (y, x, 0), (*tile, 3))
        new = _filling(_uniform_at(key, rows, cols, w), is_grey[k])
        in_rows = (rows >= boxes[k, 0]) & (rows < boxes[k, 2]) & (number < ends[-1])
        in_cols = (cols >= boxes[k, 1]) & (cols < boxes[k, 3])
        inside = in_rows[:, None] & in_cols[None, :]
        return jax.lax.dynamic_update_slice(image, jnp.where(inside[..., None], new, old), (y, x, 0))

    def fill_all(number: jax.Array, image_bhwc: jax.Array) -> jax.Array:
        one = jax.vmap(fill, in_axes=(None, *[0] * 6))
        return one(number, image_bhwc, boxes_bk4, is_grey_bk, across, ends_bk, key_b)

    return jax.lax.fori_loop(0, ends_bk[:, -1].max(), fill_all, image_bhwc)


def _uniform_at(key: jax.Array, rows: jax.Array, cols: jax.Array, width: int) -> jax.Array:
    """What `jax.random.uniform` draws for an image of this width, at some of its pixels [rows, cols, 3].

    JAX numbers the elements of an array and hashes each number by itself (`jax_threefry_partitionable`).
    """
    number = (rows[:, None, None] * width + cols[None, :, None]) * 3 + jnp.arange(3)[None, None, :]
    number = number.astype(jnp.uint32).ravel()
    counts = jnp.concatenate([jnp.zeros_like(number), number])
    high, low = jnp.split(threefry_2x32(tuple(jax.random.key_data(key)), counts), 2)
    # 23 random bits are the mantissa of a float in [1, 2).
    mantissa = ((high ^ low) >> 9) | np.float32(1.0).view(np.uint32)
    share = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1.0
    drawn = jnp.maximum(_NOISE_FLOOR, share * (1.0 - np.float32(_NOISE_FLOOR)) + _NOISE_FLOOR)
    return drawn.reshape(len(rows), len(cols), 3)


def _filling(uniform: jax.Array, is_grey: jax.Array) -> jax.Array:
    """Of one draw either noise: the normal one through its quantile function."""
    normal = jnp.clip(0.5 + 0.1 * jax.scipy.special.ndtri(uniform), 0.0, 1.0)
    return jnp.where(is_grey, normal, uniform)


def _draw_boxes(
    outer: jax.Array, key: jax.Array, config: Boxes | Regions
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """In each outer box [K, 4] one of min_share to max_share of its sides: (inner, chosen, spare draw)."""
    count = outer.shape[0]
    u = jax.random.uniform(key, (count, 6))
    size = (outer[:, 2:] - outer[:, :2]).astype(jnp.float32)
    share = config.min_share + (config.max_share - config.min_share) * u[:, 0:2]
    inner_size = jnp.maximum(jnp.round(size * share), 1.0)
    start = jnp.floor(u[:, 2:4] * (size - inner_size + 1.0)).astype(jnp.int32) + outer[:, :2]
    inner = jnp.concatenate([start, start + inner_size.astype(jnp.int32)], axis=1)
    return inner, u[:, 4] < config.probability, u[:, 5]


def _masks(boxes: jax.Array, size_hw: tuple[int, int]) -> jax.Array:
    """[K, 4] end-exclusive boxes -> [K, H, W] bool."""
    y = jnp.arange(size_hw[0])[None, :, None]
    x = jnp.arange(size_hw[1])[None, None, :]
    top, left, bottom, right = (boxes[:, i, None, None] for i in range(4))
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)
