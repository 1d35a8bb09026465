"""What is timed: steps of an experiment's model, ours and the twin's, on equal inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxseg.experiment import Experiment, Run
from jaxseg.types import IGNORE_LABEL, Batch, ClassTable, TrainState

Work = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch of random images and labels, a tenth of them void."""

    image_bhwc: np.ndarray
    """float32 in [0, 1]."""
    label_bhw: np.ndarray
    """int32."""


def build_run(experiment: Experiment, num_classes: int) -> Run:
    """The run of an experiment for classes that are only counted, without data."""
    names = tuple(f"class {c}" for c in range(num_classes))
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


def train_work(run: Run, inputs: Inputs) -> Work:
    """One train step a call, on a batch that lies on the device already."""
    state, batch = run.init_state(), _on_device(run, inputs)

    def work() -> None:
        nonlocal state
        state, out = run.train_step(state, batch)
        jax.block_until_ready((state, out))

    return work


def forward_work(run: Run, inputs: Inputs) -> Work:
    """Logits of the batch a call, with running statistics."""
    state, image = run.init_state(), _on_device(run, inputs).image
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    forward = jax.jit(lambda variables, image: run.model.apply(variables, image, train=False))
    return lambda: jax.block_until_ready(forward(variables, image))


def evaluate_work(run: Run, inputs: Inputs) -> Work:
    """Losses and confusion matrices of the batch a call, fetched."""
    state, batch = run.init_state(), _on_device(run, inputs)
    return lambda: jax.tree.map(np.asarray, run.eval_step(state, batch))


def _on_device(run: Run, inputs: Inputs) -> Batch:
    label = inputs.label_bhw
    arrays: dict[str, Any] = {"image": inputs.image_bhwc, "label": label}
    ids = np.arange(len(label), dtype=np.int32)
    batch = Batch(**arrays, occlusion=np.zeros(label.shape, bool), example_id=ids)  # type: ignore[arg-type]
    return jax.block_until_ready(run.experiment.parallel.place_batch(batch))


def torch_works(run: Run, state: TrainState, inputs: Inputs) -> dict[str, Work]:
    """The same of the PyTorch twin with our parameters, at its best settings: "train" and "forward".

    channels_last, fused Adam; on a GPU torch.compile, and autocast where the run computes in bfloat16.
    """
    import torch

    from jaxseg.benchmark import twin

    section = run.experiment.config.model
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    net = twin.UNet(len(run.classes.names), width=section.width, depth=section.depth)
    twin.copy_variables({"params": state.params, "batch_stats": state.batch_stats}, net)
    # PyTorch documents `memory_format` for modules; its type overloads lack it.
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.from_numpy(np.ascontiguousarray(inputs.image_bhwc.transpose(0, 3, 1, 2)))
    image = image.to(device, memory_format=torch.channels_last)
    label = torch.from_numpy(inputs.label_bhw.astype(np.int64)).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    model = torch.compile(net) if device == "cuda" else net
    cast = torch.autocast(device, torch.bfloat16, enabled=section.dtype == "bfloat16")

    def done() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def train() -> None:
        net.train()
        optimizer.zero_grad(set_to_none=True)
        with cast:
            logits = model(image)
        torch.nn.functional.cross_entropy(logits.float(), label, ignore_index=IGNORE_LABEL).backward()
        optimizer.step()
        done()

    def forward() -> None:
        net.eval()
        with torch.inference_mode(), cast:
            model(image)
        done()

    return {"train": train, "forward": forward}
