"""The fast forms of convolutions against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxseg.models import Conv1x1, UNet
from jaxseg.models.convolution import (
    Conv3x3,
    conv_3x3,
    input_gradient,
    input_gradient_by_tiles,
    kernel_gradient,
    kernel_gradient_by_matmul,
    matmul,
    matmul_by_blocks,
    matmul_gradient_by_blocks,
)
from jaxseg.models.winograd import conv_3x3_by_tiles, kernel_gradient_by_tiles

SHAPES = [
    (2, 8, 6, 5, 7),  # inputs narrower
    (1, 6, 8, 7, 3),  # outputs narrower
    (3, 5, 7, 4, 4),  # odd sides
    (1, 1, 1, 3, 2),  # one pixel
    (1, 3, 1500, 2, 2),  # a row is more than a block
    (2, 64, 48, 3, 4),  # several rows a block, several blocks an image
]


def _normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("planted", [False, True])
def test_the_gradient_by_matmul_is_the_librarys(shape, planted):
    b, h, w, c, o = shape
    x, dy = _normal(0, b, h, w, c), _normal(1, b, h, w, o)
    fast = kernel_gradient_by_matmul(x, dy)
    if planted:
        fast = fast[::-1]  # rows of the window mixed up
    scale = np.sqrt(b * h * w)
    same = np.allclose(fast, kernel_gradient(x, dy), rtol=1e-5, atol=1e-6 * scale)
    assert same != (planted and h > 1)


@pytest.mark.parametrize(
    ("ours", "window", "channels"),
    [
        (Conv3x3(4, "float32", by_matmul=True), 3, 5),  # below the width from which matrices pay
        (Conv3x3(32, "float32", by_matmul=True), 3, 5),
        (Conv3x3(128, "float32", by_matmul=True), 3, 128),  # by tiles
        (Conv1x1(4, "float32"), 1, 5),
    ],
    ids=["narrow", "wide", "wider", "one pixel"],
)
def test_the_module_is_the_librarys_in_values_and_gradients(ours, window, channels):
    x, target = _normal(0, 2, 16, 18, channels), _normal(1, 2, 16, 18, ours.features)
    theirs = nn.Conv(ours.features, (window, window), padding="SAME")
    variables = theirs.init(jax.random.key(0), x)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, variables, ours.init(jax.random.key(0), x))))
    variables = jax.tree.map(lambda a: a + 0.1, variables)  # biases start at zero

    def value(module, variables, x):
        y = module.apply(variables, x)
        y = y[0] + y[1][None, None, None] if isinstance(y, tuple) else y
        return jnp.sum(y * target)

    expected = jax.value_and_grad(value, argnums=(1, 2))(theirs, variables, x)
    found = jax.value_and_grad(value, argnums=(1, 2))(ours, variables, x)
    atol = 3e-6 * channels  # of sums of 9 products a channel
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), found, expected)


@pytest.mark.parametrize("shape", [(2, 5, 7, 3, 4), (1, 64, 48, 5, 2)], ids=str)
@pytest.mark.parametrize("planted", [False, True])
def test_the_gradient_by_blocks_is_the_plain_one(shape, planted):
    b, h, w, c, o = shape
    x, kernel, target = _normal(0, b, h, w, c), _normal(1, c, o), _normal(2, b, h, w, o)

    def gradients(product):
        return jax.grad(lambda x, kernel: jnp.sum(product(x, kernel) * target), argnums=(0, 1))(x, kernel)

    expected, found = gradients(matmul), gradients(matmul_by_blocks)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    by_blocks = matmul_gradient_by_blocks(x[:, ::-1] if planted else x, target)
    assert np.allclose(by_blocks, expected[1], rtol=1e-5, atol=1e-4) != planted
    assert np.allclose(found[1], expected[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 2, 4), (3, 6, 8), (1, 64, 48), (2, 2, 2050)], ids=str)
@pytest.mark.parametrize("planted", [False, True])
def test_tiles_give_the_librarys_convolution_and_gradients(shape, planted):
    """Of one strip, of several, and of rows that are more than a strip."""
    x, dy = _normal(0, *shape, 5), _normal(2, *shape, 7)
    kernel = _normal(1, 3, 3, 5, 7)
    seen = kernel[::-1] if planted else kernel
    assert np.allclose(conv_3x3_by_tiles(x, seen), conv_3x3(x, kernel), rtol=1e-5, atol=1e-5) != planted
    found = input_gradient_by_tiles(dy, seen)
    assert np.allclose(found, input_gradient(dy, kernel), rtol=1e-5, atol=1e-5) != planted
    found = kernel_gradient_by_tiles(x, dy[:, ::-1] if planted else dy)
    scale = np.sqrt(np.prod(shape))
    assert np.allclose(found, kernel_gradient(x, dy), rtol=1e-5, atol=2e-6 * scale) != planted


@pytest.mark.parametrize(
    ("channels", "side", "dtype", "platform", "by_matmul", "tiles"),
    [
        (128, 16, "float32", "cpu", True, True),
        (127, 16, "float32", "cpu", True, False),
        (128, 14, "float32", "cpu", True, False),
        (128, 17, "float32", "cpu", True, False),
        (128, 16, "bfloat16", "cpu", True, False),
        (128, 16, "float32", "cuda", True, False),
        (128, 16, "float32", "cpu", False, False),
    ],
)
def test_tiles_are_for_wide_convolutions_of_float32_on_a_cpu(
    channels, side, dtype, platform, by_matmul, tiles
):
    module = Conv3x3(128, dtype, by_matmul)
    x = jax.ShapeDtypeStruct((2, side, 16, channels), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)

    def program(function):
        lowered = jax.jit(function).trace(variables, x).lower(lowering_platforms=(platform,))
        return lowered.as_text()

    assert ("stablehlo.convolution" not in program(module.apply)) == tiles
    step = program(jax.value_and_grad(lambda v, x: module.apply(v, x)[0].sum(), argnums=(0, 1)))
    assert ("stablehlo.convolution" not in step) == tiles


def test_a_step_in_bfloat16_is_the_librarys():
    """At a width at which all forms are used; the other platforms' branches are traced as well."""
    image, target = _normal(0, 1, 16, 16, 3), _normal(1, 1, 16, 16, 3)
    variables = UNet(3, 32, 2).init(jax.random.key(0), image, train=False)

    def gradients(by_matmul):
        net = UNet(3, 32, 2, dtype="bfloat16", by_matmul=by_matmul)
        return jax.jit(jax.grad(lambda v: jnp.sum(net.apply(v, image, train=False) * target)))(variables)

    for ours, theirs in zip(*(jax.tree.leaves(gradients(by)) for by in (True, False)), strict=True):
        assert ours.dtype == jnp.float32
        assert jnp.linalg.norm(ours - theirs) <= 0.01 * jnp.linalg.norm(theirs)


def test_bfloat16_is_summed_in_float32():
    # 2^16 products of ones: a bfloat16 sum would stop at 256.
    ones = jnp.ones((1, 256, 256, 1), jnp.bfloat16)
    assert float(kernel_gradient_by_matmul(ones, ones)[1, 1, 0, 0]) == 256 * 256
    assert float(matmul_gradient_by_blocks(ones, ones)[0, 0]) == 256 * 256


def test_the_loop_over_blocks_is_used_on_the_cpu_and_for_wide_kernels_only():
    def program(features, by_matmul, platform):
        module = Conv3x3(features, "float32", by_matmul)
        x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        gradient = jax.jit(jax.grad(lambda v, x: module.apply(v, x)[0].sum()))
        return gradient.trace(variables, x).lower(lowering_platforms=(platform,)).as_text()

    assert "while" in program(32, True, "cpu")
    assert "while" not in program(16, True, "cpu")
    assert "while" not in program(32, False, "cpu")
    assert "while" not in program(32, True, "cuda")


def test_the_convolution_is_a_correlation_with_zeros_around():
    x, kernel = _normal(0, 1, 4, 5, 2), _normal(1, 3, 3, 2, 3)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(padded[:, i : i + 4, j : j + 5] @ kernel[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(conv_3x3(x, kernel), expected, rtol=1e-5, atol=1e-5)
