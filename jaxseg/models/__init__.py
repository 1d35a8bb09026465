"""The UNet and its blocks, in linen. Knows nothing of training.

To add a model, write a linen module that maps [B, H, W, 3] float images in [0, 1] to [B, H, W,
num_classes] float32 logits with a `train` keyword, and name it in `experiment/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.errors import UsageError
from jaxseg.models.convolution import Conv3x3, matmul, matmul_by_blocks
from jaxseg.models.normalization import BatchNorm

NORMS = ("batch", "group", "none")
DTYPES = ("float32", "bfloat16")
MOST_DEPTH = 16


class UNet(nn.Module):
    """UNet (O. Ronneberger, P. Fischer, T. Brox, MICCAI 2015, arXiv:1505.04597) with 'same' padding.

    `depth` levels of DoubleConv and 2x2 max-pooling at width, 2 width, 4 width, ... channels, a
    bottleneck twice as wide as the last level, then as many levels of 2x2 stride-2 transposed
    convolution, concatenation with the skip and DoubleConv; a 1x1 convolution gives the logits.
    Width 64, depth 3 and 7 classes make the recipe's 7,703,367 parameters.

    Parameters and statistics are float32; `dtype` is what convolutions compute in. Logits are float32
    numbers, which in bfloat16 come from a head that computed, and rounded, in bfloat16.
    """

    num_classes: int
    width: int = 64
    depth: int = 3
    norm: str = "batch"
    dtype: str = "float32"
    dropout: float = 0.0
    """Share of bottleneck activations that are dropped in training (section 3.1 of the paper)."""
    axis_name: str | None = None
    """Device axis over which batch statistics are taken, inside pmap and shard_map only."""
    by_matmul: bool = False
    """Of `Conv3x3` and `UpConv`: faster gradients on CPUs, where no array is cut over devices by jit."""

    @nn.compact
    def __call__(self, image_bhwc: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, 3] in [0, 1] -> float32 logits [B, H, W, num_classes]. H, W divisible by 2^depth."""
        check_image_size(image_bhwc.shape[1:3], self.depth)
        dtype = jnp.dtype(self.dtype)

        def block(features: int, name: str) -> DoubleConv:
            return DoubleConv(features, self.norm, self.dtype, self.axis_name, self.by_matmul, name=name)

        x = image_bhwc.astype(dtype)
        skips = []
        for level in range(self.depth):
            x = block(self.width << level, f"down{level}")(x, train=train)
            skips.append(x)
            x = max_pool_2x2(x)
        x = block(self.width << self.depth, "bottleneck")(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for level in reversed(range(self.depth)):
            x = UpConv(self.width << level, self.dtype, self.by_matmul, name=f"upconv{level}")(x)
            x = jnp.concatenate([skips[level], x], axis=-1)
            x = block(self.width << level, f"up{level}")(x, train=train)
        return Conv1x1(self.num_classes, self.dtype, name="head")(x).astype(jnp.float32)


class DoubleConv(nn.Module):
    """Twice: 3x3 convolution, normalisation, ReLU."""

    features: int
    norm: str
    dtype: str
    axis_name: str | None
    by_matmul: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for i in range(2):
            x, bias = Conv3x3(self.features, self.dtype, self.by_matmul, name=f"conv{i}")(x)
            x = _norm(self, f"norm{i}", train)(x, bias)
            x = nn.relu(x)
        return x


def _norm(block: DoubleConv, name: str, train: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    dtype = jnp.dtype(block.dtype)
    match block.norm:
        case "batch":
            return BatchNorm(
                use_running_average=not train,
                momentum=0.9,  # share of the old average that is kept: PyTorch's 0.1
                epsilon=1e-5,
                dtype=dtype,
                axis_name=block.axis_name,
                name=name,
            )
        case "group":
            group_norm = nn.GroupNorm(num_groups=min(32, block.features), dtype=dtype, name=name)
            return lambda x, bias: group_norm(_plus(x, bias))
        case "none":
            return _plus
    raise UsageError(f"model.norm={block.norm!r} is not known; choose one of {', '.join(NORMS)}")


def _plus(x_bhwc: jax.Array, bias: jax.Array) -> jax.Array:
    return x_bhwc + bias[None, None, None, :]


class Conv1x1(nn.Module):
    """`nn.Conv(features, (1, 1))`, with its parameters, as the matmul that it is.

    XLA does not see that on a CPU: from 64 channels to 7, a convolution takes ten times as long.
    """

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.dtype)
        shape = (1, 1, x_bhwc.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return x_bhwc.astype(dtype) @ kernel.astype(dtype)[0, 0] + bias.astype(dtype)[None, None, None, :]


class UpConv(nn.Module):
    """2x2 stride-2 transposed convolution with bias.

    Windows do not overlap, so it is one matmul to four times the channels and a depth-to-space: the same
    values as `nn.ConvTranspose(features, (2, 2), (2, 2), transpose_kernel=True)`, whose backward
    pass XLA runs about 30 times slower on a CPU. The kernel is [2, 2, in, out], as PyTorch's
    ConvTranspose2d weight [in, out, 2, 2] transposed.

    by_matmul: as of `Conv3x3`.
    """

    features: int
    dtype: str
    by_matmul: bool = False

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        b, h, w, c = x_bhwc.shape
        dtype = jnp.dtype(self.dtype)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (2, 2, c, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        kernel_cm = kernel.astype(dtype).transpose(2, 0, 1, 3).reshape(c, 4 * self.features)
        y_bhwm = (matmul_by_blocks if self.by_matmul else matmul)(x_bhwc.astype(dtype), kernel_cm)
        y = y_bhwm.reshape(b, h, w, 2, 2, self.features).swapaxes(2, 3)
        y = y.reshape(b, 2 * h, 2 * w, self.features)
        return y + bias.astype(dtype)[None, None, None, :]


def max_pool_2x2(x_bhwc: jax.Array) -> jax.Array:
    """2x2 stride-2 max-pooling as the maximum of four strided slices.

    Equal to `nn.max_pool`, and 7 times faster forward and backward on a CPU. Where values tie they share the
    gradient, of which `nn.max_pool` gives all to the first.
    """
    top = jnp.maximum(x_bhwc[:, ::2, ::2], x_bhwc[:, ::2, 1::2])
    bottom = jnp.maximum(x_bhwc[:, 1::2, ::2], x_bhwc[:, 1::2, 1::2])
    return jnp.maximum(top, bottom)


def check_depth(depth: int) -> None:
    """Raises UsageError for a depth that no UNet has."""
    if not 1 <= depth <= MOST_DEPTH:
        raise UsageError(f"model.depth={depth} is no depth of a UNet; use 1 to {MOST_DEPTH}")


def check_image_size(size_hw: tuple[int, ...], depth: int) -> None:
    """Raises UsageError unless `depth` halvings of both sides are whole."""
    # First: a power of two with a billion digits would take all memory.
    check_depth(depth)
    if any(side % (1 << depth) or side < 1 for side in size_hw):
        height, width = size_hw
        raise UsageError(
            f"dataset.image_size=({height}, {width}) can't be halved model.depth={depth} times; "
            f"make both sides multiples of {1 << depth}"
        )


def build_unet(
    *,
    num_classes: int,
    width: int,
    depth: int,
    norm: str,
    dtype: str,
    dropout: float,
    axis_name: str | None = None,
    by_matmul: bool = False,
) -> UNet:
    """The UNet of a config's `model` section. Raises UsageError for values that no UNet has."""
    if width < 1:
        raise UsageError(f"model.width={width} is too small; use at least 1")
    check_depth(depth)
    if norm not in NORMS:
        raise UsageError(f"model.norm={norm!r} is not known; choose one of {', '.join(NORMS)}")
    if dtype not in DTYPES:
        raise UsageError(f"model.dtype={dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    if norm == "group" and any((width << level) % min(32, width << level) for level in range(depth + 1)):
        raise UsageError(
            f"model.width={width} does not divide into 32 groups; use a multiple of 32 or norm='batch'"
        )
    if not 0.0 <= dropout < 1.0:
        raise UsageError(f"model.dropout={dropout} is not a share; use 0 up to, but not, 1")
    return UNet(num_classes, width, depth, norm, dtype, dropout, axis_name, by_matmul)
