"""What goes in comes out; the latest and the best stay; a parent's parameters are taken and reported."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg.checkpoints import DIRECTORY, Checkpoints, read_pretrained, stored_steps, transfer
from jaxseg.errors import UserError
from jaxseg.models import UNet
from jaxseg.step import init_state

META = {"classes": ["a", "b"]}


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
        assert saved.restore_newest(state) is None
        saved.save(3, state.replace(step=jnp.int32(3)), {**META, "x": 0.1}, best=None)
        saved.wait()
        back, meta = saved.restore_newest(state)
    assert same(back, state.replace(step=jnp.int32(3)))
    assert not same(back, state)
    assert meta == {**META, "x": 0.1}


def test_a_checkpoint_of_another_version_is_said_to_be_one(state, tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(1, state, META, best=None)
    monkeypatch.setattr("jaxseg.checkpoints._FORMAT", 10**6)
    with pytest.raises(UserError, match="was written by another version of jaxseg"):
        read_pretrained(tmp_path)


def test_latest_and_best_stay(state, tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        for step, best in ((1, None), (2, 1), (3, 1), (4, 3), (5, 4), (6, 4), (7, 4)):
            saved.save(step, state, META, best=best)
    assert stored_steps(tmp_path) == [4, 6, 7]


def test_saving_a_step_twice_is_nothing(state, tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        saved.save(1, state, META, best=None)
        saved.save(1, state, META, best=None)
    assert stored_steps(tmp_path) == [1]


def test_pretrained_is_the_best_and_its_average(state, tmp_path):
    with Checkpoints(tmp_path, keep=1) as saved:
        better = state.replace(ema=jax.tree.map(lambda a: a + 1, state.ema))
        saved.save(1, better, META, best=None)
        saved.save(2, state, META, best=1)
    best, latest = read_pretrained(tmp_path, 1), read_pretrained(tmp_path)
    assert (best.step, latest.step) == (1, 2)
    assert same(best.variables["params"], better.ema["params"])
    assert same(latest.variables["batch_stats"], state.ema["batch_stats"])


def test_transfer_takes_all_or_says_what_not(state, tmp_path):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(1, state.replace(ema=None), META, best=None)
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
        saved.save(1, state, META, best=None)
    wide = jax.eval_shape(lambda: init_state(UNet(2, 8, 1), optax.sgd(1.0), 0, image_size=(8, 8), ema=False))
    with pytest.raises(UserError, match=r"bottleneck.*\(8,\) in the parent and \(16,\) here.*init.exclude"):
        transfer({"params": wide.params, "batch_stats": wide.batch_stats}, read_pretrained(tmp_path), ())


def test_a_workdir_without_checkpoints_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoints"):
        read_pretrained(tmp_path)


def truncate(folder):
    for file in (f for f in folder.rglob("*") if f.is_file() and f.stat().st_size > 100):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove_a_file(folder):
    max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size).unlink()


def flip_bits_of_the_arrays(folder):
    """In many places: some bytes of an OCDBT file are never read."""
    for file in (folder / "state").rglob("d/*"):
        content = bytearray(file.read_bytes())
        for position in range(0, len(content), 50):
            content[position] ^= 1
        file.write_bytes(content)


def change_the_meta(folder):
    file = next((folder / "meta").glob("*metadata"))
    file.write_text(file.read_text().replace('"a"', '"c"'))


def empty_it(folder):
    shutil.rmtree(folder)
    folder.mkdir()


BREAKS = (truncate, remove_a_file, flip_bits_of_the_arrays, change_the_meta, empty_it)


@pytest.mark.parametrize("break_it", BREAKS)
def test_the_newest_sound_checkpoint_is_taken_and_the_broken_one_kept(state, tmp_path, capsys, break_it):
    with Checkpoints(tmp_path, keep=3) as saved:
        for step in (1, 2, 3):
            saved.save(step, state.replace(step=jnp.int32(step)), {**META, "step": step}, best=None)
    break_it(tmp_path / DIRECTORY / "3")
    with Checkpoints(tmp_path, keep=3) as saved:
        back, meta = saved.restore_newest(state)
        assert (int(back.step), meta["step"]) == (2, 2)
        said = capsys.readouterr().err
        assert f"{tmp_path / DIRECTORY / '3'} can't be read" in said and "moved to" in said
        assert said.count("\n") == 1
        assert (tmp_path / "broken" / "3.0").is_dir(), "nothing is deleted"
        saved.save(3, state.replace(step=jnp.int32(3)), {**META, "step": 3}, best=None)
    with Checkpoints(tmp_path, keep=3) as saved:
        assert int(saved.restore_newest(state)[0].step) == 3, "the step can be saved again"


@pytest.mark.parametrize("break_it", BREAKS)
def test_where_all_are_broken_nothing_is_moved(state, tmp_path, break_it):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(1, state, META, best=None)
    break_it(tmp_path / DIRECTORY / "1")
    with Checkpoints(tmp_path, keep=1) as saved, pytest.raises(UserError, match="1 can't be read"):
        saved.restore_newest(state)
    assert stored_steps(tmp_path) == [1] and not (tmp_path / "broken").exists()
    with pytest.raises(UserError, match="1 can't be read"):
        read_pretrained(tmp_path)


def test_a_broken_best_is_said_and_the_latest_taken(state, tmp_path, capsys):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(1, state, META, best=None)
        saved.save(2, state, META, best=1)
    flip_bits_of_the_arrays(tmp_path / DIRECTORY / "1")
    assert read_pretrained(tmp_path, 1).step == 2
    assert "step 2 is taken in its place" in capsys.readouterr().err
