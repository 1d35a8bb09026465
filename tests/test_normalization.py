"""Our batch normalisation against the library's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxseg.models.convolution import conv_3x3
from jaxseg.models.normalization import BatchNorm

SHAPE = 3, 4, 5, 6


def _numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _pair(**options):
    options = {"momentum": 0.9, "epsilon": 1e-5, "dtype": jnp.dtype("float32"), **options}
    return BatchNorm(**options), nn.BatchNorm(**options)


def _variables():
    names = [("params", "scale"), ("params", "bias"), ("batch_stats", "mean"), ("batch_stats", "var")]
    variables = {"params": {}, "batch_stats": {}}
    for seed, (kind, name) in enumerate(names):
        variables[kind][name] = _numbers(seed, SHAPE[-1])
    variables["batch_stats"]["var"] = np.square(variables["batch_stats"]["var"]) + 0.1
    return variables


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("planted", [False, True])
def test_values_statistics_and_gradients_are_the_librarys(running, planted):
    ours, theirs = _pair(use_running_average=running)
    # Off zero, where a mean that is not taken off would show.
    x, offset, target = _numbers(4, *SHAPE) * 2 + 3, _numbers(5, SHAPE[-1]), _numbers(6, *SHAPE)
    variables = _variables()

    def value(apply, params, x, offset):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        y, updates = apply(given, x, offset)
        return jnp.sum(jnp.sin(y) * target), (y, updates)

    def of(apply):
        inputs = variables["params"], x, offset
        return jax.value_and_grad(lambda *a: value(apply, *a), argnums=(0, 1, 2), has_aux=True)(*inputs)

    found = of(lambda v, x, offset: ours.apply(v, x, offset * (1 + planted), mutable=["batch_stats"]))
    expected = of(
        lambda v, x, offset: theirs.apply(v, x + jnp.reshape(offset, (1, 1, 1, -1)), mutable=["batch_stats"])
    )
    close = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=1e-4, atol=2e-5), found, expected)
    assert all(jax.tree.leaves(close)) != planted


def test_it_starts_as_the_librarys():
    ours, theirs = _pair(use_running_average=False)
    x, key = _numbers(0, *SHAPE), jax.random.key(0)
    found, expected = ours.init(key, x, jnp.ones(SHAPE[-1])), theirs.init(key, x)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, found, expected)))


def test_half_precision_is_rounded_once_at_the_end():
    """Statistics of bfloat16 numbers in float32: their squares' sum would stop to grow."""
    ours, theirs = _pair(use_running_average=False, dtype=jnp.dtype("bfloat16"))
    x = jnp.asarray(_numbers(0, 8, 32, 32, SHAPE[-1]) + 2, jnp.bfloat16)
    y, _ = ours.apply(_variables(), x, jnp.zeros(SHAPE[-1], jnp.bfloat16), mutable=["batch_stats"])
    expected, _ = theirs.apply(_variables(), x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    # Half a unit in the last place of the largest, about 8.
    np.testing.assert_allclose(np.float32(y), np.float32(expected), atol=2**-6)


def test_a_gradient_takes_an_activation_less_at_each_convolution():
    convolutions, x = 4, jax.ShapeDtypeStruct((4, 64, 64, SHAPE[-1]), jnp.float32)
    ours, theirs = _pair(use_running_average=False)

    def by_ours(x, bias, variables):
        return ours.apply(variables, x, bias, mutable=["batch_stats"])[0]

    def by_theirs(x, bias, variables):
        return theirs.apply(variables, x + bias[None, None, None], mutable=["batch_stats"])[0]

    def activations(norm):
        def loss(x, kernels, biases, variables):
            for kernel, bias in zip(kernels, biases, strict=True):
                x = nn.relu(norm(conv_3x3(x, kernel), bias, variables))
            return jnp.square(x).sum()

        kernels = jax.ShapeDtypeStruct((convolutions, 3, 3, SHAPE[-1], SHAPE[-1]), jnp.float32)
        biases = jax.ShapeDtypeStruct((convolutions, SHAPE[-1]), jnp.float32)
        gradient = jax.jit(jax.grad(loss, argnums=(1, 2))).lower(x, kernels, biases, _variables())
        return gradient.compile().memory_analysis().temp_size_in_bytes / (4 * np.prod(x.shape))

    # What the last one needs is made when the rest is at its peak.
    assert round(activations(by_theirs) - activations(by_ours)) >= convolutions - 1


def test_a_gradient_in_half_precision_keeps_no_copy_in_float32():
    ours, _ = _pair(use_running_average=False, dtype=jnp.dtype("bfloat16"))
    x, variables = jnp.asarray(_numbers(0, *SHAPE), jnp.bfloat16), _variables()

    def loss(x):
        y, _ = ours.apply(variables, x, jnp.zeros(SHAPE[-1], jnp.bfloat16), mutable=["batch_stats"])
        return jnp.square(y).sum()

    _, backward = jax.vjp(loss, x)
    kept = {
        (a.dtype.name, a.shape) for a in jax.tree.leaves(backward) if a.ndim == x.ndim and a.size >= x.size
    }
    assert kept == {("bfloat16", SHAPE)}
