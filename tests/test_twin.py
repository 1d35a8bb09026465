"""The PyTorch twin computes what the model computes, and runs as it is measured."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.losses import cross_entropy
from jaxseg.models import UNet
from jaxseg.types import IGNORE_LABEL


@pytest.fixture(scope="module", params=[(8, False), (32, True)], ids=["plain", "fast"])
def pair(request):
    """(our model, its variables, the twin with the same, an image, its labels), of all convolutions."""
    width, by_matmul = request.param
    pytest.importorskip("torch")
    from jaxseg.benchmark import twin

    draw = np.random.default_rng(0)
    image = draw.random((2, 32, 48, 3), np.float32)
    label = draw.integers(0, 5, (2, 32, 48)).astype(np.int32)
    label[:, :7] = IGNORE_LABEL
    model = UNet(5, width=width, depth=2, by_matmul=by_matmul)
    variables = model.init(jax.random.key(0), jnp.asarray(image), train=False)
    # Norms that do something, and differ.
    variables = jax.tree.map(lambda a: a + 0.1 * draw.random(a.shape, np.float32), variables)
    net = twin.UNet(5, width=width, depth=2)
    twin.copy_variables(variables, net)
    return model, variables, net, image, label


def logits_of_twin(net, image):
    import torch

    return net(torch.from_numpy(image.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1)


@pytest.mark.parametrize("train", [False, True])
def test_the_twin_computes_the_same_logits(pair, train):
    model, variables, net, image, _ = pair
    ours = model.apply(variables, image, train=train, mutable=["batch_stats"])[0]
    theirs = logits_of_twin(net.train(train), image).detach().numpy()
    # Sums in another order; with batch statistics divided by small deviations.
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * float(np.abs(theirs).max()))


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


def test_the_twin_has_the_same_gradient(pair):
    import torch

    model, variables, net, image, label = pair
    loss = cross_entropy()

    def ours(params):
        out = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])[0]
        return loss(out, jnp.asarray(label))

    value, gradient = jax.value_and_grad(ours)(variables["params"])
    net.train().zero_grad()
    logits = logits_of_twin(net, image).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(label).long(), ignore_index=IGNORE_LABEL
    )
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), rel=1e-5)
    pairs = {
        "head": (gradient["head"]["kernel"], net.head.weight, (2, 3, 1, 0)),
        "upconv0": (gradient["upconv0"]["kernel"], net.upconv[0].weight, (2, 3, 0, 1)),
        "first": (gradient["down0"]["conv0"]["kernel"], net.down[0][0].weight, (2, 3, 1, 0)),
        "norm": (gradient["bottleneck"]["norm1"]["scale"], net.bottleneck[4].weight, (0,)),
    }
    for name, (mine, parameter, axes) in pairs.items():
        other = parameter.grad.numpy().transpose(axes)
        np.testing.assert_allclose(mine, other, atol=1e-4 * np.abs(other).max(), err_msg=name)
