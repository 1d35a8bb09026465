"""Figures beside those of Cityscapes' own script, on the same id images: a command, and what the tests use.

python -m tests.beside_cityscapesscripts --workdir=runs/streets/finetune_dice [--scenes=100 --size=128]

Writes generated scenes in Cityscapes' own layout, lets the run predict them, and prints IoU by jaxseg and by
cityscapesscripts' evalPixelLevelSemanticLabeling side by side: in the run's classes (in the script its label
table is replaced), and in its own 19, of labels that were moved and mixed with noise. Needs the extra [test].
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from PIL import Image

from jaxseg.data import open_source
from jaxseg.data.labels import STREET_CLASSES
from jaxseg.data.streets import write_cityscapes
from jaxseg.main import main as jaxseg_main
from jaxseg.metrics import host_confusion_matrix, scores
from jaxseg.types import IGNORE_LABEL

NAMES = STREET_CLASSES.names


class Side(NamedTuple):
    """What one of the two says; classes in the order of their ids (of the 19: of their trainIds)."""

    confusion_cc: np.ndarray
    iou: list[float]
    miou: float


class Pairs(NamedTuple):
    """Labels and guesses, image by image, as files for the script."""

    truths: list[Path]
    guesses: list[Path]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a run on streets")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        numbers = {"num_train": 0, "num_val": args.scenes, "num_test": 0}
        write_cityscapes(home / "scenes", **numbers, height=args.size, width=args.size)
        predict(args.workdir, home / "scenes" / "leftImg8bit", home / "out")
        pairs = our_pairs(home / "scenes", home / "out" / "labels", home / "ids", halves=False)
        show(f"{args.workdir} in its classes", NAMES, our_side(pairs), official_side(pairs, NAMES))
        pairs = changed_pairs(home / "scenes" / "gtFine", home / "changed")
        show(
            "Labels moved by four columns, with 20 % noise, in the 19 classes",
            names_19(),
            *both_sides_19(pairs),
        )


def predict(workdir: Path, photos: Path, output: Path) -> None:
    """The command. Raises SystemExit where it fails."""
    argv = ["predict", f"--workdir={workdir}", f"--input={photos}", f"--output={output}", "--no_overlays"]
    try:
        jaxseg_main(argv)
    except SystemExit as end:
        if end.code:
            raise


def our_pairs(scenes: Path, predicted: Path, output: Path, *, halves: bool) -> Pairs:
    """Of the val split in our classes: what our reader makes of the id images, and what was predicted.

    Void is the id after the last class, which the script leaves out.
    """
    source = open_source("cityscapes", str(scenes), halves=halves)
    output.mkdir()
    pairs = Pairs([], [])
    for item in source.items("val"):
        label_hw = source.read(item)[1]
        pairs.truths.append(output / f"{item.example_id}_gtFine_labelIds.png")
        ids_hw = np.where(label_hw == IGNORE_LABEL, np.uint8(len(NAMES)), label_hw)
        Image.fromarray(ids_hw).save(pairs.truths[-1])
        [guess] = predicted.rglob(f"*{item.example_id.rsplit('/', 1)[-1]}*.png")
        pairs.guesses.append(guess)
    return pairs


def our_side(pairs: Pairs) -> Side:
    """jaxseg's counts and figures of id images in our classes."""
    confusion_cc = np.zeros((len(NAMES), len(NAMES)), np.int64)
    for truth, guess in zip(*pairs, strict=True):
        ids_hw = np.asarray(Image.open(truth))
        label_hw = np.where(ids_hw == len(NAMES), np.uint8(IGNORE_LABEL), ids_hw)
        confusion_cc += host_confusion_matrix(label_hw, np.asarray(Image.open(guess)), len(NAMES))
    return _ours(confusion_cc)


def official_side(pairs: Pairs, names: Sequence[str]) -> Side:
    """The script's, with its label table replaced by these classes and void."""
    with official_script(names) as script:
        found = _evaluated(script, pairs)
    count = len(names)
    matrix = np.array(found["confMatrix"], np.int64)[:count, :count]
    return Side(matrix, [found["classScores"][name] for name in names], found["averageScoreClasses"])


def changed_pairs(truths: Path, output: Path, share: float = 0.2) -> Pairs:
    """Of official ids: labels moved by four columns, and a `share` of pixels of any of the 19 classes."""
    train_id_of, known = _train_ids(), [label.id for label in _labels_19()]
    pairs = Pairs(sorted(truths.rglob("*_labelIds.png")), [])
    rng = np.random.default_rng(0)
    output.mkdir()
    for path in pairs.truths:
        moved = np.roll(np.asarray(Image.open(path)), 4, axis=1)
        noise = rng.choice(known, moved.shape)
        is_noise = (train_id_of[moved] == IGNORE_LABEL) | (rng.random(moved.shape) < share)
        pairs.guesses.append(output / path.name)
        Image.fromarray(np.where(is_noise, noise, moved).astype(np.uint8)).save(pairs.guesses[-1])
    return pairs


def both_sides_19(pairs: Pairs) -> tuple[Side, Side]:
    """(jaxseg's, the script's) in the script's own 19 classes, of official ids."""
    train_id_of = _train_ids()
    confusion_cc = np.zeros((19, 19), np.int64)
    for truth, guess in zip(*pairs, strict=True):
        label_hw, guess_hw = (train_id_of[np.asarray(Image.open(path))] for path in (truth, guess))
        confusion_cc += host_confusion_matrix(label_hw, guess_hw, 19)
    with official_script() as script:
        found = _evaluated(script, pairs)
    order = [label.id for label in _labels_19()]
    matrix = np.array(found["confMatrix"], np.int64)[np.ix_(order, order)]
    iou = [found["classScores"][name] for name in names_19()]
    return _ours(confusion_cc), Side(matrix, iou, found["averageScoreClasses"])


def names_19() -> tuple[str, ...]:
    """The official classes, by trainId."""
    return tuple(label.name for label in _labels_19())


@contextlib.contextmanager
def official_script(names: Sequence[str] | None = None) -> Iterator[Any]:
    """evalPixelLevelSemanticLabeling, pixels alone; `names`, and void, instead of its own classes."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as script

    options = {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True}
    with mock.patch.multiple(script.args, **options):
        if names is None:
            yield script
            return
        label = script.labels[0]
        of_ids = {
            i: label._replace(name=name, id=i, trainId=i, category=name, ignoreInEval=i == len(names))
            for i, name in enumerate([*names, "void"])
        }
        categories = {label.category: [label] for label in of_ids.values()}
        table = {"labels": list(of_ids.values()), "id2label": of_ids, "category2labels": categories}
        with mock.patch.multiple(script, **table):
            yield script


def show(title: str, names: Sequence[str], ours: Side, theirs: Side) -> None:
    """Prints a table in Markdown, and the largest difference of a cell of the confusion matrices."""
    print(f"\n{title}\n\n| IoU | jaxseg | cityscapesscripts |\n|---|---|---|")
    for name, our_iou, their_iou in zip(names, ours.iou, theirs.iou, strict=True):
        print(f"| {name} | {our_iou:.6f} | {their_iou:.6f} |")
    print(f"| mIoU | {ours.miou:.6f} | {theirs.miou:.6f} |")
    difference = np.abs(ours.confusion_cc - theirs.confusion_cc).max()
    print(
        f"\n{ours.confusion_cc.sum():,} labelled pixels; largest difference of a cell of the confusion "
        f"matrices: {difference:,} pixels"
    )


def _ours(confusion_cc: np.ndarray) -> Side:
    found = scores(confusion_cc)
    return Side(confusion_cc, list(found.iou), found.miou)


def _evaluated(script: Any, pairs: Pairs) -> dict[str, Any]:
    found: dict[str, Any] = script.evaluateImgLists(
        list(map(str, pairs.guesses)), list(map(str, pairs.truths)), script.args
    )
    return found


def _labels_19() -> list[Any]:
    from cityscapesscripts.helpers.labels import labels

    return sorted((v for v in labels if v.id >= 0 and not v.ignoreInEval), key=lambda v: v.trainId)


def _train_ids() -> np.ndarray:
    """[256] uint8 of official ids."""
    train_id_of = np.full(256, IGNORE_LABEL, np.uint8)
    for label in _labels_19():
        train_id_of[label.id] = label.trainId
    return train_id_of


if __name__ == "__main__":
    main()
