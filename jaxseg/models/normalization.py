"""Batch normalisation that keeps nothing for the backward pass but its input."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn


class BatchNorm(nn.Module):
    """`nn.BatchNorm` of x + offset, with its parameters, statistics and values.

    (S. Ioffe, C. Szegedy, ICML 2015, arXiv:1502.03167, algorithm 1.) Written as x * a + b, with an a and a b
    for each channel, it keeps x alone for its gradient. `nn.BatchNorm` keeps x - mean as well, and XLA both a
    convolution's output and that with its bias, which is why the bias comes apart, as `offset`: together a
    quarter of a train step's memory. In training it rounds no worse than the
    variance does, which both take as the mean of squares minus the square of the mean; with running
    statistics by about 1e-7 times mean / deviation.
    """

    use_running_average: bool
    momentum: float
    """Share of the old running average that is kept."""
    epsilon: float
    dtype: jnp.dtype
    """Of the result; all is computed in float32."""
    axis_name: str | None = None
    """Device axis over which statistics are taken, inside pmap and shard_map only."""

    @nn.compact
    def __call__(self, x: jax.Array, offset: jax.Array) -> jax.Array:
        """[..., C] and offset [C] -> [..., C]."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if self.use_running_average:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = self._statistics(x)
            mean += offset
            if not self.is_initializing():
                kept, new = self.momentum, 1 - self.momentum
                running_mean.value = kept * running_mean.value + new * mean
                running_var.value = kept * running_var.value + new * var
        a = scale * jax.lax.rsqrt(var + self.epsilon)
        b = bias + (offset - mean) * a
        a, b = (jnp.expand_dims(v, range(x.ndim - 1)) for v in (a, b))
        return _mapped(x, a, b, self.dtype)

    def _statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance [C] over all other axes, and over the devices."""
        moments = _moments(x)
        if self.axis_name is not None and not self.is_initializing():
            moments = jax.lax.pmean(moments, self.axis_name)
        mean, squares = moments
        # Below zero by rounding.
        return mean, jnp.maximum(0.0, squares - jnp.square(mean))


# Of numbers in half precision the gradient would keep a float32 copy: it is made again.
@functools.partial(jax.checkpoint, static_argnums=3)
def _mapped(x: jax.Array, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return (x.astype(jnp.float32) * a + b).astype(dtype)


@jax.checkpoint
def _moments(x: jax.Array) -> jax.Array:
    """[2, C] float32: means over all other axes of x and of its square."""
    axes, x = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
    return jnp.stack([x.mean(axes), jnp.square(x).mean(axes)])
