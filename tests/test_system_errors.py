"""What the system says against a file: always one line with a mend, and never that a file is broken."""

import errno
import os

import pytest

from jaxseg.errors import UserError, passing, storage_errors

EVERY = sorted(errno.errorcode)


@pytest.mark.parametrize("code", EVERY, ids=[errno.errorcode[code] for code in EVERY])
def test_whatever_a_disk_says_ends_in_one_line_with_a_mend(tmp_path, code):
    with pytest.raises(UserError) as told, storage_errors(tmp_path):
        raise OSError(code, os.strerror(code), str(tmp_path / "file"))
    said = str(told.value)
    assert said.startswith(f"{tmp_path / 'file'}: {os.strerror(code)}; ")
    assert said.endswith(", and run the same command again: all that was saved is kept")


def test_a_network_disk_that_does_not_answer_is_named_with_its_mend(tmp_path):
    said = "timed out; see that the disk is there and answers"
    with pytest.raises(UserError, match=said), storage_errors(tmp_path):
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def test_what_a_library_says_of_a_file_is_not_the_systems(tmp_path):
    with pytest.raises(OSError, match="no photo"), storage_errors(tmp_path):
        raise OSError("no photo")


@pytest.mark.parametrize("code", EVERY, ids=[errno.errorcode[code] for code in EVERY])
def test_a_file_may_be_sound_unless_the_system_says_that_it_is_missing(code):
    missing = code in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    in_the_text = ValueError(f"Error reading [source locations='x'] [os_error_code='{code}']")
    around = ValueError("x")
    around.__cause__ = OSError(code, "x")
    for error in (OSError(code, "x"), in_the_text, around):
        told = passing(error)
        assert (told is None) == missing
        assert told is None or told[0] == os.strerror(code)
    assert passing(ValueError("it fails its checksum")) is None
