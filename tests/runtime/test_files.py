"""A file is there whole, or it is as it was."""

import errno
import os

import numpy as np
import pytest

from pruning_lab.errors import UserError
from pruning_lab.runtime import files
from pruning_lab.runtime.files import check_folder, replacing, write_json


def test_a_file_appears_when_it_is_complete_and_on_the_disk(tmp_path, monkeypatch):
    path, seen = tmp_path / "deep" / "file", []
    own = files.to_disk
    monkeypatch.setattr(files, "to_disk", lambda each: (seen.append(each.name), own(each)))
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
    assert seen == [".file.part", "deep"]  # its content, then its name


def test_what_a_killed_process_left_is_overwritten(tmp_path):
    (tmp_path / ".file.part").write_text("half of what was to be")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_is_said_and_leaves_the_old_file(number, tmp_path):
    path = tmp_path / "file"
    write_json(path, {"old": 1})

    def refused():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=rf"file cannot be written: {os.strerror(number)}\. Make r"):
        refused()
    assert path.read_text() == '{"old": 1}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_are_handed_on(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "file"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_json_holds_numpys_numbers_exactly(tmp_path):
    write_json(tmp_path / "x", {"a": np.float64(0.1), "b": np.arange(2), "c": np.int64(3)})
    assert (tmp_path / "x").read_text() == '{"a": 0.1, "b": [0, 1], "c": 3}\n'


def test_a_folder_is_tried_and_left_as_it_was(tmp_path):
    check_folder("there", tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"there=.*deep cannot be written: Not a directory \(/.*fi"):
        check_folder("there", tmp_path / "file" / "deep")
