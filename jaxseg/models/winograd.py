"""3x3 convolutions as products of matrices, with 2.25 times fewer multiplications than there are in them.

Winograd's minimal filtering F(2x2, 3x3), as A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016, arXiv:1509.09308, section 4.1, have it: the 2x2 outputs of a tile of 4x4 inputs d under
a kernel g are A^T [(G g G^T) * (B^T d B)] A. Tiles overlap by two. For all tiles of an image each of the 16
numbers of the product * is a matrix [tiles, C] times one [C, O].

Images are taken in strips of rows, one after the other: what a strip makes stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Square = list[list[jax.Array]]
"""Rows of arrays."""

_TILES = 1024
"""Of a strip, at most, but for images that are wider."""


def conv_3x3_by_tiles(x_bhwc: jax.Array, kernel_hwio: jax.Array) -> jax.Array:
    """`conv_3x3` of images with even sides, in float32: errors are about twice as large as its own."""
    kernels = _of_kernel(kernel_hwio)
    strips, rows = _strips(x_bhwc.shape)
    y = jax.lax.map(lambda at: _outputs(_tiles(x_bhwc, at, rows), kernels, rows), strips)
    return y.reshape(*x_bhwc.shape[:3], -1)


def _strips(shape: Sequence[int]) -> tuple[tuple[jax.Array, jax.Array], int]:
    """((image, first row) of each strip, rows of a strip) of images [B, H, W, C]."""
    b, height, width = shape[:3]
    fit = (r for r in range(2, height + 1, 2) if height % r == 0 and (r == 2 or r * width <= 4 * _TILES))
    rows = max(fit)
    image, number = jnp.divmod(jnp.arange(b * (height // rows)), height // rows)
    return (image, number * rows), rows


def _rows(x_bhwc: jax.Array, image: jax.Array, top: jax.Array, rows: int) -> jax.Array:
    """[rows, W, C] of an image."""
    return jax.lax.dynamic_slice(x_bhwc, (image, top, 0, 0), (1, rows, *x_bhwc.shape[2:]))[0]


def _tiles(x_bhwc: jax.Array, at: tuple[jax.Array, jax.Array], rows: int) -> Square:
    """B^T d B of all tiles of a strip, with zeros around the image: 4x4 of [tiles, C]."""
    (image, top), (_, height, width, channels) = at, x_bhwc.shape
    above = _rows(x_bhwc, image, jnp.maximum(top - 1, 0), 1) * (top > 0)
    below = _rows(x_bhwc, image, jnp.minimum(top + rows, height - 1), 1) * (top + rows < height)
    x = jnp.concatenate([above, _rows(x_bhwc, image, top, rows), below])
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    d = [[x[i : i + rows : 2, j : j + width : 2] for j in range(4)] for i in range(4)]
    square = _both_ways(lambda d: [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]], d)
    return [[array.reshape(-1, channels) for array in row] for row in square]


def _of_kernel(kernel_hwio: jax.Array) -> Square:
    """G g G^T: 4x4 of [C, O]."""
    g = [[kernel_hwio[i, j] for j in range(3)] for i in range(3)]
    return _both_ways(lambda g: [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]], g)


def _outputs(tiles: Square, kernels: Square, height: int) -> jax.Array:
    """A^T m A of the products m, put together: [height, W, O]."""
    m = [[tiles[i][j] @ kernels[i][j] for j in range(4)] for i in range(4)]
    square = _both_ways(lambda m: [m[0] + m[1] + m[2], m[1] - m[2] - m[3]], m)
    tiles_across = len(square[0][0]) // (height // 2)
    half = height // 2, tiles_across, -1
    rows = [jnp.stack([array.reshape(half) for array in row], axis=2) for row in square]
    return jnp.stack(rows, axis=1).reshape(height, 2 * tiles_across, -1)


def _both_ways(side: Callable[[Sequence[jax.Array]], list[jax.Array]], square: Square) -> Square:
    """A linear map of a sequence, along the rows and then along the columns of a square."""
    columns = zip(*(side(row) for row in square), strict=True)
    return [list(row) for row in zip(*(side(column) for column in columns), strict=True)]
