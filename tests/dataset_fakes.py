"""Tiny datasets in the layouts of the real ones, photos by their hashes alone, and CamVid where it is."""

import dataclasses
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.folder import open_folder
from jaxseg.data.photo_hash import HASH_BYTES, Photos, hash_photo, read_hashes
from jaxseg.data.source import PublishedTotals
from jaxseg.errors import UserError

CLASSES = {
    "classes": [
        {"name": "background", "ids": [0, 3]},
        {"name": "road", "ids": [1], "palette": "#804080"},
        {"name": "person", "ids": [2]},
    ],
    "void": {"ids": [255]},
}

TINY_RUN = (
    "--config.dataset.image_size=(16,16)",
    "--config.model.width=4",
    "--config.model.depth=1",
    "--config.parallel.mode=jit",
    "--config.train.batch_size=4",
)
"""Flags that make any recipe a matter of seconds."""


def save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def photo(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(seed: int, ids, height: int = 12, width: int = 16) -> np.ndarray:
    chosen = np.random.default_rng(seed + 1000).integers(0, len(ids), (height // 2, width // 2))
    return np.asarray(ids, np.uint8)[chosen].repeat(2, axis=0).repeat(2, axis=1)


def write_folder(root: Path, splits=(("train", 3), ("val", 2)), classes=CLASSES) -> Path:
    """images/SPLIT/N.png, masks/SPLIT/N.png and classes.json."""
    seed = 0
    for split, count in splits:
        for i in range(count):
            save(root / "images" / split / f"{i}.png", photo(seed))
            save(root / "masks" / split / f"{i}.png", mask(seed, (0, 1, 2, 3, 255)))
            seed += 1
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def write_camvid(root: Path, splits=(("train", 3), ("val", 2))) -> Path:
    for split, count in splits:
        for i in range(count):
            save(root / split / f"f{i}.png", photo(i))
            save(root / f"{split}annot" / f"f{i}.png", mask(i, range(12)))
        lines = [f"/far/{split}/f{i}.png /far/{split}annot/f{i}.png" for i in reversed(range(count))]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_val_of_model_size(camvid: Path) -> None:
    """Puts val photos of 16x16 into a fake CamVid of five: what TINY_RUN's model sees without resizing."""
    for i in range(5):
        save(camvid / "val" / f"f{i}.png", photo(i, 16, 16))
        save(camvid / "valannot" / f"f{i}.png", mask(i, range(12), 16, 16))


def cityscapes_names(count: int) -> list[str]:
    return [f"{'ulm' if i % 2 else 'bonn'}_000000_{i:06d}" for i in range(count)]


def write_cityscapes(root: Path, splits=(("train", 3), ("val", 5)), ids=range(34)) -> Path:
    for split, count in splits:
        for i, name in enumerate(cityscapes_names(count)):
            city = name.split("_")[0]
            save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", photo(i))
            home = root / "gtFine" / split / city
            save(home / f"{name}_gtFine_labelIds.png", mask(i, tuple(ids)))
            save(home / f"{name}_gtFine_instanceIds.png", mask(i, (0,)))
    return root


def zip_cityscapes(root: Path, to: Path) -> Path:
    to.mkdir()
    for folder in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(to / f"{folder}_trainvaltest.zip", "w") as archive:
            for file in sorted((root / folder).rglob("*.png")):
                archive.write(file, file.relative_to(root).as_posix())
    return to


def real_camvid() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "camvid"
    folder = Path(os.environ["CAMVID_DIR"]) if "CAMVID_DIR" in os.environ else beside
    if not folder.is_dir():
        pytest.skip("CamVid is not here; set CAMVID_DIR")
    return folder


def photos_of(images) -> Photos:
    names = [f"photo {chr(97 + i % 26)}{i}x" for i in range(len(images))]
    return read_hashes(names, [hash_photo(image) for image in images])


def random_photos(count, seed):
    table = np.random.default_rng(seed).integers(0, 256, (count, HASH_BYTES), dtype=np.uint8)
    table[:, 16] &= 0x7F
    return read_hashes([f"{i}x" for i in range(count)], [bytes(row).hex() for row in table])


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A folder source for tests of `prepare`: logs its reads, waits, and looks for JAX devices."""

    root: str
    wait: float = 0.0
    log: str = ""
    totals: PublishedTotals | None = None
    refuse_devices: bool = False

    @property
    def name(self):
        return "wrapped"

    @property
    def classes(self):
        return self._folder.classes

    @property
    def mapping(self):
        return self._folder.mapping

    def items(self, split):
        return self._folder.items(split)

    def fingerprint(self, split):
        return self._folder.fingerprint(split)

    def read(self, item):
        import sys
        import time

        if self.refuse_devices and "jax" in sys.modules:
            from jax._src import xla_bridge

            if xla_bridge._backends:
                raise UserError("a device was touched in a worker")
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()} {item.example_id}\n")
        time.sleep(self.wait)
        return self._folder.read(item)

    def published_totals(self, split):
        return self.totals

    @property
    def _folder(self):
        return open_folder(self.root)
