"""A look at training data: what is drawn is what the train step sees, and what is said is counted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxseg import preview
from jaxseg.arguments import with_overrides
from jaxseg.experiment import Experiment, load_recipe
from jaxseg.main import main
from jaxseg.types import ClassTable
from tests.dataset_fakes import TINY_RUN, write_camvid
from tests.faults.runs import ROOT


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Of the command, on a fake CamVid of 6 images, every person half covered."""
    folder = tmp_path_factory.mktemp("preview")
    write_camvid(folder / "camvid", (("train", 6),))
    places = f"--config.dataset.data_dir={folder / 'camvid'}", f"--config.dataset.prepared_dir={folder}"
    occlusion = "--config.augment.occlusion.regions.probability=1.0", "--config.augment.flip=0.5"
    return [f"--config={ROOT}/configs/finetune_dice.py:camvid", *places, *TINY_RUN, *occlusion]


def _experiment(flags):
    recipe = load_recipe(ROOT / "configs" / "finetune_dice.py", "camvid")
    return Experiment(with_overrides(recipe, flags[1:]))


def _data(flags):
    return _experiment(flags).open_data(("train",))


@pytest.mark.parametrize("void", ["background", "ignore"])
def test_a_sheet_and_the_classes(flags, tmp_path, capsys, void):
    with pytest.raises(SystemExit, match="0"):
        main(["preview", *flags, f"--config.dataset.void={void}", f"--output={tmp_path}/out", "--count=5"])
    printed = capsys.readouterr().out
    assert "train, 6 images" in printed
    assert "Class weights of cross_entropy (inverse_sqrt): background " in printed
    told = json.loads((tmp_path / "out" / "classes.json").read_text())
    records = _data(flags).records["train"]
    labels = [records[i]["label"] for i in range(len(records))]
    assert any((label == 255).any() for label in labels)
    if void == "background":
        labels = [np.where(label == 255, 0, label) for label in labels]
    for c, row in enumerate(told["classes"].values()):
        having = [(label == c).sum() for label in labels]
        assert (row["pixels"], row["images"]) == (sum(having), sum(n > 0 for n in having))
    assert told["weights"]["cross_entropy"].keys() == told["classes"].keys()
    with Image.open(tmp_path / "out" / "train.png") as picture:
        assert picture.height > picture.width, "five rows of four"


def test_the_rows_are_those_of_the_first_batches(flags):
    """Two batches of 4 make 5 rows: image, label and occlusion of the stream, beside the photo as stored."""
    experiment = _experiment(flags)
    data = experiment.open_data(("train",))
    stream = experiment.train_stream(data, 0)
    batches = [next(stream), next(stream)]
    rows = preview._tiles(experiment, data, 5)
    assert len(rows) == 5
    covered = 0
    for i, (photo, seen, _, occlusion) in enumerate(rows):
        batch, at = batches[i // 4], i % 4
        assert (photo == data.records["train"][int(batch.example_id[at])]["image"]).all()
        np.testing.assert_allclose(seen, 255 * np.asarray(batch.image[at]), atol=0.51)
        mask = (occlusion == preview.figures.AMBER).all(axis=-1)
        assert (mask == np.asarray(batch.occlusion[at])).all()
        covered += mask.sum()
    assert covered


@pytest.mark.parametrize(("void_class", "images"), [(None, [1, 1]), (1, [1, 2])])
def test_an_image_has_the_class_that_void_is_trained_as(void_class, images):
    labels = [np.array([[0, 1]], np.uint8), np.array([[255, 255]], np.uint8)]
    facts = {"classes": ClassTable(("a", "b"), ((0, 0, 0),) * 2), "pixels": lambda split: (1, 1)}
    data = SimpleNamespace(records={"train": [{"label": one} for one in labels]}, **facts)
    data.void_class = void_class
    assert [row["images"] for row in preview.class_statistics(data).values()] == images


def test_nothing_is_not_shown(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["preview", *flags, "--count=0"])
    assert "--count=0 shows nothing; use at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "status", "says"),
    [
        ("--config.dataset.region_class=persn", 2, "dataset.region_class='persn', which is none of"),
        ("--config.train.batch_size=7", 1, "train.batch_size=7 is more than the 6 images"),
    ],
)
def test_what_training_would_refuse_is_refused(flags, capsys, tmp_path, flag, status, says):
    with pytest.raises(SystemExit, match=str(status)):
        main(["preview", *flags, flag, f"--output={tmp_path}/out"])
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
