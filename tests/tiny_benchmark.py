"""The benchmark of a tiny model, for tests."""

import pytest

from jaxseg.benchmark import sides
from jaxseg.experiment import Experiment, load_recipe
from jaxseg.main import main
from tests.faults.runs import ROOT

TINY = (
    f"--config={ROOT}/configs/scratch.py:camvid",
    "--config.dataset.image_size=(16,16)",
    "--config.model.width=4",
    "--config.model.depth=1",
    "--config.train.batch_size=2",
    "--config.parallel.mode=jit",
    "--rounds=3",
    "--seconds=0",
)


def benchmark(capsys, *flags):
    """(status, all that the command printed)."""
    with pytest.raises(SystemExit) as end:
        main(["benchmark", *TINY, *flags])
    printed = capsys.readouterr()
    return end.value.code, printed.out + printed.err


def tiny_run(width=4, mode="jit", **more):
    """The run of TINY, of another width and mode; `more`: SECTION_KEY=VALUE."""
    config = load_recipe(ROOT / "configs" / "scratch.py", "camvid")
    with config.unlocked():
        config.dataset.image_size = (16, 16)
        config.model.width, config.model.depth = width, 1
        config.train.batch_size = 2
        config.parallel.mode = mode
        for key, value in more.items():
            section, _, name = key.partition("_")
            config[section][name] = value
    return sides.build_run(Experiment(config))
