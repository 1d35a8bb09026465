"""A run that met no fault, for all tests beside it."""

import pytest

from jaxseg.verify import run_digests
from tests.faults.runs import argv, run, write_data


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with data, prepared, and a run that was left alone and read without workers."""
    folder = tmp_path_factory.mktemp("left_alone")
    write_data(folder)
    status, printed = run(argv(folder, folder / "whole"))
    assert status == 0, printed
    return folder


@pytest.fixture(scope="session")
def digests(place):
    return run_digests(place / "whole")
