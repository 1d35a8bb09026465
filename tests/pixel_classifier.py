"""How far colour and position alone get on `streets`: a command, and what the cheap test uses.

python -m tests.pixel_classifier [--images=400 --pixels=1200000 --iterations=120]

A gradient-boosted classifier (scikit-learn's HistGradientBoostingClassifier) sees one pixel at a time:
red, green, blue, column, row. It prints IoU on val after half and after all of its iterations; where the
two agree, it has converged, and what a UNet reaches beyond that comes from shape and texture.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from jaxseg.data.labels import STREET_CLASSES
from jaxseg.data.streets import Streets
from jaxseg.types import IGNORE_LABEL

NUM_CLASSES = len(STREET_CLASSES.names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--val_images", type=int, default=100)
    parser.add_argument("--pixels", type=int, default=1_200_000)
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    source = Streets(num_train=args.images, num_val=args.val_images, height=args.size, width=args.size)
    features, labels = pixels_of(source, "train", args.pixels)
    val_features, val_labels = pixels_of(source, "val", None)
    print(f"train: {len(labels):,} pixels of {args.images} images")
    print(f"val: {len(val_labels):,} pixels of {args.val_images} images")
    for iterations, iou in fit_and_score(
        (features, labels), (val_features, val_labels), [args.iterations // 2, args.iterations]
    ):
        row = "  ".join(f"{name} {value:.3f}" for name, value in zip(STREET_CLASSES.names, iou, strict=True))
        print(f"{iterations} iterations: mIoU {np.nanmean(iou):.4f}  {row}", flush=True)


def pixels_of(source: Streets, split: str, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Features (red, green, blue, column, row) [n, 5] uint8 and labels [n] of `count` random known pixels."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        pairs = list(pool.map(source.read, source.items(split), chunksize=8))
    row, column = np.meshgrid(np.arange(source.height), np.arange(source.width), indexing="ij")
    place = np.stack([column * 255 // source.width, row * 255 // source.height], axis=-1).astype(np.uint8)
    features = np.concatenate([np.concatenate([image, place], axis=-1).reshape(-1, 5) for image, _ in pairs])
    labels = np.concatenate([label.ravel() for _, label in pairs])
    known = np.flatnonzero(labels != IGNORE_LABEL)
    if count is not None and count < len(known):
        known = np.random.default_rng(0).choice(known, count, replace=False)
    return features[known], labels[known]


def fit_and_score(
    train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], iterations: list[int]
) -> list[tuple[int, np.ndarray]]:
    """(iterations, IoU a class on `val`) after each of `iterations`, of one classifier that is trained on."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=0.15, max_leaf_nodes=63, early_stopping=False, warm_start=True, random_state=0
    )
    figures = []
    for count in iterations:
        model.set_params(max_iter=count)
        model.fit(*train)
        figures.append((count, iou_of(val[1], model.predict(val[0]))))
    return figures


def iou_of(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """IoU a class [C]; NaN for a class in neither."""
    confusion = np.bincount(labels.astype(np.int64) * NUM_CLASSES + predictions, minlength=NUM_CLASSES**2)
    confusion = confusion.reshape(NUM_CLASSES, NUM_CLASSES)
    both = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    return np.where(union > 0, both / np.maximum(union, 1), np.nan)


if __name__ == "__main__":
    main()
