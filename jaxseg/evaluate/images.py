"""What is known of each image of a split: counts that add up over images, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.errors import UserError, storage_errors
from jaxseg.files import replacing
from jaxseg.metrics import host_confusion_matrix
from jaxseg.metrics.boundary import boundary_f1
from jaxseg.metrics.calibration import BINS, calibration_sums
from jaxseg.metrics.object_size import SIZES, object_counts

TRAINING, SOURCE = "training size", "source size"


@dataclasses.dataclass(frozen=True)
class Images:
    """Of N images at one size of each, in the order of their ids."""

    confusion: np.ndarray
    """[N, C, C] int64; rows are labels, columns predictions."""
    boundary_f1: np.ndarray
    """[N, C] float64; NaN where an image says nothing of a class."""
    calibration: np.ndarray
    """[N, 3, BINS] float64 of `calibration_sums`."""
    objects: np.ndarray
    """[N, C, sizes, 3] int64 of `object_counts`."""
    size: np.ndarray
    """[N, 2] int32: (height, width)."""

    @classmethod
    def of(cls, label_hw: np.ndarray, prediction_hw: np.ndarray, confidence_hw: np.ndarray, c: int) -> Images:
        """Of one image, N = 1, in `c` classes. uint8 class ids; the label's IGNORE_LABEL counts nowhere."""
        calibration = calibration_sums(label_hw, prediction_hw, confidence_hw)
        images = cls(
            confusion=host_confusion_matrix(label_hw, prediction_hw, c),
            # Rounded so that float64 sums them exactly: no order of summation, and no BLAS, changes a bit.
            boundary_f1=np.ldexp(np.rint(np.ldexp(boundary_f1(label_hw, prediction_hw, c), 24)), -24),
            calibration=np.ldexp(np.rint(np.ldexp(calibration, 16)), -16),
            objects=object_counts(label_hw, prediction_hw, c),
            size=np.array(label_hw.shape, np.int32),
        )
        return cls(**{name: value[None] for name, value in vars(images).items()})

    @classmethod
    def joined(cls, parts: Sequence[Images]) -> Images:
        """All of them, one behind the other."""
        return cls(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(cls)}
        )

    def taken(self, order: np.ndarray | Sequence[int]) -> Images:
        """Those at the places in `order` [M]."""
        return Images(**{name: value[order] for name, value in vars(self).items()})

    @property
    def labelled(self) -> np.ndarray:
        """[N, C] int64: labelled pixels of each class."""
        return self.confusion.sum(axis=-1)

    @property
    def one_size(self) -> tuple[int, int] | None:
        """(height, width) of all; None where they differ."""
        height, width = self.size[0].tolist()
        return (height, width) if (self.size == self.size[0]).all() else None


@dataclasses.dataclass(frozen=True)
class Scored:
    """eval/SPLIT_images.npz: a checkpoint on each image of a split."""

    split: str
    step: int
    classes: tuple[str, ...]
    mapping_hash: str
    example_ids: np.ndarray
    """[N] int32, rising."""
    example_names: tuple[str, ...]
    """What the source calls them."""
    block_n: np.ndarray
    """[N] int64: the block that each is drawn with, `data.sequences.blocks`."""
    sizes: dict[str, Images]
    """TRAINING, and SOURCE where the split has labels of that size."""


def image_file(workdir: Path, split: str) -> Path:
    """Where `Scored` is kept."""
    return workdir / "eval" / f"{split}_images.npz"


def write_images(path: Path, scored: Scored) -> None:
    """Writes the file, uncompressed and without the time: equal figures make equal files."""
    arrays: dict[str, Any] = {
        "split": np.array(scored.split),
        "step": np.int64(scored.step),
        "classes": np.array(scored.classes),
        "mapping_hash": np.array(scored.mapping_hash),
        "example_ids": scored.example_ids.astype(np.int32),
        "example_names": np.array(scored.example_names),
        "block": scored.block_n.astype(np.int64),
        **packed(scored.sizes),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez(file, **arrays)


def packed(sizes: Mapping[str, Images]) -> dict[str, np.ndarray]:
    """The arrays of all sizes, with names of their own."""
    return {
        f"{size.split()[0]}_{name}": value
        for size, images in sizes.items()
        for name, value in vars(images).items()
    }


def unpacked(arrays: Mapping[str, np.ndarray]) -> dict[str, Images]:
    """What was `packed`; `arrays` may hold others too. Raises KeyError where one is missing."""
    names = [field.name for field in dataclasses.fields(Images)]
    prefixes = {size: size.split()[0] for size in (TRAINING, SOURCE)}
    return {
        size: Images(**{name: arrays[f"{prefix}_{name}"] for name in names})
        for size, prefix in prefixes.items()
        if f"{prefix}_confusion" in arrays
    }


def read_images(workdir: Path, split: str) -> Scored:
    """What `write_images` wrote. Raises UserError where it is not there, or something else."""
    path = image_file(workdir, split)
    command = f"jaxseg evaluate --workdir={workdir} --split={split}"
    try:
        with storage_errors(path):
            if not path.exists():
                raise UserError(f"{path} is not there; run `{command}` first")
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
        scored = Scored(
            split=str(arrays["split"]),
            step=int(arrays["step"]),
            classes=tuple(arrays["classes"].tolist()),
            mapping_hash=str(arrays["mapping_hash"]),
            example_ids=arrays["example_ids"],
            example_names=tuple(arrays["example_names"].tolist()),
            # Of older files every image was drawn by itself.
            block_n=arrays["block"] if "block" in arrays else np.arange(len(arrays["example_ids"])),
            sizes=unpacked(arrays),
        )
        _check(scored)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, NotImplementedError) as e:
        raise UserError(f"{path} can't be read ({e}); run `{command}` again") from None
    return scored


def _check(scored: Scored) -> None:
    """Raises ValueError for what `write_images` never writes."""
    n, c = len(scored.example_ids), len(scored.classes)
    shapes: dict[str, tuple[int, ...]] = {
        "confusion": (n, c, c),
        "boundary_f1": (n, c),
        "calibration": (n, 3, BINS),
        "objects": (n, c, len(SIZES), 3),
        "size": (n, 2),
    }
    if TRAINING not in scored.sizes or n == 0 or len(scored.example_names) != n:
        raise ValueError("it holds no images")
    block_n = scored.block_n
    if block_n.shape != (n,) or block_n.dtype.kind != "i" or not 0 <= block_n.min() <= block_n.max() < n:
        raise ValueError("its blocks are not one an image")
    for images in scored.sizes.values():
        for name, shape in shapes.items():
            array = getattr(images, name)
            if array.shape != shape or array.dtype.kind not in "if":
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {shape}")


SourceLabel = Callable[[int], np.ndarray]
"""Example id -> [H, W] uint8 label at source size, after the void policy."""
