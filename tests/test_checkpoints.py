"""What goes in comes out; the latest and the best stay; a parent's parameters are taken and reported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.checkpoints import DIRECTORY, Checkpoints, read_pretrained, transfer
from jaxseg.errors import UserError
from jaxseg.models import UNet
from jaxseg.step import init_state

META = {"best_step": None, "classes": ["a", "b"]}


@pytest.fixture(scope="module")
def state():
    return jax.jit(lambda: init_state(UNet(2, 4, 1), optax.adam(1e-3), 0, image_size=(8, 8), ema=True))()


def raw(tree):
    return [
        np.asarray(jax.random.key_data(a) if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(tree)
    ]


def same(a, b):
    return all((x == y).all() and x.dtype == y.dtype for x, y in zip(raw(a), raw(b), strict=True))


def test_the_state_comes_back_bit_for_bit(state, tmp_path):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(3, state.replace(step=jnp.int32(3)), {**META, "x": 0.1}, score=None)
        back, meta = saved.restore(3, state)
    assert same(back, state.replace(step=jnp.int32(3)))
    assert not same(back, state)
    assert meta == {**META, "x": 0.1}


def test_latest_and_best_stay(state, tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        for step, score in ((1, 0.5), (2, None), (3, 0.7), (4, 0.7), (5, None), (6, 0.6), (7, None)):
            saved.save(step, state, META, score=score)
        assert saved.latest_step() == 7
    assert sorted(p.name for p in (tmp_path / DIRECTORY).iterdir()) == ["4", "6", "7"]


def test_saving_a_step_twice_is_nothing(state, tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        saved.save(1, state, META, score=None)
        saved.save(1, state, META, score=None)
        assert saved.latest_step() == 1


def test_pretrained_is_the_best_and_its_average(state, tmp_path):
    with Checkpoints(tmp_path, keep=1) as saved:
        better = state.replace(ema=jax.tree.map(lambda a: a + 1, state.ema))
        saved.save(1, better, {**META, "best_step": 1}, score=0.9)
        saved.save(2, state, {**META, "best_step": 1}, score=0.1)
    best, latest = read_pretrained(tmp_path), read_pretrained(tmp_path, "latest")
    assert (best.step, latest.step) == (1, 2)
    assert same(best.variables["params"], better.ema["params"])
    assert same(latest.variables["batch_stats"], state.ema["batch_stats"])


def test_transfer_takes_all_or_says_what_not(state, tmp_path):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(1, state.replace(ema=None), META, score=None)
    parent = read_pretrained(tmp_path)
    fresh = {"params": jax.tree.map(jnp.zeros_like, state.params), "batch_stats": state.batch_stats}
    merged, report = transfer(fresh, parent, ())
    assert same(merged["params"], state.params) and not report.excluded
    merged, report = transfer(fresh, parent, ("head/",))
    assert (np.asarray(merged["params"]["head"]["kernel"]) == 0).all()
    assert report.excluded == ("params/head/bias", "params/head/kernel")
    assert "params/head/kernel" in str(report)


def test_a_wider_model_is_refused_by_name(state, tmp_path):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(1, state, META, score=None)
    wide = jax.eval_shape(lambda: init_state(UNet(2, 8, 1), optax.sgd(1.0), 0, image_size=(8, 8), ema=False))
    with pytest.raises(UserError, match=r"bottleneck.*\(8,\) in the parent and \(16,\) here.*init.exclude"):
        transfer({"params": wide.params, "batch_stats": wide.batch_stats}, read_pretrained(tmp_path), ())


def test_a_workdir_without_checkpoints_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        read_pretrained(tmp_path)


def test_a_broken_checkpoint_is_named(state, tmp_path):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(1, state, META, score=None)
    for file in (tmp_path / DIRECTORY / "1" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with Checkpoints(tmp_path, keep=1) as saved, pytest.raises(UserError, match="can't be read"):
        saved.restore(1, state)
