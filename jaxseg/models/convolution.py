"""Convolutions that are fast on CPUs.

XLA's CPU backend computes the gradient of a kernel as a convolution with a window as large as the image,
several times slower than the matrix products that it is made of, and knows no convolution with fewer
multiplications. `conv_3x3` and `kernel_gradient`, `matmul` and `matmul_gradient` are the plain forms: the
tests hold the fast ones to them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models.blocks import (
    place_of_strip,
    rows_of,
    rows_of_strip,
    rows_with_neighbours,
    sum_of_products,
)
from jaxseg.models.winograd import conv_3x3_by_tiles, kernel_gradient_by_tiles

_PIXELS = 1024
"""Of a block: as many keep three columns and their products in a core's cache, at 32 to 512 channels."""

_FEWEST = 256
"""Pixels of a block, below which many small products take longer than a large one: 45x45 has blocks of 1."""

_NARROW = 32
"""Kernels of fewer features make matrices too thin to pay: the library's gradient is faster."""

_WIDE = 128
"""Channels from which on, in and out, Winograd's tiles pay: of fewer, to make them takes what they save."""

_LARGE = 256
"""Pixels of an image from which on they pay: of a smaller one the matrices have too few rows."""


class Conv3x3(nn.Module):
    """`nn.Conv(features, (3, 3), padding="SAME")`, with its parameters, but for its bias, which comes apart.

    by_matmul: on CPUs, take the kernel's gradient by `kernel_gradient_by_matmul`, and wide convolutions with
        both gradients by Winograd's tiles. Not for arrays that jit cuts over several devices: their loops
        over images would bring all of them to each device.
    """

    features: int
    dtype: str
    by_matmul: bool = False

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> ([B, H, W, O], bias [O]); `BatchNorm` says why the bias is not added."""
        dtype = jnp.dtype(self.dtype)
        shape = (3, 3, x_bhwc.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        convolve = _conv_3x3_by_matmul if self.by_matmul else conv_3x3
        return convolve(x_bhwc.astype(dtype), kernel.astype(dtype)), bias.astype(dtype)


def conv_3x3(x_bhwc: jax.Array, kernel_hwio: jax.Array) -> jax.Array:
    """Cross-correlation with stride 1 and zeros around: [B, H, W, C], [3, 3, C, O] -> [B, H, W, O]."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x_bhwc, kernel_hwio, (1, 1), "SAME", dimension_numbers=dimensions)


def _takes_tiles(x_bhwc: jax.Array, kernel_hwio: jax.Array) -> bool:
    _, height, width, _ = x_bhwc.shape
    even = height % 2 == width % 2 == 0 and height * width >= _LARGE
    return even and min(kernel_hwio.shape[2:]) >= _WIDE and x_bhwc.dtype == jnp.float32


@jax.custom_vjp
def _conv_3x3_by_matmul(x_bhwc: jax.Array, kernel_hwio: jax.Array) -> jax.Array:
    if _takes_tiles(x_bhwc, kernel_hwio):
        return jax.lax.platform_dependent(x_bhwc, kernel_hwio, cpu=conv_3x3_by_tiles, default=conv_3x3)
    return conv_3x3(x_bhwc, kernel_hwio)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv_3x3_by_matmul(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    if _takes_tiles(x, kernel):
        dx = jax.lax.platform_dependent(dy, kernel, cpu=input_gradient_by_tiles, default=input_gradient)
    else:
        dx = input_gradient(dy, kernel)
    if kernel.shape[-1] < _NARROW:
        return dx, kernel_gradient(x, dy).astype(kernel.dtype)
    fast = kernel_gradient_by_tiles if _takes_tiles(x, kernel) else kernel_gradient_by_matmul
    gradient = jax.lax.platform_dependent(x, dy, cpu=fast, default=kernel_gradient)
    return dx, gradient.astype(kernel.dtype)


_conv_3x3_by_matmul.defvjp(_forward, _backward)


def input_gradient(dy_bhwo: jax.Array, kernel_hwio: jax.Array) -> jax.Array:
    """[B, H, W, C]: the library's gradient of sum(dy * conv_3x3(x, kernel)) in x."""
    x = jax.ShapeDtypeStruct((*dy_bhwo.shape[:3], kernel_hwio.shape[2]), dy_bhwo.dtype)
    (gradient,) = jax.linear_transpose(lambda x: conv_3x3(x, kernel_hwio), x)(dy_bhwo)
    return gradient


def input_gradient_by_tiles(dy_bhwo: jax.Array, kernel_hwio: jax.Array) -> jax.Array:
    """`input_gradient`: the convolution with the kernel turned by 180 degrees, its channels swapped."""
    return conv_3x3_by_tiles(dy_bhwo, kernel_hwio[::-1, ::-1].swapaxes(2, 3))


def kernel_gradient(x_bhwc: jax.Array, dy_bhwo: jax.Array) -> jax.Array:
    """[3, 3, C, O] float32: the library's gradient of sum(dy * conv_3x3(x, kernel)) in the kernel."""
    kernel = jax.ShapeDtypeStruct((3, 3, x_bhwc.shape[-1], dy_bhwo.shape[-1]), x_bhwc.dtype)
    (gradient,) = jax.linear_transpose(lambda kernel: conv_3x3(x_bhwc, kernel), kernel)(dy_bhwo)
    return gradient.astype(jnp.float32)


def kernel_gradient_by_matmul(x_bhwc: jax.Array, dy_bhwo: jax.Array) -> jax.Array:
    """`kernel_gradient` as a sum, over blocks of rows of an image, of products of two matrices.

    With zeros around both, gradient[i, j] = sum over b, h, w of x[b, h, w + j - 1]^T dy[b, h - i + 1, w]. Of
    a block the three shifts j of x lie side by side as channels of one matrix, the three shifts i of dy as
    those of the other: one product gives all nine. Sums are float32; they are taken in another order than
    the library's.
    """
    b, height, width, c = x_bhwc.shape
    o = dy_bhwo.shape[-1]
    rows = rows_of_strip(height, width, _PIXELS)

    def block(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        image, top = place_of_strip(number, height, rows)
        x = jnp.pad(rows_of(x_bhwc, image, top, rows), ((0, 0), (1, 1), (0, 0)))
        dy = rows_with_neighbours(dy_bhwo, image, top, rows)
        columns = jnp.concatenate([x[:, j : j + width] for j in range(3)], axis=-1)
        shifted = jnp.concatenate([dy[2 - i : 2 - i + rows] for i in range(3)], axis=-1)
        return columns.reshape(-1, 3 * c), shifted.reshape(-1, 3 * o)

    total = sum_of_products(block, b * (height // rows), x_bhwc, dy_bhwo)
    return total.reshape(3, c, 3, o).transpose(2, 0, 1, 3)


def matmul(x_bhwc: jax.Array, kernel_co: jax.Array) -> jax.Array:
    """[B, H, W, C], [C, O] -> [B, H, W, O]."""
    return x_bhwc @ kernel_co


matmul_by_blocks = jax.custom_vjp(matmul)
"""The same, with `matmul_gradient_by_blocks` on CPUs, for arrays that jit does not cut over devices."""


def _matmul_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    gradient = jax.lax.platform_dependent(x, dy, cpu=matmul_gradient_by_blocks, default=matmul_gradient)
    return matmul(dy, kernel.T), gradient.astype(kernel.dtype)


matmul_by_blocks.defvjp(_matmul_forward, _matmul_backward)


def matmul_gradient(x_bhwc: jax.Array, dy_bhwo: jax.Array) -> jax.Array:
    """[C, O] float32: the gradient of sum(dy * matmul(x, kernel)) in the kernel."""
    return jnp.einsum("bhwc,bhwo->co", x_bhwc, dy_bhwo, preferred_element_type=jnp.float32)


def matmul_gradient_by_blocks(x_bhwc: jax.Array, dy_bhwo: jax.Array) -> jax.Array:
    """`matmul_gradient`, float32, as a sum of products of blocks of pixels.

    Of all pixels at once XLA turns one of the two in memory, and then multiplies at a third of the speed.
    """
    x, dy = x_bhwc.reshape(-1, x_bhwc.shape[-1]), dy_bhwo.reshape(-1, dy_bhwo.shape[-1])
    pixels = math.gcd(len(x), _PIXELS)
    if pixels < _FEWEST:
        return matmul_gradient(x_bhwc, dy_bhwo)

    def block(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = number * pixels
        return (
            jax.lax.dynamic_slice_in_dim(x, start, pixels),
            jax.lax.dynamic_slice_in_dim(dy, start, pixels),
        )

    return sum_of_products(block, len(x) // pixels, x, dy)
