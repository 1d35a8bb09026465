"""IoU by the size of objects: whether what is small is found as well as what is large.

An object is an 8-connected component of a class in the label. It is small below 1/300 of the image's pixels,
medium from there to below 3/100, else large: COCO's 32^2 and 96^2 pixels (T.-Y. Lin et al., ECCV 2014) of a
photo of 640x480, so that a photo's size does not matter. Of a class and a size, IoU = TP / (TP + FN + FP):
TP and FN are pixels of its objects; FP, predicted as the class where another is labelled, belong to the size
of the nearest object of the class in the image (of equally near ones the smaller), and in an image without
one to none: they lower the IoU of the class, and that of no size.
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
    # find_objects gives the box of each value; 0 is none to it, so that classes count from 1, and void is 0.
    boxes = ndimage.find_objects((label_hw + np.uint8(1)).astype(np.int32), max_label=num_classes)
    for class_id, box in enumerate(boxes):
        if box is None:
            continue
        size_hw = _sizes(label_hw[box] == class_id, label_hw.size)
        is_hit_hw = prediction_hw[box] == class_id
        for size in range(len(SIZES)):
            hit_n = is_hit_hw[size_hw == size]
            counts[class_id, size, :2] = hit_n.sum(), (~hit_n).sum()
        false_n2 = np.argwhere(wrong_hw & (prediction_hw == class_id))
        origin = [rows.start for rows in box]
        counts[class_id, :, 2] = np.bincount(_nearest(size_hw, false_n2 - origin), minlength=len(SIZES))
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


def _nearest(size_hw: np.ndarray, pixels_n2: np.ndarray) -> np.ndarray:
    """[n]: the size of the object that is nearest to each pixel (row, column), by Euclidean distance."""
    from scipy.spatial import KDTree

    there = [size for size in range(len(SIZES)) if (size_hw == size).any()]
    if len(there) == 1 or not len(pixels_n2):
        return np.full(len(pixels_n2), there[0])
    distances = [KDTree(_edge(size_hw == size)).query(pixels_n2)[0] for size in there]
    return np.array(there)[np.argmin(distances, axis=0)]


def _edge(is_object_hw: np.ndarray) -> np.ndarray:
    """[n, 2]: the pixels with another beside them; the nearest one to a pixel outside is always of these."""
    inside_hw = np.zeros_like(is_object_hw)
    inside_hw[1:-1, 1:-1] = (
        is_object_hw[:-2, 1:-1] & is_object_hw[2:, 1:-1] & is_object_hw[1:-1, :-2] & is_object_hw[1:-1, 2:]
    )
    return np.argwhere(is_object_hw & ~inside_hw)
