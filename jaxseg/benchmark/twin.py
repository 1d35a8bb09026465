"""The same UNet in plain PyTorch, to be measured against and held equal to; nothing else uses it.

Written as a PyTorch user would: modules of `torch.nn`, channels_last, fused Adam. `copy_variables` brings our
parameters over, so that both sides compute the same numbers. Imports no jax: as a process of its own
(`python -m jaxseg.benchmark.twin`) it shows the memory that PyTorch alone takes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from jaxseg.benchmark.resident import peak_resident, resident


class DoubleConv(nn.Sequential):
    """Twice: 3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, features, 3, padding=1),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 3, padding=1),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """`jaxseg.models.UNet` with norm="batch" and without dropout: [B, 3, H, W] -> [B, classes, H, W]."""

    def __init__(self, num_classes: int, *, width: int, depth: int) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            DoubleConv(inputs, features) for inputs, features in zip([3, *widths], widths[:-1], strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = DoubleConv(widths[-2], widths[-1])
        self.upconv = nn.ModuleList(nn.ConvTranspose2d(2 * f, f, 2, stride=2) for f in widths[:-1])
        self.up = nn.ModuleList(DoubleConv(2 * f, f) for f in widths[:-1])
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for upconv, block, skip in reversed(list(zip(self.upconv, self.up, skips, strict=True))):
            x = block(torch.cat([skip, upconv(x)], dim=1))
        return self.head(x)


def make_works(
    net: UNet,
    image_bhwc: np.ndarray,
    label_bhw: np.ndarray,
    *,
    device: str,
    bfloat16: bool,
    compiled: bool,
    void: int,
) -> dict[str, Callable[[], Callable[[], None]]]:
    """A step on the batch, "train" or "forward"; each gives what waits for its end.

    channels_last, fused Adam; on a GPU ("cuda") cuDNN's fastest convolutions; autocast for `bfloat16`,
    torch.compile for `compiled`. As ours, training looks at the loss of the step before. void: the label that
    is not trained.
    """
    # PyTorch documents `memory_format` for modules; its type overloads lack it.
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.from_numpy(np.ascontiguousarray(image_bhwc.transpose(0, 3, 1, 2)))
    image = image.to(device, memory_format=torch.channels_last)
    label = torch.from_numpy(label_bhw.astype(np.int64)).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    torch.backends.cudnn.benchmark = True
    model = torch.compile(net) if compiled else net
    before: list[torch.Tensor] = []
    cast = torch.autocast(device, torch.bfloat16, enabled=bfloat16)

    def done() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def train() -> Callable[[], None]:
        net.train()
        optimizer.zero_grad(set_to_none=True)
        with cast:
            logits = model(image)
        loss = torch.nn.functional.cross_entropy(logits.float(), label, ignore_index=void)
        loss.backward()
        optimizer.step()
        if before:
            before.pop().item()
        before.append(loss.detach())
        return done

    def forward() -> Callable[[], None]:
        net.eval()
        with torch.inference_mode(), cast:
            model(image)
        done()
        return done

    return {"train": train, "forward": forward}


def copy_variables(variables: Mapping[str, Any], twin: UNet) -> None:
    """Writes our `params` and `batch_stats` (NumPy or jax arrays) into the twin."""
    params, stats = variables["params"], variables["batch_stats"]
    blocks: dict[str, Any] = {"bottleneck": twin.bottleneck}
    for level, (down, up, upconv) in enumerate(zip(twin.down, twin.up, twin.upconv, strict=True)):
        blocks |= {f"down{level}": down, f"up{level}": up}
        _convolution(upconv, params[f"upconv{level}"], (2, 3, 0, 1))
    _convolution(twin.head, params["head"], (3, 2, 0, 1))
    for name, block in blocks.items():
        for i in range(2):
            _convolution(block[3 * i], params[name][f"conv{i}"], (3, 2, 0, 1))
            norm = block[3 * i + 1]
            _write(norm.weight, params[name][f"norm{i}"]["scale"])
            _write(norm.bias, params[name][f"norm{i}"]["bias"])
            _write(norm.running_mean, stats[name][f"norm{i}"]["mean"])
            _write(norm.running_var, stats[name][f"norm{i}"]["var"])


def _convolution(module: Any, params: Mapping[str, Any], axes: tuple[int, ...]) -> None:
    """axes: where PyTorch's [out, in, H, W], or [in, out, H, W] where transposed, stand in our kernel."""
    _write(module.weight, np.transpose(np.asarray(params["kernel"]), axes))
    _write(module.bias, params["bias"])


def _write(tensor: Any, values: Any) -> None:
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.array(values)))


def _main(facts: Mapping[str, Any]) -> None:
    """Prints the peak memory of train steps: see `memory`, which gives the facts."""
    at_start = resident()
    draw = np.random.default_rng(0)
    shape = tuple(facts["shape_bhw"])
    image, label = draw.random((*shape, 3), np.float32), draw.integers(0, facts["classes"], shape)
    net = UNet(facts["classes"], width=facts["width"], depth=facts["depth"])
    device = facts["device"]
    asked = {name: facts[name] for name in ("bfloat16", "compiled", "void")}
    works = make_works(net, image, label, device=device, **asked)
    for _ in range(facts["steps"]):
        works["train"]()
    on_gpu = device == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_resident()
    print(json.dumps({"peak_bytes": peak, "start_bytes": 0 if on_gpu else at_start}))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
