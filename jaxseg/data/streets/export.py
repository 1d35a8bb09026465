"""Generated scenes as files in Cityscapes' own layout."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from jaxseg.data.streets.scene import render_scene
from jaxseg.errors import UserError

CITIES = {
    "train": ("altbruck", "birkenfurt", "eschenau", "lindwerder"),
    "val": ("mohnstadt", "quellingen"),
    "test": ("rabenhof", "weidental"),
}
"""Made-up cities a split, so that no city stands in two splits."""


def write_cityscapes(
    out_dir: str | Path,
    *,
    num_train: int,
    num_val: int,
    num_test: int,
    seed: int = 0,
    height: int = 1024,
    width: int = 2048,
    workers: int | None = None,
) -> None:
    """Writes leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png.

    Label ids are the official ones (cityscapesscripts, helpers/labels.py). `workers` processes draw;
    None takes every core. Files that are there are written anew.

    Raises UserError where out_dir can't be made.
    """
    from tqdm import tqdm

    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"output={out} can't be made ({e.strerror}); name a folder that you may write") from e
    scenes = list(_scenes({"train": num_train, "val": num_val, "test": num_test}))
    write = partial(_write_scene, out, seed, height, width)
    if workers == 1:
        for scene in tqdm(scenes, unit="scene", disable=None):
            write(scene)
        return
    # Not forked: jax, which jaxseg.types imports, runs threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in tqdm(pool.map(write, scenes, chunksize=4), total=len(scenes), unit="scene", disable=None):
            pass


def _scenes(counts: dict[str, int]) -> Iterator[tuple[str, str, int]]:
    """(split, city, index) of each scene."""
    for split, count in counts.items():
        for index in range(count):
            yield split, CITIES[split][index % len(CITIES[split])], index


def _write_scene(out: Path, seed: int, height: int, width: int, scene: tuple[str, str, int]) -> None:
    from PIL import Image

    split, city, index = scene
    photo, label_ids = render_scene(seed, split, index, height, width)
    stem = f"{city}_000000_{index:06d}"
    for folder, suffix, array in (
        ("leftImg8bit", "leftImg8bit", photo),
        ("gtFine", "gtFine_labelIds", label_ids),
    ):
        place = out / folder / split / city
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(place / f"{stem}_{suffix}.png")
