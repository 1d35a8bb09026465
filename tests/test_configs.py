"""Every published recipe, for every dataset: builds, lowers at its full size, steps at width 4."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxseg.arguments import with_overrides
from jaxseg.data.labels import STREET_CLASSES
from jaxseg.errors import UsageError
from jaxseg.experiment import Data, Experiment, Run, load_recipe
from jaxseg.parallel import Parallel
from jaxseg.types import IGNORE_LABEL, Batch

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPES = sorted(p.stem for p in CONFIGS.glob("*.py"))
DATASETS = ("streets", "camvid", "cityscapes", "folder")
PIXELS = (100, 200, 100, 50, 5, 100, 100)


def built(recipe, dataset, **changes):
    config = load_recipe(CONFIGS / f"{recipe}.py", dataset)
    with config.unlocked():
        config.parallel.mode = "jit"
        for key, value in changes.items():
            section, name = key.split("__")
            config[section][name] = value
    return Experiment(config).build(STREET_CLASSES, PIXELS, train_images=100)


def shapes(run):
    height, width = run.experiment.dataset.image_size
    b = run.experiment.train.batch_size
    return Batch(
        image=jax.ShapeDtypeStruct((b, height, width, 3), np.float32),
        label=jax.ShapeDtypeStruct((b, height, width), np.int32),
        occlusion=jax.ShapeDtypeStruct((b, height, width), np.bool_),
        example_id=jax.ShapeDtypeStruct((b,), np.int32),
    )


def test_there_are_the_three_recipes():
    assert RECIPES == ["finetune_dice", "finetune_weighted_ce", "scratch"]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_lowers_at_its_full_size(recipe, dataset):
    run = built(recipe, dataset)
    state = jax.eval_shape(run.first_state)
    assert run.train_step.lower(state, shapes(run)).as_text()
    if dataset in ("camvid", "cityscapes"):
        assert sum(int(np.prod(a.shape)) for a in jax.tree.leaves(state.params)) == 7_703_367
        assert run.experiment.dataset.image_size == (256, 256)


def test_a_section_that_nobody_reads_is_refused():
    config = load_recipe(CONFIGS / "scratch.py", "streets")
    with config.unlocked():
        config.optm = config.optim
    with pytest.raises(UsageError, match='config section optm is not known; did you mean "optim"'):
        Experiment(config)


@pytest.mark.parametrize(
    ("platform", "flags", "is_exact"),
    [
        ("cpu", "", True),
        ("gpu", "", False),
        ("gpu", "--xla_gpu_deterministic_ops=false", False),
        ("gpu", "--xla_foo=1 --xla_gpu_deterministic_ops=true", True),
    ],
)
def test_whether_a_resumed_run_is_exact_is_said(monkeypatch, platform, flags, is_exact):
    monkeypatch.setenv("XLA_FLAGS", flags)
    said = Parallel("jit", (SimpleNamespace(platform=platform),)).describe_resume()
    assert said.startswith("exact, bit for bit" if is_exact else "exact up to rounding")


def test_multipliers_of_paths_with_dots_are_given_as_pairs():
    config = with_overrides(
        load_recipe(CONFIGS / "scratch.py", "streets"),
        [
            "--config.optim.multipliers=(('^down.*', 0.1), ('head', 2))",
            "--config.optim.name=sgd",
            "--config.model.width=4",
            "--config.model.depth=1",
        ],
    )
    run = Experiment(config).build(STREET_CLASSES, PIXELS, train_images=100)
    state = jax.eval_shape(run.first_state)
    ones = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), (state.params, state.opt_state))
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.optim.multipliers = ()
    plain = Experiment(changed).build(STREET_CLASSES, PIXELS, train_images=100)
    (moved, _), (whole, _) = (r.tx.update(ones[0], r.tx.init(ones[0]), ones[0]) for r in (run, plain))
    for block, factor in (("down0", 0.1), ("head", 2.0), ("up0", 1.0)):
        for a, b in zip(jax.tree.leaves(moved[block]), jax.tree.leaves(whole[block]), strict=True):
            assert np.allclose(a, factor * b)


@pytest.mark.parametrize("mode", ["sharded", "pmap"])
def test_as_many_devices_share_a_batch_as_divide_it(mode):
    """The README's first command on a machine with eight devices: batch 4, evaluation 20 at a time."""
    config = load_recipe(CONFIGS / "finetune_dice.py", "streets")
    with config.unlocked():
        config.parallel.mode = mode
    assert len(jax.devices()) == 8
    place = Experiment(config).parallel
    assert len(place.devices) == 4
    assert "4 of 8" in place.describe() and "4 and 20" in place.describe()
    # Scoring has nothing to do with the batch of training.
    assert len(Experiment(config, trains=False).parallel.devices) == 5
    with config.unlocked():
        config.train.accumulate, config.evaluate.batch_size = 2, 8
    assert len(Experiment(config).parallel.devices) == 2
    with config.unlocked():
        config.train.accumulate, config.train.batch_size = 1, 16
    assert len(Experiment(config).parallel.devices) == 8
    assert " of " not in Experiment(config).parallel.describe()


@pytest.mark.parametrize(
    ("data", "rows", "says"),
    [
        (0, 0, "parallel.mesh.data=0 and rows=0 make no mesh"),
        (-1, 1, "parallel.mesh.data=-1"),
        (0, 16, "needs 16 devices and there are 8"),
        (4, 4, "data=4 times rows=4 needs 16 devices and there are 8"),
        (8, 1, "parallel.mesh.data=8 can't cut a batch of 4"),
        (1, 3, r"parallel.mesh.rows=3 can't cut 128 rows .* multiple of 24"),
    ],
)
def test_a_mesh_that_does_not_fit(data, rows, says):
    config = load_recipe(CONFIGS / "scratch.py", "streets")
    with config.unlocked():
        config.parallel.mesh.data, config.parallel.mesh.rows = data, rows
    with pytest.raises(UsageError, match=says):
        Experiment(config)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_rows_are_cut_in_sharded_mode_only(mode):
    config = load_recipe(CONFIGS / "scratch.py", "streets")
    with config.unlocked():
        config.parallel.mode, config.parallel.mesh.rows = mode, 2
    with pytest.raises(UsageError, match=f"parallel.mode={mode} can't; use sharded"):
        Experiment(config)


def test_rows_take_their_part_of_the_devices():
    config = load_recipe(CONFIGS / "scratch.py", "streets")
    with config.unlocked():
        config.parallel.mesh.rows = 4
    place = Experiment(config).parallel
    assert (len(place.devices), place.rows) == (8, 4)
    assert "8 x cpu (sharded, each image over 4)" in place.describe()
    with config.unlocked():
        config.parallel.mesh.data = 1
    place = Experiment(config).parallel
    assert len(place.devices) == 4
    assert "4 of 8 devices: as parallel.mesh has it" in place.describe()
    with config.unlocked():
        config.parallel.mesh.data, config.parallel.mesh.rows = 0, 3
        config.dataset.image_size = (192, 192)
        config.train.batch_size = config.evaluate.batch_size = 2
    place = Experiment(config).parallel
    assert (len(place.devices), place.rows) == (6, 3)
    assert "6 of 8 devices: in sets of 3" in place.describe()


TINY = {"model__width": 4, "model__depth": 1, "dataset__image_size": (16, 16)}


def test_the_flops_of_a_step_are_those_of_the_whole_batch(monkeypatch):
    """However it is cut: XLA counts a loop's body once, and tells of a compiled step what one device does."""
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda *_: None
    )  # it takes long, and tells of memory only
    flops = []
    for change in (
        {"parallel__mode": "jit"},
        {"parallel__mode": "jit", "train__accumulate": 2},
        {"parallel__mode": "sharded"},
        {"parallel__mode": "pmap"},
    ):
        run = built("scratch", "streets", **{**TINY, "model__width": 32}, **change)
        flops.append(run.step_cost(jax.eval_shape(run.first_state)).flops)
    # Of the 3x3 convolutions: 2 * 9 * in * out a pixel, and twice as much for their gradients. XLA leaves out
    # what falls on zeros around, and counts the rest of the step, a few percent each.
    outer, inner = 3 * 32 + 32 * 32 + 64 * 32 + 32 * 32, 32 * 64 + 64 * 64
    products = run.experiment.train.batch_size * 16 * 16 * (outer + inner / 4)
    assert flops[0] == pytest.approx(3 * 2 * 9 * products, rel=0.1)
    assert flops == [pytest.approx(flops[0], rel=1e-4)] * 4


class ReadRecords:
    """Two records with void in a corner, that count how often they are read."""

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.reads += 1
        label = np.full((16, 16), 1, np.uint8)
        label[:4] = IGNORE_LABEL
        return {"image": np.full((16, 16, 3), 40 * index, np.uint8), "label": label}


@pytest.mark.parametrize(("void_class", "corner"), [(None, IGNORE_LABEL), (0, 0)])
def test_pictures_follow_the_void_policy_of_the_scores(void_class, corner, monkeypatch):
    """And take no more images at once than an evaluation does."""
    run = built("scratch", "streets", **TINY, evaluate__batch_size=1)
    taken, build = [], Run.predict_step.func
    monkeypatch.setattr(
        Run, "predict_step", lambda run, state, x: taken.append(len(x)) or build(run)(state, x)
    )
    records = ReadRecords()
    state = run.init_state()
    images, labels, predictions = run.samples(Data({"val": records}, void_class), "val", state, 6)
    assert records.reads == len(images) == len(labels) == len(predictions) == 2
    assert all((label[:4] == corner).all() and (label[4:] == 1).all() for label in labels)
    assert (images[1] == 40).all()
    assert taken == [1, 1]


@pytest.mark.parametrize("mode", ["jit", "sharded"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_steps(recipe, mode):
    run = built(recipe, "streets", **TINY, parallel__mode=mode)
    rng = np.random.default_rng(0)
    batch = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes(run))
    label = rng.integers(0, 7, batch.label.shape).astype(np.int32)
    batch = batch.replace(image=rng.random(batch.image.shape, np.float32), label=label)
    state, output = run.train_step(run.init_state(), run.experiment.parallel.place_batch(batch))
    assert int(state.step) == 1
    assert np.isfinite(float(output.loss))
    expected = {"cross_entropy", "dice"} if recipe == "finetune_dice" else {"cross_entropy"}
    assert set(output.components) == expected


def test_the_published_setting_stands_in_the_cityscapes_recipes():
    got = {r: load_recipe(CONFIGS / f"{r}.py", "cityscapes") for r in RECIPES}
    scratch, weighted, dice = got["scratch"], got["finetune_weighted_ce"], got["finetune_dice"]
    table = [
        (c.optim.name, c.optim.learning_rate, c.train.batch_size, c.train.epochs)
        for c in (scratch, weighted, dice)
    ]
    assert table == [("adam", 1e-3, 8, 100.0), ("adam", 1e-5, 8, 30.0), ("adam", 1e-5, 4, 30.0)]
    assert all(c.dataset.void == "background" and c.optim.schedule == "constant" for c in got.values())
    assert (
        weighted.loss.cross_entropy.class_weights == dice.loss.cross_entropy.class_weights == "inverse_sqrt"
    )
    assert (dice.loss.cross_entropy.weight, dice.loss.dice.weight, dice.loss.dice.smooth) == (0.3, 0.7, 1e-6)
    assert (dice.loss.dice.over, dice.loss.dice.absent) == ("batch", "one")
    regions = [c.augment.occlusion.regions for c in (scratch, weighted, dice)]
    assert [r.probability for r in regions] == [0.0, 0.6, 0.8]
    assert [r.grey for r in regions] == [0.7, 0.7, 0.9]
    assert all((r.count, r.min_share, r.max_share) == (2, 0.3, 0.7) for r in regions)
    assert weighted.init.recipe == dice.init.recipe == "scratch"
