"""Prepared records that a disk has changed: what was written is read, or one line says what to remove."""

import random

import pytest

from jaxseg.data.folder import open_folder
from jaxseg.data.prepare import prepare_split
from jaxseg.data.records import open_records
from tests.dataset_fakes import write_folder
from tests.faults.tally import CASES, Tally, limits, named, run_case

PAGE = 512


def somewhere(data, rng):
    """Where there is something: the files are mostly padding."""
    return rng.choice([at for at, value in enumerate(data) if value])


def flip_a_bit(data, rng):
    data[somewhere(data, rng)] ^= 1 << rng.randrange(8)


def zero_a_block(data, rng):
    at = somewhere(data, rng)
    data[at : at + PAGE] = bytes(len(data[at : at + PAGE]))


def cut(data, rng):
    del data[somewhere(data, rng) :]


def swap_pages(data, rng):
    first, second = (somewhere(data, rng) // PAGE * PAGE for _ in range(2))
    one, other = data[first : first + PAGE], data[second : second + PAGE]
    data[first : first + PAGE], data[second : second + PAGE] = other, one


@pytest.mark.parametrize("damage", [flip_a_bit, zero_a_block, cut, swap_pages])
def test_damaged_records_are_refused_or_read_as_written(tmp_path, capfd, damage):
    source = open_folder(write_folder(tmp_path / "data"))
    directory = prepare_split(source, "val", (16, 16), tmp_path, workers=1, show_progress=False)
    (file,) = directory.glob("*.array_record-*")
    whole = file.read_bytes()

    def read():
        records = open_records(directory)
        return [
            (*(array.tobytes() for array in records[i].values()), records.source_label(i).tobytes())
            for i in range(len(records))
        ]

    def check(found):
        assert found == written

    written, tally = read(), Tally()
    capfd.readouterr()
    with limits():
        for case in range(CASES // 4):
            rng, data = random.Random(f"records {case}"), bytearray(whole)
            damage(data, rng)
            file.write_bytes(data)
            with named(case):
                run_case(tally, read, check)
    assert capfd.readouterr() == ("", "")
    print(damage.__name__, tally)
    assert tally.refused, "or the damage has missed all that matters"
