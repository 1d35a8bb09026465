"""A 3x3 convolution whose kernel's gradient is fast on CPUs.

XLA's CPU backend computes that gradient as a convolution with a window as large as the image, several times
slower than the matrix products that it is made of. `conv_3x3` and `kernel_gradient` are the plain forms: the
tests hold the fast one to them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

_PIXELS = 1024
"""Of a block: as many keep three columns and their products in a core's cache, at 32 to 512 channels."""

_NARROW = 32
"""Kernels of fewer features make matrices too thin to pay: the library's gradient is faster."""


class Conv3x3(nn.Module):
    """`nn.Conv(features, (3, 3), padding="SAME")`, with its parameters.

    by_matmul: on CPUs, take the kernel's gradient by `kernel_gradient_by_matmul`. Not for arrays that jit
        cuts over several devices: its loop over images would bring all of them to each device.
    """

    features: int
    dtype: str
    by_matmul: bool = False

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.dtype)
        shape = (3, 3, x_bhwc.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        convolve = _conv_3x3_by_matmul if self.by_matmul else conv_3x3
        return convolve(x_bhwc.astype(dtype), kernel.astype(dtype)) + bias.astype(dtype)[None, None, None, :]


def conv_3x3(x_bhwc: jax.Array, kernel_hwio: jax.Array) -> jax.Array:
    """Cross-correlation with stride 1 and zeros around: [B, H, W, C], [3, 3, C, O] -> [B, H, W, O]."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x_bhwc, kernel_hwio, (1, 1), "SAME", dimension_numbers=dimensions)


_conv_3x3_by_matmul = jax.custom_vjp(conv_3x3)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return conv_3x3(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: conv_3x3(x, kernel), x)(dy)
    if kernel.shape[-1] < _NARROW:
        gradient = kernel_gradient(x, dy)
    else:
        gradient = jax.lax.platform_dependent(x, dy, cpu=kernel_gradient_by_matmul, default=kernel_gradient)
    return dx, gradient.astype(kernel.dtype)


_conv_3x3_by_matmul.defvjp(_forward, _backward)


def kernel_gradient(x_bhwc: jax.Array, dy_bhwo: jax.Array) -> jax.Array:
    """[3, 3, C, O]: the library's gradient of sum(dy * conv_3x3(x, kernel)) with respect to the kernel."""
    kernel = jax.ShapeDtypeStruct((3, 3, x_bhwc.shape[-1], dy_bhwo.shape[-1]), x_bhwc.dtype)
    return jax.linear_transpose(lambda kernel: conv_3x3(x_bhwc, kernel), kernel)(dy_bhwo)[0]


def kernel_gradient_by_matmul(x_bhwc: jax.Array, dy_bhwo: jax.Array) -> jax.Array:
    """`kernel_gradient` as a sum, over blocks of rows of an image, of products of two matrices.

    With x padded by one, gradient[i, j] = sum over b, h, w of x[b, h + i, w + j]^T dy[b, h, w]. The three
    shifts j of a block lie side by side as channels of one matrix, whose rows of pixels are shifted by i.
    Shifting dy the other way gives the same, and the narrower of the two is the cheaper to copy. Sums are
    float32; they are taken in another order than the library's.
    """
    if x_bhwc.shape[-1] < dy_bhwo.shape[-1]:
        return _correlation(x_bhwc, dy_bhwo)
    return _correlation(dy_bhwo, x_bhwc)[::-1, ::-1].swapaxes(2, 3)


def _correlation(shifted_bhwm: jax.Array, fixed_bhwn: jax.Array) -> jax.Array:
    """[3, 3, M, N] float32: [i, j] is the sum of padded[b, h + i, w + j]^T fixed[b, h, w]."""
    b, height, width, m = shifted_bhwm.shape
    n = fixed_bhwn.shape[-1]
    rows = max(r for r in range(1, height + 1) if height % r == 0 and (r == 1 or r * width <= _PIXELS))
    padded = jnp.pad(shifted_bhwm, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add_block(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        image, top = number // (height // rows), number % (height // rows) * rows
        around = jax.lax.dynamic_slice(padded, (image, top, 0, 0), (1, rows + 2, width + 2, m))[0]
        block = jax.lax.dynamic_slice(fixed_bhwn, (image, top, 0, 0), (1, rows, width, n)).reshape(-1, n)
        columns = jnp.concatenate([around[:, j : j + width] for j in range(3)], axis=-1)
        products = [
            jnp.matmul(columns[i : i + rows].reshape(-1, 3 * m).T, block, preferred_element_type=jnp.float32)
            for i in range(3)
        ]
        return total + jnp.stack(products), None

    # From the inputs, so that it varies over the devices that they vary over.
    zero = jnp.zeros((3, 3 * m, n), jnp.float32) + 0 * (padded[0, 0, 0, 0] + fixed_bhwn[0, 0, 0, 0])
    total, _ = jax.lax.scan(add_block, zero, jnp.arange(b * (height // rows)))
    return total.reshape(3, 3, m, n)
