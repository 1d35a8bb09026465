"""IoU by the size of objects: whether what is small is found as well as what is large.

An object is an 8-connected component of a class in the label. It is small below 1/300 of the image's pixels,
medium from there to below 3/100, else large: COCO's 32^2 and 96^2 pixels (T.-Y. Lin et al., ECCV 2014) of a
photo of 640x480, so that a photo's size does not matter. Of a class and a size, IoU = TP / (TP + FN + FP):
TP and FN are pixels of its objects; FP, predicted as the class where another is labelled, belong to the size
of the nearest object of the class in the image, in steps to any of eight neighbours (of equally near ones the
smaller), and in an image without one to none: they lower the IoU of the class, and that of no size.
"""

from __future__ import annotations

import numpy as np

from jaxseg.metrics.ratios import ratio
from jaxseg.types import IGNORE_LABEL

SIZES = ("small", "medium", "large")
_SMALL_BELOW, _MEDIUM_BELOW = (1, 300), (3, 100)


def object_counts(label_hw: np.ndarray, prediction_hw: np.ndarray, num_classes: int) -> np.ndarray:
    """[C, 3 sizes, 3] int64 of one image, additive: TP, FN and FP pixels.

    Labels and predictions are uint8 class ids; labels of IGNORE_LABEL count nowhere.
    """
    from scipy import ndimage

    counts = np.zeros((num_classes, len(SIZES), 3), np.int64)
    wrong_hw = (label_hw != prediction_hw) & (label_hw != IGNORE_LABEL)
    # find_objects gives the box of each value, 0 left out: classes count from 1 here, and void from 256.
    of_labels, of_predictions = (
        ndimage.find_objects(class_hw.astype(np.int32) + 1, max_label=num_classes)
        for class_hw in (label_hw, prediction_hw)
    )
    for class_id, (of_label, of_prediction) in enumerate(zip(of_labels, of_predictions, strict=True)):
        if of_label is None:
            continue
        box = of_label if of_prediction is None else _union(of_label, of_prediction)
        size_hw = _sizes(label_hw[box] == class_id, label_hw.size)
        is_predicted_hw = prediction_hw[box] == class_id
        for size in range(len(SIZES)):
            hit_n = is_predicted_hw[size_hw == size]
            counts[class_id, size, :2] = hit_n.sum(), (~hit_n).sum()
        nearest_n = _nearest(size_hw, wrong_hw[box] & is_predicted_hw)
        counts[class_id, :, 2] = np.bincount(nearest_n, minlength=len(SIZES))
    return counts


def iou_by_size(counts: np.ndarray) -> np.ndarray:
    """[..., 3] of `object_counts`, or sums of them, -> [...]; NaN where there is no object."""
    return ratio(counts[..., 0], counts.sum(axis=-1))


def _sizes(is_class_hw: np.ndarray, image_pixels: int) -> np.ndarray:
    """[h, w] int8: the size of the object that a pixel is of, -1 where it is of none."""
    from scipy import ndimage

    object_hw, _ = ndimage.label(is_class_hw, structure=np.ones((3, 3), bool))
    areas = np.bincount(object_hw.ravel())
    sizes = np.zeros(len(areas), np.int8)
    for times, parts in (_SMALL_BELOW, _MEDIUM_BELOW):
        sizes += areas * parts >= times * image_pixels
    sizes[0] = -1
    return sizes[object_hw]


def _nearest(size_hw: np.ndarray, false_hw: np.ndarray) -> np.ndarray:
    """[n]: of each pixel of `false_hw` the size of the nearest object."""
    from scipy import ndimage

    there = [size for size in range(len(SIZES)) if (size_hw == size).any()]
    count = np.count_nonzero(false_hw)
    if len(there) == 1 or not count:
        return np.full(count, there[0])
    distances = [ndimage.distance_transform_cdt(size_hw != size, "chessboard")[false_hw] for size in there]
    return np.array(there)[np.argmin(distances, axis=0)]


def _union(one: tuple[slice, ...], other: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
