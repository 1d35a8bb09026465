"""What goes in comes out; the latest and the best stay; a parent's parameters are taken and reported."""

import gc
import hashlib
import json
import resource
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore

from jaxseg.checkpoints import (
    DIRECTORY,
    Checkpoints,
    ForeignCheckpoint,
    newest_meta,
    read_pretrained,
    restore_before,
    stored_steps,
)
from jaxseg.errors import Preempted, UserError
from jaxseg.files import sealed
from jaxseg.meta import LogMark, Meta
from jaxseg.models import UNet
from jaxseg.step import init_state
from jaxseg.stop import StopSignal
from jaxseg.transfer import transfer
from jaxseg.types import TrainState


def meta(step, log=None):
    return Meta(
        step=step,
        skipped=0,
        log=log or LogMark(0, hashlib.sha256().hexdigest(), []),
        config={"model": {"x": 0.1}},
        classes=["a", "b"],
        train_images=3,
        train_pixels=[5, 7],
        data="d",
        classes_hash="c",
        mapping_hash="m",
    )


def accept(meta):
    pass


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
        assert saved.restore_newest(state, accept) is None
        saved.save(state.replace(step=jnp.int32(3)), meta(3), best=None)
        saved.wait()
        back, said = saved.restore_newest(state, accept)
    assert same(back, state.replace(step=jnp.int32(3)))
    assert not same(back, state)
    assert said == meta(3)


def test_copies_that_differ_by_rounding_are_no_broken_checkpoint(state, tmp_path):
    """As other processors make them: the checksums are of one copy, and all that is written is that one's."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def rounded(a):
        copies = [jax.device_put(a * (1 + i * 2**-22), device) for i, device in enumerate(jax.devices())]
        return jax.make_array_from_single_device_arrays(a.shape, everywhere, copies)

    placed = jax.device_put(state, everywhere)
    placed = placed.replace(params=jax.tree.map(rounded, state.params))
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(placed, meta(1), best=None)
        saved.wait()
        back, _ = saved.restore_newest(placed, accept)
    assert same(back, state)


def test_a_checkpoint_of_another_version_is_said_to_be_one_and_left_where_it_is(state, tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=2) as saved:
        saved.save(state, meta(1), best=None)
        monkeypatch.setattr("jaxseg.checkpoints._FORMAT", 10**6)
        # Whose arrays may have another form too.
        saved.save(state.replace(ema=None), meta(2), best=None)
    monkeypatch.undo()
    said = "2 was written by another version of jaxseg"
    with pytest.raises(UserError, match=said):
        read_pretrained(tmp_path)
    with Checkpoints(tmp_path, keep=2) as saved, pytest.raises(UserError, match=said):
        saved.restore_newest(state, accept)
    assert stored_steps(tmp_path) == [1, 2]


def test_what_is_no_step_is_left_alone(state, tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        saved.save(state, meta(1), best=None)
    (tmp_path / DIRECTORY / "99").write_text("a file")
    (tmp_path / DIRECTORY / "\u00b2").mkdir()
    assert stored_steps(tmp_path) == [1]
    assert read_pretrained(tmp_path).step == 1


def test_latest_and_best_stay(state, tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        for step, best in ((1, None), (2, 1), (3, 1), (4, 3), (5, 4), (6, 4), (7, 4)):
            saved.save(state, meta(step), best=best)
    assert stored_steps(tmp_path) == [4, 6, 7]


def test_a_save_leaves_nothing_in_memory(tmp_path, monkeypatch, caplog):
    """Beside what tensorstore never frees, which no option of orbax spares: keys and values of JSON's dicts.

    Orbax asks for one dict an array (0.3 KiB), and twice a save for its figures (20 KiB in all).
    """
    monkeypatch.setattr(tensorstore, "experimental_collect_matching_metrics", lambda prefix: [])
    monkeypatch.setattr(
        tensorstore.KvStore.Spec, "to_json", lambda spec: {"driver": "file", "path": spec.path}
    )
    caplog.set_level("ERROR", logger="absl")  # pytest would keep what orbax says of a slow disk
    arrays = {name: jnp.ones(3) for name in "abcdefgh"}
    state = TrainState(jnp.int32(0), arrays, {}, (), jax.random.key(0))
    seen = []
    with Checkpoints(tmp_path, keep=2) as saved:
        for step in range(1, 33):
            saved.save(state, meta(step), best=None)
            if step % 8 == 0:
                saved.wait()
                gc.collect()
                seen.append((len(gc.get_objects()), sys.getallocatedblocks()))
    # The least of three times eight saves: pools and caches fill once, a leak is there each time.
    objects, blocks = np.diff(seen, axis=0).min(axis=0) / 8
    assert objects < 1, seen
    assert blocks < 20, seen


def test_a_checkpoint_that_was_moved_to_another_disk_and_linked_stays(state, tmp_path):
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    workdir.mkdir()
    with Checkpoints(workdir, keep=1) as saved:
        saved.save(state, meta(1), best=None)
    (workdir / DIRECTORY / "1").rename(elsewhere)
    (workdir / DIRECTORY / "1").symlink_to(elsewhere)
    with Checkpoints(workdir, keep=1) as saved:
        for step in (2, 3):
            saved.save(state, meta(step), best=None)
    assert stored_steps(workdir) == [1, 3]
    assert (elsewhere / "state").is_dir()


def test_what_the_system_says_against_a_save_is_told_with_its_mend(state, tmp_path):
    """Here that a file may not grow so large, which is not the disk's fault."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save():
        with Checkpoints(tmp_path, keep=1) as saved:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            try:
                saved.save(state, meta(1), best=None)
                saved.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(UserError, match=r"can't be saved \(File too large\); raise .*\(ulimit -f\)"):
        save()
    assert stored_steps(tmp_path) == []


def test_saving_a_step_twice_is_nothing(state, tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        saved.save(state, meta(1), best=None)
        saved.save(state, meta(1), best=None)
    assert stored_steps(tmp_path) == [1]


def test_pretrained_is_the_best_and_its_average(state, tmp_path):
    with Checkpoints(tmp_path, keep=1) as saved:
        better = state.replace(ema=jax.tree.map(lambda a: a + 1, state.ema))
        saved.save(better, meta(1), best=None)
        saved.save(state, meta(2), best=1)
    best, latest = read_pretrained(tmp_path, 1), read_pretrained(tmp_path)
    assert (best.step, latest.step) == (1, 2)
    assert same(best.variables["params"], better.ema["params"])
    assert same(latest.variables["batch_stats"], state.ema["batch_stats"])


def test_transfer_takes_all_or_says_what_not(state, tmp_path):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(state.replace(ema=None), meta(1), best=None)
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
        saved.save(state, meta(1), best=None)
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


def no_meta(folder):
    next((folder / "meta").glob("*metadata")).write_text("null")


def a_list_for_meta(folder):
    next((folder / "meta").glob("*metadata")).write_text("[]")


def seal_anew(folder, **changed):
    """As another version, or a stranger, may write it."""
    file = next((folder / "meta").glob("*metadata"))
    content = {**json.loads(file.read_text()), **changed}
    del content["seal"]
    file.write_text(json.dumps(sealed(content)))


def sealed_without_checksums(folder):
    seal_anew(folder, sha256=None)


def claim(folder, **changed):
    """An array of a few bytes that says it is something else, as a stranger's may."""
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/state/"}).result()
    for name in (f"{tree}params.head.bias/.zarray" for tree in ("", "ema.")):
        content = json.loads(store.read(name).result().value)
        store.write(name, json.dumps({**content, **changed})).result()


def claim_tebibytes(folder):
    claim(folder, shape=[10**12])


def claim_large_pieces(folder):
    """Tensorstore reserves a whole one, however small the array."""
    claim(folder, chunks=[10**12])


def empty_it(folder):
    shutil.rmtree(folder)
    folder.mkdir()


BREAKS = (
    *(truncate, remove_a_file, flip_bits_of_the_arrays, change_the_meta, empty_it),
    *(no_meta, a_list_for_meta, sealed_without_checksums, claim_tebibytes, claim_large_pieces),
)


@pytest.mark.parametrize("break_it", BREAKS)
def test_the_newest_sound_checkpoint_is_taken_and_the_broken_one_kept(state, tmp_path, capsys, break_it):
    with Checkpoints(tmp_path, keep=3) as saved:
        for step in (1, 2, 3):
            saved.save(state.replace(step=jnp.int32(step)), meta(step), best=None)
    break_it(tmp_path / DIRECTORY / "3")
    with Checkpoints(tmp_path, keep=3) as saved:
        back, said_of_it = saved.restore_newest(state, accept)
        assert (int(back.step), said_of_it.step) == (2, 2)
        said = capsys.readouterr().err
        assert f"{tmp_path / DIRECTORY / '3'} can't be read" in said and "moved to" in said
        assert said.count("\n") == 1
        assert (tmp_path / "broken" / "3.0").is_dir(), "nothing is deleted"
        saved.save(state.replace(step=jnp.int32(3)), meta(3), best=None)
    with Checkpoints(tmp_path, keep=3) as saved:
        assert int(saved.restore_newest(state, accept)[0].step) == 3, "the step can be saved again"


@pytest.mark.parametrize("break_it", BREAKS)
def test_where_all_are_broken_nothing_is_moved(state, tmp_path, break_it):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(state, meta(1), best=None)
    break_it(tmp_path / DIRECTORY / "1")
    with Checkpoints(tmp_path, keep=1) as saved, pytest.raises(UserError, match="1 can't be read"):
        saved.restore_newest(state, accept)
    assert stored_steps(tmp_path) == [1] and not (tmp_path / "broken").exists()
    with pytest.raises(UserError, match="1 can't be read"):
        read_pretrained(tmp_path)


VAL = {"step": 1, "split": "val", "loss": 1.0, "pixel_accuracy": 1.0, "miou": 1.0, "iou": {"a": 1.0}}


def test_a_meta_is_read_as_it_was_written(state, tmp_path):
    written = meta(2, log=LogMark(1, "x", [VAL]))
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(state, written, best=None)
    assert newest_meta(tmp_path) == written


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"step": 1}, "it is of step 1"),
        ({"step": "2"}, "its step can't be one"),
        ({"step": True}, "its step can't be one"),
        ({"skipped": -1}, "its skipped can't be one"),
        ({"skipped": 2**70}, "its skipped can't be one"),
        ({"log": None}, "it has a log amiss"),
        ({"log": {"rows": 1}}, "it has a log amiss"),
        ({"log": {"rows": 0, "sha256": "", "evaluations": [3]}}, "its log can't be one"),
        ({"log": {"rows": 0, "sha256": "", "evaluations": [{**VAL, "miou": "x"}]}}, "its log can't be one"),
        ({"log": {"rows": 0, "sha256": "", "evaluations": [{**VAL, "split": "train"}]}}, "its log"),
        ({"config": [1]}, "its config can't be one"),
        ({"config": {}}, "its config can't be one"),
        ({"classes": "ab"}, "its classes can't be one"),
        ({"classes": [1, 2]}, "its classes can't be one"),
        ({"train_images": 2.5}, "its train_images can't be one"),
        ({"train_pixels": {"a": 3}}, "its train_pixels can't be one"),
        ({"data": None}, "its data can't be one"),
        ({"classes_hash": 3}, "its classes_hash can't be one"),
        ({"mapping_hash": []}, "its mapping_hash can't be one"),
        ({"more": 3}, "it has more amiss"),
    ],
)
def test_a_meta_that_no_run_writes_is_no_sound_one(state, tmp_path, capsys, changed, says):
    with Checkpoints(tmp_path, keep=2) as saved:
        saved.save(state, meta(1), best=None)
        saved.save(state, meta(2), best=None)
    seal_anew(tmp_path / DIRECTORY / "2", **changed)
    assert newest_meta(tmp_path).step == 1
    said = capsys.readouterr().err
    assert said.startswith(f"Warning: {tmp_path / DIRECTORY / '2'} can't be read ({says}")
    assert "step 1 is taken in its place" in said and said.count("\n") == 1


def test_the_newest_meta_of_another_version_is_not_passed_over(state, tmp_path):
    with Checkpoints(tmp_path, keep=2) as saved:
        saved.save(state, meta(1), best=None)
        saved.save(state, meta(2), best=None)
    seal_anew(tmp_path / DIRECTORY / "2", format=10**6)
    with pytest.raises(ForeignCheckpoint, match="2 was written by another version"):
        newest_meta(tmp_path)


def test_another_runs_checkpoint_is_refused_before_its_arrays_are_read(state, tmp_path, capfd):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(state, meta(1), best=None)
    other = jax.jit(lambda: init_state(UNet(3, 8, 1), optax.sgd(1.0), 0, image_size=(8, 8), ema=False))()

    def check(found):
        raise ForeignCheckpoint(f"of {found.classes}")

    capfd.readouterr()
    with (
        Checkpoints(tmp_path, keep=1) as saved,
        pytest.raises(ForeignCheckpoint, match=r"of \['a', 'b'\]"),
    ):
        saved.restore_newest(other, check)
    assert stored_steps(tmp_path) == [1] and not (tmp_path / "broken").exists()
    assert capfd.readouterr().err == ""


def test_a_step_is_taken_again_from_the_newest_sound_checkpoint(state, tmp_path, capsys):
    with Checkpoints(tmp_path, keep=3) as saved:
        for step in (1, 2, 3):
            saved.save(state.replace(step=jnp.int32(step)), meta(step), best=None)
    flip_bits_of_the_arrays(tmp_path / DIRECTORY / "2")
    assert int(restore_before(tmp_path, 3, state)[0].step) == 1
    assert "step 1 is taken in its place" in capsys.readouterr().err
    assert restore_before(tmp_path, 1, state) is None


def test_a_signal_waits_until_a_checkpoint_is_read(state, tmp_path, monkeypatch):
    """Threads of tensorstore print a traceback each where their reader has gone."""
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(state, meta(1), best=None)
    original, read = ocp.CheckpointManager.restore, []

    def restore(*args, **more):
        signal.raise_signal(signal.SIGTERM)
        found = original(*args, **more)
        read.append(found)
        return found

    def told_to_stop():
        with StopSignal():
            read_pretrained(tmp_path)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    with pytest.raises(Preempted):
        told_to_stop()
    assert read


def test_a_broken_best_is_said_and_the_latest_taken(state, tmp_path, capsys):
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(state, meta(1), best=None)
        saved.save(state, meta(2), best=1)
    flip_bits_of_the_arrays(tmp_path / DIRECTORY / "1")
    assert read_pretrained(tmp_path, 1).step == 2
    assert "step 2 is taken in its place" in capsys.readouterr().err
