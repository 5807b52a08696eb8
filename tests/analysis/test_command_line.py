"""`trajmill figures` and `trajmill report`."""

from __future__ import annotations

import subprocess
import sys

import pytest


def trajmill(*arguments):
    command = [sys.executable, "-m", "trajmill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_figures(mixed, samples, tmp_path):
    arguments = ["--compare", f"{samples}?source=mp", "--only", "sizes", "--only", "curation"]
    result = trajmill("figures", mixed, *arguments, "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("mixed: 60 trajectories")
    assert str(tmp_path / "out/sizes.svg") in lines
    assert lines[-1].startswith("left out: curation of store?source=mp: it is a part of a dataset")


def test_report(mixed, tmp_path):
    result = trajmill("report", mixed, "--out", tmp_path / "r.html")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == str(tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size < 6_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figures", "STORE", "--out", "OUT", "--only", "force"], "no figure force; there are elements, max_force"),
        (["figures", "STORE", "--out", "OUT", "--compare", "nowhere"], "neither a trajmill store nor a release"),
        (["figures", "STORE", "--out", "OUT", "--compare", "STORE"], "is there twice"),
        (["figures", "STORE"], "Missing option '--out'"),
        (["figures", "STORE", "--out", "FILE", "--only", "sizes"], "cannot be written"),
        (["report", "STORE", "--out", "FILE"], "is no report of trajmill"),
    ],
)
def test_what_is_wrong_is_one_line(mixed, tmp_path, arguments, message):
    (tmp_path / "mine").write_text("mine")
    places = {"STORE": mixed, "OUT": tmp_path / "out", "FILE": tmp_path / "mine"}
    result = trajmill(*(places.get(a, a) for a in arguments))
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "mine").read_text() == "mine"
