"""What is written whole or not at all, and what a killed process leaves of it."""

import os
import time

from jaxseg.files import remove_leftovers, replacing


def test_what_a_killed_process_leaves_is_removed_a_day_later(tmp_path):
    with replacing(tmp_path / "report.html"):
        (left,) = tmp_path.iterdir()  # as it is named while it is written
    names = left.name, "report.html.tmp", "mine.tmp", "data.0123456789.tmp", "notes.ABCDEF01.tmp"
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {*names} < {path.name for path in tmp_path.iterdir()}, "a process may be writing them"
    for name in names:
        os.utime(tmp_path / name, 2 * (time.time() - 25 * 3600,))
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", *names[1:]}
    remove_leftovers(tmp_path / "not there")
