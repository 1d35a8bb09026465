"""3x3 convolutions as products of matrices, with 2.25 times fewer multiplications than there are in them.

Winograd's minimal filtering F(2x2, 3x3), as A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016, arXiv:1509.09308, section 4.1, have it: the 2x2 outputs of a tile of 4x4 inputs d under
a kernel g are A^T [(G g G^T) * (B^T d B)] A. Tiles overlap by two. For all tiles of an image each of the 16
numbers of the product * is a matrix [tiles, C] times one [C, O]. The gradient of the kernel is its transpose:
G^T [sum over tiles of (B^T d B) * (A dy A^T)] G.

Images are taken in strips of rows, one after the other: what a strip makes stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxseg.models.blocks import (
    filled,
    place_of_strip,
    rows_of,
    rows_of_strip,
    rows_with_neighbours,
    sum_of_products,
)

_TILES = 1024
"""Of a strip, at most, but for images that are wider."""


def conv_3x3_by_tiles(x_bhwc: jax.Array, kernel_hwio: jax.Array) -> jax.Array:
    """`conv_3x3` of images with even sides, in float32: errors are about twice as large as its own."""
    kernels, rows = _of_kernel(kernel_hwio), _rows(x_bhwc)
    shape = (*x_bhwc.shape[:3], kernel_hwio.shape[-1])

    def put(number: jax.Array, y: jax.Array) -> jax.Array:
        image, top = place_of_strip(number, x_bhwc.shape[1], rows)
        products = _tiles(x_bhwc, image, top, rows) @ kernels
        strip = _outputs(products, rows // 2).reshape(1, rows, *shape[2:])
        return jax.lax.dynamic_update_slice(y, strip, (image, top, 0, 0))

    return jax.lax.fori_loop(0, _strips(x_bhwc.shape, rows), put, filled(shape, x_bhwc.dtype, x_bhwc))


def kernel_gradient_by_tiles(x_bhwc: jax.Array, dy_bhwo: jax.Array) -> jax.Array:
    """[3, 3, C, O]: the gradient of sum(dy * conv_3x3_by_tiles(x, kernel)) in the kernel, in float32."""
    rows = _rows(x_bhwc)

    def strip(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        image, top = place_of_strip(number, x_bhwc.shape[1], rows)
        return _tiles(x_bhwc, image, top, rows), _of_outputs(rows_of(dy_bhwo, image, top, rows))

    m = sum_of_products(strip, _strips(x_bhwc.shape, rows), x_bhwc, dy_bhwo)
    m = m.reshape(4, 4, *m.shape[1:])
    return _both_ways(lambda m: [m[0] + (m[1] + m[2]) / 2, (m[1] - m[2]) / 2, (m[1] + m[2]) / 2 + m[3]], m)


def _rows(x_bhwc: jax.Array) -> int:
    """Of a strip: whole tiles."""
    _, height, width, _ = x_bhwc.shape
    return rows_of_strip(height, width, 4 * _TILES, least=2)


def _strips(shape: Sequence[int], rows: int) -> int:
    return shape[0] * (shape[1] // rows)


def _tiles(x_bhwc: jax.Array, image: jax.Array, top: jax.Array, rows: int) -> jax.Array:
    """B^T d B of all tiles of a strip, with zeros around the image: [16, tiles, C]."""
    width, channels = x_bhwc.shape[2:]
    x = jnp.pad(rows_with_neighbours(x_bhwc, image, top, rows), ((0, 0), (1, 1), (0, 0)))

    def side(d: Sequence[jax.Array]) -> list[jax.Array]:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

    x = jnp.stack(side([x[i : i + rows : 2] for i in range(4)]))
    x = jnp.stack(side([x[:, :, j : j + width : 2] for j in range(4)]), axis=1)
    return x.reshape(16, -1, channels)


def _of_kernel(kernel_hwio: jax.Array) -> jax.Array:
    """G g G^T: [16, C, O]."""
    square = _both_ways(
        lambda g: [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]], kernel_hwio
    )
    return square.reshape(16, *kernel_hwio.shape[2:])


def _outputs(products: jax.Array, half: int) -> jax.Array:
    """A^T m A of [16, tiles, O], put together: [half, 2, width / 2, 2, O] of strips `half` tiles high."""
    m = products.reshape(4, 4, half, -1, products.shape[-1])
    y = _both_ways(lambda m: [m[0] + m[1] + m[2], m[1] - m[2] - m[3]], m)
    return y.transpose(2, 0, 3, 1, 4)


def _of_outputs(dy_hwo: jax.Array) -> jax.Array:
    """A dy A^T of all tiles of a strip: [16, tiles, O]."""

    def side(y: Sequence[jax.Array]) -> list[jax.Array]:
        return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]

    y = jnp.stack(side([dy_hwo[i::2] for i in range(2)]))
    y = jnp.stack(side([y[:, :, j::2] for j in range(2)]), axis=1)
    return y.reshape(16, -1, dy_hwo.shape[-1])


def _both_ways(side: Callable[[jax.Array], list[jax.Array]], square: jax.Array) -> jax.Array:
    """A linear map of the first axis, applied to the first axis and to the second one."""
    square = jnp.stack(side(square))
    return jnp.stack(side(square.swapaxes(0, 1)), axis=1)
