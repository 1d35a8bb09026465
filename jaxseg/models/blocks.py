"""Pieces of images one after the other, so that what is made of a piece stays in a processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def rows_of_strip(height: int, width: int, most_pixels: int, least: int = 1) -> int:
    """The most rows, by `least`, that divide `height`, and hold no more pixels; `least` may always."""
    fit = (r for r in range(least, height + 1, least) if height % r == 0)
    return max(r for r in fit if r == least or r * width <= most_pixels)


def place_of_strip(number: jax.Array, height: int, rows: int) -> tuple[jax.Array, jax.Array]:
    """(image, first row) of a strip of so many rows; those of an image follow each other."""
    image, strip = jnp.divmod(number, height // rows)
    return image, strip * rows


def rows_with_neighbours(x_bhwc: jax.Array, image: jax.Array, top: jax.Array, rows: int) -> jax.Array:
    """[rows + 2, W, C] of an image, with the row above and the one below; zeros beyond the image."""
    height = x_bhwc.shape[1]
    above = rows_of(x_bhwc, image, jnp.maximum(top - 1, 0), 1) * (top > 0)
    below = rows_of(x_bhwc, image, jnp.minimum(top + rows, height - 1), 1) * (top + rows < height)
    return jnp.concatenate([above, rows_of(x_bhwc, image, top, rows), below])


def rows_of(x_bhwc: jax.Array, image: jax.Array, top: jax.Array, rows: int) -> jax.Array:
    """[rows, W, C] of an image."""
    return jax.lax.dynamic_slice(x_bhwc, (image, top, 0, 0), (1, rows, *x_bhwc.shape[2:]))[0]


def sum_of_products(
    block: Callable[[jax.Array], tuple[jax.Array, jax.Array]], count: int, *sources: jax.Array
) -> jax.Array:
    """The sum of a^T b over `count` blocks (a [..., n, i], b [..., n, j]): [..., i, j] float32."""

    def add(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        a, b = block(number)
        return total + jnp.matmul(a.mT, b, preferred_element_type=jnp.float32), None

    product = jax.eval_shape(lambda: jnp.matmul((pair := block(jnp.int32(0)))[0].mT, pair[1]))
    return jax.lax.scan(add, filled(product.shape, jnp.float32, *sources), jnp.arange(count))[0]


def filled(shape: Sequence[int], dtype: jnp.dtype, *sources: jax.Array) -> jax.Array:
    """An array that a loop fills, or zeros that it adds to if `sources` are finite.

    Made of the sources, so that it varies over the devices that they vary over, and so that XLA does not
    take its memory before they are there: of plain zeros it would, when a step begins.
    """
    return jnp.zeros(shape, dtype) + sum(0 * source.ravel()[0].astype(dtype) for source in sources)
