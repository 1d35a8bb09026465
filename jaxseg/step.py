"""The scientific core, pure: the state's start, and the train, evaluation and prediction steps.

The same bodies run under jit, sharded jit, pmap and shard_map; only `axis_name` differs, and it comes
from the mode (`parallel.py`), never from the experiment. Across devices the sums of the loss are added
up (psum) and combined once, so that the loss is that of the whole batch however void is spread; the
gradients are then averaged (pmean), because each device has differentiated the whole batch's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from jaxseg.losses import Loss
from jaxseg.metrics import confusion_matrix
from jaxseg.types import IGNORE_LABEL, Batch, PyTree, TrainState


class StepOutput(struct.PyTreeNode):
    """What one train step tells: float32 scalars, of the parameters before the update."""

    loss: jax.Array
    components: dict[str, jax.Array]
    """Each part of a mixture by name, unweighted."""
    grad_norm: jax.Array
    """Global L2 norm before clipping."""
    is_finite: jax.Array
    """bool: the loss, the gradient, and the state after the update, which can overflow without them."""


class EvalOutput(struct.PyTreeNode):
    """What one evaluation step tells; nothing of it is a mean."""

    loss_sums: PyTree
    """float32, of the whole batch: add up over a split, then `loss.combine` once."""
    confusion_bcc: jax.Array
    """[B, C, C] int32: rows are labels, columns predictions."""
    labelled_b: jax.Array
    """[B] int32: how many pixels are not void, for all of which the matrix has to account."""


class Gradient(NamedTuple):
    """What a step knows before its update."""

    loss: jax.Array
    """float32 scalar, of the whole batch."""
    sums: PyTree
    """The loss's, of the whole batch."""
    grads: PyTree
    """As the parameters."""
    batch_stats: PyTree
    """After the batch."""


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepOutput]]
EvalStep = Callable[[TrainState, Batch], EvalOutput]
PredictStep = Callable[[TrainState, jax.Array | np.ndarray], jax.Array]
ProbabilityStep = Callable[[TrainState, jax.Array | np.ndarray], jax.Array]


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: int,
    *,
    image_size: tuple[int, int],
    ema: bool,
) -> TrainState:
    """The state before the first step; a function of `seed` alone. Pure: jit it, or ask `jax.eval_shape`."""
    params_key, root_key = jax.random.split(jax.random.key(seed))
    variables = model.init(params_key, jnp.zeros((1, *image_size, 3)), train=False)
    params = variables["params"]
    batch_stats = variables["batch_stats"] if "batch_stats" in variables else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        rng=root_key,
        ema={"params": params, "batch_stats": batch_stats} if ema else None,
    )


def batch_shapes(batch_size: int, image_size: tuple[int, int]) -> Batch:
    """A batch of images of (height, width) as the steps take it, in shapes alone."""
    shape = (batch_size, *image_size)
    arrays: dict[str, Any] = {
        "image": jax.ShapeDtypeStruct((*shape, 3), np.float32),
        "label": jax.ShapeDtypeStruct(shape, np.int32),
        "occlusion": jax.ShapeDtypeStruct(shape, np.bool_),
        "example_id": jax.ShapeDtypeStruct(shape[:1], np.int32),
    }
    return Batch(**arrays)


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    loss: Loss,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    skip_nonfinite: bool = False,
    axis_name: str | None = None,
) -> TrainStep:
    """train_step(state, batch) -> (state, StepOutput), pure.

    accumulate: into how many microbatches a batch is cut to save memory. The gradient is that of the
        whole batch's loss for every additive loss, Dice over the batch included: a first pass adds up the
        loss's sums, a second differentiates each microbatch against their total. It costs one more
        forward pass. Batch normalisation sees a microbatch at a time, which is not the whole batch.
    ema_decay: share of the old average that is kept a step; 0 leaves the average off.
    skip_nonfinite: a step that is not finite (see StepOutput) changes nothing but the step's number.
    axis_name: the device axis inside pmap and shard_map, the latter with check_vma=False: the sums that
        microbatches are added to start as the same zeros on all devices, and don't stay so.
    """
    gradient = make_gradient(model, loss, accumulate=accumulate, axis_name=axis_name)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepOutput]:
        value, sums, grads, batch_stats = gradient(state, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=_averaged(state.ema, {"params": params, "batch_stats": batch_stats}, ema_decay),
        )
        grad_norm = optax.tree.norm(grads)
        is_finite = _all_finite((value, grad_norm, params, batch_stats, opt_state))
        if skip_nonfinite:
            kept = state.replace(step=state.step + 1, rng=new_state.rng)
            new_state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new_state, kept)
        return new_state, StepOutput(
            loss=value, components=loss.components(sums), grad_norm=grad_norm, is_finite=is_finite
        )

    return train_step


def make_gradient(
    model: nn.Module, loss: Loss, *, accumulate: int = 1, axis_name: str | None = None
) -> Callable[[TrainState, Batch], Gradient]:
    """gradient(state, batch) -> Gradient, pure: a step without its update; as `make_train_step` takes it."""

    def gradient(state: TrainState, batch: Batch) -> Gradient:
        keys = dropout_keys(state, accumulate, axis_name)

        def forward(
            params: PyTree, batch_stats: PyTree, part: Batch, key: jax.Array
        ) -> tuple[PyTree, PyTree]:
            logits_bhwc, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                part.image,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            return loss.sums(logits_bhwc, part.label), updates["batch_stats"] if batch_stats else batch_stats

        of_batch = _whole_gradient if accumulate == 1 else _accumulated_gradient
        found = of_batch(forward, loss, state, batch, keys, axis_name)
        return found._replace(grads=jax.tree.map(lambda g: _mean(g, axis_name), found.grads))

    return gradient


def dropout_keys(state: TrainState, accumulate: int, axis_name: str | None = None) -> jax.Array:
    """A key for each microbatch of the step that `state` is before: [accumulate].

    Inside a shard_map, keys of each device's own: its images are others. (Of our modes pmap has an axis name
    too, and is refused with dropout.)
    """
    key = jax.random.fold_in(state.rng, state.step)
    if axis_name is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    return jax.random.split(key, accumulate)


def microbatches(batch: Batch, accumulate: int) -> Batch:
    """`batch` in `accumulate` parts, along a new first axis."""
    # Strided: with a batch sharded over devices each part is spread over all of them.
    return jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(a.shape[0] // accumulate, accumulate, *a.shape[1:]), 1, 0), batch
    )


def make_eval_step(
    model: nn.Module, loss: Loss, *, num_classes: int, axis_name: str | None = None
) -> EvalStep:
    """eval_step(state, batch) -> EvalOutput, of the averaged parameters where the state has them."""

    def eval_step(state: TrainState, batch: Batch) -> EvalOutput:
        logits_bhwc = _logits(model, state, batch.image)
        predictions_bhw = jnp.argmax(logits_bhwc, axis=-1)
        return EvalOutput(
            loss_sums=_total(loss.sums(logits_bhwc, batch.label), axis_name),
            confusion_bcc=confusion_matrix(batch.label, predictions_bhw, num_classes),
            labelled_b=(batch.label != IGNORE_LABEL).sum(axis=(1, 2), dtype=jnp.int32),
        )

    return eval_step


def make_predict_step(model: nn.Module) -> PredictStep:
    """predict_step(state, image_bhwc float32 in [0, 1]) -> class ids [B, H, W] int32."""

    def predict_step(state: TrainState, image_bhwc: jax.Array | np.ndarray) -> jax.Array:
        return jnp.argmax(_logits(model, state, image_bhwc), axis=-1).astype(jnp.int32)

    return predict_step


def make_probability_step(model: nn.Module, *, flip: bool = False) -> ProbabilityStep:
    """probability_step(state, image_bhwc uint8) -> [B, H, W, C] float32, which add up to 1 at each pixel.

    flip: the mean of what the model says of the image and of its mirror image.
    """

    def probabilities(state: TrainState, image_bhwc: jax.Array | np.ndarray) -> jax.Array:
        # Rounding float32 to itself changes nothing, but keeps XLA on a CPU from making one program of the
        # last two convolutions and the softmax, by which a forward pass takes 5 to 8 % longer.
        logits_bhwc = jax.lax.reduce_precision(_logits(model, state, image_bhwc), 8, 23)
        return jax.nn.softmax(logits_bhwc, axis=-1)

    def probability_step(state: TrainState, image_bhwc: jax.Array | np.ndarray) -> jax.Array:
        image_bhwc = image_bhwc.astype(jnp.float32) / 255.0  # as `augment` does it
        straight_bhwc = probabilities(state, image_bhwc)
        if not flip:
            return straight_bhwc
        mirrored_bhwc = probabilities(state, image_bhwc[:, :, ::-1])[:, :, ::-1]
        return (straight_bhwc + mirrored_bhwc) / 2

    return probability_step


def inference_variables(state: TrainState) -> dict[str, PyTree]:
    """What evaluation, prediction and export use: the average where there is one."""
    source = {"params": state.params, "batch_stats": state.batch_stats} if state.ema is None else state.ema
    return {name: tree for name, tree in source.items() if tree}


def _logits(model: nn.Module, state: TrainState, image_bhwc: jax.Array | np.ndarray) -> jax.Array:
    logits_bhwc = model.apply(inference_variables(state), image_bhwc, train=False)
    assert isinstance(logits_bhwc, jax.Array)
    return logits_bhwc


def _whole_gradient(
    forward: Callable,
    loss: Loss,
    state: TrainState,
    batch: Batch,
    keys: jax.Array,
    axis_name: str | None,
) -> Gradient:
    def objective(params: PyTree) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
        sums, batch_stats = forward(params, state.batch_stats, batch, keys[0])
        sums = _total(sums, axis_name)
        return loss.combine(sums), (sums, batch_stats)

    (value, (sums, batch_stats)), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    return Gradient(value, sums, grads, batch_stats)


def _accumulated_gradient(
    forward: Callable,
    loss: Loss,
    state: TrainState,
    batch: Batch,
    keys: jax.Array,
    axis_name: str | None,
) -> Gradient:
    """d combine(sum_i s_i) / d params = sum_i (d combine / d s at the total) . (d s_i / d params)."""
    parts = microbatches(batch, len(keys))

    def add_sums(total: PyTree, at: tuple[Batch, jax.Array]) -> tuple[PyTree, None]:
        sums, _ = forward(state.params, state.batch_stats, *at)
        return jax.tree.map(jnp.add, total, sums), None

    shapes = jax.eval_shape(
        lambda part, k: forward(state.params, state.batch_stats, part, k)[0],
        jax.tree.map(lambda a: a[0], parts),
        keys[0],
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, _ = jax.lax.scan(add_sums, zeros, (parts, keys))
    sums = _total(sums, axis_name)
    value, slope = jax.value_and_grad(loss.combine)(sums)
    if axis_name is not None:
        # Differentiating through psum multiplies by the number of devices; the pmean of the step expects it.
        slope = jax.tree.map(lambda s: s * jax.lax.axis_size(axis_name), slope)

    def add_gradients(carry: tuple[PyTree, PyTree], at: tuple[Batch, jax.Array]) -> tuple[tuple, None]:
        total, batch_stats = carry

        def slope_dot_sums(params: PyTree) -> tuple[jax.Array, PyTree]:
            part_sums, new_stats = forward(params, batch_stats, *at)
            dots = jax.tree.map(jnp.vdot, slope, part_sums)
            return jax.tree.reduce(jnp.add, dots), new_stats

        grads, batch_stats = jax.grad(slope_dot_sums, has_aux=True)(state.params)
        return (jax.tree.map(jnp.add, total, grads), batch_stats), None

    start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
    (grads, batch_stats), _ = jax.lax.scan(add_gradients, start, (parts, keys))
    return Gradient(value, sums, grads, batch_stats)


def _all_finite(tree: PyTree) -> jax.Array:
    return jax.tree.reduce(lambda sound, a: sound & jnp.isfinite(a).all(), tree, jnp.bool_(True))


def _averaged(average: PyTree | None, new: PyTree, decay: float) -> PyTree | None:
    if average is None:
        return None
    return jax.tree.map(lambda old, now: decay * old + (1.0 - decay) * now, average, new)


def _total(sums: PyTree, axis_name: str | None) -> PyTree:
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def _mean(value: PyTree, axis_name: str | None) -> PyTree:
    return value if axis_name is None else jax.lax.pmean(value, axis_name)
