"""Pictures and numbers in a folder, and what is not overwritten."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
import pytest

from trajmill.analysis import FIGURES
from trajmill.analysis.base import pick
from trajmill.analysis.files import LISTING, save, subjects, summary
from trajmill.analysis.numbers import count
from trajmill.errors import FigureError, ReleaseError


@pytest.fixture(scope="module")
def counts(mixed, samples):
    return count(subjects([mixed, samples]), pick(FIGURES, ["sizes", "curation"]))


def test_four_files_a_figure(counts, tmp_path):
    out = tmp_path / "a/b"
    written = save(counts, out)
    names = {f"{name}.{end}" for name in ("sizes", "curation") for end in ("png", "svg", "csv", "parquet")}
    assert {file.name for file in written} == names
    assert {file.name for file in out.iterdir()} == {*names, LISTING}
    assert (out / "sizes.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "sizes.svg").read_text()[:2000]


def test_numbers_are_the_same_in_all_forms(counts, tmp_path):
    save(counts, tmp_path)
    table = pq.read_table(tmp_path / "sizes.parquet")
    with (tmp_path / "sizes.csv").open() as file:
        as_text = list(csv.DictReader(file))
    assert as_text == [{name: str(value) for name, value in row.items()} for row in table.to_pylist()]
    assert set(table["dataset"].to_pylist()) == {"mixed", "store"}
    both = counts.tables["sizes"]
    assert len(table) == len(both["mixed"]) + len(both["store"])


def test_ours_are_replaced_and_others_are_not(counts, tmp_path):
    save(counts, tmp_path)
    (tmp_path / "sizes.csv").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    save(counts, tmp_path)
    assert (tmp_path / "sizes.csv").read_text() != "old"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_of_somebody_else_is_left_alone(counts, tmp_path):
    (tmp_path / "curation.svg").write_text("mine")
    with pytest.raises(FigureError, match=r"curation.svg: was not written by trajmill figures; choose another folder"):
        save(counts, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["curation.svg"]
    assert (tmp_path / "curation.svg").read_text() == "mine"


def test_an_earlier_figure_stays_ours(counts, mixed, tmp_path):
    """A figure of an earlier run with other names may be replaced by a later one."""
    save(counts, tmp_path)
    other = count(subjects([mixed]), pick(FIGURES, ["energy"]))
    save(other, tmp_path)
    save(counts, tmp_path)
    about = json.loads((tmp_path / LISTING).read_text())
    assert set(about["files"]) == {file.name for file in tmp_path.iterdir()} - {LISTING}
    assert list(about["figures"]) == ["sizes", "curation"]


@pytest.mark.parametrize("content", ["{}", "not json", "[]"])
def test_a_listing_of_somebody_else(counts, tmp_path, content):
    (tmp_path / LISTING).write_text(content)
    with pytest.raises(FigureError, match="was not written by trajmill figures"):
        save(counts, tmp_path)
    assert (tmp_path / LISTING).read_text() == content


def test_a_folder_that_cannot_be_written(counts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FigureError, match="cannot be written"):
        save(counts, tmp_path / "file/below")


def test_what_is_left_out_is_said(published, tmp_path):
    file = next(published.glob("compatible_pbe/*.parquet"))
    counts = count(subjects([file]), pick(FIGURES, ["steps", "curation"]))
    written = save(counts, tmp_path)
    lines = list(summary(counts, written))
    assert lines[-1].startswith(f"left out: curation of {file.name}: what was rejected stands in")
    assert json.loads((tmp_path / LISTING).read_text())["left_out"]["curation"]
    assert not (tmp_path / "curation.csv").exists()


class TestLabels:
    def test_the_last_part_of_the_address(self, mixed, samples):
        assert list(subjects([mixed, f"{samples}/"])) == ["mixed", "store"]

    def test_the_whole_address_where_the_last_part_is_not_enough(self, samples, tmp_path):
        (tmp_path / "store").symlink_to(samples)
        assert list(subjects([samples, tmp_path / "store"])) == [str(samples), str(tmp_path / "store")]

    def test_options_tell_parts_apart(self, samples):
        parts = subjects([f"{samples}?source=mp", f"{samples}?source=oqmd", samples])
        assert list(parts) == ["store?source=mp", "store?source=oqmd", "store"]
        assert [part.address is None for part in parts.values()] == [True, True, False]

    def test_the_same_twice(self, mixed):
        with pytest.raises(FigureError, match="is there twice"):
            subjects([mixed, mixed])

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ReleaseError, match="neither a trajmill store nor a release"):
            subjects([tmp_path / "nothing"])
