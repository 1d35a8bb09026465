"""Data, and a run that two processes have taken to its end, for all tests beside it."""

import pytest

from tests.dataset_fakes import write_camvid
from tests.distributed.processes import tells_what_it_reads, together


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with 10 and 5 images: neither fills its last batch."""
    folder = tmp_path_factory.mktemp("distributed")
    write_camvid(folder / "camvid", (("train", 10), ("val", 5)))
    return folder


@pytest.fixture(scope="session")
def pair(place):
    """A run that two processes have taken to its end."""
    more = ("--config.log.tensorboard=True",)
    results = together(place, place / "pair", *more, recipe=tells_what_it_reads(place / "recipe"))
    assert [status for status, _ in results] == [0, 0], results
    assert "scratch 8/8" in results[0][1]
    assert "scratch" not in results[1][1], "only the first prints"
    return place / "pair"
