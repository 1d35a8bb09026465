"""The UNet's size, shapes and fast forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxseg.errors import UsageError
from jaxseg.models import UNet, UpConv, build_unet, max_pool_2x2

SECTION = {"num_classes": 7, "width": 4, "depth": 2, "norm": "batch", "dtype": "float32", "dropout": 0.0}


def count(tree):
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(tree))


def test_the_recipes_unet_has_7_703_367_parameters():
    model = UNet(num_classes=7)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 256, 256, 3)), train=False))
    assert count(shapes["params"]) == 7_703_367


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_float32_at_the_images_size(norm, dtype):
    model = build_unet(**{**SECTION, "norm": norm, "dtype": dtype})
    image = jnp.ones((2, 16, 24, 3))
    variables = model.init(jax.random.key(0), image, train=False)
    logits = model.apply(variables, image, train=False)
    assert logits.shape == (2, 16, 24, 7)
    assert logits.dtype == jnp.float32
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(variables))


def _same(a, b):
    return np.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("planted", [False, True])
def test_upconv_is_the_transposed_convolution(planted):
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 8))
    fast, slow = UpConv(4, "float32"), nn.ConvTranspose(4, (2, 2), (2, 2), transpose_kernel=True)
    variables = fast.init(jax.random.key(1), x)
    # transpose_kernel takes [h, w, out, in], the layout of the forward convolution that it transposes.
    kernel = jnp.swapaxes(variables["params"]["kernel"], 2, 3)
    if planted:
        kernel = kernel[::-1]  # the spatial flip that makes a ported weight subtly wrong
    reference = {"params": {"kernel": kernel, "bias": variables["params"]["bias"]}}
    assert _same(fast.apply(variables, x), slow.apply(reference, x)) != planted
    target = jax.random.normal(jax.random.key(2), (2, 10, 12, 4))
    grad_fast = jax.grad(lambda x: jnp.sum(fast.apply(variables, x) * target))(x)
    grad_slow = jax.grad(lambda x: jnp.sum(slow.apply(reference, x) * target))(x)
    assert _same(grad_fast, grad_slow) != planted


def test_max_pool_is_the_library_one_in_value_and_gradient():
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    target = jax.random.normal(jax.random.key(1), (2, 4, 3, 3))

    def reference(x):
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    assert (max_pool_2x2(x) == reference(x)).all()
    fast = jax.grad(lambda x: jnp.sum(max_pool_2x2(x) * target))(x)
    slow = jax.grad(lambda x: jnp.sum(reference(x) * target))(x)
    assert (fast == slow).all()


def test_dropout_acts_in_training_only():
    model = build_unet(**{**SECTION, "dropout": 0.5, "norm": "none"})
    image = jax.random.uniform(jax.random.key(5), (1, 16, 16, 3))
    variables = model.init(jax.random.key(0), image, train=False)

    def trained(seed):
        return model.apply(variables, image, train=True, rngs={"dropout": jax.random.key(seed)})

    assert not (trained(0) == trained(1)).all()
    assert (model.apply(variables, image, train=False) == model.apply(variables, image, train=False)).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"width": 0}, "model.width=0"),
        ({"norm": "layer"}, "model.norm='layer'"),
        ({"dtype": "float16"}, "model.dtype='float16'"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"norm": "group", "width": 48}, "model.width=48"),
    ],
)
def test_wrong_values_are_named(change, says):
    with pytest.raises(UsageError, match=says):
        build_unet(**{**SECTION, **change})


def test_a_size_that_depth_cannot_halve_is_named():
    model = build_unet(**SECTION)
    with pytest.raises(UsageError, match=r"\(30, 32\).*multiples of 4"):
        model.init(jax.random.key(0), jnp.zeros((1, 30, 32, 3)), train=False)
