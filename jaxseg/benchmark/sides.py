"""What is timed: steps of an experiment's model, ours and the twin's, on equal inputs."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseg.errors import UsageError
from jaxseg.experiment import Experiment, Run
from jaxseg.parallel import lowered_for_counting
from jaxseg.preflight import told_cost
from jaxseg.types import IGNORE_LABEL, Batch, ClassTable, TrainState

Work = Callable[[], object]

NUM_CLASSES = 7


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch of random images and labels, a tenth of them void."""

    image_bhwc: np.ndarray
    """float32 in [0, 1]."""
    label_bhw: np.ndarray
    """int32."""


def build_run(experiment: Experiment, num_classes: int = NUM_CLASSES) -> Run:
    """The run of an experiment for classes that are only counted, without data."""
    names = tuple(f"class {c}" for c in range(num_classes))
    region = experiment.dataset.region_class
    if region:
        # One of them has the regions that a recipe's augmentation may cover.
        names = (*names[:-1], region)
    classes = ClassTable(names, ((0, 0, 0),) * num_classes)
    # As many images as any batch and any warm-up take.
    return experiment.build(classes, (1,) * num_classes, train_images=1 << 24)


def random_inputs(run: Run) -> Inputs:
    """Of the size of the run's training batches; the same each time."""
    draw = np.random.default_rng(0)
    shape = (run.experiment.train.batch_size, *run.experiment.dataset.image_size)
    label = draw.integers(0, len(run.classes.names), shape).astype(np.int32)
    label[draw.random(shape) < 0.1] = IGNORE_LABEL
    return Inputs(draw.random((*shape, 3), np.float32), label)


def on_device(run: Run, inputs: Inputs) -> Batch:
    """The batch that a step takes."""
    label = inputs.label_bhw
    arrays: dict[str, Any] = {"image": inputs.image_bhwc, "label": label}
    ids = np.arange(len(label), dtype=np.int32)
    batch = Batch(**arrays, occlusion=np.zeros(label.shape, bool), example_id=ids)  # type: ignore[arg-type]
    return jax.block_until_ready(run.experiment.parallel.place_augmented(batch))


def train_work(run: Run, state: TrainState, batches: Iterator[Batch]) -> Work:
    """One train step a call, on the next batch; donates the state.

    As in training the devices go on while the host looks at the loss of the step before: what a call gives
    is to be waited for at the end.
    """
    before: jax.Array | None = None

    def work() -> TrainState:
        nonlocal state, before
        batch = next(batches)
        state, out = run.train_step(state, batch)
        if before is not None:
            float(before)
        before = out.loss
        return state

    return work


def forward_function(run: Run) -> Any:
    """The jitted forward pass, with running statistics, of the model that predicts in every mode."""
    model = run.jitted_model
    return jax.jit(lambda variables, image: model.apply(variables, image, train=False))


def forward_work(forward: Any, state: TrainState, batch: Batch) -> Work:
    """Logits of the batch a call."""
    return lambda: jax.block_until_ready(forward(variables_of(state), batch.image))


def evaluate_work(run: Run, state: TrainState, batch: Batch) -> Work:
    """Losses and confusion matrices of the batch a call, fetched."""
    return lambda: jax.tree.map(np.asarray, run.eval_step(state, batch))


class Cost(NamedTuple):
    """Of a step on all devices, as XLA tells; None where it does not."""

    flops: float | None
    accessed: float | None
    """Bytes read and written by the compiled step. Of calls into libraries XLA may count none, and of a loop,
    as the CPU's forms have, one turn."""


def train_cost(run: Run, state: TrainState, batch: Batch) -> Cost:
    """Of a train step; compiles it, as its first call would."""
    place = run.experiment.parallel
    compiled = place.compiled(run.train_step, state, batch)
    return Cost(run.step_cost(state).flops, _told(compiled, "bytes accessed", len(place.devices)))


def forward_cost(run: Run, forward: Any, state: TrainState, batch: Batch) -> Cost:
    """Of a forward pass; compiles it, as its first call would."""
    traced = forward.trace(variables_of(state), batch.image)
    devices = len(run.experiment.parallel.devices)
    flops = _told(lowered_for_counting(traced), "flops", 1)
    return Cost(flops, _told(traced.lower().compile(), "bytes accessed", devices))


def variables_of(state: TrainState) -> dict[str, Any]:
    """Of the model, as linen has them."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def _told(stage: Any, key: str, times: int) -> float | None:
    value = told_cost(stage, key)
    return value * times if value is not None and value > 0 else None


def torch_works(run: Run, state: TrainState, inputs: Inputs) -> Mapping[str, Work]:
    """The same of the PyTorch twin with our parameters: "train" and "forward"."""
    from jaxseg.benchmark import twin

    section = run.experiment.config.model
    net = twin.UNet(len(run.classes.names), width=section.width, depth=section.depth)
    twin.copy_variables(variables_of(state), net)
    return twin.make_works(
        net,
        inputs.image_bhwc,
        inputs.label_bhw,
        device=torch_device(run.experiment),
        bfloat16=section.dtype == "bfloat16",
        compiled=torch_compiles(run.experiment),
        void=IGNORE_LABEL,
    )


def finish(last: Any) -> None:
    """Waits for what the last call of a Work gave: arrays, or PyTorch's own way to wait."""
    if callable(last):
        last()
    else:
        jax.block_until_ready(last)


def check_twin(experiment: Experiment) -> None:
    """Raises UsageError for a config that the PyTorch twin does not follow, or a device that it can't use."""
    import torch

    if torch_device(experiment) == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"--against=torch: jax runs on a GPU, and PyTorch {torch.__version__} sees none; install PyTorch "
            "for CUDA, or set JAX_PLATFORMS=cpu"
        )
    config = experiment.config
    cross_entropy = config.loss.cross_entropy
    wanted: list[tuple[str, Any, Any]] = [
        ("parallel.devices", len(experiment.parallel.devices), 1),
        ("model.norm", config.model.norm, "batch"),
        ("model.dropout", config.model.dropout, 0.0),
        *(
            (f"loss.{name}.weight", section.weight, float(name == "cross_entropy"))
            for name, section in config.loss.items()
        ),
        ("loss.cross_entropy.class_weights", cross_entropy.class_weights, "none"),
        ("loss.cross_entropy.label_smoothing", cross_entropy.label_smoothing, 0.0),
        ("optim.name", config.optim.name, "adam"),
        ("optim.weight_decay", config.optim.weight_decay, 0.0),
        ("optim.clip_norm", config.optim.clip_norm, 0.0),
        ("optim.freeze", tuple(config.optim.freeze), ()),
        ("optim.multipliers", tuple(config.optim.multipliers), ()),
        ("train.accumulate", config.train.accumulate, 1),
        ("train.ema_decay", config.train.ema_decay, 0.0),
    ]
    other = [(key, value, plain) for key, value, plain in wanted if value != plain]
    if other:
        said = "; ".join(f"{key}={plain!r}, this one {value!r}" for key, value, plain in other)
        flags = {key: f"--config.{key}={plain}" for key, _, plain in other}
        if "parallel.devices" in flags:
            flags["parallel.devices"] = "--config.parallel.mode=jit"
        mend = " ".join(map(shlex.quote, flags.values()))
        raise UsageError(f"--against=torch: PyTorch's side has {said}; use {mend}")


def torch_device(experiment: Experiment) -> str:
    """PyTorch's name for the kind of device that we run on."""
    return "cuda" if experiment.parallel.devices[0].platform == "gpu" else "cpu"


def torch_compiles(experiment: Experiment) -> bool:
    """Whether PyTorch is measured with torch.compile: where it is at its best with it, on a GPU."""
    return torch_device(experiment) == "cuda"
