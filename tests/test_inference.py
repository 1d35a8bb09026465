"""What goes into the model and what comes out: sizes, batches, windows, and no seam between them."""

import itertools
import tracemalloc

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from jaxseg import inference
from jaxseg.data.images import resize_photo
from jaxseg.inference import Looking, Window, blend, cut, infer, most_probable, plan_windows
from jaxseg.models import UNet
from jaxseg.step import make_probability_step
from jaxseg.types import TrainState
from tests.dataset_fakes import photo

INPUT = (8, 12)
AS_IN_TRAINING = Looking()


def by_brightness(images_bhwc):
    """Three classes: dark, bright, and the rest; each pixel by itself."""
    grey = images_bhwc.astype(np.float32).mean(axis=-1) / 255
    scores = np.stack([1 - grey, grey, np.full_like(grey, 0.4)], axis=-1)
    return scores / scores.sum(axis=-1, keepdims=True)


def blind_at_its_edge(images_bhwc):
    """The same, but within two pixels of its edge it says something else, as a padded model does."""
    probabilities = by_brightness(images_bhwc)
    edge = np.ones(probabilities.shape[1:3], bool)
    edge[2:-2, 2:-2] = False
    probabilities[:, edge] = (0.0, 0.0, 1.0)
    return probabilities


def whole(photos, looking=AS_IN_TRAINING, model=by_brightness, batch_size=4):
    """[C, H, W] of each photo."""
    found = infer(model, photos, input_size=INPUT, batch_size=batch_size, looking=looking)
    return {f.key: np.concatenate([s.probabilities_chw for s in f.strips], axis=1) for f in found}


def test_a_photo_of_the_models_size_goes_through_untouched():
    image = photo(0, *INPUT)
    expected = by_brightness(image[None])[0].transpose(2, 0, 1)
    assert (whole([("a", image)])["a"] == expected).all()


def test_the_model_sees_what_prepare_makes_of_the_photo():
    image = photo(0, 31, 17)
    (window,) = plan_windows((31, 17), INPUT, Looking())
    assert (cut(image, window, INPUT) == resize_photo(image, INPUT)).all()


def test_photos_share_batches_of_one_size_and_come_in_order():
    sizes = [(8, 12), (40, 30), (3, 5), (1, 1), (9, 100)]
    photos = [(i, photo(i, *size)) for i, size in enumerate(sizes)]
    seen = []

    def model(images):
        seen.append(images.shape)
        return by_brightness(images)

    found = whole(photos, model=model, batch_size=2)
    assert seen == [(2, *INPUT, 3)] * 3
    for i, size in enumerate(sizes):
        assert found[i].shape == (3, *size)
        assert np.allclose(found[i], whole([photos[i]])[i], atol=1e-6)


def test_large_photos_do_not_wait_for_a_whole_batch(monkeypatch):
    monkeypatch.setattr(inference, "_HELD_BYTES", 2 * 40 * 30 * 3)
    asked = []

    def photos():
        for i in range(12):
            asked.append(i)
            yield i, photo(i, 40, 30)

    found = infer(by_brightness, photos(), input_size=INPUT, batch_size=12, looking=Looking())
    next(found)
    assert len(asked) < 10


def test_large_photos_fill_batches_as_far_as_memory_goes(monkeypatch):
    """Those that wait for the outputs of one batch are let go before the next has to end early."""
    monkeypatch.setattr(inference, "_HELD_BYTES", int(14.5 * 40 * 30 * 3))
    calls = []

    def model(images):
        calls.append(sum(image.any() for image in images))
        return by_brightness(images)

    photos = [(i, photo(i, 40, 30)) for i in range(60)]
    found = infer(model, photos, input_size=INPUT, batch_size=20, looking=Looking())
    assert [seen.key for seen in found] == list(range(60))
    assert calls == [15, 15, 15, 15]
    calls.clear()
    monkeypatch.setattr(inference, "_HELD_BYTES", int(25.5 * 40 * 30 * 3))
    assert len(list(infer(model, photos, input_size=INPUT, batch_size=20, looking=Looking()))) == 60
    assert calls == [20, 20, 20]


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("size", [(8, 12), (9, 12), (50, 31), (4, 100), (3, 3)])
def test_windows_cover_the_photo_and_overlap(size, overlap):
    windows = plan_windows(size, INPUT, Looking(tiles=True, overlap=overlap))
    count = np.zeros(size, int)
    for w in windows:
        assert (w.height, w.width) == INPUT
        count[max(0, w.top) : w.top + w.height, max(0, w.left) : w.left + w.width] += 1
    assert count.min() >= 1
    tops = sorted({w.top for w in windows})
    assert all(b - a <= max(1, np.ceil(INPUT[0] * (1 - overlap))) for a, b in itertools.pairwise(tops))


def test_scales_are_windows_of_other_sizes():
    windows = plan_windows((80, 60), INPUT, Looking(scales=(1.0, 2.0)))
    assert windows[0] == Window(0, 0, 80, 60, 0, True)
    assert {(w.height, w.width) for w in windows if w.scale == 1} == {(40, 30)}
    assert len(windows) == 1 + 3 * 3


SMALLER = [((60, 90), 0.5, False), ((61, 33), 0.7, False), ((20, 200), 1.0, True), ((5, 7), 0.3, True)]


@pytest.mark.parametrize(("size", "scale", "tiles"), SMALLER)
def test_beyond_a_photo_its_edge_goes_on(size, scale, tiles):
    """As of the whole window, built and resized; but where pixels of both sides of the edge were mixed."""
    image, seen = photo(0, *size), (32, 48)
    for window in plan_windows(size, seen, Looking(tiles=tiles, scales=(scale,))):
        got = cut(image, window, seen)
        rows, columns = (
            np.arange(start, start + length)
            for start, length in zip(window[:2], (window.height, window.width), strict=True)
        )
        built = image[np.ix_(rows.clip(0, size[0] - 1), columns.clip(0, size[1] - 1))]
        expected = resize_photo(built, seen)
        assert got.shape == expected.shape and got.dtype == np.uint8
        inside = [
            (np.arange(n) - 1.5) * length / n + start >= 0
            for n, start, length in zip(seen, window[:2], (window.height, window.width), strict=True)
        ]
        for i, n in enumerate(seen):
            end = (np.arange(n) + 2.5) * window[2 + i] / n + window[i]
            inside[i] &= end <= size[i]
        apart = got[np.ix_(*inside)].astype(int) - expected[np.ix_(*inside)]
        assert np.abs(apart).max(initial=0) <= 1, "of 255: Pillow rounds its weights"
        if scale == 1.0:
            np.testing.assert_array_equal(got, expected)


def test_a_small_scale_takes_no_memory():
    image = photo(0, 300, 200)
    tracemalloc.start()
    for scale in (0.05, 0.001):
        [window] = plan_windows((300, 200), INPUT, Looking(scales=(scale,)))
        assert window.height == round(300 / scale) and window.height * window.width > 20e6
        assert cut(image, window, INPUT).shape == (*INPUT, 3)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def reference(image, looking, model):
    """Everything at full size at once."""
    size = image.shape[:2]
    total = 0
    for index in range(len(looking.scales)):
        sums, weights = np.zeros((3, *size)), np.zeros(size)
        for w in plan_windows(size, INPUT, looking):
            if w.scale != index:
                continue
            output = model(cut(image, w, INPUT)[None])[0]
            part = inference._part(
                w,
                np.ascontiguousarray(output.transpose(2, 0, 1)),
                (w.top, w.top + w.height),
                (w.left, w.left + w.width),
            )
            gauss = [
                np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in (w.height, w.width)
            ]
            for y in range(w.height):
                for x in range(w.width):
                    at = w.top + y, w.left + x
                    if 0 <= at[0] < size[0] and 0 <= at[1] < size[1]:
                        weight = gauss[0][y] * gauss[1][x]
                        sums[:, *at] += weight * part[:, y, x]
                        weights[at] += weight
        total = total + sums / weights
    return total / len(looking.scales)


@pytest.mark.parametrize(
    "looking",
    [
        Looking(tiles=True),
        Looking(tiles=True, overlap=0.3, scales=(0.5, 1.0, 1.7)),
        Looking(scales=(0.75, 1.0, 2.0)),
    ],
)
@pytest.mark.parametrize("strip", [1, 50, 1 << 20])
def test_strips_are_the_rows_of_the_whole(monkeypatch, looking, strip):
    monkeypatch.setattr(inference, "_STRIP_PIXELS", strip)
    monkeypatch.setattr(inference, "_FEWEST_ROWS", 1)
    image = photo(3, 19, 26)
    found = whole([("a", image)], looking)["a"]
    assert np.allclose(found, reference(image, looking, by_brightness), atol=2e-6)
    assert np.allclose(found.sum(axis=0), 1, atol=1e-6)


def test_of_a_tall_photo_only_a_few_rows_are_held(monkeypatch):
    monkeypatch.setattr(inference, "_STRIP_PIXELS", 12 * 4)
    monkeypatch.setattr(inference, "_FEWEST_ROWS", 1)
    photos, looking = [("a", photo(0, 4000, 12))], Looking(tiles=True)
    found = next(infer(by_brightness, photos, input_size=INPUT, batch_size=4, looking=looking))
    strips = list(found.strips)
    heights = [s.probabilities_chw.shape[1] for s in strips]
    assert max(heights) <= 4 and sum(heights) == 4000
    assert [s.top for s in strips] == list(np.cumsum([0, *heights])[:-1])


@pytest.mark.parametrize("size", [(16, 16), (64, 128), (17, 23), (100, 16), (16, 16 * 9)])
def test_outputs_are_enlarged_as_pillow_does(rng, size):
    small = rng.random((3, 16, 16), np.float32)
    bilinear = Image.Resampling.BILINEAR
    pillows = np.stack([np.asarray(Image.fromarray(p).resize(size[::-1], bilinear)) for p in small])
    window = Window(0, 0, *size, 0, True)
    for rows, columns in [((0, size[0]), (0, size[1])), ((3, 16), (5, 6)), ((15, 16), (0, 16))]:
        part = inference._part(window, small, rows, columns)
        assert np.allclose(part, pillows[:, slice(*rows), slice(*columns)], rtol=0, atol=1e-6)


def seams(overlap):
    """Share of wrong pixels and the largest step, of a model that is wrong at the edge of its windows."""
    ramp = np.add.outer(np.linspace(0, 255, 200), np.linspace(-60, 60, 150)).clip(0, 255)
    image = np.repeat(ramp[..., None], 3, axis=-1).astype(np.uint8)
    looking = Looking(tiles=True, overlap=overlap)
    found = inference_of(image, looking, blind_at_its_edge, (32, 32))
    right = by_brightness(image[None])[0].argmax(-1)
    inner = np.s_[2:-2, 2:-2]
    return (found.argmax(axis=0) != right)[inner].mean(), np.abs(np.diff(found[:, *inner], axis=2)).max()


def inference_of(image, looking, model, input_size):
    found = next(infer(model, [("a", image)], input_size=input_size, batch_size=8, looking=looking))
    return np.concatenate([s.probabilities_chw for s in found.strips], axis=1)


def test_no_seam_between_tiles():
    wrong, jump = seams(overlap=0.5)
    assert wrong < 0.001 and jump < 0.03


def test_without_overlap_there_are_seams():
    """So the test above can fail."""
    wrong, jump = seams(overlap=0.0)
    assert wrong > 0.1 and jump > 0.3


def test_a_strip_may_be_left_unread():
    photos = [(i, photo(i, 30, 40)) for i in range(5)]
    looking = Looking(tiles=True)
    keys = [f.key for f in infer(by_brightness, photos, input_size=INPUT, batch_size=3, looking=looking)]
    assert keys == list(range(5))


def test_blending_is_the_mean_where_windows_are_the_same():
    window = Window(0, 0, *INPUT, 0, False)
    first, second = (np.full((*INPUT, 2), value, np.float32) for value in (0.2, 0.6))
    (strip,) = blend(INPUT, [(window, first), (window, second)])
    assert np.allclose(strip.probabilities_chw, 0.4)


def test_the_most_probable_class_is_argmax(rng):
    rounded = rng.random((5, 40, 30), np.float32).round(1)
    assert (most_probable(rounded) == rounded.argmax(axis=0)).all(), "ties too"
    assert most_probable(rounded).dtype == np.uint8


class Lopsided(nn.Module):
    @nn.compact
    def __call__(self, image_bhwc, *, train):
        return image_bhwc * np.linspace(0, 5, image_bhwc.shape[2], dtype=np.float32)[None, None, :, None]


def test_a_cpu_computes_probabilities_by_the_loops_of_the_forward_pass(rng):
    model, images = UNet(7, 64, 1), rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    variables = jax.jit(lambda key: model.init(key, images / 255.0, train=False))(jax.random.key(0))
    state = TrainState(step=0, **variables, opt_state=(), rng=None)
    program = jax.jit(make_probability_step(model)).lower(state, images).compile()
    parts = program.as_text().split("\n\n")
    fused = [part.count(" convolution(") for part in parts if part.startswith("%fused_computation")]
    assert max(fused) <= 1, "XLA makes one of the last two convolutions and a softmax, which is slower"
    want = jax.nn.softmax(model.apply(variables, images / np.float32(255), train=False))
    assert np.allclose(program(state, images), want, atol=1e-6)


def test_flip_averaging_makes_the_model_symmetric():
    model, images = Lopsided(), np.stack([photo(i, *INPUT) for i in range(2)])
    state = TrainState(step=0, params={}, batch_stats={}, opt_state=(), rng=None)
    plain, flipped = (jax.jit(make_probability_step(model, flip=flip)) for flip in (False, True))
    straight = np.asarray(flipped(state, images))
    assert np.allclose(straight, flipped(state, images[:, :, ::-1])[:, :, ::-1], atol=1e-6)
    assert not np.allclose(straight, plain(state, images), atol=1e-3)
    assert np.allclose(straight.sum(axis=-1), 1, atol=1e-5)
