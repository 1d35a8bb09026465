"""The PyTorch twin computes what the model computes, and runs as it is measured."""

import collections
import copy
import os
import re
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.losses import cross_entropy
from jaxseg.models import UNet, convolution
from jaxseg.types import IGNORE_LABEL

GRADIENTS_AGREE = 2e-3
"""Relative. Of six seeds the farthest was 7e-5 to 2e-4 away at width 8, and 4e-4 to 1.6e-3 at width 32."""

CHANGE = 1e-6
"""Of each number of an image, up or down, by which a tolerance is measured."""


class Pair(NamedTuple):
    """The same network twice, with what goes in."""

    model: UNet
    variables: dict[str, Any]
    net: Any
    image: np.ndarray
    label: np.ndarray


def make_pair(size, *, width, depth, by_matmul, kernels_moved, seed=0):
    """kernels_moved: all variables are, not only the norms'; few activations are then near zero."""
    pytest.importorskip("torch")
    from jaxseg.benchmark import twin

    draw = np.random.default_rng(seed)
    image = draw.random((2, *size, 3), np.float32)
    label = draw.integers(0, 5, (2, *size)).astype(np.int32)
    label[:, :7] = IGNORE_LABEL
    model = UNet(5, width=width, depth=depth, by_matmul=by_matmul)
    variables = jax.jit(lambda image: model.init(jax.random.key(seed), image, train=False))(image)

    def moved(path, array):
        # Norms that do something, and differ.
        norm = any(key.key.startswith("norm") for key in path)
        return array + 0.1 * draw.random(array.shape, np.float32) if norm or kernels_moved else array

    variables = jax.tree_util.tree_map_with_path(moved, variables)
    net = twin.UNet(5, width=width, depth=depth)
    twin.copy_variables(variables, net)
    return Pair(model, variables, net, image, label)


@pytest.fixture(scope="module", params=[(8, False), (32, True)], ids=["plain", "fast"])
def pair(request):
    """Of the convolutions that no tiles are taken for."""
    width, by_matmul = request.param
    return make_pair((32, 48), width=width, depth=2, by_matmul=by_matmul, kernels_moved=True)


@pytest.fixture(scope="module")
def tiled():
    """As the benchmark's: 128 channels to 128, of 32x32 pixels, in the bottleneck."""
    return make_pair((64, 64), width=64, depth=1, by_matmul=True, kernels_moved=False)


def logits_of_twin(net, image):
    import torch

    return net(torch.from_numpy(image.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1)


@pytest.mark.parametrize("train", [False, True])
def test_the_twin_computes_the_same_logits(pair, train):
    assert_same_logits(pair, train)


@pytest.mark.parametrize("train", [False, True])
def test_the_twin_computes_the_same_logits_as_tiles(tiled, train, calls_of_tiles):
    assert_same_logits(tiled, train)
    assert calls_of_tiles["conv_3x3_by_tiles"]


def assert_same_logits(pair, train):
    ours = pair.model.apply(pair.variables, pair.image, train=train, mutable=["batch_stats"])[0]
    theirs = logits_of_twin(pair.net.train(train), pair.image).detach().numpy()
    # Sums in another order; with batch statistics divided by small deviations.
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(np.abs(theirs).max()))


@pytest.fixture
def calls_of_tiles(monkeypatch):
    """How often each of the forms by tiles is traced."""
    calls = collections.Counter()
    for name in ("conv_3x3_by_tiles", "input_gradient_by_tiles", "kernel_gradient_by_tiles"):
        form = getattr(convolution, name)

        def counted(*arrays, form=form, name=name):
            calls[name] += 1
            return form(*arrays)

        monkeypatch.setattr(convolution, name, counted)
    return calls


def cpp_compiler():
    """Whether there is what torch.compile makes programs for a CPU with."""
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))


@pytest.mark.skipif(not cpp_compiler(), reason="torch.compile needs a C++ compiler, and there is none")
def test_the_twin_runs_compiled_in_bfloat16(tmp_path, monkeypatch):
    """As on a GPU; its losses and logits are those of the eager twin, rounded."""
    torch = pytest.importorskip("torch")
    from jaxseg.benchmark import twin

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # Else it starts a process a core, to compile with.
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    draw = np.random.default_rng(0)
    image, label = draw.random((2, 16, 16, 3), np.float32), draw.integers(0, 5, (2, 16, 16))
    logits, values = {}, {}
    for compiled in (False, True):
        torch.manual_seed(0)
        net = twin.UNet(5, width=4, depth=1)
        before = [value.clone() for value in net.parameters()]
        seen = []
        net.head.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.detach().clone()))
        works = twin.make_works(
            net, image, label, device="cpu", bfloat16=True, compiled=compiled, void=IGNORE_LABEL
        )
        for name in ("train", "forward"):
            works[name]()()
        logits[compiled] = [out.float().numpy() for out in seen]
        assert {out.dtype for out in seen} == {torch.bfloat16}, "autocast"
        after = values[compiled] = [value.detach().numpy() for value in net.parameters()]
        assert all(np.isfinite(value).all() for value in after)
        assert any((a != b.detach().numpy()).any() for a, b in zip(after, before, strict=True))
    for eager, compiled in zip(logits[False], logits[True], strict=True):
        assert np.isfinite(compiled).all()
        np.testing.assert_allclose(compiled, eager, atol=0.05 * np.abs(eager).max())


def test_the_twin_has_the_same_gradients(pair, calls_of_tiles):
    value, ours = our_gradients(pair)
    other, theirs = gradients_of_twin(pair, pair.image)
    assert value == pytest.approx(other, rel=1e-5)
    assert not {name: far for name, far in distances(ours, theirs).items() if far > GRADIENTS_AGREE}
    assert not calls_of_tiles, "those have a test of their own"


def test_the_twin_has_the_same_gradients_as_tiles(tiled, calls_of_tiles):
    """No farther from PyTorch's than PyTorch's own go where the image changes by a millionth.

    With kernels as a run begins with, so many activations are near zero, or near another of their pooling
    window, that rounding decides where some gradients go. Of eight seeds the farthest gradient was 9e-6 to
    4.6e-3 away, and without tiles as far or, of one seed, twice as far; the largest of three changes moved
    PyTorch's by 2.8e-3 to 8.5e-3.
    """
    value, ours = our_gradients(tiled)
    assert len(calls_of_tiles) == 3, f"only {dict(calls_of_tiles)} are taken"
    other, theirs = gradients_of_twin(tiled, tiled.image)
    assert value == pytest.approx(other, rel=1e-5)
    draw = np.random.default_rng(1)
    moved = 0.0
    for _ in range(3):
        change = draw.choice(np.float32([-CHANGE, CHANGE]), tiled.image.shape)
        changed = gradients_of_twin(tiled, tiled.image + change)[1]
        moved = max(moved, *distances(changed, theirs).values())
    assert moved < 1e-2, "too coarse a measure"
    assert not {name: far for name, far in distances(ours, theirs).items() if far > moved}


def our_gradients(pair):
    """(loss, gradients by the twin's names and in its layout), as in training."""
    from jaxseg.benchmark import twin

    def loss(params):
        variables = {**pair.variables, "params": params}
        out = pair.model.apply(variables, pair.image, train=True, mutable=["batch_stats"])[0]
        return cross_entropy()(out, jnp.asarray(pair.label))

    value, gradients = jax.jit(jax.value_and_grad(loss))(pair.variables["params"])
    carrier = copy.deepcopy(pair.net)
    twin.copy_variables({**pair.variables, "params": gradients}, carrier)
    return float(value), {name: array.detach().numpy() for name, array in carrier.named_parameters()}


def gradients_of_twin(pair, image):
    """The same of PyTorch's, of this image."""
    import torch

    pair.net.train().zero_grad()
    logits = logits_of_twin(pair.net, image).permute(0, 3, 1, 2)
    label = torch.from_numpy(pair.label).long()
    loss = torch.nn.functional.cross_entropy(logits, label, ignore_index=IGNORE_LABEL)
    loss.backward()
    return loss.item(), {name: array.grad.numpy().copy() for name, array in pair.net.named_parameters()}


def distances(gradients, others):
    """|a - b| / |b| of each, with |b| of the kernel for a bias before a norm: its own gradient is zero."""
    assert gradients.keys() == others.keys()
    found = {}
    for name, other in others.items():
        before_norm = re.fullmatch(r"(down\.\d|bottleneck|up\.\d)\.[03]\.bias", name)
        scale = others[name.replace("bias", "weight")] if before_norm else other
        found[name] = float(np.linalg.norm(gradients[name] - other) / np.linalg.norm(scale))
    return found
