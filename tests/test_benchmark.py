"""The benchmark: it times what it says, in turns; and the PyTorch twin computes what the model computes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.benchmark import rounds
from jaxseg.losses import cross_entropy
from jaxseg.main import main
from jaxseg.models import UNet
from jaxseg.types import IGNORE_LABEL
from tests.faults.runs import ROOT

TINY = (
    f"--config={ROOT}/configs/scratch.py:camvid",
    "--config.dataset.image_size=(16,16)",
    "--config.model.width=4",
    "--config.model.depth=1",
    "--config.train.batch_size=2",
    "--rounds=3",
    "--seconds=0",
)


def test_sides_take_turns_and_every_other_round_the_other_way(monkeypatch):
    clock, called = [0.0], []
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: clock[0])

    def work(name, seconds):
        called.append(name)
        clock[0] += seconds

    sides = {"a": lambda: work("a", 1.0), "b": lambda: work("b", 3.0)}
    times = rounds.in_turns(sides, rounds=2, at_least_s=2.0)
    assert called == ["a", "b", *"aab", *"baa"]
    assert times["a"].seconds == (1.0, 1.0) and times["b"].median == 3.0
    assert rounds.ratio(times["b"], times["a"]) == (3.0, 3.0, 3.0)


def test_a_slow_round_does_not_move_the_median():
    times = rounds.Times((1.0, 9.0, 1.1))
    assert times.median == 1.1 and times.to_json()["max_s"] == 9.0


def test_all_is_measured_and_written(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["benchmark", *TINY, f"--output={tmp_path / 'figures.json'}"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "batch 2, 7 classes" in printed and "train step  jaxseg " in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["train"]["jaxseg"]["rounds_s"]) == 3
    for name in ("train", "forward", "evaluate"):
        side = figures[name]["jaxseg"]
        assert side["images_per_s"] == pytest.approx(2 / side["median_s"])
        assert side["min_s"] <= side["median_s"] <= side["max_s"]


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--what=tain", 'can\'t be measured; did you mean "train"?'),
        ("--rounds=0", "--rounds=0 measures nothing; use at least 1"),
    ],
)
def test_what_can_not_be_measured_is_refused(capsys, flag, says):
    with pytest.raises(SystemExit) as end:
        main(["benchmark", *TINY, flag])
    assert end.value.code == 2 and says in capsys.readouterr().err


@pytest.fixture(scope="module")
def pair():
    """(our model, its variables, the twin with the same, an image, its labels)."""
    pytest.importorskip("torch")
    from jaxseg.benchmark import twin

    draw = np.random.default_rng(0)
    image = draw.random((2, 32, 48, 3), np.float32)
    label = draw.integers(0, 5, (2, 32, 48)).astype(np.int32)
    label[:, :7] = IGNORE_LABEL
    model = UNet(5, width=8, depth=2)
    variables = model.init(jax.random.key(0), jnp.asarray(image), train=False)
    # Norms that do something, and differ.
    variables = jax.tree.map(lambda a: a + 0.1 * draw.random(a.shape, np.float32), variables)
    net = twin.UNet(5, width=8, depth=2)
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
