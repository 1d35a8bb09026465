"""Schedules and optax chains from keywords; freezing and rate multipliers by parameter path."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import jax
import optax

from jaxseg.errors import UsageError
from jaxseg.types import PyTree

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "polynomial")


def build_optimizer(
    *,
    total_steps: int,
    params: PyTree,
    name: str,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    final_fraction: float,
    power: float,
    weight_decay: float,
    momentum: float,
    clip_norm: float,
    freeze: Sequence[str],
    multipliers: Sequence[tuple[str, float]],
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optax chain of a config's `optim` section, and the learning rate's schedule in it.

    Clipping by global norm (0: off), then Adam (L2 in the gradient if weight_decay > 0), AdamW
    (decoupled, kernels only) or SGD with momentum, then the rate's multiplier. `freeze` holds regular
    expressions that are searched in parameter paths such as `down0/conv1/kernel`; `multipliers` holds pairs
    of such an expression and a factor of the learning rate, the first match counts. `params` may be
    shapes only. Raises UsageError that names the key.
    """
    rate = build_schedule(
        total_steps=total_steps,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup_steps=warmup_steps,
        final_fraction=final_fraction,
        power=power,
    )
    for key, value in (("weight_decay", weight_decay), ("clip_norm", clip_norm), ("momentum", momentum)):
        if value < 0:
            raise UsageError(f"optim.{key}={value} is negative; use 0 to switch it off")
    decay = _kernels_only(params)
    match name:
        case "adam":
            parts = [optax.add_decayed_weights(weight_decay, decay)] if weight_decay else []
            parts += [optax.scale_by_adam()]
        case "adamw":
            parts = [optax.scale_by_adam(), optax.add_decayed_weights(weight_decay, decay)]
        case "sgd":
            parts = [optax.add_decayed_weights(weight_decay, decay)] if weight_decay else []
            parts += [optax.trace(momentum)] if momentum else []
        case _:
            raise UsageError(f"optim.name={name!r} is not known; choose one of {', '.join(OPTIMIZERS)}")
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    tx = optax.chain(*clip, *parts, optax.scale_by_learning_rate(rate))
    if not freeze and not multipliers:
        return tx, rate
    factors = rate_factors(params, freeze, multipliers)
    # Frozen parameters leave the optimizer altogether: no moments in memory, no share in the clip norm.
    transforms: dict[str, optax.GradientTransformation] = {"frozen": optax.set_to_zero(), "trained": tx}
    labels = jax.tree.map(lambda factor: "frozen" if factor == 0.0 else "trained", factors)
    return optax.chain(optax.partition(transforms, labels), _scale_by_factors(factors)), rate


def build_schedule(
    *,
    total_steps: int,
    learning_rate: float,
    schedule: str,
    warmup_steps: int,
    final_fraction: float,
    power: float,
) -> optax.Schedule:
    """Step -> learning rate: linear warm-up from 0, then constant, cosine or polynomial to the final one."""
    if learning_rate < 0:
        raise UsageError(f"optim.learning_rate={learning_rate} is negative; use a positive rate")
    if not 0 <= warmup_steps <= total_steps:
        raise UsageError(
            f"optim.warmup_steps={warmup_steps} does not fit a run of {total_steps} steps; "
            f"use 0 to {total_steps}"
        )
    if not 0.0 <= final_fraction <= 1.0:
        raise UsageError(f"optim.final_fraction={final_fraction} is not a share; use a number from 0 to 1")
    rest = max(total_steps - warmup_steps, 1)
    match schedule:
        case "constant":
            main = optax.constant_schedule(learning_rate)
        case "cosine":
            main = optax.cosine_decay_schedule(learning_rate, rest, alpha=final_fraction)
        case "polynomial":
            main = optax.polynomial_schedule(learning_rate, learning_rate * final_fraction, power, rest)
        case _:
            raise UsageError(
                f"optim.schedule={schedule!r} is not known; choose one of {', '.join(SCHEDULES)}"
            )
    if not warmup_steps:
        return main
    return optax.join_schedules(
        [optax.linear_schedule(0.0, learning_rate, warmup_steps), main], [warmup_steps]
    )


def rate_factors(params: PyTree, freeze: Sequence[str], multipliers: Sequence[tuple[str, float]]) -> PyTree:
    """A factor of the learning rate for each parameter; 0 is frozen. Every pattern has to match something."""
    paths = jax.tree_util.tree_map_with_path(lambda path, _: parameter_path(path), params)
    names = jax.tree.leaves(paths)
    patterns = [("optim.freeze", p) for p in freeze] + [("optim.multipliers", p) for p, _ in multipliers]
    for key, pattern in patterns:
        if not any(matches(pattern, name, key=key) for name in names):
            raise UsageError(f"{key} pattern {pattern!r} matches no parameter; paths look like {names[0]!r}")

    for pattern, value in multipliers:
        if value < 0:
            raise UsageError(
                f"optim.multipliers: the factor {value} of {pattern!r} would climb the loss; use 0 or more"
            )

    def factor(name: str) -> float:
        if any(matches(pattern, name, key="optim.freeze") for pattern in freeze):
            return 0.0
        found = (float(f) for p, f in multipliers if matches(p, name, key="optim.multipliers"))
        return next(found, 1.0)

    factors = jax.tree.map(factor, paths)
    if all(f == 0.0 for f in jax.tree.leaves(factors)):
        raise UsageError("optim.freeze matches every parameter, so nothing would be trained; narrow it")
    return factors


def parameter_path(path: tuple) -> str:
    """A jax key path as 'down0/conv1/kernel'."""
    return "/".join(str(getattr(key, "key", key)) for key in path)


def matches(pattern: str, path: str, *, key: str) -> bool:
    """Whether a regular expression is found in a parameter path.

    Raises UsageError that names `key`, the config's name for the pattern, where it is no such expression.
    """
    try:
        with warnings.catch_warnings():
            # "Possible nested set": Python may read it as something else one day.
            warnings.simplefilter("error", FutureWarning)
            return re.search(pattern, path) is not None
    except (re.error, FutureWarning, OverflowError, RecursionError) as e:
        raise UsageError(f"{key}: {pattern!r} is not a regular expression ({e}); mend it") from None


def _kernels_only(params: PyTree) -> PyTree:
    """True for kernels: decaying biases and norm scales hurts (T. He et al., CVPR 2019, section 3.1)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: parameter_path(path).endswith("kernel"), params)


def _scale_by_factors(factors: PyTree) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))
