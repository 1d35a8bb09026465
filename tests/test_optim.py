"""Schedules, chains, freezing and multipliers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.errors import UsageError
from jaxseg.optim import build_optimizer, build_schedule, rate_factors

SECTION = {
    "name": "sgd",
    "learning_rate": 0.1,
    "schedule": "constant",
    "warmup_steps": 0,
    "final_fraction": 0.0,
    "power": 1.0,
    "weight_decay": 0.0,
    "momentum": 0.0,
    "clip_norm": 0.0,
    "freeze": (),
    "multipliers": (),
}
PARAMS = {
    "down0": {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array([3.0])},
    "head": {"kernel": jnp.array([4.0]), "bias": jnp.array([5.0])},
}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def step(**change):
    tx, _ = build_optimizer(total_steps=100, params=PARAMS, **{**SECTION, **change})
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    return jax.tree.map(np.asarray, updates)


def test_sgd_is_minus_rate_times_gradient():
    assert all(np.allclose(u, -0.1) for u in jax.tree.leaves(step()))


def test_adam_is_optax_adam():
    section = {**SECTION, "name": "adam", "learning_rate": 1e-3}
    (ours, schedule), theirs = build_optimizer(total_steps=9, params=PARAMS, **section), optax.adam(1e-3)
    assert schedule(5) == 1e-3
    a, b = ours.init(PARAMS), theirs.init(PARAMS)
    for scale in (1.0, -2.0, 0.5):
        grads = jax.tree.map(lambda g, by=scale: g * by, GRADS)
        ua, a = ours.update(grads, a, PARAMS)
        ub, b = theirs.update(grads, b, PARAMS)
        assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), ua, ub))


def test_decay_touches_kernels_only():
    updates = step(name="adamw", weight_decay=0.5)
    without = step(name="adamw")
    assert np.allclose(updates["down0"]["kernel"] - without["down0"]["kernel"], [-0.05, -0.1])
    assert np.allclose(updates["head"]["bias"], without["head"]["bias"])


def test_clipping_scales_the_global_norm():
    updates = step(clip_norm=1.0)
    assert np.isclose(optax.tree.norm(updates), 0.1)
    assert np.isclose(optax.tree.norm(step()), 0.1 * np.sqrt(5))


def test_freezing_and_multipliers_go_by_path():
    updates = step(freeze=("^down0/",), multipliers=(("bias$", 10.0),))
    assert np.allclose(updates["down0"]["kernel"], 0) and np.allclose(updates["down0"]["bias"], 0)
    assert np.allclose(updates["head"]["kernel"], -0.1)
    assert np.allclose(updates["head"]["bias"], -1.0)


def test_frozen_parameters_have_no_moments_and_no_share_in_the_clip_norm():
    tx, _ = build_optimizer(total_steps=9, params=PARAMS, **{**SECTION, "name": "adam", "freeze": ("down0",)})
    sizes = [a.size for a in jax.tree.leaves(tx.init(PARAMS)) if a.ndim]
    assert sum(sizes) == 2 * 2  # two moments of the head's two numbers
    assert np.allclose(step(clip_norm=1.0, freeze=("down0",))["head"]["kernel"], -0.1 / np.sqrt(2))


def test_schedules_against_their_formulas():
    keys = {"total_steps": 110, "learning_rate": 2.0, "warmup_steps": 10, "final_fraction": 0.1, "power": 2.0}
    cosine, poly = (build_schedule(schedule=s, **keys) for s in ("cosine", "polynomial"))
    for schedule in (cosine, poly):
        assert np.isclose(schedule(0), 0.0) and np.isclose(schedule(5), 1.0) and np.isclose(schedule(10), 2.0)
        assert np.isclose(schedule(110), 0.2)
    assert np.isclose(cosine(60), 0.2 + 1.8 * 0.5)
    assert np.isclose(poly(60), 0.2 + 1.8 * 0.25)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "adamm"}, "optim.name='adamm'"),
        ({"schedule": "step"}, "optim.schedule='step'"),
        ({"warmup_steps": 101}, "optim.warmup_steps=101"),
        ({"weight_decay": -1.0}, "optim.weight_decay=-1.0"),
        ({"learning_rate": -1.0}, "optim.learning_rate=-1.0"),
        ({"freeze": ("downn",)}, "'downn' matches no parameter"),
        ({"freeze": ("(",)}, "not a regular expression"),
        ({"freeze": (".",)}, "every parameter"),
        ({"multipliers": (("head", -1.0),)}, "optim.multipliers: the factor -1.0 of 'head'"),
        ({"multipliers": (("haed", 1.0),)}, "'haed' matches no parameter"),
    ],
)
def test_wrong_values_are_named(change, says):
    with pytest.raises(UsageError, match=says.replace("(", r"\(")):
        step(**change)


def test_first_matching_multiplier_counts():
    factors = rate_factors(PARAMS, (), (("head/bias", 3.0), ("bias", 2.0)))
    assert (
        factors["head"]["bias"] == 3.0
        and factors["down0"]["bias"] == 2.0
        and factors["head"]["kernel"] == 1.0
    )
