"""Files are there as a whole or not at all."""

from __future__ import annotations

import pytest

from trajmill.errors import ConvertError, StoreError
from trajmill.writing import whole


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    file = tmp_path / "made.txt"
    with whole(str(file), ConvertError) as aside:
        aside.write_text("all of it")
        assert not file.exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"made.txt": "all of it"}


def test_what_fails_leaves_the_old_file_as_it_was_and_nothing_beside_it(tmp_path):
    file = tmp_path / "made.txt"
    file.write_text("before")

    def stopped():
        with whole(file, ConvertError) as aside:
            aside.write_text("half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"made.txt": "before"}


def test_a_place_that_is_none_is_one_line(tmp_path):
    file = tmp_path / "nowhere/made.txt"
    no_place = pytest.raises(ConvertError, match=r"^.*nowhere/made\.txt: cannot be written \(.*No such file.*\)$")
    with no_place, whole(file, ConvertError) as aside:
        aside.write_text("all of it")


def test_an_error_of_what_is_read_meanwhile_is_not_taken_for_one_of_the_file(tmp_path):
    class UnreadableError(StoreError, OSError):
        pass

    with pytest.raises(UnreadableError, match="the store"), whole(tmp_path / "made.txt", ConvertError):
        raise UnreadableError("the store cannot be read")
