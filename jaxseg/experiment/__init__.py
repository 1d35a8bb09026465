"""The only reader of a config: checks it whole and builds what it describes.

Each section goes by `**` to one callee, so that a mistyped key is an error and the signature is the
documentation. `recipes` runs a recipe file, `sections` holds the sections that are data for the loop, and
`stored` what a workdir keeps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from jaxseg import augment, distributed, evaluate, losses, models, optim, parallel, step
from jaxseg.checkpoints import Pretrained
from jaxseg.data import open_source, pipeline
from jaxseg.data.labels import classes_hash, void_class, without_void
from jaxseg.data.leaks import describe_leaks
from jaxseg.data.prepare import prepare_split, prepared_beside, prepared_folders, print_totals
from jaxseg.data.records import Manifest, Records, open_records
from jaxseg.data.source import Source, expanded
from jaxseg.errors import UsageError, UserError
from jaxseg.experiment import sections
from jaxseg.experiment.recipes import load_recipe, parent_config
from jaxseg.experiment.sections import section, splat
from jaxseg.experiment.stored import (
    check_config,
    check_same_run,
    plain,
    read_config,
    told_as_stored,
    with_tuples,
    write_config,
)
from jaxseg.files import cache_root
from jaxseg.inference import Model
from jaxseg.meta import Meta
from jaxseg.preflight import QUICK, Room, StepCost, check_state, device_room, step_cost
from jaxseg.transfer import TransferReport, transfer
from jaxseg.types import Batch, ClassTable, HostBatch, PyTree, TrainState

__all__ = [
    "Data",
    "Experiment",
    "Run",
    "check_classes",
    "check_config",
    "check_same_run",
    "default_workdir",
    "init_from_parent",
    "load_recipe",
    "parent_config",
    "plain",
    "read_config",
    "told_as_stored",
    "write_config",
]


_MOST_PIXELS = 1 << 28
"""Of an image: a record is a protocol buffer, which ends at 2 GiB."""


@dataclasses.dataclass(frozen=True)
class Data:
    """The prepared splits that an experiment reads."""

    records: dict[str, Records]
    void_class: int | None

    @property
    def manifests(self) -> dict[str, Manifest]:
        """By split."""
        return {split: records.manifest for split, records in self.records.items()}

    @property
    def classes(self) -> ClassTable:
        """The same for all splits."""
        return next(iter(self.manifests.values())).classes

    @property
    def hashes(self) -> dict[str, str]:
        """What checkpoints and evaluations carry to say which classes and mapping they are about."""
        manifest = next(iter(self.manifests.values()))
        return {"classes_hash": manifest.classes_hash, "mapping_hash": manifest.mapping_hash}

    @property
    def contents(self) -> dict[str, str]:
        """sha256 of the records of each split."""
        return {split: manifest.content_hash for split, manifest in self.manifests.items()}

    @property
    def fingerprint(self) -> str:
        """sha256 of the training records: a run goes on only with the data that it began with."""
        return self.contents["train"]

    def pixels(self, split: str) -> tuple[int, ...]:
        """Labelled pixels of each class at the training size, after the void policy."""
        manifest = self.manifests[split]
        counts = list(manifest.pixels)
        if self.void_class is not None:
            counts[self.void_class] += manifest.void_pixels
        return tuple(counts)


class Experiment:
    """What a config describes, built. Reads no data until `open_data`."""

    def __init__(self, config: ConfigDict, *, trains: bool = True) -> None:
        """Checks every section. Raises UsageError that names the key.

        trains: False where the run is only scored, so that its training batch does not matter.
        """
        self.config = config
        self._trains = trains
        self._values: dict[str, Any] = with_tuples(plain(config))
        sections.check_known(self._values)
        self.recipe = sections.recipe_name(self._values)
        self.dataset = splat(sections.DatasetSection, self._values, "dataset")
        self.init = splat(sections.InitSection, self._values, "init")
        self.train = splat(sections.TrainSection, self._values, "train")
        self.evaluate = splat(sections.EvaluateSection, self._values, "evaluate")
        self.checkpoint = splat(sections.CheckpointSection, self._values, "checkpoint")
        self.log = splat(sections.LogSection, self._values, "log")
        place = splat(sections.ParallelSection, self._values, "parallel")
        self.reading = pipeline.Reading(place.workers, place.threads, place.buffer)
        self.augmentation = splat(augment.build_augmentation, self._values, "augment")
        parts = {"train": self.train, "evaluate": self.evaluate, "checkpoint": self.checkpoint}
        sections.check_ranges({**parts, "parallel": place, "log": self.log})
        self._check()
        batch_sizes = [self.train.batch_size // self.train.accumulate] if trains else []
        self.parallel = parallel.build_parallel(
            mode=place.mode,
            mesh=place.mesh,
            batch_sizes=[*batch_sizes, self.evaluate.batch_size],
            image_height=self.dataset.image_size[0],
            halvings=self.config.model.depth,
        )

    def _check(self) -> None:
        train, evaluate = self.train, self.evaluate
        height, width = self.dataset.image_size
        if height * width > _MOST_PIXELS:
            raise UsageError(
                f"dataset.image_size=({height}, {width}) has more pixels than a record holds; use at most "
                f"{_MOST_PIXELS}"
            )
        if train.epochs <= 0 and not train.steps:
            raise UsageError(
                f"train.epochs={train.epochs} trains nothing; use more than 0, or set train.steps"
            )
        if evaluate.every_epochs <= 0 and not evaluate.every_steps:
            raise UsageError(f"evaluate.every_epochs={evaluate.every_epochs} never comes; use more than 0")
        if not 0.0 <= train.ema_decay < 1.0:
            raise UsageError(f"train.ema_decay={train.ema_decay} is no decay; use 0 (off) up to, but not, 1")
        if train.nonfinite not in ("stop", "skip"):
            raise UsageError(f"train.nonfinite={train.nonfinite!r} is not known; choose stop or skip")
        nowhere = {"axis_name": None, "by_matmul": False}
        dropout = splat(models.build_unet, self._values, "model", num_classes=1, **nowhere).dropout
        if dropout and self.config.parallel.mode == "pmap":
            raise UsageError(
                f"model.dropout={dropout} draws other masks on other numbers of devices with "
                "parallel.mode=pmap; use sharded"
            )
        models.check_image_size(self.dataset.image_size, self.config.model.depth)
        if train.batch_size % train.accumulate:
            raise UsageError(
                f"train.batch_size={train.batch_size} can't be cut into train.accumulate={train.accumulate} "
                "equal parts; use a divisor"
            )

    # Data.

    def open_source(self) -> Source:
        """The reader of the dataset."""
        section = self.dataset
        options = dict(section.options)
        if section.name == "streets":
            options["height"], options["width"] = section.image_size
        return open_source(section.name, section.data_dir or None, **options)

    def open_data(self, splits: Iterable[str], *, describe: bool = False) -> Data:
        """The splits, prepared now where they are not there yet.

        Prints what they share, with those prepared before too, and published totals beside their own, where
        one of them was prepared now, or to `describe` them anyway.
        """
        section = self.dataset
        source = self.open_source()
        void = void_class(section.void, source.classes)
        size = section.image_size
        root = expanded(section.prepared_dir) if section.prepared_dir else cache_root()
        region_class = section.region_class or None
        ready, records = prepared_folders(source.name, root), {}
        for split in splits:
            directory = prepare_split(source, split, size, root, region_class=region_class)
            records[split] = open_records(directory)
        if describe or not ready.issuperset(r.directory for r in records.values()):
            print_totals(source, tuple(records), size, root, region_class=region_class)
            beside = prepared_beside(source, records, size, root, region_class=region_class)
            print("\n".join(describe_leaks(source.name, records, beside)))
        return Data(records, void)

    def train_stream(self, data: Data, start_step: int) -> Iterator[Batch]:
        """Augmented batches on the devices, from `start_step` on, without end."""
        batches = pipeline.train_batches(
            data.records["train"],
            batch_size=self.train.batch_size,
            seed=self.train.seed,
            start_step=start_step,
            void_class=data.void_class,
            reading=self.reading,
            share=self.parallel.share,
        )
        return pipeline.to_device(batches, place=self.parallel.place_batch, augment=self._augment)

    def eval_stream(
        self, data: Data, split: str, change: Callable[[Iterable[HostBatch]], Iterable[HostBatch]] = iter
    ) -> Iterator[Batch]:
        """Every example of a split once, in order, the last batch filled with void; `change` alters them."""
        batches = pipeline.eval_batches(
            data.records[split],
            batch_size=self.evaluate.batch_size,
            void_class=data.void_class,
            reading=self.reading,
            share=self.parallel.share,
        )
        return _met(
            pipeline.to_device(change(batches), place=self.parallel.place_batch, augment=self._convert)
        )

    @cached_property
    def _augment(self) -> Callable[..., Batch]:
        return self.parallel.compile_augment(augment.make_augment(self.augmentation))

    @cached_property
    def _convert(self) -> Callable[..., Batch]:
        return self.parallel.compile_augment(augment.make_augment(augment.Augmentation()))

    # Science.

    def build(self, classes: ClassTable, pixels: Sequence[int], *, train_images: int) -> Run:
        """Model, loss, optimizer and steps for these classes; `pixels` of each in the train split."""
        if self._trains:
            self.check_training(classes, train_images)
        total, every = self.steps(train_images)
        model = self._model(num_classes=len(classes.names))
        loss = losses.build_loss(section(self._values, "loss"), pixels_c=tuple(pixels))
        if not loss.additive and (len(self.parallel.devices) > 1 or self.train.accumulate > 1):
            raise UsageError(
                f"loss {loss.name} needs all pixels of the batch at once, which {len(self.parallel.devices)} "
                f"devices with train.accumulate={self.train.accumulate} don't have; use its 'image' form, "
                "or --config.parallel.mode=jit --config.train.accumulate=1"
            )
        shapes = jax.eval_shape(
            lambda key: model.init(key, jax.numpy.zeros((1, *self.dataset.image_size, 3)), train=False),
            jax.random.key(0),
        )
        tx, schedule = splat(
            optim.build_optimizer, self._values, "optim", total_steps=total, params=shapes["params"]
        )
        return Run(self, classes, model, loss, tx, schedule, total_steps=total, eval_every=every)

    def _model(self, *, num_classes: int) -> models.UNet:
        place = {"axis_name": self.parallel.axis_name, "by_matmul": self.parallel.steps_see_whole_arrays}
        return splat(models.build_unet, self._values, "model", num_classes=num_classes, **place)

    def check_training(self, classes: ClassTable, train_images: int) -> None:
        """Raises UserError for a batch larger than the split, UsageError for regions of a class not there."""
        if train_images < self.train.batch_size:
            raise UserError(
                f"train.batch_size={self.train.batch_size} is more than the {train_images} images of "
                f"{self.dataset.name}'s train split; use --config.train.batch_size={train_images} or less"
            )
        regions = self.augmentation.regions.probability
        if regions and self.dataset.region_class not in classes.names:
            raise UsageError(
                f"augment.occlusion.regions.probability={regions} covers dataset.region_class="
                f"{self.dataset.region_class!r}, which is none of {', '.join(classes.names)}; "
                "name one, or use probability=0"
            )

    def steps(self, train_images: int) -> tuple[int, int]:
        """(steps in all, steps between evaluations)."""
        per_epoch = train_images / self.train.batch_size
        total = self.train.steps or math.ceil(self.train.epochs * per_epoch)
        if total > np.iinfo(np.int32).max:
            length = f"steps={total}" if self.train.steps else f"epochs={self.train.epochs}"
            raise UsageError(f"train.{length} is longer than steps can be counted; use less")
        every = self.evaluate.every_steps or math.ceil(self.evaluate.every_epochs * per_epoch)
        return total, min(total, max(1, every))


def _met(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same; all processes have their first one before any of them uses it."""
    for number, batch in enumerate(batches):
        if number == 0:
            distributed.meet()
        yield batch


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment built for its data: the steps, compiled for this machine on first use."""

    experiment: Experiment
    classes: ClassTable
    model: models.UNet
    loss: losses.Loss
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    """Step -> learning rate, for the log."""
    total_steps: int
    eval_every: int

    def init_state(self) -> TrainState:
        """The state before the first step, on the devices. Raises UserError where it can't be there."""
        # Compiled as one program and not optimised: it runs once, and its random draws would take XLA on a
        # CPU 12 s to optimise, against 2.
        build = jax.jit(self.first_state, compiler_options={"xla_backend_optimization_level": 0})
        check_state(build.eval_shape(), self.room())
        return self.experiment.parallel.place_state(build())

    def room(self) -> Room | None:
        """What is free for each device of this process. All have to call it."""
        own = self.experiment.parallel.own_devices
        return device_room(own, processes=distributed.processes_here())

    def first_state(self) -> TrainState:
        """The same, pure; `jax.eval_shape` of it costs nothing."""
        train = self.experiment.train
        return step.init_state(
            self.model,
            self.tx,
            train.seed,
            image_size=self.experiment.dataset.image_size,
            ema=train.ema_decay > 0,
        )

    def inference_state(self, variables: Mapping[str, PyTree]) -> TrainState:
        """A state without optimizer, for evaluation and prediction."""
        state = TrainState(
            step=jax.numpy.zeros((), jax.numpy.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=(),
            rng=jax.random.key(0),
        )
        return self.experiment.parallel.place_state(state)

    def started_from(self, state: TrainState, variables: Mapping[str, PyTree]) -> TrainState:
        """`state` with a parent's parameters and statistics, from which its average starts too."""
        ema = None if state.ema is None else dict(variables)
        return self.experiment.parallel.place_state(
            state.replace(params=variables["params"], batch_stats=variables["batch_stats"], ema=ema)
        )

    def evaluate(
        self,
        data: Data,
        split: str,
        state: TrainState,
        watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
    ) -> evaluate.Evaluation:
        """The figures of a whole split; the batches pass through `watch`, which may stop it."""
        return evaluate.evaluate(
            self.eval_step,
            state,
            watch(self.experiment.eval_stream(data, split)),
            loss=self.loss,
            fetch=self.experiment.parallel.fetch,
        )

    def samples(
        self, data: Data, split: str, state: TrainState, count: int
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """(images uint8, labels, predictions), of `count` examples spread evenly over a split."""
        records = data.records[split]
        chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
        examples = [records[int(i)] for i in chosen]
        images, labels = (np.stack([example[key] for example in examples]) for key in ("image", "label"))
        labels = without_void(labels, data.void_class)
        place = self.experiment.parallel
        # They are cut along their rows only: a device has no more of them than of an evaluation's batch.
        at_once = max(1, self.experiment.evaluate.batch_size // place.parts)
        predictions: list[np.ndarray] = []
        for part in np.array_split(images, math.ceil(len(images) / at_once)):
            photos = place.place_images(part.astype(np.float32) / np.float32(255))
            predictions += list(np.asarray(self.predict_step(state, photos)))
        return list(images), list(labels), predictions

    def step_cost(self, state: PyTree, batch_size: int = 0) -> StepCost:
        """FLOPs and memory of the train step from the shapes of arrays; compiles it, as its first call would.

        FLOPs are those of the whole batch at once: of the second forward pass of train.accumulate they know
        nothing.
        batch_size: another than the run's, for the memory that it would take: compiled in the least time.
        """
        place, train = self.experiment.parallel, self.experiment.train
        batch = step.batch_shapes(batch_size or train.batch_size, self.experiment.dataset.image_size)
        lowered = place.lowered(self.train_step, state, batch)
        if batch_size:
            return step_cost(None, lowered.compile(compiler_options=QUICK))
        counted, taken = place, self.train_step
        if train.accumulate > 1 or len(place.devices) > 1 or place.mode == "pmap":
            # On one device: XLA counts one turn of a loop, and one device's share of a step.
            counted = dataclasses.replace(place, mode="jit", devices=place.own_devices[:1], rows=1)
            body = step.make_train_step(self.model.clone(axis_name=None), self.tx, self.loss)
            taken = counted.compile_train_step(body)
        whole = counted.lowered(taken, state, batch, for_counting=True)
        return step_cost(whole, lowered.compile())

    @cached_property
    def train_step(self) -> step.TrainStep:
        """train_step(state, batch) -> (state, StepOutput); donates the state."""
        train, place = self.experiment.train, self.experiment.parallel
        return place.compile_train_step(
            step.make_train_step(
                self.model,
                self.tx,
                self.loss,
                accumulate=train.accumulate,
                ema_decay=train.ema_decay,
                skip_nonfinite=train.nonfinite == "skip",
                axis_name=place.axis_name,
            )
        )

    @cached_property
    def eval_step(self) -> step.EvalStep:
        """eval_step(state, batch) -> EvalOutput."""
        place = self.experiment.parallel
        body = step.make_eval_step(
            self.model, self.loss, num_classes=len(self.classes.names), axis_name=place.axis_name
        )
        return place.compile_eval_step(body)

    @cached_property
    def predict_step(self) -> step.PredictStep:
        """predict_step(state, images as they are placed) -> class ids."""
        return self.experiment.parallel.compile_predict_step(step.make_predict_step(self.jitted_model))

    def probabilities(self, state: TrainState, *, flip: bool = False) -> Model:
        """[B, h, w, 3] uint8 -> [B, h, w, C], by the parameters of `state`; compiled for the devices.

        flip: the mean over the image and its mirror image.
        """
        body = step.make_probability_step(self.jitted_model, flip=flip)
        return partial(self.experiment.parallel.compile_probability_step(body), state)

    @property
    def jitted_model(self) -> models.UNet:
        """The model for what jit compiles in every mode: mode pmap's arrays too are then cut by it."""
        return self.model.clone(axis_name=None, by_matmul=len(self.experiment.parallel.devices) == 1)


def default_workdir(config: ConfigDict) -> Path:
    """runs/DATASET/RECIPE."""
    return Path("runs") / config.dataset.name / config.recipe


def check_classes(meta: Meta, classes: ClassTable, where: Path) -> None:
    """Raises UserError unless a checkpoint was trained for these classes."""
    if classes_hash(classes) != meta.classes_hash:
        raise UserError(
            f"{where} was trained for {len(meta.classes)} classes ({', '.join(meta.classes)}), the data has "
            f"{len(classes.names)} ({', '.join(classes.names)}); evaluate on the same classes, "
            "or fine-tune with --config.init.exclude=\"('head',)\""
        )


def init_from_parent(
    variables: Mapping[str, PyTree],
    parent: Pretrained,
    exclude: Sequence[str],
    where: Path,
    classes: ClassTable,
) -> tuple[dict[str, PyTree], TransferReport]:
    """The parent's arrays for a fine-tune; other classes need the head in `exclude`."""
    head = jax.tree_util.tree_leaves_with_path({"params": {"head": variables["params"]["head"]}})
    paths = [optim.parameter_path(path) for path, _ in head]
    if not all(any(optim.matches(p, path, key="init.exclude") for p in exclude) for path in paths):
        check_classes(parent.meta, classes, where)
    return transfer(variables, parent, exclude)
