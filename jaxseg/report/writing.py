"""The page: everything that is known of the runs, filled into the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jaxseg
from jaxseg import figures
from jaxseg.errors import one_line
from jaxseg.evaluate.images import SOURCE, TRAINING
from jaxseg.experiment.opened import Opened
from jaxseg.files import write_text
from jaxseg.metrics.bootstrap import BLOCKS
from jaxseg.report import charts, covered, facts, paired, tables
from jaxseg.report.choice import SMALLEST_SHARE
from jaxseg.report.colours import for_page
from jaxseg.report.gallery import Gallery, make_gallery
from jaxseg.report.stored import StoredRun, check_comparable, named_apart
from jaxseg.types import ClassTable

REPORT_FILE = "report.html"

_MOST_BYTES = 15_000_000
_MOST_IMAGES = 60


def write_report(
    runs: Sequence[StoredRun], models: Sequence[Opened | str], classes: ClassTable, split: str, output: Path
) -> int:
    """Writes the page of these runs, whole or not at all; returns its bytes, below 15 million.

    models: of each run, or why it can't be opened: the page then says so where its pictures would be. The
    last run is the one that the page is about, the others are what it is compared with. Raises UserError for
    runs of different classes.
    """
    check_comparable(runs)
    runs, classes = named_apart(runs), for_page(classes)
    images, room = _MOST_IMAGES, _MOST_BYTES - 3_000_000
    while True:
        gallery = make_gallery(runs, models, classes, split, most_images=images, most_bytes=room)
        text = _rendered(_context(runs, models, classes, split, gallery))
        size = len(text.encode())
        if size < _MOST_BYTES:
            break
        if images == 1:
            raise ValueError(f"the page has {size:,} bytes without pictures already")
        # Only of runs with thousands of classes or keys: what is not a picture is small.
        images, room = max(1, images // 4), room // 4
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    return size


def _context(
    runs: Sequence[StoredRun],
    models: Sequence[Opened | str],
    classes: ClassTable,
    split: str,
    gallery: Gallery | str,
) -> dict[str, Any]:
    """What the template is filled with."""
    main = runs[-1]
    model = models[-1] if isinstance(models[-1], Opened) else None
    worst, best = tables.extremes(main)
    pairs = paired.paired(runs, split)
    measured = [run.evaluation["figures"] for run in runs]
    at_source = all(figures[SOURCE] is not None for figures in measured)
    curves = covered.covered(runs, split)
    return {
        "title": " and ".join(run.name for run in runs),
        "main": main,
        "runs": runs,
        "split": split,
        "version": jaxseg.__version__,
        "written": f"{datetime.now():%Y-%m-%d %H:%M}",
        "sentence": facts.sentence(main, model),
        "command": facts.command(main),
        "miou": [tables.whole_figure(run, "miou") for run in runs],
        "accuracy": [tables.whole_figure(run, "pixel_accuracy") for run in runs],
        "worst_class": (worst, tables.class_figure(main, worst, "iou")) if worst else None,
        "best_class": (best, tables.class_figure(main, best, "iou")) if best else None,
        "class_rows": tables.class_rows(runs, classes, pairs),
        "miou_change": {size: str(found[0]) for size, found in pairs.changes.items()},
        "apart": pairs.apart,
        "heads": tables.heads(runs),
        "whole": tables.whole_table(runs),
        "drawn": _drawn(main.evaluation["figures"][TRAINING]),
        "more": tables.more_by_class(main),
        "same_size": all(figures[SOURCE] == figures[TRAINING] for figures in measured),
        "source_rows": tables.class_rows(runs, classes, pairs, SOURCE) if at_source else None,
        "source_whole": tables.whole_table(runs, SOURCE) if at_source else None,
        "same_loss": all(run.config["loss"] == main.config["loss"] for run in runs),
        "charts": charts.run_charts(runs),
        "class_charts": charts.class_charts(runs),
        "occlusion_charts": charts.occlusion_charts(runs, curves.curves),
        "covered": curves,
        "matrices": _matrices(runs, gallery),
        "shares": _shares(runs, models, classes, split),
        "configs": [
            (run, facts.against_parent(run), facts.against_recipe(run), facts.all_keys(run)) for run in runs
        ],
        "machines": [(run, facts.times(run)) for run in runs],
        "gallery": gallery if isinstance(gallery, Gallery) else None,
        "no_pictures": gallery if isinstance(gallery, str) else "",
        "smallest_share": f"{100 * SMALLEST_SHARE:g} %",
    }


def _drawn(figures: Mapping[str, Any]) -> str:
    """Over what the bootstrap goes; what was scored before there were blocks says nothing of them."""
    if "blocks" not in figures or figures["blocks"] == figures["images"]:
        return "images"
    return f"{figures['blocks']:,} {BLOCKS}"


def _matrices(runs: Sequence[StoredRun], gallery: Gallery | str) -> list[tuple[StoredRun, list[Any]]]:
    matrices = []
    for number, run in enumerate(runs):
        regions: Mapping[Any, Any] = {}
        if isinstance(gallery, Gallery) and number in gallery.numbers:
            regions = gallery.opened(number)
        matrices.append((run, tables.matrix(run, regions, number)))
    return matrices


def _shares(
    runs: Sequence[StoredRun], models: Sequence[Opened | str], classes: ClassTable, split: str
) -> dict[str, Any]:
    """Of each class: its share of the labelled pixels in train and in the split, its weights in losses."""
    model = models[-1] if isinstance(models[-1], Opened) else None
    train = None if model is None else _normalised(model.learned.meta.train_pixels)
    scored = _normalised([sum(row) for row in runs[-1].evaluation["confusion_matrix"]])
    weights = [
        (f"{run.name}: {loss.replace('_', ' ')}", of_class)
        for run in runs
        for loss, of_class in run.weights.items()
    ]
    rows = [
        (
            name,
            figures.hex_colour(rgb),
            None if train is None else train[c],
            scored[c],
            [of_class[name] if name in of_class else None for _, of_class in weights],
        )
        for c, (name, rgb) in enumerate(zip(classes.names, classes.palette, strict=True))
    ]
    return {"rows": rows, "weights": [name for name, _ in weights], "split": split}


def _normalised(pixels: Sequence[int]) -> list[float | None]:
    total = sum(pixels)
    return [count / total if total else None for count in pixels]


def _rendered(context: Mapping[str, Any]) -> str:
    """The template, filled. All that is not the template's own is escaped: names are anybody's."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent / "page"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Names of files may be of bytes that are no text, which no page can hold.
        finalize=lambda value: value if isinstance(value, Markup) else one_line(str(value)),
    )
    environment.filters |= {
        "figure": _figure,
        "signed": lambda value: "n/a" if value is None else f"{value:+.3f}",
        "percent": lambda value: "n/a" if value is None else _percent(100 * value),
        "in_words": facts.in_words,
    }
    style, script = (Markup((folder / name).read_text("utf-8")) for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(**context, style=style, script=script)


def _figure(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    if 0 < value < 0.05:
        return "<0.1"
    return f"{value:.1f}" if value < 99.95 else "100"
